"""How large are scans without compression?"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["arrow_bytes", "uncompressed_bytes"]

_ARROW_IMAGE_BYTES, _ARROW_MASK_BYTES = 4, 4
"""Bytes of a voxel of the float32 image and the int32 mask that Hugging Face scripts store."""


def uncompressed_bytes(table: "xr.Dataset", *, further_masks: bool = False) -> int:
    """Return the bytes of all voxels of image and mask in their stored types, uncompressed.

    Parameters
    ----------
    table
        Rows of the scan table.
    further_masks
        Whether to count further masks too.
    """
    columns = (table.shape_zyx, table.image_stored_dtype, table.label_state, table.masks)
    return sum(
        math.prod(shape_zyx)
        * (
            np.dtype(str(dtype)).itemsize
            + (state != "none")
            + (len(str(masks).split()) if further_masks else 0)
        )
        for shape_zyx, dtype, state, masks in zip(
            *(c.to_numpy().tolist() for c in columns), strict=True
        )
    )


def arrow_bytes(table: "xr.Dataset") -> int:
    """Return the bytes of all voxels as an Arrow dataset holds them, uncompressed.

    That is float32 for the image and int32 for the mask, as in the Hugging Face script of
    CTSpine1K.

    Parameters
    ----------
    table
        Rows of the scan table.
    """
    columns = (table.shape_zyx, table.label_state)
    return sum(
        math.prod(shape_zyx) * (_ARROW_IMAGE_BYTES + _ARROW_MASK_BYTES * (state != "none"))
        for shape_zyx, state in zip(*(c.to_numpy().tolist() for c in columns), strict=True)
    )
