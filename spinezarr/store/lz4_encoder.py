"""How are the blocks of a chunk compressed in one call, without the GIL?

The C code in ``lz4_encoder.c`` takes little more than half of the time of LZ4HC in numcodecs.
:mod:`spinezarr.store.blocks` has the slower way, for machines without it.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from threading import local
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.native_library import is_turned_off, library_path
from spinezarr.store.sharding import crc32c

__all__ = ["encode_lz4"]

_LARGEST_LEVEL: Final = 9
"""Largest level of C-Blosc."""
_LEVEL_OF_ONE_TRY: Final = 3
"""Level at which one earlier place is tried for a match. Each further level doubles the number."""
_CHECKED_BYTES: Final = bytes(range(251)) * 17
"""Bytes whose checksum the library must compute right, long enough for each of its loops."""
_Encode = Callable[..., int]
_MEMORY: Final = local()


def encode_lz4(
    voxels: npt.NDArray[np.uint8],
    *,
    level: int,
    n_blocks: int,
    n_streams: int,
    shuffled_itemsize: int,
    voxels_crc32c: int,
    largest_block_bytes: int,
) -> tuple[memoryview, list[int]] | None:
    """Encode the blocks of a chunk as LZ4 streams, each block with its checksum.

    Parameters
    ----------
    voxels
        Bytes of the chunk, shape ``(bytes,)``.
    level
        Level of C-Blosc, 1 to 9. A higher one takes longer and gives fewer bytes.
    n_blocks, n_streams
        Number of blocks, and of streams of each.
    shuffled_itemsize
        Bytes of a voxel if they are shuffled, else 1.
    voxels_crc32c
        Checksum of the chunk.
    largest_block_bytes
        Bytes of an encoded block at most.

    Returns
    -------
    tuple or None
        The encoded blocks, and the size of each; None where the C code is missing or does not
        encode such streams. The next call in the same thread overwrites the blocks.
    """
    library = _library()
    if library is None or not 0 < level <= _LARGEST_LEVEL:
        return None
    encode, scratch_bytes = library
    size = scratch_bytes + n_blocks * largest_block_bytes
    memory: npt.NDArray[np.uint8] | None = getattr(_MEMORY, "bytes", None)
    if memory is None or memory.nbytes < size:
        memory = _MEMORY.bytes = np.empty(size, np.uint8)
    scratch, out = memory[:scratch_bytes], memory[scratch_bytes:]
    sizes = np.empty(n_blocks, np.uint32)
    n_bytes = encode(
        *(voxels.ctypes.data, n_blocks, voxels.nbytes // n_blocks, n_streams, shuffled_itemsize),
        *(voxels_crc32c, 1 << max(0, level - _LEVEL_OF_ONE_TRY)),
        *(out.ctypes.data, sizes.ctypes.data, scratch.ctypes.data),
    )
    return None if n_bytes < 0 else (out[:n_bytes].data, sizes.tolist())


@cache
def _library() -> tuple[_Encode, int] | None:
    """Return the C function, and the bytes of memory that it needs; None if there is none.

    The function checks its streams itself. Its checksums must be those of another library, as a
    chunk with wrong ones could not be read.
    """
    if is_turned_off():
        return None
    try:
        library: Any = ctypes.CDLL(str(library_path()))
        encode = library.spinezarr_encode_lz4
        scratch_bytes = library.spinezarr_lz4_scratch_bytes
        checksum = library.spinezarr_crc32c
    except (OSError, AttributeError):
        return None
    library.spinezarr_kernel_version()  # fills the tables of checksums
    checksum.argtypes = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_int32]
    checksum.restype = ctypes.c_uint32
    if checksum(_CHECKED_BYTES, len(_CHECKED_BYTES), 0) != crc32c(_CHECKED_BYTES):
        return None
    encode.argtypes = [
        *(ctypes.c_void_p, *[ctypes.c_int64] * 4, ctypes.c_uint32, ctypes.c_int32),
        *[ctypes.c_void_p] * 3,
    ]
    encode.restype = ctypes.c_int64
    scratch_bytes.restype = ctypes.c_int64
    return encode, scratch_bytes()
