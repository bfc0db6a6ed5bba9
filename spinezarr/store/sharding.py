"""Bytes of chunks and shards, as the Zarr v3 sharding codec lays them out.

A chunk is ``bytes`` (little endian) → ``blosc`` → ``crc32c``. A shard is its chunks one after the
other, then an index of ``(offset, size)`` pairs and the crc32c of that index [1]_. Encoding and
decoding run in C and free the GIL.

References
----------
.. [1] Zarr v3 sharding codec, https://zarr-specs.readthedocs.io/en/latest/v3/codecs/sharding-indexed/
"""

import struct
from collections.abc import Mapping
from typing import Any, Final

import google_crc32c
import numpy as np
import numpy.typing as npt
from isal import isal_zlib
from numcodecs import blosc
from typing_extensions import Buffer

from spinezarr.store.layout import BloscCodecSpec

__all__ = [
    "ABSENT",
    "CHECKSUM_BYTES",
    "ChunkDamagedError",
    "assemble_shard",
    "chunk_checksums",
    "crc32",
    "crc32c",
    "decode_chunk",
    "encode_chunk",
    "index_bytes",
    "parse_index",
]

ABSENT: Final = 2**64 - 1
"""Offset and size of a chunk that a shard does not hold."""
CHECKSUM_BYTES: Final = 4
_BLOSC_HEADER: Final = struct.Struct("<BBBBIII")
"""version, versionlz, flags, typesize, nbytes, blocksize, cbytes (C-Blosc 1, chunk format)."""
_SHUFFLES: Final = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}


class ChunkDamagedError(Exception):
    """Bytes that are not a whole chunk or index; the caller adds which one."""


def crc32c(data: Buffer) -> int:
    """Return the CRC-32C (Castagnoli) of ``data``.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))  # the check value of RFC 3720
    '0xe3069283'
    """
    view = np.frombuffer(memoryview(data), np.uint8)
    view.flags.writeable = False  # all that google_crc32c takes without a copy
    return int(google_crc32c.value(view))


def crc32(data: Buffer, value: int = 0) -> int:
    """Return the CRC-32 (RFC 1952) of ``data`` that goes on after data of CRC-32 ``value``.

    Examples
    --------
    >>> hex(crc32(b"6789", crc32(b"12345")))  # the check value of the catalogue of CRCs
    '0xcbf43926'
    """
    return isal_zlib.crc32(data, value)


def encode_chunk(chunk: npt.NDArray[Any], codec: BloscCodecSpec) -> bytes:
    """Compress one whole chunk and append its checksum."""
    little = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
    packed = blosc.compress(
        little,
        codec.cname.encode(),
        codec.clevel,
        _SHUFFLES[codec.shuffle],
        codec.blocksize,
        little.dtype.itemsize,
    )
    return bytes(packed) + crc32c(packed).to_bytes(CHECKSUM_BYTES, "little")


def decode_chunk(encoded: bytes | memoryview, out: npt.NDArray[Any]) -> None:
    """Check and decompress one chunk into ``out``, a contiguous array of the chunk's shape.

    Raises
    ------
    ChunkDamagedError
        If the checksum differs, or the chunk would decompress to another size; nothing of it is
        decompressed then.
    """
    view = memoryview(encoded)
    packed, stored = view[:-CHECKSUM_BYTES], view[-CHECKSUM_BYTES:]
    if len(packed) < _BLOSC_HEADER.size:
        raise ChunkDamagedError(f"is {len(view)} bytes long, too short for a chunk")
    found, expected = crc32c(packed), int.from_bytes(stored, "little")
    if found != expected:
        raise ChunkDamagedError(f"has crc32c {found:08x}, expected {expected:08x}")
    size = _BLOSC_HEADER.unpack_from(packed)[4]
    if size != out.nbytes:
        raise ChunkDamagedError(f"holds {size} bytes of voxels, expected {out.nbytes}")
    try:
        blosc.decompress(packed, out)
    except RuntimeError as problem:
        raise ChunkDamagedError(f"does not decompress ({problem})") from problem


def assemble_shard(chunks: Mapping[int, bytes], n_chunks: int) -> bytes:
    """Join encoded chunks, by their position in the shard (C order), into one shard."""
    index = np.full((n_chunks, 2), ABSENT, "<u8")
    offset = 0
    for position in sorted(chunks):
        index[position] = offset, len(chunks[position])
        offset += len(chunks[position])
    packed_index = index.tobytes()
    checksum = crc32c(packed_index).to_bytes(CHECKSUM_BYTES, "little")
    return b"".join([*(chunks[position] for position in sorted(chunks)), packed_index, checksum])


def chunk_checksums(shard: bytes) -> list[int]:
    """Return the crc32c that each chunk of a whole shard ends with, by position; absent ones not.

    A shard does not say how many chunks it has room for: its index is as long as its checksum fits.
    """
    checksum = shard[-CHECKSUM_BYTES:]
    for n_chunks in range(1, len(shard) // 16 + 1):
        packed = shard[-index_bytes(n_chunks) : -CHECKSUM_BYTES]
        if crc32c(packed).to_bytes(CHECKSUM_BYTES, "little") == checksum:
            index = parse_index(shard[-index_bytes(n_chunks) :], n_chunks, len(shard)).tolist()
            ends = [offset + size for offset, size in index if offset != ABSENT]
            return [int.from_bytes(shard[end - CHECKSUM_BYTES : end], "little") for end in ends]
    raise ValueError("no index at the end of a shard")


def index_bytes(n_chunks: int) -> int:
    """Return the size of the index at the end of a shard of ``n_chunks`` chunks."""
    return 16 * n_chunks + CHECKSUM_BYTES


def parse_index(data: bytes, n_chunks: int, shard_size: int) -> npt.NDArray[np.uint64]:
    """Check and read a shard's index.

    Returns
    -------
    numpy.ndarray
        uint64 of shape ``(n_chunks, 2)``: offset and size in bytes, both :data:`ABSENT` for a chunk
        that the shard does not hold.

    Raises
    ------
    ChunkDamagedError
        If the index is short, its checksum differs, or it points outside the shard.
    """
    if len(data) != index_bytes(n_chunks):
        raise ChunkDamagedError(f"has {len(data)} bytes, expected {index_bytes(n_chunks)}")
    found = crc32c(data[:-CHECKSUM_BYTES])
    expected = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    if found != expected:
        raise ChunkDamagedError(f"has crc32c {found:08x}, expected {expected:08x}")
    index = np.frombuffer(data[:-CHECKSUM_BYTES], "<u8").astype(np.uint64).reshape(n_chunks, 2)
    present = index[:, 0] != ABSENT
    ends = index[present].astype(object).sum(axis=1)
    if any(end > shard_size - len(data) for end in ends):
        raise ChunkDamagedError("points outside its shard")
    return index
