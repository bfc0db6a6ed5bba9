"""How does Python call the kernel, the C code that decodes chunks without the GIL?

The kernel is loaded with :mod:`ctypes`. It is used only if it has the version and the structures
that this module expects, and decodes a few chunks as numcodecs does. Everything works without it,
but more slowly.
"""

import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import local
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.store.layout import LARGEST_CHUNK_BYTES, BloscCodecSpec
from spinezarr.store.sharding import CHECKSUM_BYTES, encode_chunk

__all__ = [
    "CHUNKS",
    "DONE",
    "NOT_TRIED",
    "NO_KERNEL",
    "OUTPUTS",
    "PIECES",
    "Kernel",
    "Tables",
    "address",
    "kernel",
    "output_table",
]

NO_KERNEL: Final = "SPINEZARR_NO_KERNEL"
"""Environment variable that disables the kernel."""
_VERSION: Final = 3
DONE, NOT_TRIED = 0, -1
"""Status of a chunk whose pieces were filled, and of one that the kernel has not tried yet."""

# These are the structures of kernel.c. Numbers from a store's metadata have 64 bits, as NumPy would
# cut them to fewer bits without an error.
CHUNKS: Final = np.dtype(
    [
        ("data", np.uintp),
        ("offset", np.int64),
        ("size", np.int64),
        ("first_piece", np.int64),
        ("n_pieces", np.int64),
        ("itemsize", np.int64),
        ("shape_zyx", np.int64, 3),
        ("fd", np.int32),
        ("crc32c", np.uint32),
        ("status", np.int32),
    ],
    align=True,
)
PIECES: Final = np.dtype(
    [
        ("output", np.int64),
        ("within_output_zyx", np.int64, 3),
        ("within_chunk_zyx", np.int64, 3),
        ("shape_zyx", np.int64, 3),
    ],
    align=True,
)
OUTPUTS: Final = np.dtype(
    [
        ("data", np.uintp),
        ("stride_zyx", np.int64, 3),
        ("shape_zyx", np.int64, 3),
        ("itemsize", np.int64),
    ],
    align=True,
)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """The tables of one call of the kernel: chunks to decode, and where their voxels go.

    The caller owns the memory at the addresses in the tables. There are ``size`` bytes at the
    ``data`` of each chunk, and they live until the kernel is done. Other numbers may be wrong: a
    chunk whose numbers do not fit together is not decoded.

    Raises
    ------
    ValueError
        If a table has another dtype, or is not contiguous.
    """

    chunks: npt.NDArray[np.void]
    """Rows of :data:`CHUNKS`; the kernel sets their ``status``."""
    pieces: npt.NDArray[np.void]
    """Rows of :data:`PIECES`, in the order of their chunks."""
    outputs: npt.NDArray[np.void]
    """Rows of :data:`OUTPUTS`; see :func:`output_table`."""
    decoded_bytes: int
    """Bytes of the largest chunk, decoded."""

    def __post_init__(self) -> None:
        tables = (self.chunks, self.pieces, self.outputs)
        for table, dtype in zip(tables, (CHUNKS, PIECES, OUTPUTS), strict=True):
            if table.dtype != dtype or table.ndim != 1 or not table.flags.c_contiguous:
                raise ValueError(f"a table of {table.dtype}, expected one of {dtype} without gaps")


def output_table(outputs: Sequence[npt.NDArray[Any]]) -> npt.NDArray[np.void]:
    """Return the table of the arrays that voxels go to.

    Raises
    ------
    TypeError
        If an array holds Python objects: bytes of a store would become their addresses.
    ValueError
        If an array is read-only, or does not have three dimensions.
    """
    for out in outputs:
        if out.dtype.hasobject:
            raise TypeError(f"an output has type {out.dtype}, expected numbers")
        if not out.flags.writeable:
            raise ValueError("an output is read-only")
    rows = [(address(out), out.strides, out.shape, out.itemsize) for out in outputs]
    return np.array(rows, OUTPUTS)


class Kernel:
    """The loaded library.

    Parameters
    ----------
    path
        Path of the library.

    Raises
    ------
    OSError
        If it cannot be loaded.
    AttributeError
        If it lacks a function, such as a library that an older version built.
    """

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self.version = int(library.spinezarr_kernel_version())
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._fill = library.spinezarr_fill
        self._fill.argtypes = [
            pointer,
            *(number, number),
            *(pointer, number),
            *(pointer, number),
            *(pointer, number),
        ]
        self._fill.restype = None
        self.row_bytes: list[int] = []
        for size_of in (
            library.spinezarr_chunk_bytes,
            library.spinezarr_piece_bytes,
            library.spinezarr_output_bytes,
        ):
            size_of.argtypes, size_of.restype = [], number
            self.row_bytes.append(int(size_of()))
        self._scratch_bytes = library.spinezarr_scratch_bytes
        self._scratch_bytes.argtypes = [number]
        self._scratch_bytes.restype = number
        self._crc32c = library.spinezarr_crc32c
        self._crc32c.argtypes = [ctypes.c_char_p, number, ctypes.c_int32]
        self._crc32c.restype = ctypes.c_uint32
        self._scratch = local()

    def fill(self, tables: Tables, first: int, last: int) -> None:
        """Fill the pieces of the chunks ``first`` to ``last - 1``, and set their ``status``.

        Raises
        ------
        ValueError
            If there are no such chunks.
        """
        if not 0 <= first <= last <= len(tables.chunks):
            raise ValueError(f"chunks {first} to {last} of {len(tables.chunks)}")
        decoded_bytes = min(max(0, tables.decoded_bytes), LARGEST_CHUNK_BYTES)
        size = self._scratch_bytes(decoded_bytes)
        scratch: npt.NDArray[np.uint8] | None = getattr(self._scratch, "bytes", None)
        if scratch is None or scratch.nbytes < size:
            scratch = self._scratch.bytes = np.empty(size, np.uint8)
        self._fill(
            address(tables.chunks),
            first,
            last,
            address(tables.pieces),
            len(tables.pieces),
            address(tables.outputs),
            len(tables.outputs),
            address(scratch),
            decoded_bytes,
        )

    def crc32c(self, data: bytes, *, by_table: bool) -> int:
        """Return the CRC-32C of ``data``, by table or by the processor's instruction."""
        return int(self._crc32c(data, len(data), by_table))

    def works(self) -> bool:
        """Return whether its structures fit, and it decodes some encoded chunks correctly."""
        if self.version != _VERSION or sys.byteorder != "little":
            return False
        if self.row_bytes != [table.itemsize for table in (CHUNKS, PIECES, OUTPUTS)]:
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
            row["data"], row["size"], row["n_pieces"] = address(encoded), encoded.nbytes, 1
            row["itemsize"], row["shape_zyx"] = chunk.itemsize, shape
            row["crc32c"] = encoded[-CHECKSUM_BYTES:].view("<u4")
            row["status"] = NOT_TRIED
            piece = np.zeros(1, PIECES)
            piece["within_chunk_zyx"], piece["shape_zyx"] = start, box.shape
            self.fill(Tables(row, piece, output_table([out]), chunk.nbytes), 0, 1)
            if row["status"][0] != DONE or not np.array_equal(out, box):
                return False
        return True


@cache
def kernel() -> Kernel | None:
    """Return the kernel; None if there is none, or it does not work."""
    if os.environ.get(NO_KERNEL):
        return None
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    try:
        library = Kernel(Path(__file__).with_name(f"libkernel{suffix}"))
    except (OSError, AttributeError):
        return None
    return library if library.works() else None


def address(array: npt.NDArray[Any]) -> int:
    """Return the address of the first element of an array."""
    first: int = array.__array_interface__["data"][0]
    return first
