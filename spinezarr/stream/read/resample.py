"""Values between voxels: separable linear interpolation for images, nearest voxels for labels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box
from spinezarr.store.reader import ArraySpec
from spinezarr.stream.read.engine import BoxRead
from spinezarr.stream.spacing import Positions

__all__ = ["Resampling", "Source", "resample"]

_BLOCK_VALUES: Final = 1 << 18
"""Values worked on at once: they stay in the cache, and calls of NumPy stay few."""


@dataclass(frozen=True, slots=True, eq=False)
class Resampling:
    """Voxels to read, and the values to compute from them once they are there."""

    read: BoxRead
    positions_zyx: tuple[npt.NDArray[np.float64], ...]
    """Along each axis, in voxels from the start of the box."""
    out: npt.NDArray[Any]
    linear: bool

    def run(self) -> None:
        """Fill ``out``; between values that are no numbers there is none."""
        with np.errstate(invalid="ignore"):
            resample(self.read.out, self.positions_zyx, self.out, linear=self.linear)


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What must be read of an array for the values at a grid of positions."""

    box: Box
    """Just the voxels that are needed."""
    positions_zyx: tuple[npt.NDArray[np.float64], ...] | None
    """Positions along each axis, from the start of the box; None if they are its voxels."""

    @classmethod
    def of(cls, positions_zyx: Sequence[Positions]) -> Self:
        """Find the box around positions: along each axis inside the array, none before the last."""
        z, y, x = ((math.floor(at[0]), math.ceil(at[-1]) + 1) for at in positions_zyx)
        box = Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))
        if all(isinstance(at, range) for at in positions_zyx):
            return cls(box, None)
        starts = zip(positions_zyx, box.start_zyx, strict=True)
        return cls(box, tuple(np.asarray(at, float) - start for at, start in starts))

    def plan(
        self, array: ArraySpec, out: npt.NDArray[Any], *, linear: bool
    ) -> BoxRead | Resampling:
        """Plan how to fill ``out``; see :func:`resample`. Voxels are read into it directly."""
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
) -> None:
    """Fill ``out`` with the values at a grid of positions.

    Parameters
    ----------
    source
        Voxels ``(z, y, x)``.
    positions_zyx
        Positions along each axis, in voxels of ``source``; from its first to its last voxel.
    out
        Of as many values along each axis as there are positions; may be a strided view. Linear
        values are rounded, halves to even, if its type is an integer.
    linear
        Interpolate linearly; else take the nearest voxel, of two that are equally near the later.
        No filter goes before: where positions are several voxels apart, those between are skipped.

    Notes
    -----
    Interpolation is in float32 for types that it holds, within 0.01 for int16, else in float64.
    """
    taps = [_Taps.of(at, linear=linear) for at in positions_zyx]
    # float32 where it holds every value: it is twice as fast.
    exact = np.result_type(source.dtype, np.float32)
    rounded = linear and out.dtype.kind in "iu"
    planes = max(1, _BLOCK_VALUES // max(1, source.shape[1] * source.shape[2]))
    for first in range(0, len(out), planes):
        part = slice(first, first + planes)
        values = taps[0].part(part).along(source, 0, exact)
        for axis in (1, 2):
            values = taps[axis].along(values, axis, exact)
        if rounded and values.dtype.kind == "f":
            np.rint(values, out=values)
        out[part] = values


@dataclass(frozen=True, slots=True, eq=False)
class _Taps:
    """Which voxels each value along an axis is made of."""

    lower: npt.NDArray[np.intp]
    upper: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float64] | None
    """Of the upper voxel; None if all values are those of the lower voxels."""

    @classmethod
    def of(cls, positions: npt.NDArray[np.float64], *, linear: bool) -> "_Taps":
        lower = np.floor(positions if linear else positions + 0.5)
        weight = positions - lower
        taken = lower.astype(np.intp)
        if not linear or not weight.any():
            return cls(taken, taken, None)
        return cls(taken, taken + (weight > 0), weight)

    def part(self, part: slice) -> "_Taps":
        weight = None if self.weight is None else self.weight[part]
        return _Taps(self.lower[part], self.upper[part], weight)

    def along(self, values: npt.NDArray[Any], axis: int, exact: np.dtype[Any]) -> npt.NDArray[Any]:
        """Return the values along one axis; of another type only if they are interpolated."""
        low = values.take(self.lower, axis)
        if self.weight is None:
            return low
        low = low.astype(exact, copy=False)
        high = values.take(self.upper, axis).astype(exact, copy=False)
        shape = [1, 1, 1]
        shape[axis] = -1
        high -= low
        high *= self.weight.astype(exact).reshape(shape)
        high += low
        return high
