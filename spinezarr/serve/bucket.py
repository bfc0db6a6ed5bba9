"""How does a server read stores that lie in a bucket or on another web server?

The server compares an object with the manifest once, and remembers its entity tag. Later requests
send this tag in ``If-Match``, so an object that was replaced meanwhile is an error. Metadata that
were read more than a second ago are asked for again, with ``If-None-Match``.
"""

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from spinezarr.errors import CorruptStoreError, UsageError
from spinezarr.redaction import redact_url
from spinezarr.remote.errors import ChangedObjectError, NoSuchBucketError
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.remote.object_request import ObjectRequest, ObjectResponse
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.settings import METADATA_BYTES, RemoteSettings
from spinezarr.serve.limits import ServeLimits
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
from spinezarr.store.files import read_files
from spinezarr.store.manifest import ManifestEntry, ShardEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32, crc32c

__all__ = ["BucketFolder", "BucketStorage", "is_served_from"]

_THREADS: Final = 32
"""Threads that wait for the answers of one store."""
_ROOM_BYTES: Final = 128 << 20
"""Memory for small files, and for what is known of other files, of one store."""
_KNOWN_BYTES: Final = 1 << 10
"""Memory that the facts of one file take, as an estimate."""
_PART_BYTES: Final = 4 << 20
"""Size of one read while a whole shard is compared with the manifest."""
_SEEN: Final = 1 << 14
_BUCKETS: Final = {"s3", "s3a"}
_SCHEMES: Final = {*_BUCKETS, "http", "https"}
_ASTRAY: Final = {"http": frozenset("%?#\\"), "s3": frozenset("?")}
"""Characters of a name that would change the meaning of a URL, by scheme."""
_LISTING: Final = {"connect_timeout": 3, "read_timeout": 5, "retries": {"total_max_attempts": 2}}
"""Options of botocore for listing a bucket."""


def is_served_from(url: str) -> bool:
    """Whether objects at a URL have entity tags, so that they can be served."""
    return url.partition("://")[0] in _SCHEMES


class BucketFolder:
    """A URL of one store, or of a bucket folder with several stores.

    Parameters
    ----------
    url
        URL of the store or folder.
    storage_options
        Options of the file system, see :func:`spinezarr.remote.filesystem.open_filesystem`.
    suffix
        Ending of the names of stores.
    limits
        Bounds on waiting and memory.

    Raises
    ------
    UsageError
        If nothing reads such URLs.
    """

    def __init__(
        self, url: str, storage_options: Mapping[str, Any], suffix: str, limits: ServeLimits
    ) -> None:
        self.url = url.rstrip("/")
        self.options = storage_options
        self._suffix = suffix
        self._is_bucket = url.partition("://")[0] in _BUCKETS
        self._objects = RemoteObjects(
            self.url, storage_options, RemoteSettings(deadline_s=limits.bucket_s)
        )
        self._fresh_s = limits.bucket_fresh_s
        self._in_turn = InTurn()
        self._found: tuple[float, list[str]] | None = None

    def __repr__(self) -> str:
        return f"<{redact_url(self.url)}>"

    def check(self) -> None:
        """Check that the URL can be served.

        Raises
        ------
        UsageError
            If it needs other credentials, does not exist, or its objects have no entity tags.
        OSError
            If no server answers.
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
        if root is not None and not root.etag:
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

    def _root(self) -> ObjectResponse | None:
        path = f"{self._objects.path}/{METADATA}"
        return self._objects.get_response(ObjectRequest(path, limit_bytes=METADATA_BYTES))

    def stores(self) -> list[str]:
        """Return the URLs of the stores, as they were at most a second ago.

        Raises
        ------
        UnreadableError
            If the folder cannot be listed.
        """
        if self._is_named:
            return [self.url]
        with self._in_turn.of(""):
            began_s = time.monotonic()
            if self._found is None or began_s - self._found[0] > self._fresh_s:
                try:
                    found = [self.url] if self._root() is not None else self._listed()
                except (OSError, CorruptStoreError) as problem:
                    raise UnavailableError("a bucket cannot be listed.") from problem
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
        URL of the store.
    storage_options
        Options of the file system, see :func:`spinezarr.remote.filesystem.open_filesystem`.
    limits
        Bounds on waiting and memory.
    """

    room = _ROOM_BYTES

    def __init__(self, url: str, storage_options: Mapping[str, Any], limits: ServeLimits) -> None:
        self.path = url
        self.executor: ThreadPoolExecutor = ThreadPoolExecutor(_THREADS, "spinezarr-bucket")
        self._options = storage_options
        self._objects = RemoteObjects(
            url, storage_options, RemoteSettings(deadline_s=limits.bucket_s)
        )
        self._for_readers = RemoteObjects(
            url, storage_options, RemoteSettings(deadline_s=limits.bucket_reader_s)
        )
        self._whole_bytes = limits.bucket_whole_bytes
        self._seen: Recent[float] = Recent(_SEEN)
        """When each key was looked at last, and its entity tag; None for an absent object."""
        self._fresh_s = limits.bucket_fresh_s
        self._in_turn = InTurn()
        scheme = url.partition("://")[0]
        self._astray = _ASTRAY["s3" if scheme in _BUCKETS else "http"]

    def __repr__(self) -> str:
        return f"<{redact_url(self.path)}>"

    def current_file(self, key: str, known: Identity | None) -> Seen | None:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        if self._is_fresh(key, known):
            return Seen(known, 0, None) if known else None
        with self._in_turn.of(key):
            if self._is_fresh(key, known):  # another thread has looked meanwhile
                return Seen(known, 0, None) if known else None
            began_s = time.monotonic()
            wanted = ObjectRequest(
                f"{self._objects.path}/{key}",
                limit_bytes=METADATA_BYTES,
                if_none_match=str(known or ""),
            )
            found = self.version(wanted, key)
            if found is None:
                self._seen.keep(key, None, began_s)
                return None
            tag = str(known) if found.is_not_modified else found.etag
            if not tag:
                raise UnreadableError(f"{key} has no entity tag.")
            self._seen.keep(key, tag, began_s)
        data = None if found.is_not_modified else bytes(found.data)
        return Seen(tag, -1 if found.modified_s is None else found.modified_s, data)

    def _is_fresh(self, key: str, known: Identity | None) -> bool:
        """Whether the last look at a key still counts; the object may be absent."""
        seen = self._seen.find(key)
        return seen is not None and seen[0] == known and time.monotonic() - seen[1] <= self._fresh_s

    def version(self, wanted: ObjectRequest, key: str) -> ObjectResponse | None:
        """Request an object; return None if it is absent.

        Raises
        ------
        ChangedObjectError
            If the object has another version than the wanted one.
        UnreadableError
            If the object cannot be read; UnavailableError if the bucket does not answer.
        """
        try:
            return self._objects.get_response(wanted)
        except ChangedObjectError:
            raise
        except CorruptStoreError as problem:
            raise UnreadableError(f"{key} cannot be read.") from problem
        except OSError as problem:
            raise UnavailableError(f"{key} cannot be read.") from problem

    def open(self, key: str, entry: ManifestEntry, written: int) -> "_Object":
        """See :class:`~spinezarr.serve.storage.Storage`."""
        is_shard = isinstance(entry, ShardEntry) and entry.size_bytes > self._whole_bytes
        end_at = _index_at(entry) if is_shard and isinstance(entry, ShardEntry) else 0
        path, size = f"{self._objects.path}/{key}", entry.size_bytes
        for is_last in (False, True):
            found = self.version(ObjectRequest(path, end_at, size), key)
            if found is None or not found.etag:
                raise UnreadableError(f"{key} is missing, or has no entity tag.")
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
    """One version of an object, with its last bytes, or all of them, in memory."""

    def __init__(
        self, storage: BucketStorage, key: str, path: str, end: ObjectResponse, end_at: int
    ) -> None:
        self.executor = storage.executor
        self._storage = storage
        self._key = key
        self._path = path
        self._tag, self._modified_s = end.etag, end.modified_s
        self._end, self._end_at = bytes(end.data), end_at
        self.room = _KNOWN_BYTES + len(self._end)

    def fits(self, entry: ManifestEntry, written: int) -> bool:
        """Whether the object of that size is the one that the manifest describes."""
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
            found = self._storage.version(
                ObjectRequest(self._path, start, stop, if_match=self._tag), self._key
            )
        except ChangedObjectError:
            found = None
        if found is None or memoryview(found.data).nbytes != stop - start:
            self.is_stale = True
            raise UnreadableError(f"{self._key} is being replaced.")
        return bytes(found.data)


def _index_at(entry: ShardEntry) -> int:
    """Return the offset of the index of a shard, behind its chunks."""
    return int(entry.chunk_rows["size"].sum(dtype="int64"))


def _is_index(data: bytes, entry: ShardEntry) -> bool:
    """Whether bytes are the index of a shard, by its own checksum and the manifest's."""
    content, end = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    checksum = int.from_bytes(end, "little")
    return crc32c(content) == checksum and f"{checksum:08x}" == entry.index_crc32c
