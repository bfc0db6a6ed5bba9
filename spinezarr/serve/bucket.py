"""Stores in a bucket, or on another web server, as they are served.

An object is known by its entity tag: bytes are asked for with ``If-Match`` of the tag that was
there when the object was compared with the manifest, and an answer with another tag is none of
them. Metadata are asked for again with ``If-None-Match`` when what is known is a second old.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from spinezarr.errors import CorruptStoreError, UsageError
from spinezarr.redaction import redact_url
from spinezarr.remote.errors import ChangedObjectError, NoSuchBucketError
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.remote.versions import ObjectVersion, Wanted
from spinezarr.serve.storage import (
    METADATA,
    Content,
    Identity,
    InTurn,
    Recent,
    Seen,
    Storage,
    UnavailableError,
    UnreadableError,
)
from spinezarr.store.attributes import ManifestEntry, ShardEntry
from spinezarr.store.files import read_files
from spinezarr.store.reader import StoreReader
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32, crc32c

__all__ = ["BucketFolder", "BucketStorage", "is_served_from"]

_FRESH_S: Final = 1.0
"""What was seen of a bucket counts for so long."""
_DEADLINE_S: Final = 10.0
"""For bytes that a client waits for: a bucket that takes longer is unavailable."""
_READER_S: Final = 60.0
"""For what patches are read with, many requests at once, and whole tables."""
_THREADS: Final = 32
"""That wait for one store."""
_ROOM_BYTES: Final = 128 << 20
"""Of small files, and of what is known of others."""
_KNOWN_BYTES: Final = 1 << 10
"""What is known of one file."""
_WHOLE_BYTES: Final = 1 << 19
"""A file up to this size is read whole, and kept: the mask of a scan, as a rule."""
_PART_BYTES: Final = 4 << 20
"""Read at once where a whole shard is compared with the manifest."""
_SEEN: Final = 1 << 14
_BUCKETS: Final = {"s3", "s3a"}
_SCHEMES: Final = {*_BUCKETS, "http", "https"}
_ASTRAY: Final = {"http": frozenset("%?#\\"), "s3": frozenset("?")}
"""What part of a URL would mean something else than a name."""
_LISTING: Final = {"connect_timeout": 3, "read_timeout": 5, "retries": {"total_max_attempts": 2}}
"""Of botocore."""


def is_served_from(url: str) -> bool:
    """Whether objects at a URL say of which version they are."""
    return url.partition("://")[0] in _SCHEMES


class BucketFolder:
    """What a URL stands for: a store, or the stores below it in a bucket.

    Parameters
    ----------
    url
        As it was given.
    storage_options
        As for :func:`spinezarr.remote.filesystem.open_filesystem`.
    suffix
        Of a store's name.

    Raises
    ------
    UsageError
        If nothing reads such URLs.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any], suffix: str) -> None:
        self.url = url.rstrip("/")
        self.options = storage_options
        self._suffix = suffix
        self._is_bucket = url.partition("://")[0] in _BUCKETS
        self._objects = RemoteObjects(self.url, storage_options, deadline_s=_DEADLINE_S)
        self._in_turn = InTurn()
        self._found: tuple[float, list[str]] | None = None

    def __repr__(self) -> str:
        return f"<{redact_url(self.url)}>"

    def check(self) -> None:
        """Refuse what cannot be served.

        Raises
        ------
        UsageError
            If it needs other credentials, does not exist, or does not say of which version its
            objects are.
        OSError
            If nobody answers there.
        """
        name = redact_url(self.url)
        try:
            root = self._root()
            if root is None and not self._is_named:
                self._listed()
        except (PermissionError, NoSuchBucketError) as problem:
            raise UsageError(f"{name}: {problem.strerror}.") from None
        except CorruptStoreError as problem:
            raise UsageError(str(problem)) from None
        if root is not None and not root.tag:
            raise UsageError(
                f"{name}: its server does not say of which version an object is (a strong ETag), "
                "so it cannot be served from there. Serve it where it lies."
            )
        if root is None and not self._is_bucket:
            raise UsageError(
                f"{name}: there is no store, and a web server is not looked through. Give the URL "
                "of a store."
            )

    @property
    def _is_named(self) -> bool:
        return redact_url(self.url).endswith(self._suffix)

    def _root(self) -> ObjectVersion | None:
        path = f"{self._objects.path}/{METADATA}"
        return self._objects.version(Wanted(path, limit_bytes=METADATA_BYTES))

    def stores(self) -> list[str]:
        """Return the URLs of the stores that it stands for, as they were at most a second ago.

        Raises
        ------
        UnreadableError
            If it cannot be looked through.
        """
        if self._is_named:
            return [self.url]
        with self._in_turn.of(""):
            began_s = time.monotonic()
            if self._found is None or began_s - self._found[0] > _FRESH_S:
                try:
                    found = [self.url] if self._root() is not None else self._listed()
                except (OSError, CorruptStoreError) as problem:
                    raise UnavailableError("a bucket cannot be looked through.") from problem
                self._found = began_s, found
            return self._found[1]

    def _listed(self) -> list[str]:
        if not self._is_bucket:
            return []
        config = {**_LISTING, **(self.options.get("config_kwargs") or {})}
        fs, path = open_filesystem(self.url, {**self.options, "config_kwargs": config})
        try:
            below = fs.ls(path, detail=False)
        except FileNotFoundError:  # an empty bucket has no folders
            return []
        names = [one.rpartition("/")[2] for one in below if one.endswith(self._suffix)]
        roots = {f"{path}/{name}/{METADATA}": name for name in sorted(names)}
        return [f"{self.url}/{roots[root]}" for root in read_files(fs, roots)]


class BucketStorage(Storage):
    """The objects of one store.

    Parameters
    ----------
    url
        Of the store.
    storage_options
        As for :func:`spinezarr.remote.filesystem.open_filesystem`.
    """

    room = _ROOM_BYTES

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self.path = url
        self.executor: ThreadPoolExecutor = ThreadPoolExecutor(_THREADS, "spinezarr-bucket")
        self._options = storage_options
        self._objects = RemoteObjects(url, storage_options, deadline_s=_DEADLINE_S)
        self._for_readers = RemoteObjects(url, storage_options, deadline_s=_READER_S)
        self._seen: Recent[float] = Recent(_SEEN)
        """By key, when an object of which tag was there; None where there was none."""
        self._in_turn = InTurn()
        scheme = url.partition("://")[0]
        self._astray = _ASTRAY["s3" if scheme in _BUCKETS else "http"]

    def __repr__(self) -> str:
        return f"<{redact_url(self.path)}>"

    def look(self, key: str, known: Identity | None) -> Seen | None:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        if self._is_fresh(key, known):
            return Seen(known, 0, None) if known else None
        with self._in_turn.of(key):
            if self._is_fresh(key, known):  # by now
                return Seen(known, 0, None) if known else None
            began_s = time.monotonic()
            wanted = Wanted(
                f"{self._objects.path}/{key}",
                limit_bytes=METADATA_BYTES,
                unless_tag=str(known or ""),
            )
            found = self.version(wanted, key)
            if found is None:
                self._seen.keep(key, None, began_s)
                return None
            tag = str(known) if found.is_unchanged else found.tag
            if not tag:
                raise UnreadableError(f"{key} is of a version that its server does not name.")
            self._seen.keep(key, tag, began_s)
        data = None if found.is_unchanged else bytes(found.data)
        return Seen(tag, -1 if found.modified_s is None else found.modified_s, data)

    def _is_fresh(self, key: str, known: Identity | None) -> bool:
        """Whether it is known well enough what stands under a key, be it nothing."""
        seen = self._seen.find(key)
        return seen is not None and seen[0] == known and time.monotonic() - seen[1] <= _FRESH_S

    def version(self, wanted: Wanted, key: str) -> ObjectVersion | None:
        """Ask for an object; None if it is absent.

        Raises
        ------
        ChangedObjectError
            If it is of another version than is wanted.
        UnreadableError
            If it cannot be read; an UnavailableError if nobody can tell what it is.
        """
        try:
            return self._objects.version(wanted)
        except ChangedObjectError:
            raise
        except CorruptStoreError as problem:
            raise UnreadableError(f"{key} cannot be read.") from problem
        except OSError as problem:
            raise UnavailableError(f"{key} cannot be read.") from problem

    def open(self, key: str, entry: ManifestEntry, written: int) -> "_Object":
        """See :class:`~spinezarr.serve.storage.Storage`."""
        is_shard = isinstance(entry, ShardEntry) and entry.size_bytes > _WHOLE_BYTES
        end_at = _index_at(entry) if is_shard and isinstance(entry, ShardEntry) else 0
        path, size = f"{self._objects.path}/{key}", entry.size_bytes
        for is_last in (False, True):
            found = self.version(Wanted(path, end_at, size), key)
            if found is None or not found.tag:
                raise UnreadableError(f"{key} is missing, or its server names no version of it.")
            opened = _Object(self, key, path, found, end_at)
            if found.size_bytes == size and opened.fits(entry, written):
                return opened
            if is_last:
                break
        raise UnreadableError(f"{key} is damaged, or is being replaced.")

    def reader(self, *, with_table: bool) -> StoreReader:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        return StoreReader(
            self.path, self._options, with_table=with_table, objects=self._for_readers
        )

    def may_have(self, scan_id: str) -> bool:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        return self._astray.isdisjoint(scan_id)


class _Object(Content):
    """One version of an object, of which the end, or all, is here."""

    def __init__(
        self, storage: BucketStorage, key: str, path: str, end: ObjectVersion, end_at: int
    ) -> None:
        self.executor = storage.executor
        self._storage = storage
        self._key = key
        self._path = path
        self._tag, self._modified_s = end.tag, end.modified_s
        self._end, self._end_at = bytes(end.data), end_at
        self.room = _KNOWN_BYTES + len(self._end)

    def fits(self, entry: ManifestEntry, written: int) -> bool:
        """Whether it is what a manifest says that was written then; its size is."""
        if not self._end_at:
            return f"{crc32(self._end):08x}" == entry.crc32
        if not isinstance(entry, ShardEntry) or not _is_index(self._end, entry):
            return False
        if self._modified_s is not None and self._modified_s < written:
            return True
        at = checksum = 0
        while at < entry.size_bytes:
            data = self.read(at, min(at + _PART_BYTES, entry.size_bytes))
            checksum, at = crc32(data, checksum), at + len(data)
        return f"{checksum:08x}" == entry.crc32

    def read(self, start: int, stop: int) -> bytes:
        """See :class:`~spinezarr.serve.storage.Content`."""
        if start >= self._end_at:
            return self._end[start - self._end_at : stop - self._end_at]
        try:
            found = self._storage.version(Wanted(self._path, start, stop, tag=self._tag), self._key)
        except ChangedObjectError:
            found = None
        if found is None or memoryview(found.data).nbytes != stop - start:
            self.is_stale = True
            raise UnreadableError(f"{self._key} is being replaced.")
        return bytes(found.data)


def _index_at(entry: ShardEntry) -> int:
    """Return where the index of a shard begins, after its chunks."""
    return int(entry.chunk_rows["size"].sum(dtype="int64"))


def _is_index(data: bytes, entry: ShardEntry) -> bool:
    """Whether bytes are the index of a shard, by the checksums in it and in the manifest."""
    content, end = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    checksum = int.from_bytes(end, "little")
    return crc32c(content) == checksum and f"{checksum:08x}" == entry.index_crc32c
