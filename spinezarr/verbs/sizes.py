"""How large are scans without compression?"""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["uncompressed_bytes"]


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
