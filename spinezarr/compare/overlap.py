"""Where do the levels of two masks lie, and how many voxels do they share?

One pass over both masks counts all of this. It works on a few slices at a time.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, Matrix4x4
from spinezarr.vertebrae import BACKGROUND, NAME_OF_VALUE, VALUE_OF_NAME

__all__ = ["LabelMask", "MaskLevel", "MaskOverlap", "measure_overlap"]

LabelMask = npt.NDArray[np.uint8]
"""Label values with axes ``(z, y, x)``."""
_N_VALUES: Final = 256
_SLAB_VOXELS: Final = 1 << 22
"""Number of voxels that are counted at once."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskLevel:
    """The voxels of one level in one mask."""

    voxel_count: int
    centroid_xyz_mm: npt.NDArray[np.float64]
    """Mean position (x, y, z) of the voxels in RAS+ mm."""
    box: Box
    """Smallest box that holds the voxels."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskOverlap:
    """The levels of a true and a predicted mask, by name."""

    truth: Mapping[str, MaskLevel]
    prediction: Mapping[str, MaskLevel]
    shared_voxels: npt.NDArray[np.int64] = field(repr=False)
    """Number of voxels that have a true value (row) and a predicted value (column)."""

    @property
    def ignored_values(self) -> tuple[int, ...]:
        """Values of the prediction that are neither background nor a vertebra."""
        values = np.flatnonzero(self.shared_voxels.any(axis=0)).tolist()
        return tuple(v for v in values if v != BACKGROUND and v not in NAME_OF_VALUE)

    def dice(self, true_name: str, predicted_name: str | None) -> float:
        """Return the Dice coefficient of two levels; 0 if one of the masks lacks its level."""
        true_level = self.truth.get(true_name)
        predicted_level = self.prediction.get(predicted_name or "")
        if true_level is None or predicted_name is None or predicted_level is None:
            return 0.0
        shared = int(self.shared_voxels[VALUE_OF_NAME[true_name], VALUE_OF_NAME[predicted_name]])
        return 2 * shared / (true_level.voxel_count + predicted_level.voxel_count)


def measure_overlap(truth: LabelMask, prediction: LabelMask, affine_xyz: Matrix4x4) -> MaskOverlap:
    """Locate the levels of two masks on one grid, and count the voxels that they share.

    Values that are no vertebra of :data:`spinezarr.vertebrae.NAME_OF_VALUE` are ignored.

    Parameters
    ----------
    truth, prediction
        Masks of one shape.
    affine_xyz
        4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"masks of shapes {truth.shape} and {prediction.shape} (z, y, x)")
    shared = np.zeros(_N_VALUES * _N_VALUES, np.int64)
    counters = _AxisCounts(truth.shape), _AxisCounts(prediction.shape)
    slice_voxels = max(truth.shape[1] * truth.shape[2], 1)
    thickness = max(_SLAB_VOXELS // slice_voxels, 1)
    for start in range(0, truth.shape[0], thickness):
        slabs = truth[start : start + thickness], prediction[start : start + thickness]
        indices_zyx = np.nonzero(slabs[0] | slabs[1])
        values = tuple(slab[indices_zyx].astype(np.intp) for slab in slabs)
        shared += np.bincount(values[0] * _N_VALUES + values[1], minlength=shared.size)
        for counter, slab_values in zip(counters, values, strict=True):
            counter.add(slab_values, (indices_zyx[0] + start, *indices_zyx[1:]))
    return MaskOverlap(
        counters[0].levels(affine_xyz),
        counters[1].levels(affine_xyz),
        shared.reshape(_N_VALUES, _N_VALUES),
    )


class _AxisCounts:
    """Number of voxels of each value at each index along each axis."""

    def __init__(self, shape_zyx: tuple[int, ...]) -> None:
        self._counts = [np.zeros((_N_VALUES, n), np.int64) for n in shape_zyx]

    def add(
        self, values: npt.NDArray[np.intp], indices_zyx: tuple[npt.NDArray[np.intp], ...]
    ) -> None:
        """Add voxels with these values and indices."""
        for counts, indices in zip(self._counts, indices_zyx, strict=True):
            n = counts.shape[1]
            counts.ravel()[:] += np.bincount(values * n + indices, minlength=counts.size)

    def levels(self, affine_xyz: Matrix4x4) -> dict[str, MaskLevel]:
        """Return the levels that have voxels, by name."""
        return {
            name: self._level(value, affine_xyz)
            for value, name in NAME_OF_VALUE.items()
            if self._counts[0][value].any()
        }

    def _level(self, value: int, affine_xyz: Matrix4x4) -> MaskLevel:
        rows = [counts[value] for counts in self._counts]
        voxel_count = int(rows[0].sum())
        start, stop, mean = [], [], []
        for row in rows:
            inside = np.flatnonzero(row)
            start.append(int(inside[0]))
            stop.append(int(inside[-1]) + 1)
            mean.append(float(row @ np.arange(row.size)) / voxel_count)
        box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        return MaskLevel(voxel_count, (affine_xyz @ (*mean[::-1], 1))[:3], box)
