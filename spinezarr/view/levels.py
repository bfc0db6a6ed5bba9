"""Which coarse levels does a scan have, and how are their voxels computed on request?

Level 0 is the stored array. Each further level halves the axes with the finest spacing, so that
voxels become nearly cubic. A voxel of a level stands for a block of stored voxels. In the image,
it is their mean; in the mask, it is their most frequent value. A block at the end of an axis may be
cut short, and then only its existing voxels count.

Levels are computed in pieces, which a bounded cache keeps. A piece covers whole chunks, so no
chunk is decoded for two pieces.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.forks import ProcessLock
from spinezarr.geometry import Box, Matrix4x4, ShapeZYX, SpacingZYX
from spinezarr.store.layout import IMAGE, chunk_grid
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.engine import Engine
from spinezarr.vertebrae import BACKGROUND

__all__ = [
    "COARSEST_VOXELS",
    "Level",
    "LevelCache",
    "LevelReader",
    "levels_of",
    "piece_shape_zyx",
    "plan_levels",
    "shown_dtype",
]

Voxels = npt.NDArray[Any]
_Piece = tuple[str, str, str, str, bool, ShapeZYX, Box]

COARSEST_VOXELS: Final = 96**3
"""Most voxels of the coarsest level, which a page shows while it waits for finer ones."""
_LARGEST_RATIO: Final = math.sqrt(2)
"""Largest ratio of the spacing of an axis to the finest one for which both are halved together.

With factors of 2, voxels cannot become nearer to cubes.
"""
_N_LOCKS: Final = 64
"""Number of locks of a cache. Threads compute at most so many pieces at once."""
_MIN_PIECE_AXIS: Final = 32
"""Fewest voxels along an axis of a piece, also if the chunks of a store are smaller."""
_TILE_VOXELS: Final = 1 << 23
"""Most stored voxels that a thread reads at once."""
_MODE_VOXELS: Final = 1 << 19
"""Voxels of the blocks whose modes are counted together."""
_SMALL_BYTES: Final = 2
"""Largest size in bytes of integers whose sum over a block fits int32."""
_WIDE_BYTES: Final = 8
"""Size in bytes of integers whose sum over a block fits no type."""
_LOWER_HALF: Final = (1 << 32) - 1
"""Mask of the lower half of a 64-bit integer."""
_LARGEST_FACTOR: Final = 16
"""Largest factor of an axis: 16³ voxels of 16 bits add up to 28 bits, which int32 holds."""


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One level of a scan."""

    level: int
    """Number of the level; 0 is the stored array."""
    factor_zyx: ShapeZYX
    """Stored voxels of a block along each axis."""
    shape_zyx: ShapeZYX
    """Voxels of the level along each axis; the last block of an axis may be cut short."""
    spacing_zyx_mm: SpacingZYX
    """Distance between the centers of neighboring blocks."""
    affine: Matrix4x4 = field(repr=False)
    """4 x 4, voxel ``(x, y, z, 1)`` of the level to RAS+ mm at the center of its uncut block."""

    @property
    def box(self) -> Box:
        """All voxels of the level."""
        return Box((0, 0, 0), self.shape_zyx)

    def stored_box(self, box: Box, shape_zyx: ShapeZYX) -> Box:
        """Return the box of stored voxels that a box of this level is computed from.

        Parameters
        ----------
        box
            Box in voxels of this level.
        shape_zyx
            Shape of the stored array.
        """
        start = [a * f for a, f in zip(box.start_zyx, self.factor_zyx, strict=True)]
        stop = [
            min(b * f, n) for b, f, n in zip(box.stop_zyx, self.factor_zyx, shape_zyx, strict=True)
        ]
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def plan_levels(
    shape_zyx: ShapeZYX,
    spacing_zyx_mm: SpacingZYX,
    affine: Matrix4x4,
    coarsest_voxels: int = COARSEST_VOXELS,
) -> tuple[Level, ...]:
    """Choose the levels of a scan. Nothing is read.

    Parameters
    ----------
    shape_zyx, spacing_zyx_mm
        Shape and spacing of the stored array.
    affine
        Affine of the stored array: 4 x 4, voxel ``(x, y, z, 1)`` to RAS+ mm.
    coarsest_voxels
        Most voxels of the coarsest level; it may have more if no axis can be halved any more.

    Examples
    --------
    >>> levels = plan_levels((133, 512, 512), (2.5, 0.7, 0.7), np.diag([0.7, 0.7, 2.5, 1]))
    >>> [(level.factor_zyx, level.shape_zyx) for level in levels[1:]]
    [((1, 2, 2), (133, 256, 256)), ((1, 4, 4), (133, 128, 128)), ((2, 8, 8), (67, 64, 64))]
    >>> levels[1].affine[:3, 3]
    array([0.35, 0.35, 0.  ])
    """
    factors: list[ShapeZYX] = [(1, 1, 1)]
    while math.prod(chunk_grid(shape_zyx, factors[-1])) > coarsest_voxels:
        coarser = _coarser(shape_zyx, spacing_zyx_mm, factors[-1])
        if coarser == factors[-1]:
            break
        factors.append(coarser)
    return tuple(
        _level(number, factor, shape_zyx, spacing_zyx_mm, affine)
        for number, factor in enumerate(factors)
    )


def levels_of(scan: ScanHandle, coarsest_voxels: int = COARSEST_VOXELS) -> tuple[Level, ...]:
    """Choose the levels of a scan; see :func:`plan_levels`."""
    return plan_levels(
        scan.image.shape_zyx, scan.attributes.spacing_zyx_mm, scan.affine, coarsest_voxels
    )


def _coarser(
    shape_zyx: ShapeZYX, spacing_zyx_mm: SpacingZYX, factor_zyx: ShapeZYX
) -> tuple[int, int, int]:
    """Double the factors of the finest axes, but not of axes of one voxel."""
    spacings = [s * f for s, f in zip(spacing_zyx_mm, factor_zyx, strict=True)]
    can_grow = [n > f and f < _LARGEST_FACTOR for n, f in zip(shape_zyx, factor_zyx, strict=True)]
    finest = min((s for s, can in zip(spacings, can_grow, strict=True) if can), default=0.0)
    z, y, x = (
        2 * f if can and s <= _LARGEST_RATIO * finest else f
        for f, s, can in zip(factor_zyx, spacings, can_grow, strict=True)
    )
    return (z, y, x)


def _level(
    number: int,
    factor_zyx: ShapeZYX,
    shape_zyx: ShapeZYX,
    spacing_zyx_mm: SpacingZYX,
    affine: Matrix4x4,
) -> Level:
    factor_xyz = np.array(factor_zyx[::-1], np.float64)
    level_affine = np.array(affine, np.float64)
    level_affine[:3, 3] += level_affine[:3, :3] @ ((factor_xyz - 1) / 2)
    level_affine[:3, :3] *= factor_xyz
    z, y, x = (s * f for s, f in zip(spacing_zyx_mm, factor_zyx, strict=True))
    return Level(number, factor_zyx, chunk_grid(shape_zyx, factor_zyx), (z, y, x), level_affine)


def piece_shape_zyx(array: ArraySpec) -> ShapeZYX:
    """Return the shape of a piece of each level of an array: one chunk or several."""
    z, y, x = (n * -(-_MIN_PIECE_AXIS // n) for n in array.chunk_shape_zyx)
    return (z, y, x)


def shown_dtype(array: ArraySpec) -> np.dtype[Any]:
    """Return the dtype of an array in the levels that pages get.

    It is uint8 for a mask, int16 for an image whose values fit, and float32 for other images.
    """
    if array.name != IMAGE:
        return np.dtype(np.uint8)
    fits = array.scaling is None and np.can_cast(array.stored_dtype, np.int16)
    return np.dtype(np.int16 if fits else np.float32)


class LevelCache:
    """A bounded cache of pieces of levels; safe to share between threads.

    Requests that need the same piece at once compute it once.

    Parameters
    ----------
    limit_bytes
        Size of the cache, in bytes.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._pieces: BoundedCache[_Piece, Voxels] = BoundedCache(limit_bytes)
        self._locks = [ProcessLock() for _ in range(_N_LOCKS)]

    def get(self, key: _Piece, compute: Callable[[], Voxels]) -> Voxels:
        """Return a piece; compute it with ``compute`` if the cache does not have it."""
        piece = self._pieces.find([key]).get(key)
        if piece is None:
            with self._locks[hash(key) % _N_LOCKS]:
                piece = self._pieces.find([key]).get(key)
                if piece is None:
                    piece = compute()
                    self._pieces.keep({key: piece})
        return piece


class LevelReader:
    """Reads levels of the scans of a store; safe to share between threads.

    Parameters
    ----------
    engine
        Reads the store.
    store
        Name of the store, which is unique in ``cache``.
    cache
        Cache of pieces of levels, shared with other stores; None for no cache.
    tile_voxels
        Most stored voxels that a thread reads at once.
    """

    def __init__(
        self,
        engine: Engine,
        store: str = "",
        cache: LevelCache | None = None,
        *,
        tile_voxels: int = _TILE_VOXELS,
    ) -> None:
        self._engine = engine
        self._tile_voxels = tile_voxels
        self._store = store
        self._cache = cache

    def read(
        self, array: ArraySpec, level: Level, box: Box | None = None, *, threads: int = 1
    ) -> Voxels:
        """Return voxels of a level: means of blocks of the image, or modes of blocks of the mask.

        Means of whole numbers are rounded to the nearest whole number, halves up. In an image with
        NaN or infinite values, only the finite values of a block count, and a block without finite
        values is NaN. Of equally frequent values of a mask the lowest is taken, but background
        only in a block of background, so that thin parts stay visible.

        Parameters
        ----------
        array
            Image or mask of a scan. Scaled values are returned as float32, and the values of
            ``array.unscaled()`` as stored numbers.
        level
            Level of that scan.
        box
            Box inside the level, in its voxels; None for the whole level.
        threads
            Number of threads that read at once.

        Returns
        -------
        numpy.ndarray
            Voxels ``(z, y, x)`` of the box.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        ValueError
            If the box is not inside the level.
        """
        requested = level.box if box is None else box
        if requested.intersect(level.box) != requested:
            raise ValueError(f"{requested} is not inside a level of {level.shape_zyx} voxels")
        out = np.empty(requested.shape_zyx, _dtype(array))
        if level.factor_zyx == (1, 1, 1):
            self._engine.read([BoxRead(array, requested, out)], threads=threads)
            return out
        pieces = _pieces(level, piece_shape_zyx(array), requested)

        def fill(piece: Box) -> None:
            overlap = piece.intersect(requested) or piece
            voxels = self._piece(array, level, piece)
            out[_slices_in(overlap, requested)] = voxels[_slices_in(overlap, piece)]

        if min(threads, len(pieces)) <= 1:
            for piece in pieces:
                fill(piece)
        else:
            with ThreadPoolExecutor(min(threads, len(pieces)), "spinezarr-level") as pool:
                for _ in pool.map(fill, pieces):
                    pass
        return out

    def _piece(self, array: ArraySpec, level: Level, box: Box) -> Voxels:
        key: _Piece = (
            self._store,
            array.scan_id,
            array.content_checksum,
            array.name,
            array.scaling is None,
            level.factor_zyx,
            box,
        )

        def compute() -> Voxels:
            voxels = np.empty(box.shape_zyx, _dtype(array))
            self._compute(array, level, box, voxels)
            voxels.flags.writeable = False
            return voxels

        return compute() if self._cache is None else self._cache.get(key, compute)

    def _compute(self, array: ArraySpec, level: Level, box: Box, out: Voxels) -> None:
        """Fill ``out`` with a box of a level. Boxes that would need much memory are split."""
        stored_box = level.stored_box(box, array.shape_zyx)
        if math.prod(stored_box.shape_zyx) > self._tile_voxels and max(box.shape_zyx) > 1:
            axis = max(range(3), key=lambda i: (box.shape_zyx[i] > 1, stored_box.shape_zyx[i]))
            middle = box.shape_zyx[axis] // 2
            for start, stop in ((0, middle), (middle, box.shape_zyx[axis])):
                slices = [slice(None)] * 3
                slices[axis] = slice(start, stop)
                low, high = list(box.start_zyx), list(box.stop_zyx)
                low[axis], high[axis] = box.start_zyx[axis] + start, box.start_zyx[axis] + stop
                half = Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))
                self._compute(array, level, half, out[tuple(slices)])
            return
        voxels = self._engine.buffers.empty(stored_box.shape_zyx, _dtype(array))
        self._engine.read([BoxRead(array, stored_box, voxels)])
        if array.name == IMAGE:
            out[...] = _means(voxels, level.factor_zyx)
        else:
            out[...] = _modes(voxels, level.factor_zyx)


def _dtype(array: ArraySpec) -> np.dtype[Any]:
    return array.stored_dtype if array.scaling is None else np.dtype(np.float32)


def _pieces(level: Level, piece_zyx: ShapeZYX, box: Box) -> list[Box]:
    """Return the pieces of a level that a box intersects."""
    ranges = [
        range(a // n, -(-b // n))
        for a, b, n in zip(box.start_zyx, box.stop_zyx, piece_zyx, strict=True)
    ]
    pieces = []
    for index in product(*ranges):
        z, y, x = (i * n for i, n in zip(index, piece_zyx, strict=True))
        piece = Box.at((z, y, x), piece_zyx).intersect(level.box)
        if piece is not None:
            pieces.append(piece)
    return pieces


def _slices_in(box: Box, outer_box: Box) -> tuple[slice, slice, slice]:
    z, y, x = (-start for start in outer_box.start_zyx)
    return box.shift((z, y, x)).slices


def _means(voxels: Voxels, factor_zyx: ShapeZYX) -> Voxels:
    """Return the mean of each block."""
    if voxels.dtype.kind == "f":
        is_finite = np.isfinite(voxels)
        counts: Any = _counts(voxels.shape, factor_zyx)
        if not is_finite.all():
            counts = _sums(is_finite, factor_zyx, np.dtype(np.int32))
            voxels = np.where(is_finite, voxels, voxels.dtype.type(0))
        with np.errstate(invalid="ignore", over="ignore"):
            means: Voxels = (_sums(voxels, factor_zyx, np.dtype(np.float64)) / counts).astype(
                voxels.dtype
            )
        return means
    if voxels.itemsize == _WIDE_BYTES:
        return _means_of_wide(voxels, factor_zyx)
    sums = _sums(
        voxels, factor_zyx, np.dtype(np.int32 if voxels.itemsize <= _SMALL_BYTES else np.int64)
    )
    return _divide_rounded(sums, _counts(voxels.shape, factor_zyx)).astype(voxels.dtype)


def _means_of_wide(voxels: Voxels, factor_zyx: ShapeZYX) -> Voxels:
    """Return the means of 64-bit numbers, computed from their upper and lower halves.

    Sums of 64-bit numbers fit no type. Intermediate overflows cancel, because the mean fits.
    """
    dtype, counts = np.dtype(np.int64), _counts(voxels.shape, factor_zyx)
    lower = voxels & voxels.dtype.type(_LOWER_HALF)
    upper_n = _sums((voxels >> 32).astype(dtype), factor_zyx, dtype)
    quotient, rest = np.divmod(upper_n, counts)
    rounded = _divide_rounded((rest << 32) + _sums(lower.astype(dtype), factor_zyx, dtype), counts)
    return ((quotient << 32) + rounded).astype(voxels.dtype)


def _divide_rounded(sums: Voxels, counts: npt.NDArray[np.int64]) -> Voxels:
    """Divide sums in place, and round to the nearest whole number, halves up."""
    n = int(counts[0, 0, 0])  # the count of a whole block is a power of 2
    if n & (n - 1) == 0 and (counts == n).all():
        sums += n // 2
        sums >>= n.bit_length() - 1
        return sums
    return (2 * sums + counts) // (2 * counts)


def _sums(voxels: Voxels, factor_zyx: ShapeZYX, dtype: np.dtype[Any]) -> Voxels:
    """Return the sum of each block, computed axis by axis; x comes last, because it is the slowest.

    Whole numbers are added in their own type while it can hold the sums, which is faster.
    """
    sums, is_whole = voxels, voxels.dtype.kind in "iu"
    highest = max(abs(int(voxels.min())), abs(int(voxels.max()))) if is_whole else 0
    for axis, factor in enumerate(factor_zyx):
        if factor == 1:
            continue
        highest *= factor
        fits = is_whole and highest <= np.iinfo(sums.dtype).max
        shape = list(sums.shape)
        shape[axis] = -(-shape[axis] // factor)
        block_sums = np.zeros(shape, sums.dtype if fits else dtype)
        target, source = np.moveaxis(block_sums, axis, 0), np.moveaxis(sums, axis, 0)
        for first in range(factor):
            part = source[first::factor]
            target[: len(part)] += part
        sums = block_sums
    return sums.astype(dtype, copy=False)


def _counts(shape_zyx: tuple[int, ...], factor_zyx: ShapeZYX) -> npt.NDArray[np.int64]:
    """Return the number of voxels of each block; blocks that are cut short have fewer."""
    z, y, x = (
        np.minimum(f, n - np.arange(0, n, f)) for n, f in zip(shape_zyx, factor_zyx, strict=True)
    )
    counts: npt.NDArray[np.int64] = z[:, None, None] * y[:, None] * x
    return counts


def _modes(
    labels: npt.NDArray[np.uint8], factor_zyx: ShapeZYX, voxels_at_once: int = _MODE_VOXELS
) -> npt.NDArray[np.uint8]:
    """Return the most frequent value of each block; see :meth:`LevelReader.read`."""
    z, y, x = labels.shape
    modes = np.zeros(chunk_grid((z, y, x), factor_zyx), np.uint8)
    box = _blocks_with_labels(labels, factor_zyx)
    if box is not None:
        a, b = box.start_zyx, box.stop_zyx
        voxels = tuple(slice(i * f, j * f) for i, j, f in zip(a, b, factor_zyx, strict=True))
        modes[box.slices] = _modes_of_box(labels[voxels], factor_zyx, voxels_at_once)
    return modes


def _blocks_with_labels(labels: npt.NDArray[np.uint8], factor_zyx: ShapeZYX) -> Box | None:
    """Return the box of the blocks that hold labels; None if all hold background."""
    flat = labels.max(axis=0)
    has_labels = (labels.max(axis=(1, 2)), flat.max(axis=1), flat.max(axis=0))
    indices = [np.flatnonzero(flags) for flags in has_labels]
    if not len(indices[0]):
        return None
    start = [int(i[0]) // f for i, f in zip(indices, factor_zyx, strict=True)]
    stop = [int(i[-1]) // f + 1 for i, f in zip(indices, factor_zyx, strict=True)]
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _modes_of_box(
    labels: npt.NDArray[np.uint8], factor_zyx: ShapeZYX, voxels_at_once: int
) -> npt.NDArray[np.uint8]:
    lowest, highest = (_extremes(labels, factor_zyx, choose) for choose in (np.minimum, np.maximum))
    mixed = np.argwhere(lowest != highest)  # few blocks hold several values
    if not len(mixed):
        return lowest
    n_blocks = max(1, voxels_at_once // math.prod(factor_zyx))
    for first in range(0, len(mixed), n_blocks):
        blocks = mixed[first : first + n_blocks]
        lowest[tuple(blocks.T)] = _modes_of(labels, factor_zyx, blocks)
    return lowest


def _modes_of(
    labels: npt.NDArray[np.uint8], factor_zyx: ShapeZYX, blocks: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint8]:
    """Return the most frequent value of each block in ``blocks``, indices of shape ``(n, 3)``."""
    values, exists = _block_values(labels, factor_zyx, blocks)
    modes = np.zeros(len(blocks), np.uint8)
    highest = np.zeros(len(blocks), np.int64)
    for value in (*(v for v in np.unique(values).tolist() if v != BACKGROUND), BACKGROUND):
        count = ((values == value) & exists).sum(axis=0)
        modes[count > highest] = value
        np.maximum(highest, count, out=highest)
    return modes


def _extremes(
    labels: npt.NDArray[np.uint8], factor_zyx: ShapeZYX, choose: np.ufunc
) -> npt.NDArray[np.uint8]:
    """Return the lowest or highest value of each block."""
    values = labels
    for axis, factor in enumerate(factor_zyx):
        source = np.moveaxis(values, axis, 0)
        extremes = source[::factor].copy()
        for first in range(1, factor):
            part = source[first::factor]
            choose(extremes[: len(part)], part, out=extremes[: len(part)])
        values = np.moveaxis(extremes, 0, axis)
    return values


def _block_values(
    labels: npt.NDArray[np.uint8], factor_zyx: ShapeZYX, blocks: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """Return the voxels of some blocks, shape ``(voxels, blocks)``, and which of them exist."""
    offsets = np.array(list(product(*map(range, factor_zyx))))
    positions = blocks * factor_zyx + offsets[:, None]
    exists = (positions < labels.shape).all(axis=2)
    z, y, x = np.moveaxis(np.minimum(positions, np.array(labels.shape) - 1), 2, 0)
    return labels[z, y, x], exists
