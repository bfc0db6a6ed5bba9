"""Voxels that are NaN or infinite: whether a stream refuses, keeps or replaces them.

One such voxel makes a loss NaN, and the weights with it. Which scans hold any was counted by the
ingest, so nobody pays for looking.
"""

import math
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import xarray as xr

from spinezarr.errors import UsageError
from spinezarr.store.attributes import ScanAttributes

__all__ = ["Nonfinite", "fill_nonfinite", "nonfinite_fill", "refuse_nonfinite"]

Nonfinite = Literal["refuse", "keep"] | float
"""``"refuse"`` scans that hold any, ``"keep"`` them, or the number to put in their place."""
_LISTED: Final = 3
"""Scans that a message names."""


def refuse_nonfinite(table: xr.Dataset, nonfinite: Nonfinite, store: str) -> None:
    """Check the option, and refuse scans of a table by what it says of them; none is opened.

    Parameters
    ----------
    table
        Rows of the scans that are to be read.
    nonfinite
        What the user chose.
    store
        Its name, for messages.

    Raises
    ------
    UsageError
        If the option is none, or scans are to be refused; names them and what to do.
    """
    if isinstance(nonfinite, str):
        valid = nonfinite in ("refuse", "keep")
    else:
        valid = not isinstance(nonfinite, bool) and math.isfinite(nonfinite)
    if not valid:
        raise UsageError(
            f"nonfinite {nonfinite!r}: give 'refuse', 'keep' or the number to put in place of NaN "
            "and infinity."
        )
    if nonfinite != "refuse":
        return
    counts = (table.image_nan_voxels + table.image_infinite_voxels).to_numpy()
    found = np.flatnonzero(counts)
    if len(found):
        names = table.scan.to_numpy()
        listed = ", ".join(f"{names[i]} ({counts[i]} voxels)" for i in found[:_LISTED].tolist())
        more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
        raise UsageError(
            f"{store}: scans hold voxels that are NaN or infinite: {listed}{more}. Give the number "
            "to put in their place (nonfinite=-1024 is air), keep them (nonfinite='keep'), or "
            "choose other scans, those with store.table.image_nan_voxels and "
            "image_infinite_voxels of 0."
        )


def nonfinite_fill(nonfinite: Nonfinite, scan: ScanAttributes) -> float | None:
    """Return what replaces NaN and infinity in a scan; None if nothing is to be replaced.

    Raises
    ------
    UsageError
        If the scan holds any and they are refused: it has changed since the table was read.
    """
    if nonfinite == "keep" or not scan.image_nan_voxels + scan.image_infinite_voxels:
        return None
    if isinstance(nonfinite, str):
        raise UsageError(
            f"scan {scan.scan_id!r} holds voxels that are NaN or infinite since it was ingested "
            "anew. Open the store again."
        )
    return nonfinite


def fill_nonfinite(values: npt.NDArray[Any], fill: float | None) -> None:
    """Put a number in place of NaN and infinity; do nothing for None."""
    if fill is not None:
        np.copyto(values, fill, where=~np.isfinite(values))
