"""From slabs of a source file to shards of a stored array, in one pass.

The source is inflated slab by slab; each slab is as thick as a chunk, so its chunks are complete
and are encoded at once by a pool of threads. What is held is two slabs, and the encoded chunks of
shards that are not complete yet.
"""

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import product
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from spinezarr.formats import Volume
from spinezarr.geometry import Box, Grid, ShapeZYX
from spinezarr.store.layout import Profile, chunk_grid
from spinezarr.store.sharding import assemble_shard

__all__ = ["Encoded", "encode_volume", "plan_slabs"]

_SLABS_IN_FLIGHT: Final = 2

Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True)
class Encoded(Generic[Facts]):
    """One encoded chunk, and what was learnt of its voxels."""

    chunk_zyx: ShapeZYX
    data: bytes | None
    """None for a chunk that need not be stored."""
    facts: Facts


class ChunkEncoder(Protocol[Facts]):
    """Turns the voxels of one chunk into bytes; called from several threads at once."""

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[Facts]:
        """Encode ``voxels``, which may be smaller than a chunk at the end of the volume."""
        ...


def plan_slabs(grid: Grid, chunk_shape_zyx: ShapeZYX) -> list[Box]:
    """Return the boxes of stored voxels that the slabs of a source file hold, in file order.

    Each is one chunk thick along the stored axis that the file's slowest axis becomes.

    Examples
    --------
    >>> flipped = Grid((4, 4, 100), np.diag([1.0, 1.0, -1.0, 1.0]))
    >>> [(box.start_zyx[0], box.stop_zyx[0]) for box in plan_slabs(flipped, (64, 48, 48))]
    [(64, 100), (0, 64)]
    """
    axis_map, shape = grid.axis_map, grid.shape_zyx
    axis = axis_map.source_axis_zyx.index(2)
    boxes = []
    for start in range(0, shape[axis], chunk_shape_zyx[axis]):
        low, high = [0, 0, 0], list(shape)
        low[axis], high[axis] = start, min(start + chunk_shape_zyx[axis], shape[axis])
        boxes.append(Box((low[0], low[1], low[2]), (high[0], high[1], high[2])))
    return boxes[::-1] if axis_map.flip_zyx[axis] else boxes


def encode_volume(
    volume: Volume,
    grid: Grid,
    encoder: ChunkEncoder[Facts],
    *,
    profile: Profile,
    write_shard: Callable[[ShapeZYX, bytes], None],
    pool: Executor,
    on_voxels: Callable[[int], None],
) -> list[Facts]:
    """Encode a whole volume and write its shards.

    Parameters
    ----------
    volume
        The source.
    grid
        The grid by which its axes are turned.
    encoder
        Encodes one chunk.
    profile
        Shapes of chunks and shards.
    write_shard
        Called once for each shard that holds a chunk, with its index and bytes.
    pool
        Threads that encode.
    on_voxels
        Called with the number of voxels done, for progress.

    Returns
    -------
    list
        The facts of all chunks, in C order of the chunks.
    """
    chunk_shape_zyx = profile.chunk_shape_zyx
    boxes = plan_slabs(grid, chunk_shape_zyx)
    axis_map = grid.axis_map
    axis = axis_map.source_axis_zyx.index(2)
    shards = _Shards(grid.shape_zyx, profile, write_shard)
    facts: dict[ShapeZYX, Facts] = {}
    in_flight: deque[list[Future[Encoded[Facts]]]] = deque()

    def finish_oldest() -> None:
        for future in in_flight[0]:
            encoded = future.result()
            facts[encoded.chunk_zyx] = encoded.facts
            shards.add(encoded.chunk_zyx, encoded.data)
        in_flight.popleft()

    try:
        thicknesses = [box.shape_zyx[axis] for box in boxes]
        # strict: asking for one slab more makes the volume check its file to the end.
        for box, slab in zip(boxes, volume.slabs(thicknesses), strict=True):
            turned = axis_map.to_zyx(slab)
            in_flight.append(_submit(pool, encoder, turned, box, chunk_shape_zyx))
            if len(in_flight) >= _SLABS_IN_FLIGHT:
                finish_oldest()
            on_voxels(slab.size)
        while in_flight:
            finish_oldest()
    finally:
        for future in (future for futures in in_flight for future in futures):
            future.cancel()
    return [facts[chunk] for chunk in sorted(facts)]


def _submit(
    pool: Executor,
    encoder: ChunkEncoder[Facts],
    slab: npt.NDArray[Any],
    box: Box,
    chunk_shape_zyx: ShapeZYX,
) -> list[Future[Encoded[Facts]]]:
    """Hand the chunks of a slab, stored voxels ``box``, to the pool."""
    first = tuple(a // c for a, c in zip(box.start_zyx, chunk_shape_zyx, strict=True))
    futures = []
    for step in product(*(range(n) for n in chunk_grid(box.shape_zyx, chunk_shape_zyx))):
        at = tuple(slice(i * c, (i + 1) * c) for i, c in zip(step, chunk_shape_zyx, strict=True))
        z, y, x = (a + i for a, i in zip(first, step, strict=True))
        futures.append(pool.submit(encoder, slab[at], (z, y, x)))
    return futures


class _Shards:
    """Collects chunks and writes each shard when its last chunk has come."""

    def __init__(
        self, shape_zyx: ShapeZYX, profile: Profile, write: Callable[[ShapeZYX, bytes], None]
    ) -> None:
        self._write = write
        self._grid = profile.chunk_grid(shape_zyx)
        self._per_shard = profile.chunk_grid(profile.shard_shape_zyx(shape_zyx))
        self._waiting: dict[ShapeZYX, int] = {}
        self._chunks: dict[ShapeZYX, dict[int, bytes]] = {}

    def add(self, chunk_zyx: ShapeZYX, data: bytes | None) -> None:
        z, y, x = (i // n for i, n in zip(chunk_zyx, self._per_shard, strict=True))
        shard = (z, y, x)
        chunks = self._chunks.setdefault(shard, {})
        if data is not None:
            within = tuple(i % n for i, n in zip(chunk_zyx, self._per_shard, strict=True))
            chunks[int(np.ravel_multi_index(within, self._per_shard))] = data
        left = self._waiting.get(shard, self._expected(shard)) - 1
        self._waiting[shard] = left
        if left == 0:
            del self._chunks[shard]
            if chunks:
                self._write(shard, assemble_shard(chunks, math.prod(self._per_shard)))

    def _expected(self, shard: ShapeZYX) -> int:
        """Chunks of a shard that lie inside the volume."""
        return math.prod(
            min(n, total - i * n)
            for i, n, total in zip(shard, self._per_shard, self._grid, strict=True)
        )
