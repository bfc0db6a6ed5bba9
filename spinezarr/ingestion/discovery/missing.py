"""Which scans of a dataset are missing from a raw folder, and which downloads have them?"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from spinezarr.recipe import Recipe

__all__ = ["MissingScans", "missing_scans"]


@dataclass(frozen=True, slots=True)
class MissingScans:
    """Number of scans of one split that are here, and downloads that have the others."""

    split: str
    here: int
    """Number of scans of the split in the raw folder."""
    total: int
    """Number of scans of the split in all downloads."""
    downloads: tuple[tuple[str, int], ...]
    """Name of each download that is missing or incomplete, and the number of scans it lacks."""

    def __str__(self) -> str:
        """Return the numbers as a sentence without its full stop."""
        (name, count), *others = self.downloads
        further = "".join(f" and {count} more with {name}" for name, count in others)
        return (
            f"{self.here} of {self.total} {self.split} scans are here; {count} more come with "
            f"{name}{further}"
        )


def missing_scans(recipe: Recipe, scans: Iterable[tuple[str, str]]) -> tuple[MissingScans, ...]:
    """Compare the scans of a raw folder with the downloads that a recipe lists.

    Parameters
    ----------
    recipe
        Recipe of the dataset.
    scans
        Source and split of each scan.

    Returns
    -------
    tuple of MissingScans
        One for each split that is incomplete, in the order of the recipe.
    """
    here = Counter(scans)
    missing = []
    for split in dict.fromkeys(download.split for download in recipe.downloads.values()):
        downloads = {n: d for n, d in recipe.downloads.items() if d.split == split}
        lacking = {
            name: download.scans - here[download.source, split]
            for name, download in downloads.items()
            if here[download.source, split] < download.scans
        }
        if lacking:
            total = sum(download.scans for download in downloads.values())
            present = sum(count for (_, name), count in here.items() if name == split)
            missing.append(MissingScans(split, present, total, tuple(lacking.items())))
    return tuple(missing)
