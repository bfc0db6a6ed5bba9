"""How are the voxels of one chunk checked, cast, encoded and counted?"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.formats.rounding import Rounding, round_labels
from spinezarr.geometry import ShapeZYX, SpacingZYX
from spinezarr.ingestion.voxels.encode import Encoded
from spinezarr.ingestion.voxels.gather import copy_voxels
from spinezarr.scaling import VALUE_DTYPE, Scaling
from spinezarr.store.blocks import encode_blocks
from spinezarr.store.layout import IMAGE, Profile, fill_value
from spinezarr.store.sharding import crc32c

__all__ = [
    "DoesNotFitError",
    "ImageEncoder",
    "ImageFacts",
    "LabelEncoder",
    "LabelFacts",
    "LabelInChunk",
    "locate_labels",
    "stored_labels",
]

HU_DTYPE: Final = np.dtype(np.int16)
"""Stored type of each image whose values it can hold."""
_LABEL_MAX: Final = 255
_HALF_VOXEL: Final = 0.5 + 1e-9
"""Slightly more than half a voxel.

Rounding therefore cannot place a point on the border of a voxel outside the voxel.
"""
ZYX = tuple[float, float, float]


class DoesNotFitError(Exception):
    """Raised for a value that a type cannot hold. The image is then stored in another type."""

    def __init__(self, value: float) -> None:
        self.value = value
        super().__init__(str(value))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Range, checksum and counts of one image chunk."""

    checksum: int
    """crc32c of the values, padding included."""
    lowest: float
    """Lowest finite value; infinite if there is none."""
    highest: float
    """Highest finite value; minus infinite if there is none."""
    nan_voxels: int = 0
    infinite_voxels: int = 0


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """Encodes image chunks as ``dtype``.

    A value that does not fit raises :class:`DoesNotFitError`.
    """

    profile: Profile
    dtype: np.dtype[Any]
    """Type of the stored numbers."""
    scaling: Scaling | None = None
    """Scaling from stored numbers to values; None if both are the same."""

    def cast(self, values: npt.NDArray[Any], /) -> npt.NDArray[Any]:
        """Return values as ``dtype``; see :class:`.ChunkEncoder`."""
        return cast_losslessly(values, self.dtype)

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[ImageFacts]:
        """Cast and encode one chunk; see :class:`.ChunkEncoder`."""
        fill = fill_value(IMAGE, self.dtype)
        chunk = _BUFFERS.padded(self.cast(voxels), self.profile.chunk_shape_zyx, fill)
        facts = _image_facts(self._values(chunk, voxels.shape), voxels.shape)
        return Encoded(chunk_zyx, encode_blocks(chunk, self.profile.image), facts)

    def _values(self, chunk: npt.NDArray[Any], shape_zyx: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return the values of a chunk with the padding that is stored."""
        if self.scaling is None:
            return chunk
        inside = self.scaling.values(chunk[tuple(slice(0, n) for n in shape_zyx)])
        return _BUFFERS.padded(inside, self.profile.chunk_shape_zyx, fill_value(IMAGE, VALUE_DTYPE))


def _image_facts(values: npt.NDArray[Any], shape_zyx: tuple[int, ...]) -> ImageFacts:
    """Return the facts of a chunk; voxels beyond ``shape_zyx`` are padding."""
    finite = values[tuple(slice(0, n) for n in shape_zyx)]
    nan_voxels = infinite_voxels = 0
    if finite.dtype.kind == "f" and not (is_finite := np.isfinite(finite)).all():
        nan_voxels = int(np.count_nonzero(np.isnan(finite)))
        infinite_voxels = finite.size - int(np.count_nonzero(is_finite)) - nan_voxels
        finite = finite[is_finite]
    return ImageFacts(
        checksum=crc32c(values.data),
        lowest=float(finite.min()) if finite.size else np.inf,
        highest=float(finite.max()) if finite.size else -np.inf,
        nan_voxels=nan_voxels,
        infinite_voxels=infinite_voxels,
    )


class _Buffers(threading.local):
    """Keeps one array for each thread and type, because new memory costs more than a copy."""

    def __init__(self) -> None:
        self._arrays: dict[np.dtype[Any], npt.NDArray[Any]] = {}

    def padded(
        self, voxels: npt.NDArray[Any], shape_zyx: ShapeZYX, fill: float
    ) -> npt.NDArray[Any]:
        """Copy voxels into a whole chunk in C order; the next call overwrites it."""
        chunk = self._arrays.get(voxels.dtype)
        if chunk is None or chunk.shape != shape_zyx:
            chunk = self._arrays[voxels.dtype] = np.empty(shape_zyx, voxels.dtype)
        if voxels.shape != shape_zyx:
            chunk.fill(fill)
        copy_voxels(voxels, chunk[tuple(slice(0, n) for n in voxels.shape)])
        return chunk


_BUFFERS: Final = _Buffers()


def cast_losslessly(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return ``values`` as ``dtype``.

    Raises
    ------
    DoesNotFitError
        If a value would change. The error holds the first such value.

    Examples
    --------
    >>> cast_losslessly(np.array([-1024.0, 3071.0]), np.dtype("i2")).tolist()
    [-1024, 3071]
    >>> cast_losslessly(np.array([0.5]), np.dtype("i2"))
    Traceback (most recent call last):
    spinezarr.ingestion.voxels.chunks.DoesNotFitError: 0.5
    """
    if np.can_cast(values.dtype, dtype, "safe"):
        return values.astype(dtype, copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(dtype)
    is_same = cast == values
    if not is_same.all():
        raise DoesNotFitError(values[~is_same].flat[0].item())
    return cast


@dataclass(frozen=True, slots=True)
class LabelInChunk:
    """Voxels of one label in one chunk."""

    value: int
    voxel_count: int
    index_sum_zyx: tuple[int, int, int]
    """Sum of the voxel indices in the volume, (z, y, x). The centroid is computed from it."""
    start_zyx: ShapeZYX
    stop_zyx: ShapeZYX
    centroid_distance_mm: float | None
    """Distance in mm from the annotated centroid to the nearest voxel of the label.

    It is 0 inside a voxel, and None without a centroid.
    """


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """Labels of one mask chunk, and the values that became background."""

    chunk_zyx: ShapeZYX
    labels: tuple[LabelInChunk, ...]
    dropped: tuple[tuple[int, int], ...] = ()
    """Values of the file that became background, with their numbers of voxels."""


@dataclass(frozen=True, slots=True)
class LabelEncoder:
    """Encodes mask chunks as uint8 and finds their labels. Chunks of background are not stored."""

    profile: Profile
    values: tuple[tuple[int, int], ...] = ()
    """Pairs of the value in the file and the stored value; other values become background.

    Empty if values are stored as they are.
    """
    centroid_zyx: Mapping[int, ZYX] = field(default_factory=dict)
    """Annotated centroids as voxel indices in the volume, (z, y, x), by stored value."""
    spacing_zyx_mm: SpacingZYX = (1.0, 1.0, 1.0)
    """Distance between neighboring voxels in mm, (z, y, x)."""
    rounding: Rounding = field(default_factory=Rounding)
    """Counts the values that :meth:`cast` rounds; only one thread may cast."""

    def cast(self, values: npt.NDArray[Any], /) -> npt.NDArray[Any]:
        """Return values as uint8, or as uint16 if they are mapped. Rounding errors are removed.

        Raises
        ------
        LabelError
            If a value is not a whole number from 0 to 255, or to 65535 where values are mapped.
        """
        labels, rounding = _as_labels(values, np.dtype(np.uint16 if self.values else np.uint8))
        self.rounding.add(rounding)
        return labels

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[LabelFacts]:
        """Check and encode one chunk; see :class:`.ChunkEncoder`.

        Raises
        ------
        LabelError
            See :meth:`cast`.
        """
        chunk = _BUFFERS.padded(self.cast(voxels), self.profile.chunk_shape_zyx, 0)
        if not chunk.any():
            return Encoded(chunk_zyx, None, LabelFacts(chunk_zyx, ()))
        chunk, dropped = stored_labels(chunk, self.values)
        z, y, x = (index * n for index, n in zip(chunk_zyx, chunk.shape, strict=True))
        labels = locate_labels(chunk, (z, y, x), self.centroid_zyx, self.spacing_zyx_mm)
        data = encode_blocks(chunk, self.profile.label) if labels else None
        return Encoded(chunk_zyx, data, LabelFacts(chunk_zyx, labels, dropped))


def locate_labels(
    voxels: npt.NDArray[np.uint8],
    origin_zyx: ShapeZYX,
    centroid_zyx: Mapping[int, ZYX] | None = None,
    spacing_zyx_mm: SpacingZYX = (1.0, 1.0, 1.0),
) -> tuple[LabelInChunk, ...]:
    """Find all labels in one pass over the voxels that are not background.

    Parameters
    ----------
    voxels
        Labels of a part of a volume, ``(z, y, x)``.
    origin_zyx
        First voxel of the part.
    centroid_zyx
        Annotated centroids as voxel indices in the volume, (z, y, x), by label.
    spacing_zyx_mm
        Distance between neighboring voxels in mm, for the distances from centroids.
    """
    flat_indices = np.flatnonzero(voxels)
    values = voxels.ravel()[flat_indices]
    counts = np.bincount(values, minlength=_LABEL_MAX + 1)
    present = np.flatnonzero(counts)
    row_of_value = np.zeros(_LABEL_MAX + 1, np.intp)
    row_of_value[present] = range(len(present))
    rows = row_of_value[values]
    origin = np.array(origin_zyx)
    indices_zyx = np.array(np.unravel_index(flat_indices, voxels.shape))
    start, stop, total = np.empty((3, 3, len(present)), np.int64)
    for axis, n in enumerate(voxels.shape):
        # Number of voxels of each label at each index along this axis.
        counts_along_axis = np.bincount(rows * n + indices_zyx[axis], minlength=len(present) * n)
        counts_along_axis = counts_along_axis.reshape(len(present), n)
        start[axis] = origin[axis] + (counts_along_axis > 0).argmax(1)
        stop[axis] = origin[axis] + n - (counts_along_axis[:, ::-1] > 0).argmax(1)
        total[axis] = counts_along_axis @ np.arange(n) + origin[axis] * counts[present]
    centroids = centroid_zyx or {}
    return tuple(
        LabelInChunk(
            value=value,
            voxel_count=int(counts[value]),
            index_sum_zyx=_as_zyx(total[:, row]),
            start_zyx=_as_zyx(start[:, row]),
            stop_zyx=_as_zyx(stop[:, row]),
            centroid_distance_mm=_distance_mm(
                indices_zyx[:, rows == row] + origin[:, None], centroids[value], spacing_zyx_mm
            )
            if value in centroids
            else None,
        )
        for row, value in enumerate(present.tolist())
    )


def _distance_mm(
    indices_zyx: npt.NDArray[np.int_], centroid_zyx: ZYX, spacing_zyx_mm: SpacingZYX
) -> float:
    # A voxel extends half its size to each side of its index.
    gap = np.abs(indices_zyx - np.array(centroid_zyx)[:, None]) - _HALF_VOXEL
    gap_mm = np.maximum(gap, 0) * np.array(spacing_zyx_mm)[:, None]
    return float(np.linalg.norm(gap_mm, axis=0).min())


def stored_labels(
    voxels: npt.NDArray[Any], values: tuple[tuple[int, int], ...]
) -> tuple[npt.NDArray[np.uint8], tuple[tuple[int, int], ...]]:
    """Return the stored labels for the values of a file.

    Parameters
    ----------
    voxels
        Values of the file.
    values
        Pairs of the value in the file and the stored value. Other values become background. If
        empty, values are stored as they are.

    Returns
    -------
    labels
        Stored labels, uint8, in the shape of ``voxels``.
    dropped
        Values of the file that became background, with their numbers of voxels.

    Raises
    ------
    LabelError
        If a value is not a whole number from 0 to 255, or to 65535 where values are mapped.
    """
    labels, _ = _as_labels(voxels, np.dtype(np.uint16 if values else np.uint8))
    if not values:
        return labels, ()
    counts = np.bincount(labels.ravel())
    table = np.zeros(max(len(counts), max(value for value, _ in values) + 1), np.uint8)
    for value, stored_value in values:
        table[value] = stored_value
    dropped_values = np.flatnonzero(counts[1:] * (table[1 : len(counts)] == 0)) + 1
    return table[labels], tuple((int(value), int(counts[value])) for value in dropped_values)


def _as_zyx(values: npt.NDArray[np.int64]) -> tuple[int, int, int]:
    z, y, x = values.tolist()
    return (z, y, x)


def _as_labels(voxels: npt.NDArray[Any], dtype: np.dtype[Any]) -> tuple[npt.NDArray[Any], Rounding]:
    try:
        return cast_losslessly(voxels, dtype), Rounding()
    except DoesNotFitError:
        labels, rounding = round_labels(voxels, np.iinfo(dtype).max)
        return labels.astype(dtype), rounding
