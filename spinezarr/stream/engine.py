"""plan → fetch → decode: boxes of voxels into arrays that the caller owns.

Zarr readers turn a chunk that is missing into fill values. This one does not: the scan's manifest
says which shards exist and how long they are, image chunks are never absent, and every chunk
carries a checksum, so lost or damaged data raise :class:`~spinezarr.errors.CorruptStoreError`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import ArraySpec
from spinezarr.store.sharding import (
    ABSENT,
    CHECKSUM_BYTES,
    ChunkDamagedError,
    decode_chunk,
    index_bytes,
    parse_index,
)
from spinezarr.stream.fetch import ByteRange, Fetcher
from spinezarr.stream.plan import ChunkRead, plan_reads

__all__ = ["BoxRead", "Engine"]

_INDICES_KEPT: Final = 8192
"""Shard indices kept in memory, about 6 kB each."""


@dataclass(frozen=True, slots=True, eq=False)
class BoxRead:
    """A box of a stored array, and where its voxels go."""

    array: ArraySpec
    box: Box
    """Voxels inside the array."""
    out: npt.NDArray[Any]
    """Of shape ``box.shape_zyx``; may be a strided view of any type that holds the voxels."""


class Engine:
    """Reads boxes out of stored arrays. Shared between threads.

    Parameters
    ----------
    fetcher
        Where the bytes come from.
    """

    def __init__(self, fetcher: Fetcher) -> None:
        self._fetch = fetcher
        self._shard_index = lru_cache(_INDICES_KEPT)(self._read_index)

    def __reduce__(self) -> tuple[type["Engine"], tuple[Fetcher]]:
        return Engine, (self._fetch,)

    def read(self, reads: Iterable[BoxRead]) -> None:
        """Fill the arrays of many boxes; a chunk that several of them need is read once.

        Raises
        ------
        CorruptStoreError
            If a shard or chunk is missing or damaged; names scan, array, chunk and shard.
        """
        for read in reads:
            self.read_into(read.array, read.box, read.out)

    def read_into(self, array: ArraySpec, box: Box, out: npt.NDArray[Any]) -> None:
        """Fill ``out`` with the voxels of ``box``.

        Parameters
        ----------
        array
            Where they are stored.
        box
            Voxels inside the array.
        out
            Of shape ``box.shape_zyx``; may be a strided view of any type that holds the voxels.

        Raises
        ------
        CorruptStoreError
            If a shard or chunk is missing or damaged; names scan, array, chunk and shard.
        """
        reads: list[ChunkRead] = []
        ranges: list[ByteRange] = []
        for read in plan_reads(box, array):
            located = self._locate(array, read)
            if located is None:
                out[read.within_box.slices] = 0
            else:
                reads.append(read)
                ranges.append(located)
        chunk = np.empty(array.chunk_shape_zyx, array.dtype)
        for read, data in zip(reads, self._get(array, reads, ranges), strict=True):
            try:
                self._check_place(array, read, data)
                decode_chunk(data, chunk)
            except ChunkDamagedError as problem:
                raise _corrupt(array, read, str(problem)) from problem
            out[read.within_box.slices] = chunk[read.within_chunk.slices]

    def _check_place(self, array: ArraySpec, read: ChunkRead, data: bytes) -> None:
        """Refuse a chunk, whole in itself or not, that is not the one the manifest names."""
        found = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
        expected = int(self._shard_index(array, read.shard_zyx)[read.position, 2])
        if found != expected:
            raise ChunkDamagedError(f"ends with crc32c {found:08x}, expected {expected:08x}")

    def _get(
        self, array: ArraySpec, reads: Iterable[ChunkRead], ranges: list[ByteRange]
    ) -> list[bytes]:
        try:
            return self._fetch(ranges) if ranges else []
        except FileNotFoundError as problem:
            gone = next((r for r in reads if array.shard_path(r.shard_zyx) in str(problem)), None)
            raise _corrupt(array, gone, "is gone: its shard is missing") from problem

    def _locate(self, array: ArraySpec, read: ChunkRead) -> ByteRange | None:
        """Return where a chunk lies; None if it is background that is not stored."""
        if read.shard_zyx not in array.shard_sizes:
            if array.name == LABEL:
                return None
            raise _corrupt(array, read, "is missing: the manifest lacks its shard")
        try:
            index = self._shard_index(array, read.shard_zyx)
        except (ChunkDamagedError, FileNotFoundError) as problem:
            what = (
                "its shard is missing"
                if isinstance(problem, FileNotFoundError)
                else f"the index of its shard {problem}"
            )
            raise _corrupt(array, read, f"cannot be found: {what}") from problem
        offset, size = (int(value) for value in index[read.position, :2])
        if offset != ABSENT:
            return ByteRange(array.shard_path(read.shard_zyx), offset, offset + size)
        if array.name == LABEL:
            return None
        raise _corrupt(array, read, "is missing from its shard")

    def _read_index(self, array: ArraySpec, shard_zyx: ShapeZYX) -> npt.NDArray[np.uint64]:
        """Return offset, size and crc32c of each chunk of a shard, by position."""
        size = array.shard_sizes[shard_zyx]
        n_chunks = math.prod(array.chunks_per_shard_zyx)
        tail = ByteRange(array.shard_path(shard_zyx), max(0, size - index_bytes(n_chunks)), size)
        (data,) = self._fetch([tail])
        index = parse_index(data, n_chunks, size)
        entry = array.shards[shard_zyx]
        found = f"{int.from_bytes(data[-CHECKSUM_BYTES:], 'little'):08x}"
        if found != entry.index_crc32c:
            raise ChunkDamagedError(
                f"is another shard's: crc32c {found}, expected {entry.index_crc32c}"
            )
        checksums = np.full((n_chunks, 1), ABSENT, np.uint64)
        checksums[index[:, 0] != ABSENT, 0] = np.frombuffer(
            bytes.fromhex(entry.chunk_crc32c), ">u4"
        )
        return np.hstack([index, checksums])


def _corrupt(array: ArraySpec, read: ChunkRead | None, problem: str) -> CorruptStoreError:
    where = "" if read is None else f" {read.chunk_zyx} in {array.shard_path(read.shard_zyx)}"
    return CorruptStoreError(
        f"scan {array.scan_id!r}, {array.name} chunk{where} {problem}. "
        "Ingest this scan again, or copy the store again."
    )
