"""How does a server read stores that lie in a bucket or on another web server?

The server compares an object with the manifest once, and remembers its entity tag. Later requests
send this tag in ``If-Match``, so an object that was replaced meanwhile is an error. Metadata that
were read more than a second ago are requested again, with ``If-None-Match``.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
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
    Content,
    CurrentFile,
    Identity,
    KeyLocks,
    Storage,
    UnavailableError,
    UnreadableError,
    VersionCache,
)
from spinezarr.store.files import read_files
from spinezarr.store.layout import METADATA
from spinezarr.store.manifest import ManifestEntry, ShardEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.sharding import CHECKSUM_BYTES, crc32, crc32c

__all__ = ["BucketFolder", "BucketStorage", "is_served_from"]

_THREADS: Final = 32
"""Threads that wait for the answers of one store."""
_CAPACITY_BYTES: Final = 128 << 20
"""Memory for the small files of one store, and for the facts about its other files."""
_FILE_COST_BYTES: Final = 1 << 10
"""Estimated memory for the facts about one file."""
_PART_BYTES: Final = 4 << 20
"""Size of one read while a whole shard is compared with the manifest."""
_CHECKED_KEYS: Final = 1 << 14
"""Keys of one store whose last check is remembered."""
_BUCKETS: Final = {"s3", "s3a"}
_SCHEMES: Final = {*_BUCKETS, "http", "https"}
_UNSAFE_CHARACTERS: Final = {"http": frozenset("%?#\\"), "s3": frozenset("?")}
"""Characters of a name that would change the meaning of a URL, by scheme."""
_LISTING_CONFIG: Final = {
    "connect_timeout": 3,
    "read_timeout": 5,
    "retries": {"total_max_attempts": 2},
}
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
        If no file system reads such URLs.
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
        self._key_locks = KeyLocks()
        self._listing: tuple[float, list[str]] | None = None

    def __repr__(self) -> str:
        return f"<{redact_url(self.url)}>"

    def check(self) -> None:
        """Check that the URL can be served.

        Raises
        ------
        UsageError
            If it needs other credentials or does not exist, or if its objects have no entity tags.
        OSError
            If no server answers.
        """
        name = redact_url(self.url)
        try:
            root = self._root()
            if root is None and not self._has_store_name:
                self._list()
        except (PermissionError, NoSuchBucketError) as problem:
            raise UsageError(f"{name}: {problem.strerror}.") from None
        except CorruptStoreError as problem:
            raise UsageError(str(problem)) from None
        if root is not None and not root.etag:
            raise UsageError(
                f"{name}: its server sends no strong ETag, which names the version of an object, "
                "so the store cannot be served from there. Serve it from its own machine."
            )
        if root is None and not self._is_bucket:
            raise UsageError(
                f"{name}: there is no store, and a web server cannot be searched for stores. Give "
                "the URL of a store."
            )

    @property
    def _has_store_name(self) -> bool:
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
        if self._has_store_name:
            return [self.url]
        with self._key_locks.hold(""):
            now_s = monotonic()
            if self._listing is None or now_s - self._listing[0] > self._fresh_s:
                try:
                    urls = [self.url] if self._root() is not None else self._list()
                except (OSError, CorruptStoreError) as problem:
                    raise UnavailableError("a bucket cannot be listed.") from problem
                self._listing = now_s, urls
            return self._listing[1]

    def _list(self) -> list[str]:
        if not self._is_bucket:
            return []
        config = {**_LISTING_CONFIG, **(self.options.get("config_kwargs") or {})}
        fs, path = open_filesystem(self.url, {**self.options, "config_kwargs": config})
        try:
            entries = fs.ls(path, detail=False)
        except FileNotFoundError:  # an empty bucket has no folders
            return []
        names = [entry.rpartition("/")[2] for entry in entries if entry.endswith(self._suffix)]
        name_of_root = {f"{path}/{name}/{METADATA}": name for name in sorted(names)}
        return [f"{self.url}/{name_of_root[root]}" for root in read_files(fs, name_of_root)]


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

    capacity = _CAPACITY_BYTES

    def __init__(self, url: str, storage_options: Mapping[str, Any], limits: ServeLimits) -> None:
        self.path = url
        self.executor: ThreadPoolExecutor = ThreadPoolExecutor(_THREADS, "spinezarr-bucket")
        self._options = storage_options
        self._objects = RemoteObjects(
            url, storage_options, RemoteSettings(deadline_s=limits.bucket_s)
        )
        self._reader_objects = RemoteObjects(
            url, storage_options, RemoteSettings(deadline_s=limits.bucket_reader_s)
        )
        self._max_whole_bytes = limits.bucket_whole_bytes
        self._checked: VersionCache[float] = VersionCache(_CHECKED_KEYS)
        """Time of the last check of each key, in seconds of the monotonic clock.

        The identity is the entity tag; it is None for an absent object."""
        self._fresh_s = limits.bucket_fresh_s
        self._key_locks = KeyLocks()
        scheme = url.partition("://")[0]
        self._unsafe_characters = _UNSAFE_CHARACTERS["s3" if scheme in _BUCKETS else "http"]

    def __repr__(self) -> str:
        return f"<{redact_url(self.path)}>"

    def current_file(self, key: str, known: Identity | None) -> CurrentFile | None:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        if self._is_fresh(key, known):
            return CurrentFile(known, 0, None) if known else None
        with self._key_locks.hold(key):
            if self._is_fresh(key, known):  # another thread has checked it meanwhile
                return CurrentFile(known, 0, None) if known else None
            now_s = monotonic()
            request = ObjectRequest(
                f"{self._objects.path}/{key}",
                limit_bytes=METADATA_BYTES,
                if_none_match=str(known or ""),
            )
            response = self.get_response(request, key)
            if response is None:
                self._checked.keep(key, None, now_s)
                return None
            tag = str(known) if response.is_not_modified else response.etag
            if not tag:
                raise UnreadableError(f"{key} has no entity tag.")
            self._checked.keep(key, tag, now_s)
        data = None if response.is_not_modified else bytes(response.data)
        return CurrentFile(tag, -1 if response.modified_s is None else response.modified_s, data)

    def _is_fresh(self, key: str, known: Identity | None) -> bool:
        """Whether the last check of a key is still valid. The object may be absent."""
        checked = self._checked.find(key)
        return (
            checked is not None
            and checked[0] == known
            and monotonic() - checked[1] <= self._fresh_s
        )

    def get_response(self, request: ObjectRequest, key: str) -> ObjectResponse | None:
        """Request an object; return None if it is absent.

        Raises
        ------
        ChangedObjectError
            If the object has another version than the requested one.
        UnreadableError
            If the object cannot be read.
        UnavailableError
            If the bucket does not answer.
        """
        try:
            return self._objects.get_response(request)
        except ChangedObjectError:
            raise
        except CorruptStoreError as problem:
            raise UnreadableError(f"{key} cannot be read.") from problem
        except OSError as problem:
            raise UnavailableError(f"{key} cannot be read.") from problem

    def open(self, key: str, entry: ManifestEntry, written_at: int) -> "_ObjectVersion":
        """See :class:`~spinezarr.serve.storage.Storage`."""
        is_shard = isinstance(entry, ShardEntry) and entry.size_bytes > self._max_whole_bytes
        end_offset = entry.index_offset if is_shard and isinstance(entry, ShardEntry) else 0
        path, size = f"{self._objects.path}/{key}", entry.size_bytes
        for is_last in (False, True):
            response = self.get_response(ObjectRequest(path, end_offset, size), key)
            if response is None or not response.etag:
                raise UnreadableError(f"{key} is missing, or has no entity tag.")
            version = _ObjectVersion(self, key, path, response, end_offset)
            if response.size_bytes == size and version.matches(entry, written_at):
                return version
            if is_last:
                break
        raise UnreadableError(f"{key} is damaged, or is being replaced.")

    def reader(self, *, with_table: bool) -> StoreReader:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        return StoreReader(
            self.path, self._options, with_table=with_table, objects=self._reader_objects
        )

    def may_have(self, scan_id: str) -> bool:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        return self._unsafe_characters.isdisjoint(scan_id)


class _ObjectVersion(Content):
    """One version of an object. Its last bytes, or all of them, are in memory."""

    def __init__(
        self, storage: BucketStorage, key: str, path: str, end: ObjectResponse, end_offset: int
    ) -> None:
        self.executor = storage.executor
        self._storage = storage
        self._key = key
        self._path = path
        self._tag, self._modified_s = end.etag, end.modified_s
        self._end, self._end_offset = bytes(end.data), end_offset
        self.cost = _FILE_COST_BYTES + len(self._end)

    def matches(self, entry: ManifestEntry, written_at: int) -> bool:
        """Whether the object, which has the right size, is the one that the manifest describes."""
        if not self._end_offset:
            return f"{crc32(self._end):08x}" == entry.crc32
        if not isinstance(entry, ShardEntry) or not _is_index(self._end, entry):
            return False
        if self._modified_s is not None and self._modified_s < written_at:
            return True
        offset = checksum = 0
        while offset < entry.size_bytes:
            data = self.read(offset, min(offset + _PART_BYTES, entry.size_bytes))
            checksum, offset = crc32(data, checksum), offset + len(data)
        return f"{checksum:08x}" == entry.crc32

    def read(self, start: int, stop: int) -> bytes:
        """See :class:`~spinezarr.serve.storage.Content`."""
        if start >= self._end_offset:
            return self._end[start - self._end_offset : stop - self._end_offset]
        try:
            response = self._storage.get_response(
                ObjectRequest(self._path, start, stop, if_match=self._tag), self._key
            )
        except ChangedObjectError:
            response = None
        if response is None or memoryview(response.data).nbytes != stop - start:
            self.is_stale = True
            raise UnreadableError(f"{self._key} is being replaced.")
        return bytes(response.data)


def _is_index(data: bytes, entry: ShardEntry) -> bool:
    """Whether bytes are the index of a shard, by their checksum and that of the manifest."""
    content, end = data[:-CHECKSUM_BYTES], data[-CHECKSUM_BYTES:]
    checksum = int.from_bytes(end, "little")
    return crc32c(content) == checksum and f"{checksum:08x}" == entry.index_crc32c
