"""The kernel: C code that fills boxes of voxels from encoded chunks, and frees the GIL meanwhile.

It is loaded with :mod:`ctypes`, and used only if it decodes a few chunks as numcodecs does. Without
it everything works, more slowly.
"""

import ctypes
import os
import sys
from functools import cache
from pathlib import Path
from threading import local
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.store.layout import BloscCodecSpec
from spinezarr.store.sharding import CHECKSUM_BYTES, encode_chunk

__all__ = [
    "CHUNKS",
    "DONE",
    "NOT_TRIED",
    "NO_KERNEL",
    "SHARES",
    "Kernel",
    "address",
    "kernel",
]

NO_KERNEL: Final = "SPINEZARR_NO_KERNEL"
"""Environment variable that keeps the kernel from being used."""
_VERSION: Final = 1
DONE, NOT_TRIED = 0, -1
"""Status of a chunk whose shares are filled, and of one that the kernel has not seen."""
_OVERHEAD_BYTES: Final = 16 + CHECKSUM_BYTES
"""By which an encoded chunk is longer than its voxels at most (``BLOSC_MAX_OVERHEAD``)."""

# As the structures of kernel.c.
CHUNKS: Final = np.dtype(
    [
        ("data", np.uintp),
        ("offset", np.int64),
        ("size", np.int64),
        ("first_share", np.int64),
        ("n_shares", np.int32),
        ("fd", np.int32),
        ("itemsize", np.int32),
        ("shape_zyx", np.int32, 3),
        ("crc32c", np.uint32),
        ("status", np.int32),
    ],
    align=True,
)
SHARES: Final = np.dtype(
    [
        ("out", np.uintp),
        ("stride_zyx", np.int64, 3),
        ("start_zyx", np.int32, 3),
        ("shape_zyx", np.int32, 3),
    ],
    align=True,
)


class Kernel:
    """The loaded library.

    Parameters
    ----------
    path
        Where it lies.

    Raises
    ------
    OSError
        If it cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.version = int(library.spinezarr_kernel_version())
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._fill = library.spinezarr_fill
        self._fill.argtypes = [pointer, number, number, pointer, pointer, number]
        self._fill.restype = None
        self._scratch_bytes = library.spinezarr_scratch_bytes
        self._scratch_bytes.argtypes = [number, number]
        self._scratch_bytes.restype = number
        self._crc32c = library.spinezarr_crc32c
        self._crc32c.argtypes = [ctypes.c_char_p, number, ctypes.c_int32]
        self._crc32c.restype = ctypes.c_uint32
        self._scratch = local()

    def fill(
        self,
        chunks: npt.NDArray[np.void],
        shares: npt.NDArray[np.void],
        first: int,
        last: int,
        decoded_bytes: int,
    ) -> None:
        """Fill the shares of some chunks, and set their ``status``.

        Parameters
        ----------
        chunks, shares
            Of types :data:`CHUNKS` and :data:`SHARES`. The memory that they name is the caller's;
            every share lies inside its chunk and its output.
        first, last
            Which chunks.
        decoded_bytes
            Of the largest chunk.
        """
        packed_bytes = decoded_bytes + _OVERHEAD_BYTES
        size = self._scratch_bytes(packed_bytes, decoded_bytes)
        scratch: npt.NDArray[np.uint8] | None = getattr(self._scratch, "bytes", None)
        if scratch is None or scratch.nbytes < size:
            scratch = self._scratch.bytes = np.empty(size, np.uint8)
        self._fill(address(chunks), first, last, address(shares), address(scratch), packed_bytes)

    def crc32c(self, data: bytes, *, by_table: bool) -> int:
        """Return the CRC-32C of ``data``, computed in one of two ways."""
        return int(self._crc32c(data, len(data), by_table))

    def works(self) -> bool:
        """Whether it fills boxes of some encoded chunks with the voxels that went in."""
        if self.version != _VERSION or sys.byteorder != "little":
            return False
        shape, start, stop = (40, 30, 50), (3, 5, 7), (37, 29, 48)
        voxels = np.random.default_rng(0).integers(-900, 900, shape, np.int16)
        voxels[10:30] = 7
        codecs = (
            BloscCodecSpec("lz4hc", 5, "shuffle", 0),
            BloscCodecSpec("lz4hc", 5, "noshuffle", 1 << 16),
        )
        for codec, dtype in zip(codecs, ("<i2", "u1"), strict=True):
            chunk = voxels.astype(dtype)
            encoded = np.frombuffer(encode_chunk(chunk, codec), np.uint8)
            box = chunk[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
            out = np.zeros(box.shape, dtype)
            row = np.zeros(1, CHUNKS)
            row["data"], row["size"], row["n_shares"] = address(encoded), encoded.nbytes, 1
            row["itemsize"], row["shape_zyx"] = chunk.itemsize, shape
            row["crc32c"] = encoded[-CHECKSUM_BYTES:].view("<u4")
            row["status"] = NOT_TRIED
            share = np.zeros(1, SHARES)
            share["out"], share["stride_zyx"] = address(out), out.strides
            share["start_zyx"], share["shape_zyx"] = start, box.shape
            self.fill(row, share, 0, 1, chunk.nbytes)
            if row["status"][0] != DONE or not np.array_equal(out, box):
                return False
        return True


@cache
def kernel() -> Kernel | None:
    """Return the kernel, or None where there is none that works."""
    if os.environ.get(NO_KERNEL):
        return None
    ending = ".dylib" if sys.platform == "darwin" else ".so"
    try:
        found = Kernel(Path(__file__).with_name(f"libkernel{ending}"))
    except (OSError, AttributeError):
        return None
    return found if found.works() else None


def address(array: npt.NDArray[Any]) -> int:
    """Return where the first element of an array lies."""
    place: int = array.__array_interface__["data"][0]
    return place
