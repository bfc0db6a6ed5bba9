"""Is a shard intact: its size, its index, and each chunk, with no other bytes?

spinezarr finds chunks by the manifest and other readers by the index, so both must agree.
"""

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import DamagedMetadataError
from spinezarr.geometry import ShapeZYX
from spinezarr.store.blocks import ChunkFrame
from spinezarr.store.manifest import ShardEntry
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.store.sharding import (
    ABSENT,
    CHECKSUM_BYTES,
    ChunkDamagedError,
    crc32,
    crc32c,
    index_bytes,
    parse_index,
    shard_index,
)
from spinezarr.verify.fault import Fault, FaultKind
from spinezarr.verify.files import OnBytes, StoreFiles, read_error

__all__ = ["check_shard"]

_BLOCK_BYTES: Final = 1 << 22


@dataclass(frozen=True, slots=True)
class _Problem:
    kind: FaultKind
    found: str
    expected: str


def check_shard(
    files: StoreFiles,
    array: ArraySpec,
    shard_zyx: ShapeZYX,
    entry: ShardEntry,
    *,
    chunks: Collection[ShapeZYX] | None,
    on_bytes: OnBytes,
) -> list[Fault]:
    """Read a whole shard and check it, with one chunk in memory at a time.

    Parameters
    ----------
    files
        Files of the store.
    array
        Array that the shard belongs to.
    shard_zyx
        Index of the shard.
    entry
        Entry of the shard in the manifest.
    chunks
        Indices of all chunks that the array must hold; None if they are not known.
    on_bytes
        Called with the number of bytes of each read.
    """
    key = array.shard_path(shard_zyx)[len(files.path) + 1 :]
    try:
        with files.open(key, entry.size_bytes) as raw:
            size = raw.seek(0, 2)
            if size == entry.size_bytes:
                shard_read = _ShardRead(raw, array, shard_zyx, chunks, on_bytes)
                problems = [*shard_read.problems(entry)]
            else:
                on_bytes(size)
                size_problem = _Problem("damaged", f"{size} bytes", f"{entry.size_bytes} bytes")
                problems = [size_problem]
    except OSError as problem:
        expected = f"{entry.size_bytes} bytes with crc32 {entry.crc32}"
        return [read_error(array.scan_id, key, problem, expected)]
    return [
        Fault(array.scan_id, key, problem.kind, problem.found, problem.expected)
        for problem in problems
    ]


class _ShardRead:
    """One read of a shard from start to end."""

    def __init__(
        self,
        raw: BinaryIO,
        array: ArraySpec,
        shard_zyx: ShapeZYX,
        chunks: Collection[ShapeZYX] | None,
        on_bytes: OnBytes,
    ) -> None:
        self._raw = raw
        self._array = array
        self._shard_zyx = shard_zyx
        self._chunks = chunks
        self._on_bytes = on_bytes
        self._crc32 = 0
        self._frames: list[ChunkFrame] = []
        """What the chunks say of themselves, in the order of the bytes."""

    def problems(self, entry: ShardEntry) -> Iterator[_Problem]:
        """Yield the problems in the order of the bytes."""
        n_chunks = math.prod(self._array.chunks_per_shard_zyx)
        end = entry.size_bytes - index_bytes(n_chunks)
        self._raw.seek(max(0, end))
        index_data = self._raw.read()
        self._raw.seek(0)
        has_problem = False
        try:
            index = parse_index(index_data, n_chunks, entry.size_bytes)
        except DamagedMetadataError as problem:
            has_problem = True
            yield _Problem("damaged", f"an index of {problem.found}", problem.expected)
        else:
            for found in self._chunk_problems(index, end):
                has_problem = True
                yield found
        self._read(entry.size_bytes - self._raw.tell())
        found_crc32 = f"{self._crc32:08x}"
        if has_problem:
            return
        if found_crc32 != entry.crc32:
            yield _Problem(
                "misplaced", f"a whole shard with crc32 {found_crc32}", f"crc32 {entry.crc32}"
            )
        else:
            yield from self._manifest_problems(index_data, entry)

    def _manifest_problems(self, index: bytes, entry: ShardEntry) -> Iterator[_Problem]:
        """Compare the index and the chunks of an intact shard with the manifest."""
        found = f"{int.from_bytes(index[-CHECKSUM_BYTES:], 'little'):08x}"
        if found != entry.index_crc32c:
            expected = f"crc32c {entry.index_crc32c}, as the manifest says"
            yield _Problem("damaged", f"an index with crc32c {found}", expected)
        n_chunks = math.prod(self._array.chunks_per_shard_zyx)
        coding = self._array.coding
        rows = entry.rows(coding)
        sizes = dict(
            zip(rows["position"].tolist(), entry.chunk_sizes(coding).tolist(), strict=True)
        )
        if shard_index(sizes, n_chunks) != index:
            expected = "the chunks that the manifest lists"
            yield _Problem("damaged", "an index of other chunks", expected)
        elif rows["voxels_crc32c"].tolist() != [frame.voxels_crc32c for frame in self._frames]:
            expected = "the checksums that the manifest lists"
            yield _Problem("damaged", "chunks with other checksums", expected)
        elif rows["block_sizes"].tolist() != [list(frame.block_sizes) for frame in self._frames]:
            expected = "the sizes that the manifest lists"
            yield _Problem("damaged", "chunks with blocks of other sizes", expected)

    def _read(self, size: int) -> None:
        """Read bytes, only to compute the checksum."""
        while size > 0 and (block := self._raw.read(min(size, _BLOCK_BYTES))):
            self._count(block)
            size -= len(block)

    def _count(self, block: bytes) -> None:
        self._crc32 = crc32(block, self._crc32)
        self._on_bytes(len(block))

    def _chunk_problems(self, index: npt.NDArray[np.uint64], end: int) -> Iterator[_Problem]:
        present = {i: (int(a), int(n)) for i, (a, n) in enumerate(index.tolist()) if a != ABSENT}
        yield from self._presence_problems(present)
        expected_offset = 0
        for position, (offset, size) in sorted(present.items(), key=lambda item: item[1]):
            if offset != expected_offset:
                relation = "overlap" if offset < expected_offset else "leave bytes between them"
                yield _Problem(
                    "damaged", f"chunks that {relation} at byte {expected_offset}", "no such chunks"
                )
                return
            block = self._raw.read(size)
            self._count(block)
            expected_offset += size
            found = crc32c(block[:-CHECKSUM_BYTES])
            expected = int.from_bytes(block[-CHECKSUM_BYTES:], "little")
            chunk_zyx = self._chunk_zyx(position)
            if found != expected:
                text = f"chunk {chunk_zyx} with crc32c {found:08x}"
                yield _Problem("damaged", text, f"crc32c {expected:08x}")
                continue
            try:
                frame = ChunkFrame.of(block)
                frame.check(block, self._array.coding)
            except ChunkDamagedError as problem:
                yield _Problem("damaged", f"chunk {chunk_zyx} {problem}", "an intact chunk")
                continue
            self._frames.append(frame)
        if expected_offset != end:
            yield _Problem("damaged", f"{end - expected_offset} bytes after the last chunk", "none")

    def _presence_problems(self, present: Collection[int]) -> Iterator[_Problem]:
        """Compare the chunks in the shard with those that it must hold."""
        if self._chunks is None:
            return
        for position in range(math.prod(self._array.chunks_per_shard_zyx)):
            chunk = self._chunk_zyx(position)
            if chunk in self._chunks and position not in present:
                yield _Problem("missing", f"no chunk {chunk}", "a chunk")
            if chunk not in self._chunks and position in present:
                yield _Problem("damaged", f"a chunk {chunk}", "none")

    def _chunk_zyx(self, position: int) -> ShapeZYX:
        """Return the index in the array of the chunk at a position in the shard."""
        per_shard = self._array.chunks_per_shard_zyx
        index_in_shard = np.unravel_index(position, per_shard)
        z, y, x = (
            s * n + int(i)
            for s, n, i in zip(self._shard_zyx, per_shard, index_in_shard, strict=True)
        )
        return (z, y, x)
