"""Which stores does a server serve under which names?

It searches for stores at each request, so stores may be added and replaced while it runs.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, Final

from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.redaction import redact_url
from spinezarr.serve.bucket import BucketFolder, BucketStorage, is_served_from
from spinezarr.serve.disk import DiskStorage, stores_on_disk
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.ome import OmeFolder
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.served_files import ServedFolder
from spinezarr.serve.storage import Storage, UnreadableError
from spinezarr.serve.tables import ServedTable
from spinezarr.serve.unsharded import UnshardedFolder
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.engine import ChunkCache
from spinezarr.view.levels import LevelCache

__all__ = ["ServedStores", "StoreLocation"]

_SUFFIX: Final = ".zarr"
_LISTING_THREADS: Final = 8
"""Threads that list buckets for unknown names."""
_LEVEL_BYTES: Final = 128 << 20
"""Size of the cache of coarse levels of a process, in bytes."""


@dataclass(frozen=True, slots=True)
class StoreLocation:
    """Name and location of a store."""

    name: str
    path: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _StoreSource:
    """A path or URL in the settings: a store, or a folder of stores."""

    stores: Callable[[], Sequence[str]] = field(repr=False)
    """Returns the paths or URLs of the current stores there."""
    storage: Callable[[str], Storage] = field(repr=False)
    """Opens one of these stores."""
    check: Callable[[], None] = field(default=lambda: None, repr=False)
    is_remote: bool = False


class ServedStores:
    """Stores on disk and in buckets; safe to share between threads.

    Parameters
    ----------
    paths
        Paths or URLs of stores, or of folders of stores whose names end with ``.zarr``. Stores
        that are added later are served too.
    storage_options
        Options of the file system for each URL, see
        :func:`spinezarr.remote.filesystem.open_filesystem`.
    cache_bytes
        Size of the cache of decoded chunks of all stores, in bytes.
    limits
        Bounds on the work and memory of the process; None for the defaults.

    Raises
    ------
    UsageError
        If a URL is of a kind that cannot be served.
    """

    def __init__(
        self,
        paths: Sequence[str],
        storage_options: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        cache_bytes: int = 0,
        limits: ServeLimits | None = None,
    ) -> None:
        self.limits = limits or ServeLimits()
        self._chunks: ChunkCache = BoundedCache(cache_bytes)
        self.level_cache = LevelCache(_LEVEL_BYTES)
        """Cache of coarse levels of all stores."""
        options = storage_options or {}
        self._sources = tuple(
            _source_of(path, options.get(path, {}), self.limits) for path in paths
        )
        self._opened: dict[str, _StoreViews] = {}
        self._lock = Lock()
        is_remote = any(source.is_remote for source in self._sources)
        self._listing_executor = (
            ThreadPoolExecutor(_LISTING_THREADS, "spinezarr-list") if is_remote else None
        )

    def check(self) -> None:
        """Check that all stores can be served.

        Raises
        ------
        UsageError
            If two stores have the same name, or a bucket refuses access or does not exist.
        OSError
            If a server does not answer.
        """
        for source in self._sources:
            source.check()
        self.list_stores()

    def executor(self, name: str) -> Executor | None:
        """Return the executor for calls about a store; None if no such call waits for a network."""
        views = self._opened.get(name)
        return self._listing_executor if views is None else views.files.executor

    def list_stores(self) -> dict[str, StoreLocation]:
        """Return the current stores by name.

        Raises
        ------
        UnreadableError
            If a bucket cannot be listed.
        """
        stores, problem = self._list_all()
        if problem is not None:
            raise problem
        return {name: location for name, (location, _) in stores.items()}

    def _list_all(
        self,
    ) -> tuple[dict[str, tuple[StoreLocation, _StoreSource]], UnreadableError | None]:
        """Return the current stores by name, and the last error of a source; None if all answer."""
        stores: dict[str, tuple[StoreLocation, _StoreSource]] = {}
        problem = None
        for source in self._sources:
            try:
                paths = source.stores()
            except UnreadableError as error:
                paths, problem = (), error
            for path in paths:
                name = redact_url(path).rstrip("/").rpartition("/")[2].removesuffix(_SUFFIX)
                if name in stores:
                    raise UsageError(
                        f"{redact_url(path)} and {redact_url(stores[name][0].path)}: both would be "
                        f"served as {name!r}. Serve only one of them, or rename a folder."
                    )
                stores[name] = StoreLocation(name, path), source
        return stores, problem

    def files(self, name: str) -> ServedFolder | None:
        """Return the files of a store; None if there is no such store."""
        views = self._find(name)
        return None if views is None else views.files

    def flat(self, name: str) -> UnshardedFolder | None:
        """Return the files of a store without shards; None if there is no such store."""
        views = self._find(name)
        return None if views is None else views.flat

    def ome(self, name: str) -> OmeFolder | None:
        """Return the scans of a store as OME-Zarr images; None if there is no such store."""
        views = self._find(name)
        return None if views is None else views.ome

    def served_table(self, name: str) -> ServedTable | None:
        """Return the scan table of a store; None if there is no such store."""
        views = self._find(name)
        return None if views is None else views.served_table

    def patches(self, name: str) -> PatchSource | None:
        """Return the reader of patches of a store; None if there is no such store."""
        views = self._find(name)
        return None if views is None else views.patches

    def can_be_opened(self) -> bool:
        """Whether all stores can be opened."""
        try:
            tables = [self.served_table(name) for name in self.list_stores()]
            for table in tables:
                if table is not None:
                    table.reader()
        except (SpinezarrError, OSError):
            return False
        return True

    def _find(self, name: str) -> "_StoreViews | None":
        with self._lock:
            views = self._opened.get(name)
        if views is not None and views.files.exists():
            return views
        stores, problem = self._list_all()
        if name not in stores:
            if problem is not None:  # the store may be in the source that cannot be listed
                raise problem
            return None
        location, source = stores[name]
        with self._lock:
            views = self._opened.get(name)
            if views is None or views.files.path != location.path:
                views = self._opened[name] = _StoreViews.of(
                    source.storage(location.path), self._chunks, self.level_cache, self.limits
                )
        return views if views.files.exists() else None


def _source_of(path: str, options: Mapping[str, Any], limits: ServeLimits) -> _StoreSource:
    scheme, separator, path_part = path.partition("://")
    if is_served_from(path):
        folder = BucketFolder(path, options, _SUFFIX, limits)
        return _StoreSource(
            folder.stores,
            lambda url: BucketStorage(url, options, limits),
            folder.check,
            is_remote=True,
        )
    if separator and scheme not in {"file", "local"}:
        raise UsageError(
            f"{redact_url(path)}: only stores on disk, in a bucket (s3://) or on a web server "
            "(http://, https://) can be served."
        )
    local_path = Path(path_part if separator else path).expanduser().resolve()
    return _StoreSource(lambda: stores_on_disk(local_path, _SUFFIX), DiskStorage)


@dataclass(frozen=True, slots=True)
class _StoreViews:
    """The views of one store: files, table, patches, OME-Zarr."""

    files: ServedFolder
    flat: UnshardedFolder
    ome: OmeFolder
    served_table: ServedTable
    patches: PatchSource

    @classmethod
    def of(
        cls, storage: Storage, chunks: ChunkCache, levels: LevelCache, limits: ServeLimits
    ) -> "_StoreViews":
        files = ServedFolder(storage, limits.scans)
        patches = PatchSource(files, chunks, limits)
        ome = OmeFolder(files, patches, levels)
        return cls(files, UnshardedFolder(files), ome, ServedTable(files, limits), patches)
