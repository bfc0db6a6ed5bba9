"""Where do the bytes of a chunk lie?

The metadata of a scan list the blocks of the chunks of its shards, so nothing else is read.
"""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import CorruptStoreError, ScanChangedError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sharding import CHECKSUM_BYTES
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.fetch import ByteRange, ByteRanges, StoredShard
from spinezarr.stream.read.plan import ReadPlan

__all__ = ["ChunkLocations", "ChunkLocator"]

_CACHE_BYTES: Final = 64 << 20
"""Bytes of tables in memory: about 1,400 scans of 512 x 512 x 600 voxels with their masks."""
_Shard = tuple[ArraySpec, ShapeZYX]


@dataclass(frozen=True, slots=True, eq=False)
class _ShardTable:
    """Where the blocks of the chunks of a shard lie. Each chunk that is stored has a row."""

    shard: StoredShard
    row_of_position: npt.NDArray[np.int32]
    """Row of the chunk at each position in the shard; -1 if it is not stored."""
    starts: npt.NDArray[np.int64]
    """Shape ``(rows, blocks + 1)``: first byte of each block, and one past the last block."""
    voxels_crc32c: npt.NDArray[np.uint32]
    """Shape ``(rows,)``: checksum of the decoded chunk."""

    @property
    def nbytes(self) -> int:
        return self.row_of_position.nbytes + self.starts.nbytes + self.voxels_crc32c.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class ChunkLocations:
    """Where the wanted blocks of the chunks of a plan lie.

    The plan is a :class:`~spinezarr.stream.read.plan.ReadPlan`. Arrays have the shape ``(chunks,)``
    unless they say otherwise.
    """

    shards: tuple[StoredShard, ...]
    """The shards that hold the chunks."""
    shard: npt.NDArray[np.int64]
    """Number of the shard in :attr:`shards`; -1 for background whose shard does not exist."""
    first_block: npt.NDArray[np.int64]
    """Number of the first wanted block of the chunk."""
    stop_block: npt.NDArray[np.int64]
    """One past the last wanted block."""
    starts: npt.NDArray[np.int64]
    """Shape ``(chunks, blocks + 1)``: first byte of each block, and one past the last block.

    All are 0 for background that is not stored. A chunk with fewer blocks than another has zeros
    at the end.
    """
    voxels_crc32c: npt.NDArray[np.uint32]
    """Checksum of the decoded chunk by the manifest."""

    @property
    def offset(self) -> npt.NDArray[np.int64]:
        """First byte of the wanted blocks in their shard."""
        return _take(self.starts, self.first_block)

    @property
    def size(self) -> npt.NDArray[np.int64]:
        """Bytes of the wanted blocks with their checksums; 0 for background that is not stored."""
        size: npt.NDArray[np.int64] = _take(self.starts, self.stop_block) - self.offset
        return size

    def block_sizes(self, chunk: int) -> npt.NDArray[np.int64]:
        """Return the bytes of each wanted block of a chunk."""
        first, stop = self.first_block[chunk], self.stop_block[chunk]
        return np.diff(self.starts[chunk, first : stop + 1])

    def range_of(self, chunk: int) -> ByteRange:
        """Return the bytes of the wanted blocks of a chunk."""
        (item,) = self.ranges_of(np.array([chunk]))
        return item

    def ranges_of(self, chunks: npt.NDArray[np.intp]) -> ByteRanges:
        """Return the bytes of the wanted blocks of some chunks."""
        start, stop = self.offset[chunks], _take(self.starts, self.stop_block)[chunks]
        return ByteRanges(self.shards, self.shard[chunks], start, stop)

    def first_chunk_of(self, path: str) -> int:
        """Return the first chunk of the plan that lies in the shard at ``path``."""
        number = [shard.path for shard in self.shards].index(path)
        return int(np.flatnonzero(self.shard == number)[0])


class ChunkLocator:
    """Finds blocks of chunks in shards by the manifests of scans.

    Tables of recently used shards stay in memory. It is shared between threads.

    Parameters
    ----------
    name
        Returns the name of a path for messages.
    """

    def __init__(self, name: Callable[[str], str]) -> None:
        self._name = name
        self._cache: BoundedCache[_Shard, _ShardTable] = BoundedCache(_CACHE_BYTES)

    def locate(self, plan: ReadPlan) -> ChunkLocations:
        """Return where the wanted blocks lie. Chunks that are not listed are background."""
        runs = list(_shard_runs(plan))
        known = self._cache.find(shard for shard, _ in runs)
        new = {
            shard: _load_table(*shard)
            for shard, _ in runs
            if shard not in known and shard[1] in shard[0].shards
        }
        self._cache.keep(new)
        known |= new
        n_blocks = max((array.coding.n_blocks for array in plan.arrays), default=0)
        starts = np.zeros((len(plan), n_blocks + 1), np.int64)
        checksums = np.zeros(len(plan), np.uint32)
        number = np.full(len(plan), -1)
        shards: list[StoredShard] = []
        for shard, chunks in runs:
            if shard not in known:
                continue
            table = known[shard]
            row = table.row_of_position[plan.position[chunks]]
            is_stored = row >= 0
            stored = np.flatnonzero(is_stored) + chunks.start
            starts[stored, : table.starts.shape[1]] = table.starts[row[is_stored]]
            checksums[stored] = table.voxels_crc32c[row[is_stored]]
            number[chunks] = len(shards)
            shards.append(table.shard)
        first, stop = plan.blocks
        return ChunkLocations(tuple(shards), number, first, stop, starts, checksums)

    def chunk_error(
        self, plan: ReadPlan, chunk: int, problem: str
    ) -> CorruptStoreError | ScanChangedError:
        """Return the error for a damaged chunk, or for its scan if that was ingested again."""
        array = plan.arrays[plan.array[chunk]]
        return array.find_change(array) or CorruptStoreError(
            f"scan {array.scan_id!r}, {array.name} chunk {plan.chunk_index(chunk)} in "
            f"{self._name(array.shard_path(plan.shard_index(chunk)))} {problem}. "
            "Ingest this scan again, or copy the store again."
        )


def _shard_runs(plan: ReadPlan) -> Iterator[tuple[_Shard, slice]]:
    """Yield the shards of a plan, and the chunks of each, which are neighbors in the plan."""
    if not len(plan):
        return
    changes = (np.diff(plan.shard_zyx, axis=0) != 0).any(axis=1) | (np.diff(plan.array) != 0)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(plan)]
    for start, stop in pairwise(borders):
        array = plan.arrays[plan.array[start]]
        yield (array, plan.shard_index(start)), slice(start, stop)


def _load_table(array: ArraySpec, shard_zyx: ShapeZYX) -> _ShardTable:
    """Return where the blocks of a shard lie."""
    chunk_bytes = math.prod(array.chunk_shape_zyx) * array.stored_dtype.itemsize
    if array.coding.chunk_bytes != chunk_bytes:
        raise ValueError(f"chunks of {array.coding.chunk_bytes} bytes, expected {chunk_bytes}")
    entry, coding = array.shards[shard_zyx], array.coding
    listed = entry.rows(coding)
    row_of_position = np.full(math.prod(array.chunks_per_shard_zyx), -1, np.int32)
    row_of_position[listed["position"]] = np.arange(len(listed))
    # A chunk is what comes before its blocks, the blocks, and its own checksum.
    starts = np.empty((len(listed), coding.n_blocks + 1), np.int64)
    starts[:, 0] = coding.blocks_offset
    starts[:, 1:] = listed["block_sizes"]
    np.cumsum(starts, axis=1, out=starts)
    ends = np.cumsum(starts[:, -1] + CHECKSUM_BYTES)
    starts[1:] += ends[:-1, None]
    content = hashlib.sha256(entry.model_dump_json().encode()).hexdigest()
    shard = StoredShard(array.shard_path(shard_zyx), entry.size_bytes, content)
    return _ShardTable(shard, row_of_position, starts, listed["voxels_crc32c"])


def _take(table: npt.NDArray[np.int64], column: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the value of each row in the column that is given for it."""
    return np.take_along_axis(table, column[:, None], axis=1)[:, 0]
