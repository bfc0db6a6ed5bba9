"""Which stores does a server serve under which names?

It looks for stores at each request, so stores may be added and replaced while it runs.
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

__all__ = ["ServedStores", "StorePlace"]

_SUFFIX: Final = ".zarr"
_LOOKING: Final = 8
"""Threads that list buckets for unknown names."""
_LEVEL_BYTES: Final = 128 << 20
"""Size of the cache of coarse levels of a process, in bytes."""


@dataclass(frozen=True, slots=True)
class StorePlace:
    """Where a store is."""

    name: str
    path: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Given:
    """A path or URL that the server was given: a store, or a folder of stores."""

    stores: Callable[[], Sequence[str]] = field(repr=False)
    """Returns the stores there, as they are now."""
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
        self.kept_levels = LevelCache(_LEVEL_BYTES)
        """Cache of coarse levels of all stores."""
        options = storage_options or {}
        self._given = tuple(_given(path, options.get(path, {}), self.limits) for path in paths)
        self._opened: dict[str, _Served] = {}
        self._lock = Lock()
        is_far = any(given.is_remote for given in self._given)
        self._looking = ThreadPoolExecutor(_LOOKING, "spinezarr-look") if is_far else None

    def check(self) -> None:
        """Check that all stores can be served.

        Raises
        ------
        UsageError
            If two stores have the same name, or a bucket refuses access or does not exist.
        OSError
            If a server does not answer.
        """
        for given in self._given:
            given.check()
        self.list_stores()

    def executor(self, name: str) -> Executor | None:
        """Return the executor for calls about a store; None if no call waits for a network."""
        found = self._opened.get(name)
        return self._looking if found is None else found.files.executor

    def list_stores(self) -> dict[str, StorePlace]:
        """Return the stores by name, as they are now.

        Raises
        ------
        UnreadableError
            If a bucket cannot be listed.
        """
        found, problem = self._look()
        if problem is not None:
            raise problem
        return {name: place for name, (place, _) in found.items()}

    def _look(self) -> tuple[dict[str, tuple[StorePlace, _Given]], UnreadableError | None]:
        """Return the stores that were found, and the places that could not be listed."""
        found: dict[str, tuple[StorePlace, _Given]] = {}
        problem = None
        for given in self._given:
            try:
                paths = given.stores()
            except UnreadableError as caught:
                paths, problem = (), caught
            for path in paths:
                name = redact_url(path).rstrip("/").rpartition("/")[2].removesuffix(_SUFFIX)
                if name in found:
                    raise UsageError(
                        f"{redact_url(path)} and {redact_url(found[name][0].path)}: would both be "
                        f"served as {name!r}. Serve one of them, or rename its folder."
                    )
                found[name] = StorePlace(name, path), given
        return found, problem

    def files(self, name: str) -> ServedFolder | None:
        """Return the files of a store; None if there is no such store."""
        found = self._found(name)
        return None if found is None else found.files

    def flat(self, name: str) -> UnshardedFolder | None:
        """Return the files of a store without shards; None if there is no such store."""
        found = self._found(name)
        return None if found is None else found.flat

    def ome(self, name: str) -> OmeFolder | None:
        """Return the scans of a store as OME-Zarr images; None if there is no such store."""
        found = self._found(name)
        return None if found is None else found.ome

    def served_table(self, name: str) -> ServedTable | None:
        """Return the scan table of a store; None if there is no such store."""
        found = self._found(name)
        return None if found is None else found.served_table

    def patches(self, name: str) -> PatchSource | None:
        """Return the reader of patches of a store; None if there is no such store."""
        found = self._found(name)
        return None if found is None else found.patches

    def can_be_opened(self) -> bool:
        """Whether all stores can be opened."""
        try:
            found = [self.served_table(name) for name in self.list_stores()]
            for served_table in found:
                if served_table is not None:
                    served_table.reader()
        except (SpinezarrError, OSError):
            return False
        return True

    def _found(self, name: str) -> "_Served | None":
        with self._lock:
            known = self._opened.get(name)
        if known is not None and known.files.is_there():
            return known
        places, problem = self._look()
        if name not in places:
            if problem is not None:  # the store may be in the place that cannot be listed
                raise problem
            return None
        place, given = places[name]
        with self._lock:
            found = self._opened.get(name)
            if found is None or found.files.path != place.path:
                found = self._opened[name] = _Served.of(
                    given.storage(place.path), self._chunks, self.kept_levels, self.limits
                )
        return found if found.files.is_there() else None


def _given(path: str, options: Mapping[str, Any], limits: ServeLimits) -> _Given:
    scheme, separator, rest = path.partition("://")
    if is_served_from(path):
        folder = BucketFolder(path, options, _SUFFIX, limits)
        return _Given(
            folder.stores,
            lambda url: BucketStorage(url, options, limits),
            folder.check,
            is_remote=True,
        )
    if separator and scheme not in {"file", "local"}:
        raise UsageError(
            f"{redact_url(path)}: is neither on disk, in a bucket (s3://) nor on a web server "
            "(http://, https://), and cannot be served from there."
        )
    place = Path(rest if separator else path).expanduser().resolve()
    return _Given(lambda: stores_on_disk(place, _SUFFIX), DiskStorage)


@dataclass(frozen=True, slots=True)
class _Served:
    """The views of one store: files, table, patches, OME-Zarr."""

    files: ServedFolder
    flat: UnshardedFolder
    ome: OmeFolder
    served_table: ServedTable
    patches: PatchSource

    @classmethod
    def of(
        cls, storage: Storage, chunks: ChunkCache, levels: LevelCache, limits: ServeLimits
    ) -> "_Served":
        files = ServedFolder(storage, limits.scans)
        patches = PatchSource(files, chunks, limits)
        ome = OmeFolder(files, patches, levels)
        return cls(files, UnshardedFolder(files), ome, ServedTable(files, limits), patches)
