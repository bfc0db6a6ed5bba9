"""Which files of a raw folder are in no scan, and why?"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from spinezarr.ingestion.discovery.images import PathNote, mask_matcher
from spinezarr.ingestion.discovery.near_misses import near_misses
from spinezarr.ingestion.discovery.raw_folder import RawFolder, other_names
from spinezarr.recipe import Recipe
from spinezarr.text import to_nfc

__all__ = ["UNMATCHED", "Leftovers", "SortedLeftovers"]

_ORPHAN: Final = "mask without an image"
_COPY: Final = "copy of a file that is used, compressed in another way"
UNMATCHED: Final = "matches no pattern of the recipe"


@dataclass(frozen=True, slots=True)
class SortedLeftovers:
    """Files that belong to no scan."""

    orphans: tuple[PathNote, ...]
    """Masks whose image is absent."""
    unmatched: tuple[PathNote, ...]


class Leftovers:
    """Sorts the files that belong to no scan by the reason."""

    def __init__(self, recipe: Recipe, folder: RawFolder) -> None:
        self._recipe = recipe
        self._folder = folder
        self._is_mask = mask_matcher(recipe)

    def sort(self, used: Collection[str]) -> SortedLeftovers:
        """Sort all files except ``used`` into orphaned masks and others, with reasons."""
        near_miss = near_misses(self._recipe)
        orphans: dict[str, PathNote] = {}
        unmatched: list[PathNote] = []
        for path in (path for path in self._folder.sizes if path not in used):
            names = [to_nfc(path), *other_names(to_nfc(path))]
            folder = f"{path.rpartition('/')[0]}/"
            if self._is_mask(folder):
                orphans[folder] = PathNote(folder, _ORPHAN)
            elif any(file in used for name in names[1:] for file in self._folder.named(name)):
                unmatched.append(PathNote(path, _COPY))
            elif any(map(self._is_mask, names)):
                orphans[path] = PathNote(path, _ORPHAN)
            else:
                unmatched.append(PathNote(path, near_miss(path) or UNMATCHED))
        return SortedLeftovers(tuple(orphans.values()), tuple(unmatched))

    def similar(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return files whose names differ from these only in case, and folders with these names."""
        paths = (
            path for name in names for path in self._paths_by_folded_name.get(name.casefold(), ())
        )
        return tuple(dict.fromkeys(paths))

    @cached_property
    def _paths_by_folded_name(self) -> dict[str, list[str]]:
        paths: dict[str, list[str]] = {}
        for path in self._folder.sizes:
            name = to_nfc(path)
            for spelling in (name, *other_names(name)):
                paths.setdefault(spelling.casefold(), []).append(path)
        for folder in self._folder.folders:
            paths.setdefault(to_nfc(folder[:-1]).casefold(), []).append(folder)
        return paths
