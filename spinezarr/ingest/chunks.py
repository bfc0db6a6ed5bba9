"""What the ingest does to the voxels of one chunk: check, cast, encode, count."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import LabelError
from spinezarr.geometry import ShapeZYX
from spinezarr.ingest.encode import Encoded
from spinezarr.store.layout import CHUNK_SHAPE_ZYX, CODEC, IMAGE, fill_value
from spinezarr.store.sharding import crc32c, encode_chunk

__all__ = [
    "DoesNotFitError",
    "ImageEncoder",
    "ImageFacts",
    "LabelEncoder",
    "LabelFacts",
    "LabelInChunk",
]

HU_DTYPE: Final = np.dtype(np.int16)
"""Type of a stored image wherever it holds every value."""
_LABEL_MAX: Final = 255


class DoesNotFitError(Exception):
    """A value that int16 cannot hold; the image is then stored in its own type."""

    def __init__(self, value: float) -> None:
        self.value = value
        super().__init__(str(value))


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What is kept of one image chunk."""

    checksum: int
    """crc32c of the voxels, padding included."""
    lowest: float
    """Lowest finite value; infinite if there is none."""
    highest: float
    """Highest finite value; minus infinite if there is none."""


@dataclass(frozen=True, slots=True)
class ImageEncoder:
    """Encodes image chunks as ``dtype``; raises :class:`DoesNotFitError` if one does not fit."""

    dtype: np.dtype[Any]

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[ImageFacts]:
        """Cast and encode one chunk; see :class:`spinezarr.ingest.encode.ChunkEncoder`."""
        chunk = np.full(CHUNK_SHAPE_ZYX, fill_value(IMAGE, self.dtype), self.dtype)
        inside = chunk[tuple(slice(0, n) for n in voxels.shape)]
        inside[...] = cast_losslessly(voxels, self.dtype)
        finite = inside[np.isfinite(inside)] if self.dtype.kind == "f" else inside
        facts = ImageFacts(
            checksum=crc32c(chunk.data),
            lowest=float(finite.min()) if finite.size else np.inf,
            highest=float(finite.max()) if finite.size else -np.inf,
        )
        return Encoded(chunk_zyx, encode_chunk(chunk, CODEC), facts)


def cast_losslessly(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return ``values`` as ``dtype``.

    Raises
    ------
    DoesNotFitError
        If a value changes; carries the first that does.

    Examples
    --------
    >>> cast_losslessly(np.array([-1024.0, 3071.0]), np.dtype("i2")).tolist()
    [-1024, 3071]
    >>> cast_losslessly(np.array([0.5]), np.dtype("i2"))
    Traceback (most recent call last):
    spinezarr.ingest.chunks.DoesNotFitError: 0.5
    """
    if values.dtype == dtype:
        return values
    with np.errstate(invalid="ignore", over="ignore"):
        cast = values.astype(dtype)
    same = cast == values
    if not same.all():
        raise DoesNotFitError(values[~same].flat[0].item())
    return cast


@dataclass(frozen=True, slots=True)
class LabelInChunk:
    """One label's voxels in one chunk."""

    value: int
    voxel_count: int
    index_sum_zyx: tuple[int, int, int]
    """Sum of the voxel indices in the volume, for the centroid."""
    start_zyx: ShapeZYX
    stop_zyx: ShapeZYX


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What is kept of one mask chunk."""

    chunk_zyx: ShapeZYX
    labels: tuple[LabelInChunk, ...]


class LabelEncoder:
    """Encodes mask chunks as uint8 and finds the labels in them; background is not stored."""

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[LabelFacts]:
        """Check and encode one chunk; see :class:`spinezarr.ingest.encode.ChunkEncoder`.

        Raises
        ------
        LabelError
            If a value is not a whole number from 0 to 255.
        """
        chunk = np.zeros(CHUNK_SHAPE_ZYX, np.uint8)
        try:
            chunk[tuple(slice(0, n) for n in voxels.shape)] = cast_losslessly(voxels, chunk.dtype)
        except DoesNotFitError as problem:
            raise LabelError(
                f"the mask holds the value {problem.value!r}; labels are whole numbers from 0 to "
                f"{_LABEL_MAX}."
            ) from None
        counts = np.bincount(chunk.ravel(), minlength=_LABEL_MAX + 1)
        present = np.flatnonzero(counts[1:]) + 1
        origin = np.multiply(chunk_zyx, CHUNK_SHAPE_ZYX)
        labels = tuple(_locate(chunk, int(value), origin) for value in present)
        data = encode_chunk(chunk, CODEC) if labels else None
        return Encoded(chunk_zyx, data, LabelFacts(chunk_zyx, labels))


def _locate(
    chunk: npt.NDArray[np.uint8], value: int, origin_zyx: npt.NDArray[np.int_]
) -> LabelInChunk:
    indices = np.array(np.nonzero(chunk == value)) + origin_zyx[:, None]
    start, stop, total = indices.min(1), indices.max(1) + 1, indices.sum(1)
    return LabelInChunk(
        value=value,
        voxel_count=indices.shape[1],
        index_sum_zyx=(int(total[0]), int(total[1]), int(total[2])),
        start_zyx=(int(start[0]), int(start[1]), int(start[2])),
        stop_zyx=(int(stop[0]), int(stop[1]), int(stop[2])),
    )
