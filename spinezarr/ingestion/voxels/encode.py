"""How do the values of a source file become shards in one pass?

The source is read strip by strip, a few planes at a time. A layer is as many planes as a chunk is
thick. When a layer is complete, its chunks are too, and a pool of threads encodes them. A layer is
gathered in memory if two of them fit into the budget. A larger layer is gathered in a scratch file,
and encoded block by block while the next layer is read.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from spinezarr.formats.volume import Volume
from spinezarr.geometry import Box, Grid, ShapeZYX
from spinezarr.ingestion.voxels.layers import Layer, LayerInMemory, LayerOnDisk, Strip, plan_strips
from spinezarr.ingestion.voxels.memory import Workspace
from spinezarr.ingestion.voxels.shards import ShardCollector, WriteShard
from spinezarr.store.layout import Profile

__all__ = ["ChunkEncoder", "Encoded", "encode_volume"]

_LAYERS_IN_MEMORY: Final = 2
"""Number of layers that must fit into memory: one is gathered while the other is encoded.

Larger layers go to disk.
"""
_MIN_LAYERS_TO_READ_WHOLE: Final = 4
"""A layer is read in one strip if this many layers fit into the budget."""
_BLOCKS_IN_MEMORY: Final = 6
"""Number of blocks of a layer on disk that are held at once, enough to keep all threads busy."""
_CHUNKS_PER_TASK: Final = 4
"""Number of chunks of one task.

With fewer chunks, handing over tasks takes time. With more, threads are idle at the end.
"""

Facts = TypeVar("Facts")


@dataclass(frozen=True, slots=True)
class Encoded(Generic[Facts]):
    """One encoded chunk, and the facts about its voxels."""

    chunk_zyx: ShapeZYX
    data: bytes | None
    """Bytes of the chunk; None if it need not be stored."""
    facts: Facts


class ChunkEncoder(Protocol[Facts]):
    """Encodes the voxels of one chunk. Several threads call it at once."""

    def cast(self, values: npt.NDArray[Any], /) -> npt.NDArray[Any]:
        """Check values of the file, and return them in the type in which layers hold them."""
        ...

    def __call__(self, voxels: npt.NDArray[Any], chunk_zyx: ShapeZYX, /) -> Encoded[Facts]:
        """Encode ``voxels``, which may be smaller than a chunk at the end of the volume."""
        ...


def encode_volume(
    volume: Volume,
    grid: Grid,
    encoder: ChunkEncoder[Facts],
    *,
    profile: Profile,
    write_shard: WriteShard,
    pool: Executor,
    on_voxels: Callable[[int], None],
    workspace: Workspace,
) -> list[Facts]:
    """Encode a whole volume and write its shards.

    Parameters
    ----------
    volume
        Source volume.
    grid
        Grid whose axis directions determine the order of the stored axes.
    encoder
        Encoder of chunks.
    profile
        Shapes of chunks and shards.
    write_shard
        Called once for each shard that holds a chunk, with its index and its bytes in parts.
        Threads of the pool call it, but never after this function has returned or raised.
    pool
        Threads that encode.
    on_voxels
        Called with the number of voxels that were read, for progress.
    workspace
        Memory and scratch space that may be used.

    Returns
    -------
    list
        Facts about all chunks, in C order of the chunks.

    Raises
    ------
    UsageError
        If scratch space is needed but not available.
    """
    plane_bytes = math.prod(volume.grid.shape_ijk[:2]) * volume.dtype.itemsize
    planes = max(1, workspace.strip_bytes // plane_bytes)
    depth = profile.chunk_shape_zyx[grid.axis_map.source_axis_zyx.index(2)]
    if _MIN_LAYERS_TO_READ_WHOLE * depth * plane_bytes <= workspace.voxels.limit_bytes:
        planes = depth  # a layer of an ordinary CT is then used without a copy
    strips = plan_strips(grid, profile.chunk_shape_zyx, planes)
    shards = ShardCollector(grid.shape_zyx, profile, write_shard, workspace)
    encoding = _Encoding(
        grid, encoder, profile=profile, shards=shards, pool=pool, workspace=workspace
    )
    try:
        thicknesses = [strip.thickness for strip in strips]
        # strict: asking for one more strip makes the volume check its file to the end.
        for strip, values in zip(strips, volume.slabs(thicknesses), strict=True):
            encoding.add_strip(strip, values)
            on_voxels(values.size)
        return encoding.finish()
    finally:
        encoding.close()


@dataclass(frozen=True, slots=True)
class _Block:
    """Voxels of a layer that are encoded together."""

    layer: Layer
    box: Box
    size_bytes: int
    is_last: bool
    """Whether this is the last block of its layer."""


class _Encoding(Generic[Facts]):
    """State of encoding one volume. One thread runs it."""

    def __init__(
        self,
        grid: Grid,
        encoder: ChunkEncoder[Facts],
        *,
        profile: Profile,
        shards: ShardCollector,
        pool: Executor,
        workspace: Workspace,
    ) -> None:
        self._grid = grid
        self._encoder = encoder
        self._pool = pool
        self._workspace = workspace
        self._profile = profile
        self._shards = shards
        self._layer: Layer | None = None
        self._waiting_blocks: deque[_Block] = deque()
        """Blocks of the layer on disk that was gathered last."""
        self._in_flight: deque[tuple[int, list[Future[list[tuple[ShapeZYX, Facts]]]]]] = deque()
        """Number of bytes of voxels, and the futures of the chunks that are made from them."""
        self._facts: dict[ShapeZYX, Facts] = {}

    def add_strip(self, strip: Strip, values: npt.NDArray[Any]) -> None:
        """Gather a strip, and submit the blocks for which there is memory."""
        voxels = self._encoder.cast(values)
        if self._layer is None:
            self._layer = self._new_layer(strip.layer, voxels.dtype)
        self._layer.put(strip.start, voxels)
        self._submit_fitting_blocks()
        if strip.is_last:
            self._submit_all_blocks()
            self._waiting_blocks.extend(_blocks(self._layer, voxels.dtype))
            self._layer = None
            self._submit_fitting_blocks()

    def finish(self) -> list[Facts]:
        """Wait for all chunks, and return their facts in C order."""
        self._submit_all_blocks()
        while self._in_flight:
            self._finish_oldest()
        return [self._facts[chunk] for chunk in sorted(self._facts)]

    def close(self) -> None:
        """Stop all work. When this returns, no thread works on this volume any more."""
        futures = [future for _, futures in self._in_flight for future in futures]
        for future in [future for future in futures if not future.cancel()]:
            future.exception()
        if self._layer is not None:
            self._layer.close()
        for block in self._waiting_blocks:
            block.layer.close()
        self._shards.close()

    def _new_layer(self, box: Box, dtype: np.dtype[Any]) -> Layer:
        allowance = self._workspace.voxels
        size_bytes = math.prod(box.shape_zyx) * dtype.itemsize
        if _LAYERS_IN_MEMORY * size_bytes <= allowance.limit_bytes:
            self._reserve_memory(size_bytes)
            return LayerInMemory(self._grid, box, dtype)
        return LayerOnDisk(
            self._grid,
            box,
            dtype,
            chunk_shape_zyx=self._profile.chunk_shape_zyx,
            scratch=self._workspace.scratch,
            block_bytes=allowance.limit_bytes // _BLOCKS_IN_MEMORY,
        )

    def _reserve_memory(self, size_bytes: int) -> None:
        """Reserve memory for voxels. If there is none, wait until other voxels are encoded."""
        allowance = self._workspace.voxels
        while not allowance.try_reserve(size_bytes):
            if not self._in_flight:
                allowance.reserve(size_bytes)
                return
            self._finish_oldest()

    def _submit_fitting_blocks(self) -> None:
        """Submit the blocks for which there is memory now."""
        while self._in_flight and all(future.done() for future in self._in_flight[0][1]):
            self._finish_oldest()
        while self._waiting_blocks:
            block = self._waiting_blocks[0]
            if not (block.layer.in_memory or self._workspace.voxels.try_reserve(block.size_bytes)):
                return
            self._submit(self._waiting_blocks.popleft())

    def _submit_all_blocks(self) -> None:
        """Submit all waiting blocks, each as soon as there is memory."""
        while self._waiting_blocks:
            block = self._waiting_blocks[0]
            if not block.layer.in_memory:
                self._reserve_memory(block.size_bytes)
            self._submit(self._waiting_blocks.popleft())

    def _submit(self, block: _Block) -> None:
        voxels = block.layer.read(block.box)
        if block.is_last:
            block.layer.close()
        chunk_shape_zyx = self._profile.chunk_shape_zyx
        first_chunk_zyx = tuple(
            a // c for a, c in zip(block.box.start_zyx, chunk_shape_zyx, strict=True)
        )
        futures: list[Future[list[tuple[ShapeZYX, Facts]]]] = []
        self._in_flight.append((block.size_bytes, futures))
        chunks: list[tuple[npt.NDArray[Any], ShapeZYX]] = []
        for step in np.ndindex(self._profile.chunk_grid(block.box.shape_zyx)):
            chunk_slices = tuple(
                slice(i * c, (i + 1) * c) for i, c in zip(step, chunk_shape_zyx, strict=True)
            )
            z, y, x = (a + i for a, i in zip(first_chunk_zyx, step, strict=True))
            chunks.append((voxels[chunk_slices], (z, y, x)))
        for i in range(0, len(chunks), _CHUNKS_PER_TASK):
            task_chunks = chunks[i : i + _CHUNKS_PER_TASK]
            futures.append(self._pool.submit(self._encode_chunks, task_chunks))

    def _encode_chunks(
        self, chunks: Iterable[tuple[npt.NDArray[Any], ShapeZYX]]
    ) -> list[tuple[ShapeZYX, Facts]]:
        """Encode chunks and add them to their shards; called by threads of the pool."""
        facts = []
        for voxels, chunk_zyx in chunks:
            encoded = self._encoder(voxels, chunk_zyx)
            self._shards.add(chunk_zyx, encoded.data)
            facts.append((chunk_zyx, encoded.facts))
        return facts

    def _finish_oldest(self) -> None:
        size_bytes, futures = self._in_flight[0]
        for future in futures:
            self._facts.update(future.result())
        self._in_flight.popleft()
        self._workspace.voxels.release(size_bytes)


def _blocks(layer: Layer, dtype: np.dtype[Any]) -> list[_Block]:
    boxes = layer.blocks()
    return [
        _Block(layer, box, math.prod(box.shape_zyx) * dtype.itemsize, box is boxes[-1])
        for box in boxes
    ]
