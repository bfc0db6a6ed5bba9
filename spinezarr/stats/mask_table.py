"""How are the figures of a further mask computed as those of ``label`` are?"""

from typing import TYPE_CHECKING

import numpy as np

from spinezarr.errors import UsageError
from spinezarr.store.layout import LABEL
from spinezarr.store.mask_columns import MASK, STRUCTURE, has_masks

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["table_of_mask"]


def table_of_mask(table: "xr.Dataset", mask: str) -> "xr.Dataset":
    """Return rows of the scan table with the labels of a mask in the place of those of ``label``.

    Parameters
    ----------
    table
        Rows of the scan table.
    mask
        ``label``, or the name of a further mask.

    Returns
    -------
    xarray.Dataset
        Columns that statistics and plots read. The labels of the mask are along ``vertebra``, and
        the centers that the dataset annotates, which are not those of the mask, are left out.

    Raises
    ------
    UsageError
        If the table has no room for the labels of further masks.
    """
    if mask == LABEL:
        return table
    rest = table.drop_dims(["vertebra", MASK, STRUCTURE], errors="ignore")
    state = np.where(has_masks(table, [mask]), "unknown", "none").astype(object)
    title = f"{table.attrs['title']}: mask {mask}"
    if MASK not in table.variables or mask not in table[MASK].to_numpy():
        names, shape = np.empty(0, object), (table.sizes["scan"], 0)
        counts, volumes = np.zeros(shape, np.int64), np.full(shape, np.nan)
    elif STRUCTURE not in table.variables:
        raise UsageError(
            f"the scan table has no room for the labels of further masks, so there are no figures "
            f"of the mask {mask!r}. 'store.scan(scan_id).attrs' has those of each scan."
        )
    else:
        own = table.sel({MASK: mask})
        names = own[STRUCTURE].to_numpy()
        counts, volumes = own.mask_voxel_count.to_numpy(), own.mask_volume_cm3.to_numpy()
    return (
        rest.assign_coords(vertebra=("vertebra", names))
        .assign(
            voxel_count=(("scan", "vertebra"), counts),
            volume_cm3=(("scan", "vertebra"), volumes),
            annotated_centroid_zyx_mm=(
                ("scan", "vertebra", "axis"),
                np.full((*counts.shape, 3), np.nan),
            ),
            label_state=("scan", state),
        )
        .assign_attrs(title=title)
    )
