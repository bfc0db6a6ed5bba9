"""From which store was a dataset opened?"""

from typing import TYPE_CHECKING, Final

from spinezarr.accessor.dataset_grid import scan_name
from spinezarr.api import ENCODED_STORE, Store
from spinezarr.api import open as open_store
from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.store.layout import scan_key

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["opened_store"]

_SOURCE: Final = "source"
"""Key of the encoding in which xarray keeps the path or URL that it has opened."""


def opened_store(dataset: "xr.Dataset") -> tuple[Store, str]:
    """Return the store of a dataset, and the id of its scan.

    Raises
    ------
    UsageError
        If the dataset does not know its store, or the store cannot be opened.
    """
    scan_id = dataset.attrs.get("scan_id")
    advice = f"Show it by spinezarr.open(store, storage_options=...).view({scan_id!r})."
    store = dataset.encoding.get(ENCODED_STORE)
    source = dataset.encoding.get(_SOURCE)
    if not isinstance(scan_id, str) or not (isinstance(store, Store) or isinstance(source, str)):
        raise UsageError(f"{scan_name(dataset)}: the dataset does not know its store. {advice}")
    if isinstance(store, Store):
        return store, scan_id
    url = str(source).rstrip("/").removesuffix(f"/{scan_key(scan_id)}")
    try:
        return open_store(url), scan_id
    except (SpinezarrError, OSError) as problem:
        raise UsageError(
            f"{scan_name(dataset)}: its store does not open ({problem}). {advice}"
        ) from problem
