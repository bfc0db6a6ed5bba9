"""How do several binary mask files, one for each vertebra, become one label volume?"""

import hashlib
import math
from collections.abc import Container, Iterable, Iterator, Sequence
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
"""Largest value of a mask file."""
_MAX_VERTEBRA_SHARE: Final = 0.5
"""Largest share of the voxels of a volume that one vertebra may have.

No whole vertebra in the real masks of lidc-idri-0001, sub-verse004 and the TotalSegmentator example
fills more than 0.28 of its own bounding box. It cannot fill half of a volume, however closely that
is cropped. A mask with 0 and 1 exchanged does.
"""


class MergedLabels:
    """Several binary masks on one grid, read as one :class:`spinezarr.formats.volume.Volume`.

    Each nonzero voxel of a part gets the label of that part. If parts overlap, the later one wins,
    and :attr:`overlap_voxels` counts these voxels. Values with a rounding error are rounded. All
    files are open at once and are read one slab of one file at a time.

    Parameters
    ----------
    parts
        Label (1 to 255) and opened volume of each file. Later parts overwrite earlier ones.
    paths
        Paths of the files, for messages.
    vertebrae
        Labels that are whole vertebrae.

    Raises
    ------
    UsageError
        If there are no parts, or a label is not from 1 to 255.
    GridMismatchError
        If a part has another grid than the first, or its axes in another order.
    """

    def __init__(
        self,
        parts: Sequence[tuple[int, Volume]],
        paths: Sequence[str],
        vertebrae: Container[int] = NAME_OF_VALUE,
    ) -> None:
        if not parts:
            raise UsageError("there is no mask file to merge, expected at least one")
        for (label, volume), path in zip(parts, paths, strict=True):
            if not 1 <= label <= _LABEL_MAX:
                raise UsageError(f"{path}: has the label {label}, expected 1 to {_LABEL_MAX}")
            _check_same_grid(parts[0][1].grid, volume.grid, paths[0], path)
        self._parts = tuple(parts)
        self._paths = tuple(paths)
        self._vertebrae = vertebrae
        self._overlap_voxels: int | None = None
        self._rounding = Rounding()

    @property
    def grid(self) -> Grid:
        """Grid that the first file states."""
        return self._parts[0][1].grid

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the labels: uint8."""
        return _DTYPE

    @property
    def scaling(self) -> Scaling | None:
        """Always None, because labels are not scaled."""
        return None

    def unscaled(self) -> "MergedLabels":
        """Return this volume, because labels are not scaled."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user on the files. A remark on several files occurs once."""
        return tuple(dict.fromkeys(note for _, volume in self._parts for note in volume.notes))

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the labels in file order; see :meth:`spinezarr.formats.volume.Volume.slabs`.

        Raises
        ------
        LabelError
            If a file holds a fractional value, a negative one, or more than one value besides 0, or
            if the mask of a vertebra fills more than half of the volume.
        """
        self._overlap_voxels = None
        self._rounding = Rounding()
        slab_thicknesses = tuple(thicknesses)
        readers = [
            _PartReader(
                label, path, volume.slabs(slab_thicknesses), is_vertebra=label in self._vertebrae
            )
            for (label, volume), path in zip(self._parts, self._paths, strict=True)
        ]
        overlap_voxels = 0
        for thickness in slab_thicknesses:
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
        """Number of voxels in more than one part; known after :meth:`slabs` was read to its end."""
        if self._overlap_voxels is None:
            raise RuntimeError("overlap_voxels before the end of slabs()")
        return self._overlap_voxels

    @property
    def rounding(self) -> Rounding:
        """Count of rounded values; known after :meth:`slabs` was read to its end."""
        return self._rounding

    def source_file(self) -> SourceFile:
        """Return the size of all files together, and one hash for all.

        The hash is the SHA-256 of the files' binary SHA-256 digests in the order of the parts.
        """
        files = [volume.source_file() for _, volume in self._parts]
        digests = b"".join(bytes.fromhex(file.sha256) for file in files)
        return SourceFile(
            sum(file.size_bytes for file in files), hashlib.sha256(digests).hexdigest()
        )


class _PartReader:
    """Reads the mask of one part, slab by slab."""

    def __init__(
        self, label: int, path: str, slabs: Iterator[npt.NDArray[Any]], *, is_vertebra: bool
    ) -> None:
        self.rounding = Rounding()
        self._label = label
        self._path = path
        self._slabs = slabs
        self._is_vertebra = is_vertebra
        self._foreground: npt.NDArray[Any] | None = None
        self._claimed_voxels = 0

    def draw_next(self, merged: npt.NDArray[np.uint8], overlap: npt.NDArray[np.bool_]) -> None:
        """Write the next slab's label into ``merged``; mark in ``overlap`` voxels that had one."""
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
                "outside of its structure and a positive value inside. Write it again in this form."
            )
        self._claimed_voxels += values.size
        overlap |= claimed & (merged != 0)
        merged[claimed] = self._label

    def finish(self, n_voxels: int) -> None:
        """Check the file to its end, and the share of the volume that its mask fills.

        Parameters
        ----------
        n_voxels
            Number of voxels of the volume.
        """
        # Requesting one more slab makes the volume check the end of its file.
        next(self._slabs, None)
        share = self._claimed_voxels / n_voxels
        if share > _MAX_VERTEBRA_SHARE and self._is_vertebra:
            raise LabelError(
                f"{self._path}: its value {self._foreground} fills {share:.1%} of the volume, "
                f"expected at most {_MAX_VERTEBRA_SHARE:.0%} for one vertebra. If 0 marks the "
                "structure, exchange the values."
            )

    def _rounded(self, slab: npt.NDArray[Any]) -> npt.NDArray[Any]:
        try:
            rounded, rounding = round_labels(slab, _VALUE_MAX)
        except LabelError as problem:
            raise LabelError(f"{self._path}: {problem}") from problem
        self.rounding.add(rounding)
        return rounded


def _check_same_grid(first: Grid, grid: Grid, first_path: str, path: str) -> None:
    """Refuse a part whose grid, in file order, is not that of the first part."""
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
