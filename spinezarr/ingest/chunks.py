"""What the ingest does to the voxels of one chunk: check, cast, encode, count."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import LabelError
from spinezarr.geometry import ShapeZYX, SpacingZYX
from spinezarr.ingest.encode import Encoded
from spinezarr.store.layout import IMAGE, Profile, fill_value
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
_HALF_VOXEL: Final = 0.5 + 1e-9
"""A hair more, so that a point on the border of a voxel is in it whatever the rounding."""
ZYX = tuple[float, float, float]


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

    profile: Profile
    dtype: np.dtype[Any]

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[ImageFacts]:
        """Cast and encode one chunk; see :class:`spinezarr.ingest.encode.ChunkEncoder`."""
        chunk = np.full(self.profile.chunk_shape_zyx, fill_value(IMAGE, self.dtype), self.dtype)
        inside = chunk[tuple(slice(0, n) for n in voxels.shape)]
        inside[...] = cast_losslessly(voxels, self.dtype)
        finite = inside[np.isfinite(inside)] if self.dtype.kind == "f" else inside
        facts = ImageFacts(
            checksum=crc32c(chunk.data),
            lowest=float(finite.min()) if finite.size else np.inf,
            highest=float(finite.max()) if finite.size else -np.inf,
        )
        return Encoded(chunk_zyx, encode_chunk(chunk, self.profile.image), facts)


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
    centroid_distance_mm: float | None
    """From the annotated centroid to the nearest voxel, 0 inside one; None without a centroid."""


@dataclass(frozen=True, slots=True)
class LabelFacts:
    """What is kept of one mask chunk."""

    chunk_zyx: ShapeZYX
    labels: tuple[LabelInChunk, ...]
    dropped: tuple[tuple[int, int], ...] = ()
    """Values of the file that became background, and their voxels."""


@dataclass(frozen=True, slots=True)
class LabelEncoder:
    """Encodes mask chunks as uint8 and finds the labels in them; background is not stored."""

    profile: Profile
    values: tuple[tuple[int, int], ...] = ()
    """Value in the file and value stored; all else becomes background. Empty: as they are."""
    centroid_zyx: Mapping[int, ZYX] = field(default_factory=dict)
    """Annotated centroids as voxel indices in the volume, by stored value."""
    spacing_zyx_mm: SpacingZYX = (1.0, 1.0, 1.0)
    """Distance between neighbouring voxels."""

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[LabelFacts]:
        """Check and encode one chunk; see :class:`spinezarr.ingest.encode.ChunkEncoder`.

        Raises
        ------
        LabelError
            If a value is not a whole number from 0 to 255, or to 65535 where values are mapped.
        """
        chunk = np.zeros(self.profile.chunk_shape_zyx, np.uint8)
        inside = chunk[tuple(slice(0, n) for n in voxels.shape)]
        if self.values:
            inside[...], dropped = self._mapped(voxels)
        else:
            inside[...], dropped = _as_labels(voxels, inside.dtype), ()
        counts = np.bincount(chunk.ravel(), minlength=_LABEL_MAX + 1)
        present = np.flatnonzero(counts[1:]) + 1
        origin = np.multiply(chunk_zyx, self.profile.chunk_shape_zyx)
        labels = tuple(self._locate(chunk, int(value), origin) for value in present)
        data = encode_chunk(chunk, self.profile.label) if labels else None
        return Encoded(chunk_zyx, data, LabelFacts(chunk_zyx, labels, dropped))

    def _mapped(
        self, voxels: npt.NDArray[Any]
    ) -> tuple[npt.NDArray[np.uint8], tuple[tuple[int, int], ...]]:
        """Replace the values of the file; return what became background, too."""
        found = _as_labels(voxels, np.dtype(np.uint16))
        counts = np.bincount(found.ravel())
        table = np.zeros(max(len(counts), max(value for value, _ in self.values) + 1), np.uint8)
        for value, stored in self.values:
            table[value] = stored
        lost = np.flatnonzero(counts[1:] * (table[1 : len(counts)] == 0)) + 1
        return table[found], tuple((int(value), int(counts[value])) for value in lost)

    def _locate(
        self, chunk: npt.NDArray[np.uint8], value: int, origin_zyx: npt.NDArray[np.int_]
    ) -> LabelInChunk:
        indices = np.array(np.nonzero(chunk == value)) + origin_zyx[:, None]
        start, stop, total = indices.min(1), indices.max(1) + 1, indices.sum(1)
        return LabelInChunk(
            value=value,
            voxel_count=indices.shape[1],
            index_sum_zyx=(int(total[0]), int(total[1]), int(total[2])),
            start_zyx=(int(start[0]), int(start[1]), int(start[2])),
            stop_zyx=(int(stop[0]), int(stop[1]), int(stop[2])),
            centroid_distance_mm=self._distance_mm(indices, value),
        )

    def _distance_mm(self, indices: npt.NDArray[np.int_], value: int) -> float | None:
        if value not in self.centroid_zyx:
            return None
        # A voxel reaches half its size around its index.
        gap = np.abs(indices - np.array(self.centroid_zyx[value])[:, None]) - _HALF_VOXEL
        gap_mm = np.maximum(gap, 0) * np.array(self.spacing_zyx_mm)[:, None]
        return float(np.linalg.norm(gap_mm, axis=0).min())


def _as_labels(voxels: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    try:
        return cast_losslessly(voxels, dtype)
    except DoesNotFitError as problem:
        raise LabelError(
            f"the mask holds the value {problem.value!r}; labels are whole numbers from 0 to "
            f"{np.iinfo(dtype).max}."
        ) from None
