"""Where do the bytes of a chunk lie?

The metadata of a scan list the blocks of the chunks of its shards, so nothing else is read.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import CorruptStoreError, ScanChangedError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sharding import CHECKSUM_BYTES
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.fetch import ByteRange, ByteRanges, StoredShard
from spinezarr.stream.read.native import BACKGROUND, CHUNKS, NOT_TRIED, Kernel, address, kernel
from spinezarr.stream.read.plan import ReadPlan

__all__ = ["ChunkLocations", "ChunkLocator", "ShardTable"]

_CACHE_BYTES: Final = 64 << 20
"""Bytes of tables in memory: about 1,400 scans of 512 x 512 x 600 voxels with their masks."""
_Shard = tuple[ArraySpec, ShapeZYX]
_KERNEL_ARRAYS: Final = [(np.dtype(name), True) for name in ("i4", "i8", "u4")]
"""Types of the arrays of :class:`ShardTable`, and that they have no gaps."""
_NO_SHARD: Final = (0,) * 6
"""What stands in place of :attr:`ShardTable.numbers` if no chunk of a shard is stored."""


@dataclass(frozen=True, slots=True, eq=False)
class ShardTable:
    """Where the blocks of the chunks of a shard lie. Each chunk that is stored has a row."""

    shard: StoredShard
    row_of_position: npt.NDArray[np.int32]
    """Row of the chunk at each position in the shard; -1 if it is not stored."""
    starts: npt.NDArray[np.int64]
    """Shape ``(rows, blocks + 1)``: first byte of each block, and one past the last block."""
    voxels_crc32c: npt.NDArray[np.uint32]
    """Shape ``(rows,)``: checksum of the decoded chunk."""
    numbers: tuple[int, ...] = field(init=False, repr=False)
    """Where the kernel finds these arrays, and how long they are."""

    def __post_init__(self) -> None:
        arrays = (self.row_of_position, self.starts, self.voxels_crc32c)
        if [(a.dtype, a.flags.c_contiguous) for a in arrays] != _KERNEL_ARRAYS:
            raise ValueError("arrays that the kernel cannot read")
        numbers = (
            address(self.row_of_position),
            len(self.row_of_position),
            address(self.starts),
            address(self.voxels_crc32c),
            *self.starts.shape,
        )
        object.__setattr__(self, "numbers", numbers)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
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
    chunks: npt.NDArray[np.void]
    """Rows of :data:`spinezarr.stream.read.native.CHUNKS`, without the places of their bytes."""
    starts: npt.NDArray[np.int64]
    """Shape ``(chunks, blocks + 1)``: first byte of each block, and one past the last block.

    All are 0 for background that is not stored. A chunk with fewer blocks than another has zeros
    at the end.
    """

    @property
    def first_block(self) -> npt.NDArray[np.int64]:
        """Number of the first wanted block of the chunk."""
        return self.chunks["first_block"]

    @property
    def n_blocks(self) -> npt.NDArray[np.int64]:
        """Number of wanted blocks of the chunk."""
        return self.chunks["n_blocks"]

    @property
    def voxels_crc32c(self) -> npt.NDArray[np.uint32]:
        """Checksum of the decoded chunk by the manifest."""
        return self.chunks["voxels_crc32c"]

    @property
    def offset(self) -> npt.NDArray[np.int64]:
        """First byte of the wanted blocks in their shard."""
        return self.chunks["offset"]

    @property
    def size(self) -> npt.NDArray[np.int64]:
        """Bytes of the wanted blocks with their checksums; 0 for background that is not stored."""
        return self.chunks["size"]

    def block_sizes(self, chunk: int) -> npt.NDArray[np.int64]:
        """Return the bytes of each wanted block of a chunk."""
        first, n = self.first_block[chunk], self.n_blocks[chunk]
        return np.diff(self.starts[chunk, first : first + n + 1])

    def range_of(self, chunk: int) -> ByteRange:
        """Return the bytes of the wanted blocks of a chunk."""
        (item,) = self.ranges_of(np.array([chunk]))
        return item

    def ranges_of(self, chunks: npt.NDArray[np.intp]) -> ByteRanges:
        """Return the bytes of the wanted blocks of some chunks."""
        start = self.offset[chunks]
        return ByteRanges(self.shards, self.shard[chunks], start, start + self.size[chunks])

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
        self._cache: BoundedCache[_Shard, ShardTable] = BoundedCache(_CACHE_BYTES)

    def locate(self, plan: ReadPlan) -> ChunkLocations:
        """Return where the wanted blocks lie. Chunks that are not listed are background."""
        runs = plan.shard_runs
        known = self._cache.find(shard for shard, _ in runs)
        new = {
            shard: _load_table(*shard)
            for shard, _ in runs
            if shard not in known and shard[1] in shard[0].shards
        }
        self._cache.keep(new)
        known |= new
        tables = [known.get(shard) for shard, _ in runs]
        stops = [stop for _, stop in runs]
        loaded = kernel()
        n_columns = max((array.coding.n_blocks for array in plan.arrays), default=0) + 1
        given = (plan, tables, stops, n_columns)
        chunks, starts, shard = (
            _locate_without_kernel(*given) if loaded is None else _locate_by_kernel(loaded, *given)
        )
        shards = tuple(table.shard for table in tables if table is not None)
        return ChunkLocations(shards, shard, chunks, starts)

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


_Located = tuple[npt.NDArray[np.void], npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""Chunks, starts of their blocks, and the number of the shard of each."""


def _locate_by_kernel(
    loaded: Kernel,
    plan: ReadPlan,
    tables: Sequence[ShardTable | None],
    stops: Sequence[int],
    n_columns: int,
) -> _Located:
    """Locate chunks by the table of each run of a plan, where the runs end at ``stops``."""
    numbers = count()
    rows = [
        (stop, -1, *_NO_SHARD) if table is None else (stop, next(numbers), *table.numbers)
        for stop, table in zip(stops, tables, strict=True)
    ]
    table_rows = np.array(rows, np.int64).reshape(-1, 2 + len(_NO_SHARD))
    return loaded.locate(plan.array_numbers, plan.places, table_rows, n_columns)


def _locate_without_kernel(
    plan: ReadPlan, tables: Sequence[ShardTable | None], stops: Sequence[int], n_columns: int
) -> _Located:
    """Do what :meth:`spinezarr.stream.read.native.Kernel.locate` does."""
    chunks = np.zeros(len(plan), CHUNKS)
    starts = np.zeros((len(plan), n_columns), np.int64)
    shard = np.full(len(plan), -1)
    first, stop = plan.blocks
    for name in ("first_piece", "n_pieces", "first_block"):
        chunks[name] = plan.places[name]
    chunks["n_blocks"] = stop - first
    chunks["first_start"] = np.arange(len(plan)) * n_columns + first
    numbers_of_chunk = plan.array_numbers[plan.array]
    chunks["shape_zyx"] = numbers_of_chunk[:, 3:6]
    chunks["itemsize"], chunks["block_bytes"], encoding = numbers_of_chunk[:, 9:].T
    chunks["encoding"], chunks["fd"], chunks["status"] = BACKGROUND, -1, NOT_TRIED
    numbers = count()
    for table, begin, end in zip(tables, [0, *stops], stops, strict=False):
        if table is None:
            continue
        shard[begin:end] = next(numbers)
        row = table.row_of_position[plan.position[begin:end]]
        stored, row = np.flatnonzero(row >= 0) + begin, row[row >= 0]
        starts[stored, : table.starts.shape[1]] = table.starts[row]
        chunks["voxels_crc32c"][stored] = table.voxels_crc32c[row]
        chunks["encoding"][stored] = encoding[stored]
        chunks["offset"][stored] = table.starts[row, first[stored]]
        chunks["size"][stored] = table.starts[row, stop[stored]] - chunks["offset"][stored]
    return chunks, starts, shard


def _load_table(array: ArraySpec, shard_zyx: ShapeZYX) -> ShardTable:
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
    checksums = np.ascontiguousarray(listed["voxels_crc32c"], np.uint32)
    return ShardTable(shard, row_of_position, starts, checksums)
