"""How are the voxels of a chunk copied out of a layer?

The rows of a chunk are short and lie far apart, and files often hold them backward. NumPy copies
them two to four times slower than the C code in ``gather.c``.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.native_library import is_turned_off, library_path

__all__ = ["copy_voxels"]

_ITEM_BYTES: Final = (1, 2, 4)
"""Sizes of voxels that the C code copies."""
_N_AXES: Final = 3
_Copy = Callable[[int, int, int, int, int, int], None]


def copy_voxels(voxels: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """Copy voxels into an array of the same shape and dtype.

    Parameters
    ----------
    voxels, out
        Arrays that do not overlap, ``(z, y, x)``.

    Raises
    ------
    ValueError
        If they differ in shape or dtype, or ``out`` is read-only.
    """
    if (voxels.shape, voxels.dtype) != (out.shape, out.dtype) or not out.flags.writeable:
        raise ValueError(f"{voxels.shape} {voxels.dtype} into {out.shape} {out.dtype}")
    copy = _library()
    if copy is None or not _has_rows(voxels, out):
        out[...] = voxels
        return
    numbers = np.array([out.strides, voxels.strides, voxels.shape], np.int64)
    to_strides, from_strides, shape = (row.ctypes.data for row in numbers)
    copy(
        *(out.ctypes.data, to_strides, voxels.ctypes.data, from_strides, shape),
        voxels.dtype.itemsize,
    )


def _has_rows(voxels: npt.NDArray[Any], out: npt.NDArray[Any]) -> bool:
    """Return whether the voxels of each row lie side by side, in ``voxels`` forward or backward."""
    size = voxels.dtype.itemsize
    return (
        size in _ITEM_BYTES
        and voxels.ndim == _N_AXES
        and out.strides[-1] == size
        and abs(voxels.strides[-1]) == size
    )


@cache
def _library() -> _Copy | None:
    """Return the C function; None if there is none."""
    if is_turned_off():
        return None
    try:
        gather = ctypes.CDLL(str(library_path())).spinezarr_gather
    except (OSError, AttributeError):
        return None
    gather.argtypes = [*[ctypes.c_void_p] * 5, ctypes.c_int64]
    gather.restype = None
    copy: _Copy = gather
    return copy
