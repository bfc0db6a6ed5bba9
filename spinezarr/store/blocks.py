"""How does a chunk consist of blocks that a reader can fetch, check and decode one by one?

A chunk of image or mask is a Blosc frame and its crc32c, as any Zarr reader expects. The frame
holds blocks of equal decoded size, one after the other. C-Blosc finds each block by its start [1]_,
so other bytes may lie between them: a checksum follows each block. The manifest lists the sizes of
the blocks. So a reader needs neither the header of the frame nor the blocks without wanted voxels.

References
----------
.. [1] Format of a Blosc frame, README_CHUNK_FORMAT.rst of C-Blosc 1.21
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from numcodecs import lz4
from typing_extensions import Buffer

from spinezarr.store.layout import BloscCodecSpec
from spinezarr.store.lz4_encoder import encode_lz4
from spinezarr.store.sharding import (
    BLOSC_HEADER,
    CHECKSUM_BYTES,
    ChunkDamagedError,
    compress,
    crc32c,
    decompress,
)

__all__ = [
    "SMALLEST_BLOCK_BYTES",
    "BlockCoding",
    "ChunkFrame",
    "decode_blocks",
    "encode_blocks",
]

_FORMAT, _CODEC_FORMAT = 2, 1
"""Versions of the Blosc format, and of the format of each codec."""
_COPIED, _ONE_STREAM = 1 << 1, 1 << 4
"""Flags of a frame: its bytes are not compressed; each block is one stream."""
_SHUFFLED: Final = 1 << 0
"""Flag of a frame: the bytes of its items are shuffled."""
_LZ4, _ZSTD = 1 << 5, 4 << 5
_CODEC_MASK: Final = 7 << 5
"""Flags for the format of the streams."""
_FLAGS_AT: Final = 2
"""Offset of the flags in a frame."""
_MOST_OF_NOISE: Final = 0.99
"""LZ4HC is not tried on a stream that LZ4 does not make smaller than this part of it.

These are the low bytes of noise. LZ4HC would spend a fifth of its time on them, for 0.15 % of the
bytes of a store.
"""
_MIN_SPLIT_ITEMS: Final = 128
"""Smallest number of items of a block that C-Blosc splits into streams (``MIN_BUFFERSIZE``)."""
_START: Final = struct.Struct("<I")
_TAG_PREFIX: Final = struct.Struct("<II")
SMALLEST_BLOCK_BYTES: Final = _START.size + 1 + CHECKSUM_BYTES
"""Smallest size of an encoded block: the size of a stream, one byte, and the checksum."""
_LARGEST_SHORT_BLOCK: Final = 1 << 15
"""Largest decoded block whose encoded size is listed in two bytes, in bytes."""


@dataclass(frozen=True, slots=True)
class BlockCoding:
    """Sizes and codec of the blocks of an array, the same for all its chunks."""

    chunk_bytes: int
    """Bytes of a decoded chunk."""
    block_bytes: int
    """Bytes of a decoded block; a divisor of :attr:`chunk_bytes`."""
    itemsize: int
    """Bytes of a voxel."""
    is_lz4: bool
    """Whether streams are in the LZ4 format; they are in the Zstandard format otherwise."""
    is_shuffled: bool
    """Whether the bytes of the voxels of a block are shuffled."""

    @classmethod
    def of(cls, codec: BloscCodecSpec, chunk_bytes: int, itemsize: int) -> Self:
        """Return the coding of chunks that a codec writes.

        A chunk that is no whole number of blocks is a single block.

        Raises
        ------
        ValueError
            If the codec shuffles bits.
        """
        if codec.shuffle == "bitshuffle":
            raise ValueError("blocks with shuffled bits")
        size = codec.blocksize
        fits = size and chunk_bytes % size == 0 and size % itemsize == 0
        block_bytes = size if fits else chunk_bytes
        is_lz4 = codec.cname in ("lz4", "lz4hc")
        return cls(chunk_bytes, block_bytes, itemsize, is_lz4, codec.shuffle == "shuffle")

    @property
    def n_blocks(self) -> int:
        """Number of blocks of a chunk."""
        return self.chunk_bytes // self.block_bytes

    @property
    def n_streams(self) -> int:
        """Number of streams of a block: one for each byte of a voxel, or a single one.

        C-Blosc divides a block in this way unless it is small, or compressed by Zstandard.
        """
        return self.itemsize if self._is_split else 1

    @property
    def _is_split(self) -> bool:
        return self.is_lz4 and self.block_bytes >= _MIN_SPLIT_ITEMS * self.itemsize

    @property
    def largest_block_bytes(self) -> int:
        """Largest size of an encoded block with its checksum, in bytes."""
        return self.block_bytes + _START.size * self.n_streams + CHECKSUM_BYTES

    @property
    def row_dtype(self) -> np.dtype[np.void]:
        """Structure of the row of a chunk in the manifest.

        ``position`` is the position of the chunk in the shard, ``voxels_crc32c`` the crc32c of its
        decoded bytes, and ``block_sizes`` are the sizes of its encoded blocks with their checksums.
        """
        size = "<u2" if self.block_bytes <= _LARGEST_SHORT_BLOCK else "<u4"
        return np.dtype(
            [
                ("position", "<u4"),
                ("voxels_crc32c", "<u4"),
                ("block_sizes", size, (self.n_blocks,)),
            ]
        )

    @property
    def overhead_bytes(self) -> int:
        """Bytes of an encoded chunk that belong to no block."""
        return self.blocks_offset + CHECKSUM_BYTES

    @property
    def blocks_offset(self) -> int:
        """Offset of the first block in an encoded chunk, in bytes."""
        return BLOSC_HEADER.size + _START.size * self.n_blocks + CHECKSUM_BYTES

    def header(self, n_blocks: int, frame_bytes: int) -> bytes:
        """Return the header of a frame of some blocks."""
        flags = _LZ4 if self.is_lz4 else _ZSTD
        flags |= _SHUFFLED if self.is_shuffled else 0
        flags |= 0 if self._is_split else _ONE_STREAM
        sizes = n_blocks * self.block_bytes, self.block_bytes, frame_bytes
        return BLOSC_HEADER.pack(_FORMAT, _CODEC_FORMAT, flags, self.itemsize, *sizes)


def encode_blocks(chunk: npt.NDArray[Any], codec: BloscCodecSpec) -> bytes:
    """Encode one whole chunk with its checksums.

    Parameters
    ----------
    chunk
        Voxels of the chunk.
    codec
        Codec of the array. Its block size is exact, unless no whole number of such blocks is a
        chunk; see :meth:`BlockCoding.of`.
    """
    little = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
    coding = BlockCoding.of(codec, little.nbytes, little.dtype.itemsize)
    voxels = little.reshape(-1).view(np.uint8)
    checksum = crc32c(voxels.data)
    encoded = None
    if codec.cname == "lz4hc":
        encoded = encode_lz4(
            voxels,
            level=codec.clevel,
            n_blocks=coding.n_blocks,
            n_streams=coding.n_streams,
            shuffled_itemsize=coding.itemsize if coding.is_shuffled else 1,
            voxels_crc32c=checksum,
            largest_block_bytes=coding.largest_block_bytes,
        )
    blocks, sizes = encoded or _encode_slowly(voxels, codec, coding, checksum)
    *starts, end = accumulate(sizes, initial=coding.blocks_offset)
    header = coding.header(coding.n_blocks, end)
    table = struct.pack(f"<{len(starts) + 1}I", *starts, checksum)
    frame = b"".join([header, table, blocks])
    return frame + crc32c(frame).to_bytes(CHECKSUM_BYTES, "little")


def _encode_slowly(
    voxels: npt.NDArray[np.uint8], codec: BloscCodecSpec, coding: BlockCoding, voxels_crc32c: int
) -> tuple[bytes, list[int]]:
    """Return the encoded blocks with their checksums, and the size of each."""
    streams = _stream_bytes(voxels, coding)
    plain = replace(codec, shuffle="noshuffle", blocksize=streams.shape[2])
    # The highest bytes of voxels are no noise. All streams of zstd are compressed.
    noisy = range(0 if codec.cname == "zstd" else max(1, coding.n_streams - 1))
    blocks: list[bytes] = []
    for number, contents in enumerate(streams):
        block = b"".join(
            [_stream(content, plain, may_be_noise=i in noisy) for i, content in enumerate(contents)]
        )
        tag = _tag(voxels_crc32c, number, block)
        blocks.append(block + tag.to_bytes(CHECKSUM_BYTES, "little"))
    return b"".join(blocks), [len(block) for block in blocks]


def _stream_bytes(voxels: npt.NDArray[np.uint8], coding: BlockCoding) -> npt.NDArray[np.uint8]:
    """Return the decoded bytes of the streams, shape ``(blocks, streams, bytes)``."""
    if coding.is_shuffled and coding.itemsize == np.dtype("<u2").itemsize:
        # This takes a quarter of the time of the general way.
        pairs = voxels.view("<u2").reshape(coding.n_blocks, -1)
        halves = np.empty((coding.n_blocks, coding.itemsize, pairs.shape[1]), np.uint8)
        np.copyto(halves[:, 0], pairs, casting="unsafe")
        np.right_shift(pairs, 8, out=halves[:, 1], casting="unsafe")
        return halves.reshape(coding.n_blocks, coding.n_streams, -1)
    if coding.is_shuffled:
        items = voxels.reshape(coding.n_blocks, -1, coding.itemsize)
        voxels = np.ascontiguousarray(items.transpose(0, 2, 1))
    return voxels.reshape(coding.n_blocks, coding.n_streams, -1)


def _stream(content: npt.NDArray[np.uint8], codec: BloscCodecSpec, *, may_be_noise: bool) -> bytes:
    """Return one stream with its size before it. It is not compressed if that saves nothing."""
    size = content.nbytes
    stream = b""
    if not may_be_noise or len(lz4.compress(content)) < _MOST_OF_NOISE * size:
        packed = compress(content, codec, 1)
        is_copied = packed[_FLAGS_AT] & _COPIED
        stream = b"" if is_copied else packed[BLOSC_HEADER.size + 2 * _START.size :]
    if not stream or len(stream) >= size:
        stream = content.tobytes()
    return _START.pack(len(stream)) + stream


def _tag(voxels_crc32c: int, number: int, streams: bytes | memoryview) -> int:
    """Return the checksum of a block.

    It includes the checksum of the chunk's voxels and the number of the block. So a block of
    another chunk, or of another version of this chunk, does not pass for this one.
    """
    return crc32c(streams, crc32c(_TAG_PREFIX.pack(voxels_crc32c, number)))


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """What the start of an encoded chunk says of it."""

    coding: BlockCoding
    voxels_crc32c: int
    """The crc32c of the decoded chunk."""
    block_sizes: tuple[int, ...]
    """Bytes of each encoded block with its checksum."""

    @classmethod
    def of(cls, encoded: Buffer) -> Self:
        """Parse the start of an encoded chunk.

        Raises
        ------
        ChunkDamagedError
            If it is no chunk of image or mask, or its blocks do not fill it.
        """
        view = memoryview(encoded)
        frame_bytes = view.nbytes - CHECKSUM_BYTES
        if frame_bytes < BLOSC_HEADER.size:
            raise ChunkDamagedError(f"is {view.nbytes} bytes long, too short for a chunk")
        _, _, flags, itemsize, chunk_bytes, block_bytes, _ = BLOSC_HEADER.unpack_from(view)
        is_lz4, is_shuffled = flags & _CODEC_MASK == _LZ4, bool(flags & _SHUFFLED)
        is_empty = 0 in (itemsize, block_bytes, chunk_bytes)
        if is_empty or chunk_bytes % block_bytes or block_bytes % itemsize:
            raise ChunkDamagedError(f"has blocks of {block_bytes} bytes in {chunk_bytes}")
        coding = BlockCoding(chunk_bytes, block_bytes, itemsize, is_lz4, is_shuffled)
        header = coding.header(coding.n_blocks, frame_bytes)
        if view[: len(header)] != header:
            found = bytes(view[: len(header)]).hex()
            raise ChunkDamagedError(f"begins with {found}, expected {header.hex()}")
        if frame_bytes < coding.blocks_offset:
            raise ChunkDamagedError(f"is {view.nbytes} bytes long, too short for its blocks")
        table = struct.unpack_from(f"<{coding.n_blocks + 1}I", view, BLOSC_HEADER.size)
        *starts, voxels_crc32c = table
        sizes = tuple(b - a for a, b in pairwise([*starts, frame_bytes]))
        if starts[0] != coding.blocks_offset or min(sizes) < SMALLEST_BLOCK_BYTES:
            raise ChunkDamagedError(f"has blocks that start at {starts}, expected no gaps")
        return cls(coding, voxels_crc32c, sizes)

    def check(self, encoded: Buffer, coding: BlockCoding) -> None:
        """Check the coding and the checksum of each block; nothing is decoded.

        Raises
        ------
        ChunkDamagedError
            If a checksum differs, or the blocks are coded in another way.
        """
        if self.coding != coding:
            raise ChunkDamagedError(f"is coded as {self.coding}, expected {coding}")
        blocks = memoryview(encoded)[coding.blocks_offset : -CHECKSUM_BYTES]
        _check_tags(blocks, self.block_sizes, first_block=0, voxels_crc32c=self.voxels_crc32c)

    def row(self, position: int) -> npt.NDArray[np.void]:
        """Return the row of the chunk in the manifest, as :attr:`BlockCoding.row_dtype`."""
        row = (position, self.voxels_crc32c, self.block_sizes)
        return np.array([row], self.coding.row_dtype)


def decode_blocks(
    data: bytes | memoryview,
    out: npt.NDArray[Any],
    *,
    coding: BlockCoding,
    block_sizes: npt.NDArray[np.integer],
    first_block: int,
    voxels_crc32c: int,
) -> None:
    """Check some neighboring blocks of a chunk, and decompress them.

    Parameters
    ----------
    data
        The encoded blocks with their checksums.
    out
        A contiguous array of the decoded size of these blocks.
    coding
        Coding of the array.
    block_sizes
        Sizes of these blocks by the manifest.
    first_block
        Number of the first of them in the chunk.
    voxels_crc32c
        Checksum of the decoded chunk by the manifest.

    Raises
    ------
    ChunkDamagedError
        If there are too few bytes, a checksum differs, or a block does not decompress.
    """
    view = memoryview(data)
    sizes = block_sizes.tolist()
    if len(view) < sum(sizes):
        raise ChunkDamagedError(f"is cut short: {len(view)} of {sum(sizes)} bytes came")
    _check_tags(view, sizes, first_block=first_block, voxels_crc32c=voxels_crc32c)
    start = BLOSC_HEADER.size + _START.size * len(sizes)
    *starts, end = accumulate(sizes, initial=start)
    header = coding.header(len(sizes), end)
    frame = b"".join([header, struct.pack(f"<{len(starts)}I", *starts), view[: end - start]])
    decompress(frame, out)
    if (
        len(sizes) == coding.n_blocks
        and crc32c(out.reshape(-1).view(np.uint8).data) != voxels_crc32c
    ):
        raise ChunkDamagedError("does not decode to the voxels that were stored")


def _check_tags(
    data: memoryview, sizes: Sequence[int], *, first_block: int, voxels_crc32c: int
) -> None:
    at = 0
    for number, size in enumerate(sizes, first_block):
        end = at + size - CHECKSUM_BYTES
        found = _tag(voxels_crc32c, number, data[at:end])
        expected = int.from_bytes(data[end : end + CHECKSUM_BYTES], "little")
        if found != expected:
            raise ChunkDamagedError(
                f"has crc32c {found:08x} in block {number}, expected {expected:08x}"
            )
        at += size
