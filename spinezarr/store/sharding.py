"""Which bytes do chunks and shards have?

They follow the Zarr v3 sharding codec [1]_. The codecs of a chunk are ``bytes`` (little endian),
``blosc`` and ``crc32c``. A shard is its chunks one after the other, then an index of
``(offset, size)`` pairs, and the crc32c of that index. :mod:`spinezarr.store.blocks` says what the
chunks of image and mask consist of. Encoding and decoding run in C and release the GIL.

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

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.layout import BloscCodecSpec

__all__ = [
    "ABSENT",
    "BLOSC_HEADER",
    "CHECKSUM_BYTES",
    "ChunkDamagedError",
    "compress",
    "crc32",
    "crc32c",
    "decode_chunk",
    "decompress",
    "encode_chunk",
    "index_bytes",
    "listed_positions",
    "parse_index",
    "shard_index",
]

ABSENT: Final = 2**64 - 1
"""Offset and size in the index of a chunk that the shard lacks."""
CHECKSUM_BYTES: Final = 4
"""Size of a crc32c in bytes."""
BLOSC_HEADER: Final = struct.Struct("<BBBBIII")
"""Header of C-Blosc 1: version, versionlz, flags, typesize, nbytes, blocksize, cbytes."""
_SHUFFLES: Final = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}


class ChunkDamagedError(Exception):
    """Raised if bytes are not a whole chunk; the caller adds which chunk it is."""


def crc32c(data: Buffer, before: int = 0) -> int:
    """Return the CRC-32C (Castagnoli) of data; ``before`` is the CRC-32C of the bytes before them.

    Examples
    --------
    >>> hex(crc32c(b"123456789"))  # the check value of RFC 3720
    '0xe3069283'
    """
    view = np.frombuffer(memoryview(data), np.uint8)
    view.flags.writeable = False  # google_crc32c copies an array that is writeable
    return int(google_crc32c.extend(before, view))


def crc32(data: Buffer, value: int = 0) -> int:
    """Return the CRC-32 (RFC 1952) of data; ``value`` is the CRC-32 of the bytes before them.

    Examples
    --------
    >>> hex(crc32(b"6789", crc32(b"12345")))  # the check value of the catalog of CRCs
    '0xcbf43926'
    """
    return isal_zlib.crc32(data, value)


def encode_chunk(chunk: npt.NDArray[Any], codec: BloscCodecSpec) -> bytes:
    """Compress one whole chunk and append its checksum."""
    little = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<"))
    packed = compress(little, codec, little.dtype.itemsize)
    return packed + crc32c(packed).to_bytes(CHECKSUM_BYTES, "little")


def compress(data: npt.NDArray[Any], codec: BloscCodecSpec, itemsize: int) -> bytes:
    """Return the Blosc frame of a contiguous array, whose numbers have ``itemsize`` bytes."""
    shuffle = _SHUFFLES[codec.shuffle]
    packed = blosc.compress(
        data, codec.cname.encode(), codec.clevel, shuffle, codec.blocksize, itemsize
    )
    return bytes(packed)


def decode_chunk(encoded: bytes | memoryview, out: npt.NDArray[Any]) -> None:
    """Check one chunk and decompress it into ``out``, a contiguous array of its shape.

    Raises
    ------
    ChunkDamagedError
        If the checksum differs, or the header states another size of the chunk or its voxels.
        Nothing is decompressed then.
    """
    view = memoryview(encoded)
    packed, stored = view[:-CHECKSUM_BYTES], view[-CHECKSUM_BYTES:]
    found, expected = crc32c(packed), int.from_bytes(stored, "little")
    if found != expected:
        raise ChunkDamagedError(f"has crc32c {found:08x}, expected {expected:08x}")
    decompress(packed, out)


def decompress(packed: bytes | memoryview, out: npt.NDArray[Any]) -> None:
    """Decompress a Blosc frame into ``out``, a contiguous array of its decoded size.

    Raises
    ------
    ChunkDamagedError
        If its header states another size of the frame or its content. Nothing is decompressed
        then.
    """
    if len(packed) < BLOSC_HEADER.size:
        raise ChunkDamagedError(f"is {len(packed)} bytes long, too short for a chunk")
    _, _, _, _, size, _, packed_size = BLOSC_HEADER.unpack_from(packed)
    if size != out.nbytes:
        raise ChunkDamagedError(f"holds {size} bytes of voxels, expected {out.nbytes}")
    if packed_size != len(packed):  # C-Blosc trusts it and would read past the chunk
        raise ChunkDamagedError(f"says that it is {packed_size} bytes long, not {len(packed)}")
    try:
        blosc.decompress(packed, out)
    except RuntimeError as problem:
        raise ChunkDamagedError(f"does not decompress ({problem})") from problem


def shard_index(sizes: Mapping[int, int], n_chunks: int) -> bytes:
    """Return the index and its checksum, the last bytes of a shard whose chunks lie in C order.

    Parameters
    ----------
    sizes
        Sizes in bytes of the encoded chunks, by position in the shard.
    n_chunks
        Number of positions in the shard.
    """
    index = np.full((n_chunks, 2), ABSENT, "<u8")
    offset = 0
    for position in sorted(sizes):
        index[position] = offset, sizes[position]
        offset += sizes[position]
    packed_index = index.tobytes()
    return packed_index + crc32c(packed_index).to_bytes(CHECKSUM_BYTES, "little")


def index_bytes(n_chunks: int) -> int:
    """Return the size in bytes of the index of a shard with ``n_chunks`` positions."""
    return 16 * n_chunks + CHECKSUM_BYTES


def listed_positions(index: Buffer) -> list[int]:
    """Return the positions of the chunks that a shard holds, from its :func:`shard_index`."""
    offsets = np.frombuffer(memoryview(index)[:-CHECKSUM_BYTES], "<u8")[::2]
    return np.flatnonzero(offsets != ABSENT).tolist()


def parse_index(data: bytes, n_chunks: int, shard_size: int) -> npt.NDArray[np.uint64]:
    """Check and parse the index of a shard.

    Returns
    -------
    numpy.ndarray
        uint64 of shape ``(n_chunks, 2)``: offset and size in bytes, both :data:`ABSENT` for a chunk
        that the shard lacks.

    Raises
    ------
    DamagedMetadataError
        If the index is short, its checksum differs, or it points outside the shard.
    """
    if len(data) != index_bytes(n_chunks):
        raise DamagedMetadataError(f"{len(data)} bytes", f"{index_bytes(n_chunks)}")
    found = crc32c(data[:-CHECKSUM_BYTES])
    expected = int.from_bytes(data[-CHECKSUM_BYTES:], "little")
    if found != expected:
        raise DamagedMetadataError(f"crc32c {found:08x}", f"{expected:08x}")
    index = np.frombuffer(data[:-CHECKSUM_BYTES], "<u8").astype(np.uint64).reshape(n_chunks, 2)
    present = index[:, 0] != ABSENT
    ends = index[present].astype(object).sum(axis=1)
    if any(end > shard_size - len(data) for end in ends):
        raise DamagedMetadataError(
            "chunks outside of the shard", f"all in the {shard_size - len(data)} bytes before it"
        )
    return index
