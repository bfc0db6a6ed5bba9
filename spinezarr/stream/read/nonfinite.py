"""What happens to voxels that are NaN or infinite: are they refused, kept or replaced?

One such voxel makes a loss NaN, and then all weights. The ingest counted them in each scan, so the
scan table tells which scans have any.
"""

import math
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.scan_table import TableColumns

__all__ = ["Nonfinite", "fill_nonfinite", "nonfinite_fill", "refuse_nonfinite"]

Nonfinite = Literal["refuse", "keep"] | float
"""``"refuse"`` refuses scans with such voxels, ``"keep"`` keeps the voxels, a number replaces them.
"""
_MAX_LISTED_SCANS: Final = 3
"""Largest number of scans that a message names."""


def refuse_nonfinite(table: TableColumns, nonfinite: Nonfinite, store: str) -> None:
    """Check the option, and refuse scans that have such voxels. No scan is opened.

    Parameters
    ----------
    table
        Rows of the scans to read.
    nonfinite
        The user's option.
    store
        Name of the store, for messages.

    Raises
    ------
    UsageError
        If the option is invalid, or scans are refused. The message names the scans.
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
    counts = np.asarray(table["image_nan_voxels"]) + np.asarray(table["image_infinite_voxels"])
    rows = np.flatnonzero(counts).tolist()
    if rows:
        names = np.asarray(table["scan"])
        first, others = rows[:_MAX_LISTED_SCANS], rows[_MAX_LISTED_SCANS:]
        listed = ", ".join(f"{names[i]} ({counts[i]} voxels)" for i in first)
        more = f" and {len(others)} more" if others else ""
        raise UsageError(
            f"{store}: scans hold voxels that are NaN or infinite: {listed}{more}. Give the number "
            "to put in their place (nonfinite=-1024 is air), keep them (nonfinite='keep'), or "
            "choose other scans, those with store.table.image_nan_voxels and "
            "image_infinite_voxels of 0."
        )


def nonfinite_fill(nonfinite: Nonfinite, scan: ScanAttributes) -> float | None:
    """Return the number that replaces NaN and infinity in a scan; None if nothing is replaced.

    Raises
    ------
    UsageError
        If the scan has such voxels and they are refused. The scan then changed after the table was
        read.
    """
    if nonfinite == "keep" or not scan.image_nan_voxels + scan.image_infinite_voxels:
        return None
    if isinstance(nonfinite, str):
        raise UsageError(
            f"scan {scan.scan_id!r} holds voxels that are NaN or infinite since it was ingested "
            "again. Open the store again."
        )
    return nonfinite


def fill_nonfinite(values: npt.NDArray[Any], fill: float | None) -> None:
    """Replace NaN and infinity in ``values`` by a number; do nothing if ``fill`` is None."""
    if fill is not None:
        np.copyto(values, fill, where=~np.isfinite(values))
