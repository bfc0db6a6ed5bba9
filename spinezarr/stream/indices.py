"""Where chunks lie: the indices of shards, each read once and kept."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import ArraySpec
from spinezarr.store.sharding import (
    ABSENT,
    CHECKSUM_BYTES,
    ChunkDamagedError,
    index_bytes,
    parse_index,
)
from spinezarr.stream.cache import BoundedCache
from spinezarr.stream.fetch import ByteRange, Fetcher
from spinezarr.stream.plan import ReadPlan

__all__ = ["Places", "ShardIndices", "corrupt"]

_KEPT_BYTES: Final = 64 << 20
"""Of indices in memory: some 2,700 ordinary scans with their masks."""
_ROW: Final = np.dtype([("offset", np.int64), ("size", np.int64), ("crc32c", np.uint32)])
_Shard = tuple[ArraySpec, ShapeZYX]


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """Where the chunks of a plan lie, one row each."""

    paths: tuple[str, ...]
    """Files, and the number of each by ``file``."""
    file: npt.NDArray[np.int64]
    """Of a chunk; -1 for background whose shard does not exist."""
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    """Bytes, with the checksum; 0 for background that is not stored."""
    crc32c: npt.NDArray[np.uint32]
    """At the end of each chunk, by the manifest."""

    def range_of(self, chunk: int) -> ByteRange:
        """Return the bytes of a chunk."""
        start, size = int(self.offset[chunk]), int(self.size[chunk])
        return ByteRange(self.paths[self.file[chunk]], start, start + size)


class ShardIndices:
    """Indices of shards, read when they are first needed. Shared between threads.

    Parameters
    ----------
    fetch
        Where the bytes come from.
    """

    def __init__(self, fetch: Fetcher) -> None:
        self._fetch = fetch
        self._kept: BoundedCache[_Shard, npt.NDArray[np.void]] = BoundedCache(_KEPT_BYTES)

    def locate(self, plan: ReadPlan) -> Places:
        """Find the chunks of a plan; indices that are not known are fetched together.

        Raises
        ------
        CorruptStoreError
            If a shard is missing, or its index is damaged or lacks a chunk of an image.
        """
        runs = list(_runs(plan))
        known = self._kept.find(shard for shard, _ in runs)
        lacking = {
            shard: chunks.start
            for shard, chunks in runs
            if shard not in known and shard[1] in shard[0].shard_sizes
        }
        known.update(self._read(plan, lacking))
        rows = np.zeros(len(plan), _ROW)
        file = np.full(len(plan), -1)
        paths: list[str] = []
        for shard, chunks in runs:
            array, shard_zyx = shard
            if shard in known:
                rows[chunks] = known[shard][plan.position[chunks]]
                file[chunks] = len(paths)
                paths.append(array.shard_path(shard_zyx))
            elif array.name != LABEL:
                raise corrupt(plan, chunks.start, "is missing: the manifest lacks its shard")
        for chunk in np.flatnonzero(rows["size"] == 0).tolist():
            if plan.arrays[plan.array[chunk]].name != LABEL:
                raise corrupt(plan, chunk, "is missing from its shard")
        return Places(
            paths=tuple(paths),
            file=file,
            offset=rows["offset"],
            size=rows["size"],
            crc32c=rows["crc32c"],
        )

    def _read(
        self, plan: ReadPlan, shards: dict[_Shard, int]
    ) -> dict[_Shard, npt.NDArray[np.void]]:
        """Read the indices of shards, of each of which some chunk of the plan is given."""
        if not shards:
            return {}
        tails = [_tail(array, shard_zyx) for array, shard_zyx in shards]
        try:
            found = self._fetch(tails)
        except FileNotFoundError as problem:
            gone = [
                chunk
                for (array, shard_zyx), chunk in shards.items()
                if array.shard_path(shard_zyx) in str(problem)
            ]
            chunk = (gone or list(shards.values()))[0]
            raise corrupt(plan, chunk, "cannot be found: its shard is missing") from problem
        indices = {}
        for (shard, chunk), data in zip(shards.items(), found, strict=True):
            try:
                indices[shard] = _parse(*shard, data)
            except ChunkDamagedError as problem:
                text = f"cannot be found: the index of its shard {problem}"
                raise corrupt(plan, chunk, text) from problem
        self._kept.keep(indices)
        return indices


def _runs(plan: ReadPlan) -> Iterator[tuple[_Shard, slice]]:
    """Yield the shards of a plan, and the chunks of each, which are neighbours."""
    if not len(plan):
        return
    changes = (np.diff(plan.shard_zyx, axis=0) != 0).any(axis=1) | (np.diff(plan.array) != 0)
    borders = [0, *(np.flatnonzero(changes) + 1).tolist(), len(plan)]
    for start, stop in pairwise(borders):
        array = plan.arrays[plan.array[start]]
        yield (array, plan.shard_index(start)), slice(start, stop)


def _tail(array: ArraySpec, shard_zyx: ShapeZYX) -> ByteRange:
    size = array.shard_sizes[shard_zyx]
    n_chunks = math.prod(array.chunks_per_shard_zyx)
    return ByteRange(array.shard_path(shard_zyx), max(0, size - index_bytes(n_chunks)), size)


def _parse(array: ArraySpec, shard_zyx: ShapeZYX, data: bytes) -> npt.NDArray[np.void]:
    """Check an index, and return offset, size and crc32c of each chunk of its shard."""
    n_chunks = math.prod(array.chunks_per_shard_zyx)
    index = parse_index(data, n_chunks, array.shard_sizes[shard_zyx])
    entry = array.shards[shard_zyx]
    found = f"{int.from_bytes(data[-CHECKSUM_BYTES:], 'little'):08x}"
    if found != entry.index_crc32c:
        raise ChunkDamagedError(
            f"is another shard's: crc32c {found}, expected {entry.index_crc32c}"
        )
    present = index[:, 0] != ABSENT
    rows = np.zeros(n_chunks, _ROW)
    rows["offset"][present], rows["size"][present] = index[present].T
    rows["crc32c"][present] = np.frombuffer(bytes.fromhex(entry.chunk_crc32c), ">u4")
    return rows


def corrupt(plan: ReadPlan, chunk: int, problem: str) -> CorruptStoreError:
    """Say what is wrong with a chunk of a plan."""
    array = plan.arrays[plan.array[chunk]]
    return CorruptStoreError(
        f"scan {array.scan_id!r}, {array.name} chunk {plan.chunk_index(chunk)} in "
        f"{array.shard_path(plan.shard_index(chunk))} {problem}. "
        "Ingest this scan again, or copy the store again."
    )
