"""Chunks and shards that lie, with correct checksums wherever a checksum is.

The liar knows the format: it signs its blocks, and lists them in the manifest as a writer would.
"""

import math
import struct
from base64 import b64encode
from collections.abc import Callable, Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numcodecs import zstd
from numcodecs.blosc import compress as blosc_compress

from spinezarr.store.blocks import SMALLEST_BLOCK_BYTES, BlockCoding, ChunkFrame
from spinezarr.store.sharding import (
    ABSENT,
    ChunkDamagedError,
    crc32,
    crc32c,
    index_bytes,
    parse_index,
)

Rng = np.random.Generator
NUMBERS = (0, 1, 15, 16, 2**31 - 1, 2**31, 2**32 - 1, 65536, 17, 64, 4, 128, 32768)
"""Sizes and offsets that are false as a rule."""
FLAGS = (0, 1, 2, 3, 4, 8, 16, 0x11, 0x20, 0x21, 0x23, 0x30, 0x41, 0x61, 0x80, 0x91, 255)


def coding_of(array: Any) -> BlockCoding:
    """Return the coding of the blocks that the metadata of an array describe.

    Raises
    ------
    KeyError, TypeError, ValueError, ZeroDivisionError
        If they describe none.
    """
    inner = array["codecs"][0]["configuration"]
    blosc = inner["codecs"][1]["configuration"]
    return BlockCoding(
        math.prod(inner["chunk_shape"]) * blosc["typesize"],
        blosc["blocksize"],
        blosc["typesize"],
        blosc["cname"] != "zstd",
        blosc["shuffle"] == "shuffle",
    )


def with_crc(data: bytes) -> bytes:
    """Append its checksum to a chunk."""
    return data + crc32c(data).to_bytes(4, "little")


def row_of(chunk: bytes, position: int, coding: BlockCoding) -> bytes:
    """Return the row of any bytes in a manifest, as if they were a chunk."""
    try:
        frame = ChunkFrame.of(chunk)
        if frame.coding == coding:
            return frame.row(position).tobytes()
    except ChunkDamagedError:
        pass
    # The bytes are shared out among the blocks; the sum is right if it can be.
    room = max(0, len(chunk) - coding.overhead_bytes)
    sizes = [room // coding.n_blocks] * coding.n_blocks
    sizes[-1] += room - sum(sizes)
    dtype = coding.row_dtype
    most = np.iinfo(dtype["block_sizes"].base).max
    checksum = chunk[coding.blocks_offset - 4 : coding.blocks_offset].ljust(4, b"\0")
    row = (position, int.from_bytes(checksum, "little"), [min(size, most) for size in sizes])
    return np.array([row], dtype).tobytes()


def entry_of(data: bytes) -> dict[str, Any]:
    """Return the manifest entry of a file."""
    return {"size_bytes": len(data), "crc32": f"{crc32(data):08x}"}


def shard_of(
    chunks: dict[int, bytes], n_chunks: int, coding: BlockCoding
) -> tuple[bytes, dict[str, Any]]:
    """Return a shard of encoded chunks, and its manifest entry."""
    index = np.full((n_chunks, 2), ABSENT, "<u8")
    rows, offset = b"", 0
    for position, chunk in sorted(chunks.items()):
        index[position] = offset, len(chunk)
        rows += row_of(chunk, position, coding)
        offset += len(chunk)
    packed = index.tobytes()
    end = crc32c(packed)
    data = b"".join([*(chunks[p] for p in sorted(chunks)), packed, end.to_bytes(4, "little")])
    more = {
        "index_offset": offset,
        "index_crc32c": f"{end:08x}",
        "chunks": b64encode(rows).decode(),
    }
    return data, {**entry_of(data), **more}


def chunks_of(shard: bytes, n_chunks: int) -> dict[int, bytes]:
    """Split a shard into its chunks."""
    index = parse_index(shard[-index_bytes(n_chunks) :], n_chunks, len(shard)).tolist()
    return {
        position: shard[offset : offset + size]
        for position, (offset, size) in enumerate(index)
        if offset != ABSENT
    }


# Lies in a chunk


def _in_header(rng: Rng, chunk: bytes) -> bytes:
    data = bytearray(chunk[:-4])
    for _ in range(int(rng.integers(1, 3))):
        at = int(rng.choice([0, 1, 2, 3, 4, 8, 12]))
        if at < 4:
            data[at] = int(rng.choice(FLAGS))
        else:
            struct.pack_into("<I", data, at, int(rng.choice(NUMBERS)))
    return with_crc(bytes(data))


def _in_starts(rng: Rng, chunk: bytes) -> bytes:
    """Change where blocks start, or the checksum of the voxels; sign the blocks by that."""
    data, coding = bytearray(chunk[:-4]), ChunkFrame.of(chunk).coding
    at = 16 + 4 * int(rng.integers(coding.n_blocks + 1))
    (right,) = struct.unpack_from("<I", data, at)
    near = (right + int(rng.integers(-9, 10))) % 2**32
    struct.pack_into("<I", data, at, near if rng.random() < 0.5 else int(rng.choice(NUMBERS)))
    return with_crc(bytes(data))


def _of_blocks(
    chunk: bytes, blocks: Sequence[bytes], numbers: Sequence[int] | None = None
) -> bytes:
    """Return a chunk of other blocks, each signed with its number."""
    frame = ChunkFrame.of(chunk)
    coding = frame.coding
    parts = []
    for number, block in zip(numbers or range(len(blocks)), blocks, strict=True):
        tag = crc32c(struct.pack("<II", frame.voxels_crc32c, number) + block)
        parts.append(block + struct.pack("<I", tag))
    *starts, end = accumulate(map(len, parts), initial=coding.blocks_offset)
    header = coding.header(coding.n_blocks, end)
    table = struct.pack(f"<{len(starts) + 1}I", *starts, frame.voxels_crc32c)
    return with_crc(b"".join([header, table, *parts]))


def _blocks(chunk: bytes) -> list[bytes]:
    frame = ChunkFrame.of(chunk)
    ends = accumulate(frame.block_sizes, initial=frame.coding.blocks_offset)
    return [chunk[a : b - 4] for a, b in pairwise(ends)]


def _in_bytes(rng: Rng, chunk: bytes) -> bytes:
    blocks = [bytearray(block) for block in _blocks(chunk)]
    for _ in range(int(rng.integers(1, 20))):
        block = blocks[int(rng.integers(len(blocks)))]
        block[int(rng.integers(len(block)))] = int(rng.integers(256))
    return _of_blocks(chunk, [bytes(block) for block in blocks])


def _in_streams(rng: Rng, chunk: bytes) -> bytes:
    """Change the sizes of streams, or fill them with noise."""
    blocks = []
    for block in _blocks(chunk):
        data, at = bytearray(block), 0
        while at + 4 <= len(data):
            (size,) = struct.unpack_from("<I", data, at)
            if rng.random() < 0.3:
                said = size + int(rng.integers(-3, 4)) if rng.random() < 0.5 else -1
                said = said if said >= 0 else int(rng.choice(NUMBERS))
                struct.pack_into("<I", data, at, said)
            elif rng.random() < 0.3:
                data[at + 4 : at + 4 + size] = rng.integers(0, 256, size, np.uint8).tobytes()
            at += 4 + size
        blocks.append(bytes(data))
    return _of_blocks(chunk, blocks)


def _in_lengths(rng: Rng, chunk: bytes) -> bytes:
    """Cut blocks, or append to them."""
    blocks = []
    for block in _blocks(chunk):
        kept = int(rng.integers(1, len(block) + 1)) if rng.random() < 0.5 else len(block)
        more = int(rng.integers(1, 70)) if rng.random() < 0.3 else 0
        blocks.append(block[:kept] + bytes(more))
    return _of_blocks(chunk, blocks)


def _in_order(rng: Rng, chunk: bytes) -> bytes:
    """Exchange blocks, and sign them with their new numbers or with the old ones."""
    blocks = _blocks(chunk)
    order = rng.permutation(len(blocks)).tolist()
    numbers = order if rng.random() < 0.5 else None
    return _of_blocks(chunk, [blocks[number] for number in order], numbers)


def _short(rng: Rng, chunk: bytes) -> bytes:
    return with_crc(chunk[: int(rng.integers(len(chunk) - 4))])


def _bomb(rng: Rng, chunk: bytes) -> bytes:
    """Make streams that expand to far more than a block; or a frame that does."""
    if rng.random() < 0.3:
        return with_crc(bytes(blosc_compress(np.zeros(2**28, np.uint8), b"lz4", 1, 0, 0, 1)))
    coding = ChunkFrame.of(chunk).coding
    largest = coding.block_bytes // coding.n_streams
    lz4 = b"\x1f\0\1\0" + b"\xff" * min(2**14, largest - 20) + b"\x00\x50hello"
    stream = lz4 if coding.is_lz4 else zstd_bomb(2**28)
    block = (struct.pack("<I", len(stream)) + stream) * coding.n_streams
    return _of_blocks(chunk, [block] * coding.n_blocks)


@cache
def zstd_bomb(size: int) -> bytes:
    """Return a small Zstandard stream that expands to ``size`` zero bytes."""
    return bytes(zstd.compress(bytes(size), 1))


WAYS: dict[str, Callable[[Rng, bytes], bytes]] = {
    "header": _in_header,
    "starts": _in_starts,
    "bytes": _in_bytes,
    "streams": _in_streams,
    "lengths": _in_lengths,
    "order": _in_order,
    "short": _short,
    "bomb": _bomb,
}
"""Functions that forge a valid chunk."""


def forged_rows(rng: Rng, rows: np.ndarray) -> np.ndarray:
    """Return rows of a manifest with other positions, checksums and sizes of blocks."""
    if rng.random() < 0.3:
        rows = np.repeat(rows, int(rng.choice([0, 2, 100, 50_000])))
        rows["position"] = np.arange(len(rows))
    numbers = (0, 1, 3, 4, SMALLEST_BLOCK_BYTES - 1, SMALLEST_BLOCK_BYTES, 16, 2**15, 2**16 - 1)
    numbers += (2**31, 2**32 - 1, 2**32 - 20, 2**20, 7)
    for name in ("position", "voxels_crc32c", "block_sizes"):
        if not len(rows) or rng.random() < 0.6:
            continue
        field = rows[name].reshape(len(rows), -1)
        at = int(rng.integers(len(rows))), int(rng.integers(field.shape[1]))
        most = int(np.iinfo(field.dtype).max)
        if name == "block_sizes" and rng.random() < 0.5:  # the sum stays right
            other = at[0], int(rng.integers(field.shape[1]))
            by = int(rng.integers(1, 50))
            field[at] = (int(field[at]) + by) & most
            field[other] = (int(field[other]) - by) & most
        else:
            field[at] = int(rng.choice(numbers)) & most
    return rows
