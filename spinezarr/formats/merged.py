"""One label volume from several binary mask files, as of datasets with one file a vertebra."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import GridMismatchError, LabelError, UsageError
from spinezarr.formats.source_file import SourceFile
from spinezarr.formats.volume import Volume
from spinezarr.geometry import GRID_TOLERANCE, Grid, max_corner_distance_mm

__all__ = ["MergedLabels"]

_DTYPE: Final = np.dtype(np.uint8)
_LABEL_MAX: Final = 255


class MergedLabels:
    """Binary masks on one grid as one mask; see :class:`spinezarr.formats.volume.Volume`.

    Each voxel that is not zero in a part gets the label of that part. Where parts overlap, the
    later one wins, and :attr:`overlap_voxels` tells for how many voxels. All files are read side
    by side, one slab of one file at a time.

    Parameters
    ----------
    parts
        Label, from 1 to 255, and opened volume of each file; the last is the one that wins.
    paths
        Their paths, for messages.

    Raises
    ------
    UsageError
        If there are no parts, or a label is none.
    GridMismatchError
        If a part has another grid, or its axes in another order, than the first.
    """

    def __init__(self, parts: Sequence[tuple[int, Volume]], paths: Sequence[str]) -> None:
        if not parts:
            raise UsageError("there is no mask file to merge, expected at least one")
        for (label, volume), path in zip(parts, paths, strict=True):
            if not 1 <= label <= _LABEL_MAX:
                raise UsageError(f"{path}: is to become label {label}, expected 1 to {_LABEL_MAX}")
            _check_same_grid(parts[0][1].grid, volume.grid, paths[0], path)
        self._parts = tuple(parts)
        self._paths = tuple(paths)
        self._overlap_voxels: int | None = None

    @property
    def grid(self) -> Grid:
        """Shape and affine as the first file states them."""
        return self._parts[0][1].grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint8."""
        return _DTYPE

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the files; what several have in common is said once."""
        return tuple(dict.fromkeys(note for _, volume in self._parts for note in volume.notes))

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the labels in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`.

        Raises
        ------
        LabelError
            If a file holds more than one value besides 0.
        """
        self._overlap_voxels = None
        asked = tuple(thicknesses)
        readers = [
            _PartReader(label, path, volume.slabs(asked))
            for (label, volume), path in zip(self._parts, self._paths, strict=True)
        ]
        overlap_voxels = 0
        for thickness in asked:
            merged = np.zeros((*self.grid.shape_ijk[:2], thickness), _DTYPE, order="F")
            overlap = np.zeros_like(merged, np.bool_)
            for reader in readers:
                reader.draw_next(merged, overlap)
            overlap_voxels += int(np.count_nonzero(overlap))
            yield merged
        for reader in readers:
            reader.finish()
        self._overlap_voxels = overlap_voxels

    @property
    def overlap_voxels(self) -> int:
        """Voxels that more than one file claims; known once :meth:`slabs` was read to its end."""
        if self._overlap_voxels is None:
            raise RuntimeError("overlap_voxels before the end of slabs()")
        return self._overlap_voxels

    def source_file(self) -> SourceFile:
        """Size of all files together, and the hash of their SHA-256 digests, 32 bytes each.

        Both in the order of the parts.
        """
        files = [volume.source_file() for _, volume in self._parts]
        digests = b"".join(bytes.fromhex(file.sha256) for file in files)
        return SourceFile(
            sum(file.size_bytes for file in files), hashlib.sha256(digests).hexdigest()
        )


class _PartReader:
    """One file while it is read."""

    def __init__(self, label: int, path: str, slabs: Iterator[npt.NDArray[Any]]) -> None:
        self._label = label
        self._path = path
        self._slabs = slabs
        self._foreground: npt.NDArray[Any] | None = None

    def draw_next(self, merged: npt.NDArray[np.uint8], overlap: npt.NDArray[np.bool_]) -> None:
        """Label the next slab's voxels in ``merged``; note in ``overlap`` which had a label."""
        slab = next(self._slabs)
        claimed = slab != 0
        values = slab[claimed]
        if not values.size:
            return
        if self._foreground is None:
            self._foreground = values[0]
        other = values[values != self._foreground]
        if other.size:
            raise LabelError(
                f"{self._path}: holds the values {self._foreground} and {other[0]}; a mask that "
                "is merged holds 0 and one other value. If it holds labels, ingest it as it is."
            )
        overlap |= claimed & (merged != 0)
        merged[claimed] = self._label

    def finish(self) -> None:
        """Ask for one slab more, which makes the volume check its file to the end."""
        next(self._slabs, None)


def _check_same_grid(first: Grid, grid: Grid, first_path: str, path: str) -> None:
    """Refuse a part whose voxels do not lie, in file order, on those of the first."""
    problem = ""
    if grid.shape_ijk != first.shape_ijk:
        problem = "have different shapes"
    elif grid.axis_map != first.axis_map:
        problem = "have axes in different directions"
    else:
        distance = max_corner_distance_mm(first, grid)
        if distance > GRID_TOLERANCE * min(first.spacing_zyx_mm):
            problem = f"have the same shape, but their corners are {distance:.3g} mm apart"
    if problem:
        raise GridMismatchError(
            f"two masks of one scan {problem}:\n"
            f"  {first_path}: {first.describe()}\n"
            f"  {path}: {grid.describe()}\n"
            "Get the masks that belong together."
        )
