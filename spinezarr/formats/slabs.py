"""How does a stream of bytes become the slabs of a volume, for every file format?"""

import io
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt
from isal import igzip_lib

from spinezarr.errors import FormatError
from spinezarr.geometry import ShapeIJK

__all__ = [
    "GZIP_MAGIC",
    "HEADER_BLOCK_BYTES",
    "READ_BYTES",
    "read_into",
    "read_slabs",
    "skip_bytes",
]

GZIP_MAGIC: Final = b"\x1f\x8b"
"""The first two bytes of gzip data."""
READ_BYTES: Final = 1 << 20
"""Number of bytes read at once from a file."""
HEADER_BLOCK_BYTES: Final = 1 << 19
"""Number of bytes requested at once from a remote file, if only its header is needed."""
# The stub of isal calls this class an instance.
_ISAL_ERROR: Final = cast("type[Exception]", igzip_lib.error)


def read_slabs(
    stream: io.RawIOBase | io.BufferedIOBase,
    shape_ijk: ShapeIJK,
    stored_dtype: np.dtype[Any],
    thicknesses: Iterable[int],
    path: str,
) -> Iterator[npt.NDArray[Any]]:
    """Read a volume slab by slab from a stream in which the first axis varies fastest.

    A yielded slab is not kept here, so many files can be read at the same time.

    Parameters
    ----------
    stream
        Stream at the first voxel.
    shape_ijk
        Number of voxels along the axes of the file.
    stored_dtype
        Type and byte order of the stored numbers.
    thicknesses
        Thickness of each slab along k.
    path
        Path of the file, for messages.

    Yields
    ------
    numpy.ndarray
        Stored numbers of one slab, with axes ``(i, j, k)``.

    Raises
    ------
    FormatError
        If the stream ends early or does not decompress, or a slab does not fit into memory.
    """
    ni, nj, nk = shape_ijk
    slice_bytes = ni * nj * stored_dtype.itemsize
    n_slices_read = 0

    def next_slab(thickness: int) -> npt.NDArray[Any]:
        try:
            block = np.empty(thickness * slice_bytes, np.uint8)
        except (MemoryError, ValueError):
            raise FormatError(
                f"{path}: its header names {shape_ijk} voxels: "
                f"{thickness} slices are more than fit into memory."
            ) from None
        n_bytes = read_into(stream, block, path)
        if n_bytes < block.nbytes:
            n_bytes_read, expected = n_slices_read * slice_bytes + n_bytes, nk * slice_bytes
            raise FormatError(
                f"{path}: cut short: its voxels end after about {n_bytes_read} of {expected} "
                "bytes. Download it again."
            )
        return block.view(stored_dtype).reshape((thickness, nj, ni)).T

    for thickness in thicknesses:
        yield next_slab(thickness)
        n_slices_read += thickness


def read_into(
    stream: io.RawIOBase | io.BufferedIOBase, block: npt.NDArray[np.uint8], path: str
) -> int:
    """Fill ``block`` from the stream, and return the number of bytes read.

    Raises
    ------
    FormatError
        If the stream does not decompress.
    """
    view = block.data
    filled = 0
    try:
        while filled < len(view):
            n_bytes = stream.readinto(view[filled : filled + (READ_BYTES << 3)])
            if not n_bytes:
                break
            filled += n_bytes
    except EOFError:
        # Compressed data without an end mark are incomplete.
        return filled
    # igzip raises OverflowError if the header of a gzip member does not end.
    except (OSError, OverflowError, zlib.error, _ISAL_ERROR) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise FormatError(
            f"{path}: does not decompress: {problem}. Download it again."
        ) from problem
    return filled


def skip_bytes(stream: io.BufferedIOBase, size: int, path: str) -> None:
    """Skip ``size`` bytes of the stream.

    Raises
    ------
    FormatError
        If the stream ends before that, or does not decompress.
    """
    remaining_bytes = size
    while remaining_bytes:
        n_bytes = read_into(stream, np.empty(min(remaining_bytes, READ_BYTES), np.uint8), path)
        if not n_bytes:
            raise FormatError(f"{path}: ends before its voxels start, at byte {size}.")
        remaining_bytes -= n_bytes
