"""From a stream of bytes to the slabs of a volume, whatever the file format around it."""

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
"""Read at once from a file."""
HEADER_BLOCK_BYTES: Final = 1 << 19
"""Asked for at once from afar where only a header is wanted."""
# The stub of isal calls this class an instance.
_ISAL_ERROR: Final = cast("type[Exception]", igzip_lib.error)


def read_slabs(
    stream: io.RawIOBase | io.BufferedIOBase,
    shape_ijk: ShapeIJK,
    stored_dtype: np.dtype[Any],
    thicknesses: Iterable[int],
    path: str,
) -> Iterator[npt.NDArray[Any]]:
    """Yield the values that ``stream`` is about to give, the first axis fastest.

    Nothing that was yielded is held here, so that many files can be read side by side.

    Parameters
    ----------
    stream
        Stands before the first voxel.
    shape_ijk
        Voxels along the file's axes.
    stored_dtype
        Type and byte order of the stored numbers.
    thicknesses
        Voxels of each slab along k.
    path
        For messages.

    Raises
    ------
    FormatError
        If the stream ends early or does not decompress, or a slab does not fit into memory.
    """
    ni, nj, nk = shape_ijk
    slice_bytes = ni * nj * stored_dtype.itemsize
    done = 0

    def next_slab(thickness: int) -> npt.NDArray[Any]:
        try:
            block = np.empty(thickness * slice_bytes, np.uint8)
        except (MemoryError, ValueError):
            raise FormatError(
                f"{path}: its header names {shape_ijk} voxels: "
                f"{thickness} slices are more than fit into memory."
            ) from None
        got = read_into(stream, block, path)
        if got < block.nbytes:
            found, expected = done * slice_bytes + got, nk * slice_bytes
            raise FormatError(
                f"{path}: cut short: its voxels end after about {found} of {expected} "
                "bytes. Download it again."
            )
        return block.view(stored_dtype).reshape((thickness, nj, ni)).T

    for thickness in thicknesses:
        yield next_slab(thickness)
        done += thickness


def read_into(
    stream: io.RawIOBase | io.BufferedIOBase, block: npt.NDArray[np.uint8], path: str
) -> int:
    """Fill ``block`` as far as the stream goes; return the bytes read."""
    view = block.data
    filled = 0
    try:
        while filled < len(view):
            got = stream.readinto(view[filled : filled + (READ_BYTES << 3)])
            if not got:
                break
            filled += got
    except EOFError:
        # Compressed data that end without their end mark: what came is not complete.
        return filled
    # OverflowError: the header of a gzip member does not end.
    except (OSError, OverflowError, zlib.error, _ISAL_ERROR) as problem:
        if isinstance(problem, OSError) and problem.errno is not None:
            raise
        raise FormatError(
            f"{path}: does not decompress: {problem}. Download it again."
        ) from problem
    return filled


def skip_bytes(stream: io.BufferedIOBase, size: int, path: str) -> None:
    """Read past ``size`` bytes."""
    left = size
    while left:
        got = read_into(stream, np.empty(min(left, READ_BYTES), np.uint8), path)
        if not got:
            raise FormatError(f"{path}: ends before its voxels start, at byte {size}.")
        left -= got
