"""What is the value at a position between voxels?

Images are interpolated linearly along each axis, one after the other. Labels take the nearest
voxel. The kernel does it, in C. What it does not know is done with NumPy, and so is all of it where
there is no kernel; the values are the same, bit for bit.
"""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.buffer_pool import BufferPool
from spinezarr.stream.read.native import DONE, Kernel, kernel, resampling_table
from spinezarr.stream.read.parallel import run_in_parts
from spinezarr.stream.spacing import Positions

__all__ = ["Resampling", "SourceRegion", "resample", "resample_all"]

_BLOCK_VALUES: Final = 1 << 18
"""Number of values to compute at once: few enough for the processor's cache, and many enough for
few calls of NumPy."""
_FEW_COLUMNS, _FEW_ROWS = 16, 1000
"""The kernel is slower than NumPy with fewer columns than this in more rows than this."""
_LINEAR_COST: Final = 8
"""Time for an interpolated value, relative to that for the value of the nearest voxel."""
_THREAD_COST: Final = 1 << 23
"""Work for which a thread is worth its start, in values of the nearest voxel; about 0.8 ms."""


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

    @property
    def is_thin(self) -> bool:
        """Whether rows along x are so short and many that NumPy is faster than the kernel.

        The kernel computes row by row. It takes rows along y instead if they are dense and nothing
        is interpolated along x, as in sagittal slices.
        """
        nz, ny, nx = self.out.shape
        if not self.linear or nx >= _FEW_COLUMNS or nz * ny <= _FEW_ROWS:
            return False
        is_whole = not (self.positions_zyx[2] % 1).any()
        return not (is_whole and self.out.strides[1] == self.out.itemsize)

    def run(self) -> None:
        """Fill ``out`` with NumPy; see :func:`resample_all`."""
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
        self, array: ArraySpec, out: npt.NDArray[Any], *, linear: bool, buffers: BufferPool
    ) -> BoxRead | Resampling:
        """Return the step that fills ``out``: a read if positions are voxels, else a resampling.

        The voxels of a resampling go to memory of ``buffers``.
        """
        if self.positions_zyx is None:
            return BoxRead(array, self.box, out)
        voxels = buffers.empty_alike(self.box.shape_zyx, array.dtype)
        return Resampling(BoxRead(array, self.box, voxels), self.positions_zyx, out, linear)


def resample_all(resamplings: Sequence[Resampling], *, threads: int) -> None:
    """Fill the outputs of some resamplings, whose voxels have been read.

    Next to NaN and infinity, interpolated values are NaN or infinite too.

    Parameters
    ----------
    resamplings
        The resamplings. No two outputs overlap.
    threads
        Number of threads that compute.
    """
    loaded_kernel = kernel()
    remaining = list(resamplings)
    if loaded_kernel is not None:
        remaining = [resampling for resampling in resamplings if resampling.is_thin]
        wide = [resampling for resampling in resamplings if not resampling.is_thin]
        remaining += _resample_by_kernel(loaded_kernel, wide, threads)
    for resampling in remaining:
        resampling.run()


def _resample_by_kernel(
    loaded_kernel: Kernel, resamplings: Sequence[Resampling], threads: int
) -> list[Resampling]:
    """Let the kernel fill the outputs; return the resamplings that it refuses."""
    if not resamplings:
        return []
    table = resampling_table(
        (resampling.read.out, resampling.positions_zyx, resampling.out, resampling.linear)
        for resampling in resamplings
    )

    def fill(first: int, last: int, _: object = resamplings) -> None:
        loaded_kernel.resample(table, first, last)

    n_planes = [len(resampling.out) for resampling in resamplings]
    plane_costs = [
        resampling.out[:1].size * (_LINEAR_COST if resampling.linear else 1)
        for resampling in resamplings
    ]
    cost = sum(map(operator.mul, n_planes, plane_costs))
    max_threads = 1 + cost // _THREAD_COST
    run_in_parts(fill, np.repeat(plane_costs, n_planes), threads=min(threads, max_threads))
    statuses = zip(resamplings, table["status"].tolist(), strict=True)
    return [resampling for resampling, status in statuses if status != DONE]


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
