"""What are the values of an image or mask at the positions of a derived grid?

All of it goes through the reader and the resampling of streams, so that a derived store holds what
streams compute.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from spinezarr.derive.smoothing import filter_radius, filter_sigma, smooth_axis
from spinezarr.errors import UsageError
from spinezarr.geometry import Box
from spinezarr.scaling import VALUE_DTYPE, Scaling
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.buffer_pool import BufferPool
from spinezarr.stream.read.resample import Resampling, SourceRegion, resample_all
from spinezarr.stream.spacing import Positions, StepZYX

__all__ = [
    "FilteredSampling",
    "LabelwiseSampling",
    "PlainSampling",
    "Sampling",
    "VoxelSource",
    "WindowedSampling",
    "image_sampling",
]

Voxels = npt.NDArray[Any]
_HIGHEST: Final = 255
"""Highest number of uint8."""


class VoxelSource(Protocol):
    """Reads voxels, as :class:`spinezarr.stream.read.engine.Engine` does."""

    @property
    def buffers(self) -> BufferPool:
        """Pool of memory for voxels."""
        ...

    def read(self, reads: Iterable[BoxRead], /) -> None:
        """Fill the outputs of some boxes."""
        ...


class Sampling(Protocol):
    """Computes the values of a stored array at positions."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Data type of the values."""
        ...

    @property
    def source_bytes(self) -> int:
        """Bytes of memory for each voxel of the source that is worked on at once."""
        ...

    @property
    def value_bytes(self) -> int:
        """Bytes of memory for each value."""
        ...

    @property
    def margin_z(self) -> int:
        """Number of planes of the source on either side that values depend on."""
        ...

    def fill(self, positions_zyx: Sequence[Positions], out: Voxels) -> None:
        """Fill ``out`` with the values at a grid of positions, in voxels of the source.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _ArraySampling:
    """A sampling of one array that needs no more memory than its voxels and the new values."""

    engine: VoxelSource
    array: ArraySpec

    @property
    def dtype(self) -> np.dtype[Any]:
        """As in :class:`Sampling`."""
        return self.array.dtype

    @property
    def source_bytes(self) -> int:
        """As in :class:`Sampling`."""
        return self.array.dtype.itemsize

    @property
    def value_bytes(self) -> int:
        """As in :class:`Sampling`."""
        return self.array.dtype.itemsize

    @property
    def margin_z(self) -> int:
        """As in :class:`Sampling`."""
        return 1


@dataclass(frozen=True, slots=True, eq=False)
class PlainSampling(_ArraySampling):
    """Takes voxels as they are, or as a stream resamples them; see :class:`Sampling`."""

    linear: bool
    """Whether to interpolate linearly between voxels; otherwise the nearest voxel is taken."""

    def fill(self, positions_zyx: Sequence[Positions], out: Voxels) -> None:
        """As in :class:`Sampling`."""
        region = SourceRegion.of(positions_zyx)
        step = region.plan(self.array, out, linear=self.linear, buffers=self.engine.buffers)
        self.engine.read([step.read if isinstance(step, Resampling) else step])
        if isinstance(step, Resampling):
            resample_all([step], threads=1)


@dataclass(frozen=True, slots=True, eq=False)
class FilteredSampling(_ArraySampling):
    """Interpolates an image that is filtered along some axes before; see :class:`Sampling`."""

    step_zyx: StepZYX
    """Distance of neighboring positions, which determines the filter along each axis."""

    @property
    def source_bytes(self) -> int:
        """As in :class:`Sampling`: voxels, and three arrays of floats."""
        return self.array.dtype.itemsize + 3 * self._float_dtype.itemsize

    @property
    def margin_z(self) -> int:
        """As in :class:`Sampling`."""
        return 1 + filter_radius(filter_sigma(self.step_zyx[0]))

    @property
    def _float_dtype(self) -> np.dtype[Any]:
        return np.result_type(self.array.dtype, np.float32)

    def fill(self, positions_zyx: Sequence[Positions], out: Voxels) -> None:
        """As in :class:`Sampling`."""
        region = SourceRegion.of(positions_zyx)
        if region.positions_zyx is None:
            raise RuntimeError("nothing is resampled, so there is nothing to filter")
        sigmas = [filter_sigma(step) for step in self.step_zyx]
        start, stop = list(region.box.start_zyx), list(region.box.stop_zyx)
        padding = [(0, 0)] * 3
        for axis, sigma in enumerate(sigmas):
            radius, n = filter_radius(sigma), self.array.shape_zyx[axis]
            low, high = start[axis] - radius, stop[axis] + radius
            start[axis], stop[axis] = max(low, 0), min(high, n)
            padding[axis] = (start[axis] - low, high - stop[axis])
        box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
        voxels = np.empty(box.shape_zyx, self.array.dtype)
        self.engine.read([BoxRead(self.array, box, voxels)])
        values: Voxels = voxels.astype(self._float_dtype, copy=False)
        del voxels
        with np.errstate(invalid="ignore"):
            for axis, sigma in enumerate(sigmas):
                if sigma:
                    values = smooth_axis(values, axis, sigma, padding[axis])
        read = BoxRead(self.array, region.box, values)
        resample_all([Resampling(read, region.positions_zyx, out, linear=True)], threads=1)


def image_sampling(
    source: VoxelSource, array: ArraySpec, step_zyx: StepZYX, *, antialias: bool
) -> Sampling:
    """Return the sampling of an image, which may be filtered along axes that get fewer voxels."""
    if antialias and max(step_zyx) > 1:
        return FilteredSampling(source, array, step_zyx)
    return PlainSampling(source, array, linear=True)


@dataclass(frozen=True, slots=True, eq=False)
class LabelwiseSampling(_ArraySampling):
    """Takes the label with the largest linear weight at each position; see :class:`Sampling`.

    Each label is interpolated linearly by itself, as 1 inside and 0 outside. Of labels with equal
    weights, the smallest is taken, so background comes first.
    """

    @property
    def source_bytes(self) -> int:
        """As in :class:`Sampling`: labels, and one label as a mask of its own."""
        return 2

    @property
    def value_bytes(self) -> int:
        """As in :class:`Sampling`: a label, and the weights of two labels."""
        return 1 + 2 * np.dtype(np.float32).itemsize

    def fill(self, positions_zyx: Sequence[Positions], out: Voxels) -> None:
        """As in :class:`Sampling`."""
        region = SourceRegion.of(positions_zyx)
        labels = np.empty(region.box.shape_zyx, self.array.dtype)
        self.engine.read([BoxRead(self.array, region.box, labels)])
        if region.positions_zyx is None:
            out[...] = labels
            return
        first, *others = np.flatnonzero(np.bincount(labels.ravel())).tolist()
        out[...] = first
        if not others:
            return
        best = self._weights(region, labels, first, out.shape)
        for value in others:
            weights = self._weights(region, labels, value, out.shape)
            is_larger = weights > best
            out[is_larger] = value
            np.maximum(weights, best, out=best)

    def _weights(
        self, region: SourceRegion, labels: Voxels, value: int, shape: tuple[int, ...]
    ) -> npt.NDArray[np.float32]:
        """Return the linear weight of one label at each position."""
        weights = np.empty(shape, np.float32)
        read = BoxRead(self.array, region.box, (labels == value).view(np.uint8))
        positions = region.positions_zyx or ()
        resample_all([Resampling(read, positions, weights, linear=True)], threads=1)
        return weights


@dataclass(frozen=True, slots=True, eq=False)
class WindowedSampling:
    """Maps a window of values to the numbers 0 to 255 of uint8; see :class:`Sampling`.

    Values outside of the window become those at its ends. A number is rounded, and halves to even.
    """

    values: Sampling
    """Computes the values, in HU."""
    window_hu: tuple[float, float]
    """Values that become 0 and 255."""

    @property
    def scaling(self) -> Scaling:
        """Scaling from numbers back to values in HU."""
        low, high = self.window_hu
        return Scaling((high - low) / _HIGHEST, low)

    @property
    def dtype(self) -> np.dtype[Any]:
        """As in :class:`Sampling`."""
        return np.dtype(np.uint8)

    @property
    def source_bytes(self) -> int:
        """As in :class:`Sampling`."""
        return self.values.source_bytes

    @property
    def value_bytes(self) -> int:
        """As in :class:`Sampling`: the value, its float64 and its number."""
        return self.values.value_bytes + VALUE_DTYPE.itemsize + 1

    @property
    def margin_z(self) -> int:
        """As in :class:`Sampling`."""
        return self.values.margin_z

    def fill(self, positions_zyx: Sequence[Positions], out: Voxels) -> None:
        """As in :class:`Sampling`.

        Raises
        ------
        UsageError
            If a value is NaN, for which uint8 has no number.
        """
        values = np.empty(out.shape, self.values.dtype)
        self.values.fill(positions_zyx, values)
        low, high = self.window_hu
        numbers = np.subtract(values, low, dtype=VALUE_DTYPE)
        numbers *= _HIGHEST / (high - low)
        if np.isnan(numbers).any():
            raise UsageError(
                "its image has voxels that are NaN, for which uint8 has no number. Derive it "
                "without --intensity."
            )
        np.clip(numbers, 0, _HIGHEST, out=numbers)
        out[...] = np.rint(numbers, out=numbers)
