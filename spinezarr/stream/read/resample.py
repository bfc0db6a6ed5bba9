"""What is the value at a position between voxels?

Images are interpolated linearly along each axis, one after the other. Labels take the nearest
voxel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.spacing import Positions

__all__ = ["Resampling", "SourceRegion", "resample"]

_BLOCK_VALUES: Final = 1 << 18
"""Number of values to compute at once: few enough for the processor's cache, and many enough for
few calls of NumPy."""


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """A box of voxels to read, and the values to compute from them afterwards."""

    read: BoxRead
    """The voxels that the values depend on."""
    positions_zyx: tuple[npt.NDArray[np.float64], ...]
    """Positions of the values along each axis, in voxels from the start of the box."""
    out: npt.NDArray[Any]
    """Array to fill with the values."""
    linear: bool
    """Whether to interpolate linearly; otherwise the nearest voxel is taken."""

    def run(self) -> None:
        """Fill ``out``. Next to NaN and infinity, interpolated values are NaN or infinite too."""
        with np.errstate(invalid="ignore"):
            resample(self.read.out, self.positions_zyx, self.out, linear=self.linear)


@dataclass(frozen=True, slots=True, eq=False)
class SourceRegion:
    """The part of an array that the values at a grid of positions depend on."""

    box: Box
    """The smallest box of voxels that the values depend on."""
    positions_zyx: tuple[npt.NDArray[np.float64], ...] | None
    """Positions along each axis from the start of the box; None if they are those of its voxels."""

    @classmethod
    def of(cls, positions_zyx: Sequence[Positions]) -> Self:
        """Find the box around positions that increase along each axis and lie inside the array."""
        z, y, x = ((math.floor(axis[0]), math.ceil(axis[-1]) + 1) for axis in positions_zyx)
        box = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        if all(isinstance(axis, range) for axis in positions_zyx):
            return cls(box, None)
        starts = zip(positions_zyx, box.start_zyx, strict=True)
        return cls(box, tuple(np.asarray(axis, float) - start for axis, start in starts))

    def plan(
        self, array: ArraySpec, out: npt.NDArray[Any], *, linear: bool
    ) -> BoxRead | Resampling:
        """Return the step that fills ``out``: a read if positions are voxels, else a resampling."""
        if self.positions_zyx is None:
            return BoxRead(array, self.box, out)
        read = BoxRead(array, self.box, np.empty(self.box.shape_zyx, array.dtype))
        return Resampling(read, self.positions_zyx, out, linear)


def resample(
    source: npt.NDArray[Any],
    positions_zyx: tuple[npt.NDArray[np.float64], ...],
    out: npt.NDArray[Any],
    *,
    linear: bool,
    block_values: int = _BLOCK_VALUES,
) -> None:
    """Fill ``out`` with the values at a grid of positions.

    Parameters
    ----------
    source
        Voxels ``(z, y, x)``.
    positions_zyx
        Positions along each axis in voxels of ``source``, from its first to its last voxel.
    out
        Array with as many values along each axis as there are positions. It may be a strided view.
        If its dtype is an integer, linear values are rounded, and halves to even.
    linear
        Whether to interpolate linearly. Otherwise the nearest voxel is taken, and the later one of
        two that are equally near. No filter is applied before. Where positions are several voxels
        apart, the voxels between them are skipped.
    block_values
        Number of values to compute at once; it changes no value.

    Notes
    -----
    Interpolation is in float32 if that holds all values of the source's dtype, else in float64. For
    int16, the error of float32 is less than 0.01.
    """
    taps = [_Taps.of(axis, linear=linear) for axis in positions_zyx]
    # float32 is twice as fast, and is used if it holds every value.
    float_dtype = np.result_type(source.dtype, np.float32)
    rounded = linear and out.dtype.kind in "iu"
    planes = max(1, block_values // max(1, source.shape[1] * source.shape[2]))
    for first in range(0, len(out), planes):
        part = slice(first, first + planes)
        values = taps[0].part(part).interpolate(source, 0, float_dtype)
        for axis in (1, 2):
            values = taps[axis].interpolate(values, axis, float_dtype)
        if rounded and values.dtype.kind == "f":
            np.rint(values, out=values)
        out[part] = values


@dataclass(frozen=True, slots=True, eq=False)
class _Taps:
    """The two voxels that each value along an axis is computed from, and their weights."""

    lower: npt.NDArray[np.intp]
    """Number of the voxel before each position."""
    upper: npt.NDArray[np.intp]
    """Number of the voxel after each position."""
    weight: npt.NDArray[np.float64] | None
    """Weight of the upper voxel; None if all values are those of the lower voxels."""

    @classmethod
    def of(cls, positions: npt.NDArray[np.float64], *, linear: bool) -> "_Taps":
        lower = np.floor(positions if linear else positions + 0.5)
        weight = positions - lower
        index = lower.astype(np.intp)
        if not linear or not weight.any():
            return cls(index, index, None)
        return cls(index, index + (weight > 0), weight)

    def part(self, part: slice) -> "_Taps":
        weight = None if self.weight is None else self.weight[part]
        return _Taps(self.lower[part], self.upper[part], weight)

    def interpolate(
        self, values: npt.NDArray[Any], axis: int, float_dtype: np.dtype[Any]
    ) -> npt.NDArray[Any]:
        """Return the values along one axis; they keep their dtype unless they are interpolated."""
        low = values.take(self.lower, axis)
        if self.weight is None:
            return low
        low = low.astype(float_dtype, copy=False)
        high = values.take(self.upper, axis).astype(float_dtype, copy=False)
        shape = [1, 1, 1]
        shape[axis] = -1
        high -= low
        high *= self.weight.astype(float_dtype).reshape(shape)
        high += low
        return high
