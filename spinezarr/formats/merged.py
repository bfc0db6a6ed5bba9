"""One label volume from several binary mask files, as of datasets with one file a vertebra."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import GridMismatchError, LabelError, UsageError
from spinezarr.formats.rounding import Rounding, round_labels
from spinezarr.formats.source_file import SourceFile
from spinezarr.formats.volume import Volume
from spinezarr.geometry import GRID_TOLERANCE, Grid, max_corner_distance_mm
from spinezarr.scaling import Scaling
from spinezarr.text import MultilineText
from spinezarr.vertebrae import NAME_OF_VALUE

__all__ = ["MergedLabels"]

_DTYPE: Final = np.dtype(np.uint8)
_LABEL_MAX: Final = 255
_VALUE_MAX: Final = 65535
"""The largest value of a mask file."""
_LARGEST_SHARE: Final = 0.5
"""Of the voxels of a volume, how many a vertebra may have at most.

No whole vertebra in the real masks of lidc-idri-0001, sub-verse004 and the TotalSegmentator example
fills more than 0.28 of its own bounding box, so it cannot fill half of a volume around it, however
closely that is cropped. A mask with 1 and 0 exchanged fills more than that.
"""


class MergedLabels:
    """Binary masks on one grid as one mask; see :class:`spinezarr.formats.volume.Volume`.

    Each voxel that is not zero in a part gets the label of that part. Where parts overlap, the
    later one wins, and :attr:`overlap_voxels` tells for how many voxels. Values that are off by a
    rounding error are rounded. All files are read side by side, one slab of one file at a time.

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
        self._rounding = Rounding()

    @property
    def grid(self) -> Grid:
        """Shape and affine as the first file states them."""
        return self._parts[0][1].grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Always uint8."""
        return _DTYPE

    @property
    def scaling(self) -> Scaling | None:
        """None: labels are not scaled."""
        return None

    def unscaled(self) -> "MergedLabels":
        """Return itself."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of the files; what several have in common is said once."""
        return tuple(dict.fromkeys(note for _, volume in self._parts for note in volume.notes))

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the labels in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`.

        Raises
        ------
        LabelError
            If a file holds a value that is no whole number, a negative one, more than one besides
            0, or, as the mask of a vertebra, more than half of the volume.
        """
        self._overlap_voxels = None
        self._rounding = Rounding()
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
            reader.finish(math.prod(self.grid.shape_ijk))
            self._rounding.add(reader.rounding)
        self._overlap_voxels = overlap_voxels

    @property
    def overlap_voxels(self) -> int:
        """Voxels that more than one file claims; known once :meth:`slabs` was read to its end."""
        if self._overlap_voxels is None:
            raise RuntimeError("overlap_voxels before the end of slabs()")
        return self._overlap_voxels

    @property
    def rounding(self) -> Rounding:
        """Values of the files that were rounded; known once :meth:`slabs` was read to its end."""
        return self._rounding

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
        self.rounding = Rounding()
        self._label = label
        self._path = path
        self._slabs = slabs
        self._foreground: npt.NDArray[Any] | None = None
        self._claimed_voxels = 0

    def draw_next(self, merged: npt.NDArray[np.uint8], overlap: npt.NDArray[np.bool_]) -> None:
        """Label the next slab's voxels in ``merged``; note in ``overlap`` which had a label."""
        slab = next(self._slabs)
        claimed = slab != 0
        values = slab[claimed]
        if values.dtype.kind == "f" and (values != np.rint(values)).any():
            slab = self._rounded(slab)
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
        if not 0 < self._foreground < np.inf:
            raise LabelError(
                f"{self._path}: holds the value {self._foreground}; a mask that is merged holds 0 "
                "outside of its structure and a positive value inside. Write it again so."
            )
        self._claimed_voxels += values.size
        overlap |= claimed & (merged != 0)
        merged[claimed] = self._label

    def finish(self, n_voxels: int) -> None:
        """Ask for one slab more, which makes the volume check its file to the end.

        Parameters
        ----------
        n_voxels
            Of the volume.
        """
        next(self._slabs, None)
        share = self._claimed_voxels / n_voxels
        if share > _LARGEST_SHARE and self._label in NAME_OF_VALUE:
            raise LabelError(
                f"{self._path}: its value {self._foreground} has {share:.1%} of the volume, "
                f"expected at most {_LARGEST_SHARE:.0%} of it for one vertebra. If 0 is inside of "
                "the structure, exchange the values."
            )

    def _rounded(self, slab: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            rounded, rounding = round_labels(slab, _VALUE_MAX)
        except LabelError as problem:
            raise LabelError(f"{self._path}: {problem}") from problem
        self.rounding.add(rounding)
        return rounded


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
            MultilineText(
                f"two masks of one scan {problem}:",
                f"  {first_path}: {first.describe()}",
                f"  {path}: {grid.describe()}",
                "Get the masks that belong together.",
            )
        )
