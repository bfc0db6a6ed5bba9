"""Where chunks lie: scans' metadata say it, so nothing is read for it."""

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
from spinezarr.store.reader import ArraySpec
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.fetch import ByteRange, ByteRanges, StoredShard
from spinezarr.stream.read.plan import ReadPlan

__all__ = ["ChunkLocations", "ChunkLocator"]

_KEPT_BYTES: Final = 64 << 20
"""Of tables in memory: some 1,400 scans of 512 x 512 x 600 voxels with their masks."""
_ROW: Final = np.dtype([("offset", np.int64), ("size", np.int64), ("crc32c", np.uint32)])
_Shard = tuple[ArraySpec, ShapeZYX]


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """The chunks of a shard, by position."""

    shard: StoredShard
    rows: npt.NDArray[np.void]

    @property
    def nbytes(self) -> int:
        return self.rows.nbytes


@dataclass(frozen=True, slots=True, eq=False)
class ChunkLocations:
    """Where the chunks of a plan lie, one row each."""

    shards: tuple[StoredShard, ...]
    """Those that hold them, and the number of each by ``shard``."""
    shard: npt.NDArray[np.int64]
    """Of a chunk; -1 for background whose shard does not exist."""
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    """Bytes, with the checksum; 0 for background that is not stored."""
    crc32c: npt.NDArray[np.uint32]
    """At the end of each chunk, by the manifest."""

    def range_of(self, chunk: int) -> ByteRange:
        """Return the bytes of a chunk."""
        start, size = int(self.offset[chunk]), int(self.size[chunk])
        return ByteRange(self.shards[self.shard[chunk]], start, start + size)

    def ranges_of(self, chunks: npt.NDArray[np.intp]) -> ByteRanges:
        """Return the bytes of some chunks."""
        start = self.offset[chunks]
        return ByteRanges(self.shards, self.shard[chunks], start, start + self.size[chunks])


class ChunkLocator:
    """The chunks of shards by their positions, as scans' manifests list them.

    Those that were used last are kept. Shared between threads.

    Parameters
    ----------
    name
        Gives the name of a path for messages.
    """

    def __init__(self, name: Callable[[str], str]) -> None:
        self._name = name
        self._kept: BoundedCache[_Shard, _Table] = BoundedCache(_KEPT_BYTES)

    def locate(self, plan: ReadPlan) -> ChunkLocations:
        """Find the chunks of a plan; those that are absent are background."""
        runs = list(_runs(plan))
        known = self._kept.find(shard for shard, _ in runs)
        new = {
            shard: _table(*shard)
            for shard, _ in runs
            if shard not in known and shard[1] in shard[0].shards
        }
        self._kept.keep(new)
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

    def corrupt(
        self, plan: ReadPlan, chunk: int, problem: str
    ) -> CorruptStoreError | ScanChangedError:
        """Say what is wrong with a chunk of a plan, or that its scan is another one by now."""
        array = plan.arrays[plan.array[chunk]]
        return array.find_change(array) or CorruptStoreError(
            f"scan {array.scan_id!r}, {array.name} chunk {plan.chunk_index(chunk)} in "
            f"{self._name(array.shard_path(plan.shard_index(chunk)))} {problem}. "
            "Ingest this scan again, or copy the store again."
        )


def _runs(plan: ReadPlan) -> Iterator[tuple[_Shard, slice]]:
    """Yield the shards of a plan, and the chunks of each, which are neighbors."""
    if not len(plan):
        return
    changes = (np.diff(plan.shard_zyx, axis=0) != 0).any(axis=1) | (np.diff(plan.array) != 0)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(plan)]
    for start, stop in pairwise(borders):
        array = plan.arrays[plan.array[start]]
        yield (array, plan.shard_index(start)), slice(start, stop)


def _table(array: ArraySpec, shard_zyx: ShapeZYX) -> _Table:
    """List the chunks of a shard; zeros for those it lacks."""
    n_chunks = math.prod(array.chunks_per_shard_zyx)
    entry = array.shards[shard_zyx]
    listed = entry.chunk_rows
    size = listed["size"].astype(np.int64)
    rows = np.zeros(n_chunks, _ROW)
    rows["offset"][listed["position"]] = np.cumsum(size) - size
    rows["size"][listed["position"]] = size
    rows["crc32c"][listed["position"]] = listed["crc32c"]
    content = hashlib.sha256(entry.model_dump_json().encode()).hexdigest()
    return _Table(StoredShard(array.shard_path(shard_zyx), entry.size_bytes, content), rows)
