"""Which of the chosen scans have a mask?"""

from collections.abc import Sequence

import numpy as np

from spinezarr.errors import UnknownMaskError
from spinezarr.store.layout import LABEL
from spinezarr.store.mask_columns import has_masks
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_table import TableColumns
from spinezarr.store.selection import ScanSelection
from spinezarr.text import did_you_mean

__all__ = ["no_such_mask", "scans_with_masks"]


def scans_with_masks(
    reader: StoreReader, selection: ScanSelection, masks: Sequence[str]
) -> list[str]:
    """Return the ids of the chosen scans that have all of some masks.

    Raises
    ------
    UnknownMaskError
        If none of the chosen scans has them.
    UnknownScanError, UsageError
        As for :meth:`spinezarr.store.selection.ScanSelection.rows`.
    """
    chosen = reader.columns.take(selection.rows(reader.columns, reader.name))
    found = chosen.take(np.flatnonzero(has_masks(chosen, masks)))
    if len(chosen) and not len(found):
        raise no_such_mask(reader.name, [chosen], masks)
    return list(map(str, found["scan"].tolist()))


def no_such_mask(
    store: str, chosen: Sequence[TableColumns], masks: Sequence[str]
) -> UnknownMaskError:
    """Return the error for masks that no chosen scan of a store has; it lists those that they have.

    Parameters
    ----------
    store
        Name of the store, or names of several.
    chosen
        Rows of the chosen scans of each store.
    masks
        Names of the masks.
    """
    known = [LABEL] if any(has_masks(table, [LABEL]).any() for table in chosen) else []
    cells = [str(cell) for table in chosen for cell in np.asarray(table["masks"]).tolist()]
    known += sorted({name for cell in cells for name in cell.split()})
    wanted = " and ".join(map(repr, masks))
    hint = did_you_mean(masks[0], known) if len(masks) == 1 else ""
    return UnknownMaskError(
        f"{store}: none of the chosen scans has a mask {wanted}; their masks are "
        f"{', '.join(known) or 'none'}.{hint}"
    )
