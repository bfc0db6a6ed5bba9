"""The stores that a server serves, by name; looked for anew whenever one is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.serve.facts import StoreFacts
from spinezarr.serve.flat import FlatFolder
from spinezarr.serve.objects import ServedFolder
from spinezarr.serve.patches import PatchSource

__all__ = ["ServedStores", "StorePlace"]

_SUFFIX = ".zarr"


@dataclass(frozen=True, slots=True)
class StorePlace:
    """A store that may be asked for."""

    name: str
    path: str


class ServedStores:
    """Stores on disk; safe to share between threads.

    Parameters
    ----------
    paths
        Each a store, or a folder of stores whose names end with ``.zarr``. Those that come later
        are served too.

    Raises
    ------
    UsageError
        If two have the same name.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._given = tuple(str(Path(path).expanduser().resolve()) for path in paths)
        self._opened: dict[str, _Served] = {}
        self._lock = Lock()
        self.places()

    def places(self) -> dict[str, StorePlace]:
        """Find what there is now, by name."""
        found: dict[str, StorePlace] = {}
        for given in map(Path, self._given):
            is_store = (given / "zarr.json").exists() or given.suffix == _SUFFIX
            for path in (given,) if is_store else sorted(given.glob(f"*{_SUFFIX}")):
                name = path.name.removesuffix(_SUFFIX)
                if not (path / "zarr.json").exists():
                    continue
                if name in found:
                    raise UsageError(
                        f"{path} and {found[name].path}: would both be served as {name!r}. Serve "
                        "one of them, or rename its folder."
                    )
                found[name] = StorePlace(name, str(path))
        return found

    def files(self, name: str) -> ServedFolder | None:
        """Return the files of a store, or None if there is none of that name."""
        found = self._found(name)
        return None if found is None else found.files

    def flat(self, name: str) -> FlatFolder | None:
        """Return the files of a store as if it had no shards."""
        found = self._found(name)
        return None if found is None else found.flat

    def facts(self, name: str) -> StoreFacts | None:
        """Return what is known of a store, or None if there is none of that name."""
        found = self._found(name)
        return None if found is None else found.facts

    def patches(self, name: str) -> PatchSource | None:
        """Return what reads the patches of a store, or None if there is none of that name."""
        found = self._found(name)
        return None if found is None else found.patches

    def can_be_opened(self) -> bool:
        """Whether every store that there is can be."""
        try:
            found = [self.facts(name) for name in self.places()]
            for facts in found:
                if facts is not None:
                    facts.reader()
        except (SpinezarrError, OSError):
            return False
        return True

    def _found(self, name: str) -> "_Served | None":
        with self._lock:
            known = self._opened.get(name)
        if known is not None and known.files.is_there():
            return known
        place = self.places().get(name)
        if place is None:
            return None
        with self._lock:
            found = self._opened.get(name)
            if found is None or found.files.path != place.path:
                found = self._opened[name] = _Served.at(place.path)
            return found


@dataclass(frozen=True, slots=True)
class _Served:
    """What answers for one store."""

    files: ServedFolder
    flat: FlatFolder
    facts: StoreFacts
    patches: PatchSource

    @classmethod
    def at(cls, path: str) -> "_Served":
        files = ServedFolder(path)
        return cls(files, FlatFolder(files), StoreFacts(path, files), PatchSource(path, files))
