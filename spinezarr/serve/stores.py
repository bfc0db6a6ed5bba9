"""The stores that a server serves, by name; looked for anew whenever one is asked for."""

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
"""Threads that look through buckets for names that are not known."""
_LEVEL_BYTES: Final = 128 << 20
"""Of coarse levels that a process keeps: those that some scans are first shown in."""


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A store that may be asked for."""

    name: str
    path: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Given:
    """A place that the server was given: a store, or a folder of stores."""

    stores: Callable[[], Sequence[str]] = field(repr=False)
    """Returns what it stands for now."""
    storage: Callable[[str], Storage] = field(repr=False)
    """Opens one of them."""
    check: Callable[[], None] = field(default=lambda: None, repr=False)
    is_remote: bool = False


class ServedStores:
    """Stores on disk and in buckets; safe to share between threads.

    Parameters
    ----------
    paths
        Each a store, or a folder of stores whose names end with ``.zarr``; paths, or URLs of
        buckets and web servers. Those that come later are served too.
    storage_options
        Of those that are URLs; see :func:`spinezarr.remote.filesystem.open_filesystem`.
    cache_bytes
        Of decoded chunks of all of them that are kept for patches that others want too.

    Raises
    ------
    UsageError
        If one is the URL of something else.
    """

    def __init__(
        self,
        paths: Sequence[str],
        storage_options: Mapping[str, Mapping[str, Any]] | None = None,
        *,
        cache_bytes: int = 0,
    ) -> None:
        self._chunks: ChunkCache = BoundedCache(cache_bytes)
        self.kept_levels: LevelCache = BoundedCache(_LEVEL_BYTES)
        """Coarse levels that were made, of all of them."""
        options = storage_options or {}
        self._given = tuple(_given(path, options.get(path, {})) for path in paths)
        self._opened: dict[str, _Served] = {}
        self._lock = Lock()
        is_far = any(given.is_remote for given in self._given)
        self._looking = ThreadPoolExecutor(_LOOKING, "spinezarr-look") if is_far else None

    def check(self) -> None:
        """Refuse what cannot be served.

        Raises
        ------
        UsageError
            If two have the same name, or a bucket is closed to us, or absent.
        OSError
            If a server does not answer.
        """
        for given in self._given:
            given.check()
        self.places()

    def executor(self, name: str) -> Executor | None:
        """Return what is to answer for a store, if that may wait for a network."""
        found = self._opened.get(name)
        return self._looking if found is None else found.files.executor

    def places(self) -> dict[str, StorePlace]:
        """Find what there is now, by name.

        Raises
        ------
        UnreadableError
            If a bucket cannot be looked through.
        """
        found, problem = self._look()
        if problem is not None:
            raise problem
        return {name: place for name, (place, _) in found.items()}

    def _look(self) -> tuple[dict[str, tuple[StorePlace, _Given]], UnreadableError | None]:
        """Return what can be found, and what could not be looked through."""
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
        """Return the files of a store, or None if there is none of that name."""
        found = self._found(name)
        return None if found is None else found.files

    def flat(self, name: str) -> UnshardedFolder | None:
        """Return the files of a store as if it had no shards."""
        found = self._found(name)
        return None if found is None else found.flat

    def ome(self, name: str) -> OmeFolder | None:
        """Return the scans of a store as OME-Zarr images."""
        found = self._found(name)
        return None if found is None else found.ome

    def served_table(self, name: str) -> ServedTable | None:
        """Return what is known of a store, or None if there is none of that name."""
        found = self._found(name)
        return None if found is None else found.served_table

    def patches(self, name: str) -> PatchSource | None:
        """Return what reads the patches of a store, or None if there is none of that name."""
        found = self._found(name)
        return None if found is None else found.patches

    def can_be_opened(self) -> bool:
        """Whether every store that there is can be."""
        try:
            found = [self.served_table(name) for name in self.places()]
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
            if problem is not None:  # it may lie there
                raise problem
            return None
        place, given = places[name]
        with self._lock:
            found = self._opened.get(name)
            if found is None or found.files.path != place.path:
                found = self._opened[name] = _Served.of(
                    given.storage(place.path), self._chunks, self.kept_levels
                )
        return found if found.files.is_there() else None


def _given(path: str, options: Mapping[str, Any]) -> _Given:
    scheme, separator, rest = path.partition("://")
    if is_served_from(path):
        folder = BucketFolder(path, options, _SUFFIX)
        return _Given(
            folder.stores, lambda url: BucketStorage(url, options), folder.check, is_remote=True
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
    """What answers for one store."""

    files: ServedFolder
    flat: UnshardedFolder
    ome: OmeFolder
    served_table: ServedTable
    patches: PatchSource

    @classmethod
    def of(cls, storage: Storage, chunks: ChunkCache, levels: LevelCache) -> "_Served":
        files = ServedFolder(storage)
        patches = PatchSource(files, chunks)
        ome = OmeFolder(files, patches, levels)
        return cls(files, UnshardedFolder(files), ome, ServedTable(files), patches)
