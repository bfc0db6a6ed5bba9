"""Where do the bytes of a chunk lie?

The metadata of a scan list the chunks of its shards, so nothing else is read.
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
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.fetch import ByteRange, ByteRanges, StoredShard
from spinezarr.stream.read.plan import ReadPlan

__all__ = ["ChunkLocations", "ChunkLocator"]

_CACHE_BYTES: Final = 64 << 20
"""Bytes of tables in memory: about 1,400 scans of 512 x 512 x 600 voxels with their masks."""
_ROW: Final = np.dtype([("offset", np.int64), ("size", np.int64), ("crc32c", np.uint32)])
_Shard = tuple[ArraySpec, ShapeZYX]


@dataclass(frozen=True, slots=True, eq=False)
class _ShardTable:
    """Where the chunks of a shard lie, one row for each position in the shard."""

    shard: StoredShard
    rows: npt.NDArray[np.void]

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class ChunkLocations:
    """Where the chunks of a :class:`~spinezarr.stream.read.plan.ReadPlan` lie.

    Each array has the shape ``(chunks,)``.
    """

    shards: tuple[StoredShard, ...]
    """The shards that hold the chunks."""
    shard: npt.NDArray[np.int64]
    """Number of the shard in :attr:`shards`; -1 for background whose shard does not exist."""
    offset: npt.NDArray[np.int64]
    """First byte of the chunk in its shard."""
    size: npt.NDArray[np.int64]
    """Bytes of the chunk with its checksum; 0 for background that is not stored."""
    crc32c: npt.NDArray[np.uint32]
    """Checksum of the chunk by the manifest; the chunk ends with the same number."""

    def range_of(self, chunk: int) -> ByteRange:
        """Return the bytes of a chunk."""
        start, size = int(self.offset[chunk]), int(self.size[chunk])
        return ByteRange(self.shards[self.shard[chunk]], start, start + size)

    def ranges_of(self, chunks: npt.NDArray[np.intp]) -> ByteRanges:
        """Return the bytes of some chunks."""
        start = self.offset[chunks]
        return ByteRanges(self.shards, self.shard[chunks], start, start + self.size[chunks])

    def first_chunk_of(self, path: str) -> int:
        """Return the first chunk of the plan that lies in the shard at ``path``."""
        number = [shard.path for shard in self.shards].index(path)
        return int(np.flatnonzero(self.shard == number)[0])


class ChunkLocator:
    """Finds chunks in shards by the manifests of scans.

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
        """Return where the chunks of a plan lie. Chunks that are not listed are background."""
        runs = list(_shard_runs(plan))
        known = self._cache.find(shard for shard, _ in runs)
        new = {
            shard: _load_table(*shard)
            for shard, _ in runs
            if shard not in known and shard[1] in shard[0].shards
        }
        self._cache.keep(new)
        known |= new
        rows = np.zeros(len(plan), _ROW)
        number = np.full(len(plan), -1)
        shards: list[StoredShard] = []
        for shard, chunks in runs:
            if shard in known:
                rows[chunks] = known[shard].rows[plan.position[chunks]]
                number[chunks] = len(shards)
                shards.append(known[shard].shard)
        return ChunkLocations(
            shards=tuple(shards),
            shard=number,
            offset=rows["offset"],
            size=rows["size"],
            crc32c=rows["crc32c"],
        )

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
    """Return where the chunks of a shard lie; rows of chunks that are not stored are 0."""
    n_chunks = math.prod(array.chunks_per_shard_zyx)
    entry = array.shards[shard_zyx]
    listed = entry.chunk_rows
    size = listed["size"].astype(np.int64)
    rows = np.zeros(n_chunks, _ROW)
    rows["offset"][listed["position"]] = np.cumsum(size) - size
    rows["size"][listed["position"]] = size
    rows["crc32c"][listed["position"]] = listed["crc32c"]
    content = hashlib.sha256(entry.model_dump_json().encode()).hexdigest()
    return _ShardTable(StoredShard(array.shard_path(shard_zyx), entry.size_bytes, content), rows)
