"""Which defects do the annotations and data of stores have?"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np

from spinezarr.audit.cross_scan_rules import scan_keys
from spinezarr.audit.run import StoreAudit, audit_across, audit_store, save_audit
from spinezarr.errors import ReadOnlyStoreError, UsageError
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.layout import LABEL
from spinezarr.store.mask_columns import has_masks, scans_by_structure
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection, check_scan_ids
from spinezarr.stream.read.engine import Engine
from spinezarr.verbs.masked_scans import no_such_mask
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["AuditedStore", "audit_stores"]

_NOT_SAVED = "Findings on a further mask are only reported; the store keeps those on label."
_MOST_NAMES = 10
"""Most labels that a message names."""


@dataclass(frozen=True, slots=True)
class AuditedStore:
    """An opened store to audit."""

    reader: StoreReader
    engine: Engine


def audit_stores(
    stores: Sequence[AuditedStore],
    selection: ScanSelection,
    *,
    layer: str,
    write: bool,
    others: Sequence[StoreReader] = (),
    on_progress: OnProgress,
) -> list[StoreAudit]:
    """Audit scans of several stores, and compare their images and patients across all of them.

    Parameters
    ----------
    stores
        Stores to audit. A scan that is selected by its id may be in any of them.
    selection
        Scans to audit.
    layer
        Mask to audit. The findings on a further mask are never saved, and their scans are not
        compared with others.
    write
        Whether to save the findings of each store in it. Findings from comparing stores are never
        saved, because a store may be copied without the others.
    others
        Stores that are compared but not audited.
    on_progress
        Called after each scan.

    Raises
    ------
    UnknownScanError
        If no store has a scan with a selected id.
    UsageError
        If a store has no such split, source or vertebra, or if no label of the mask is a vertebra.
    UnknownMaskError
        If no chosen scan has the mask.
    """
    selected = [_selected_scans(store.reader, selection) for store in stores]
    if selection.scans is not None:
        known_ids = {
            name for store in stores for name in store.reader.table.scan.to_numpy().tolist()
        }
        check_scan_ids(selection.scans, known_ids, ", ".join(store.reader.name for store in stores))
    selection.check_some(sum(map(len, selected)), ", ".join(store.reader.name for store in stores))
    if layer != LABEL:
        _check_mask(stores, selected, layer)
    counter = ProgressCounter(on_progress, "audit", "scans", sum(map(len, selected)))
    audits = [
        audit_store(store.reader, store.engine, scan_ids, mask=layer, on_scan=counter.add)
        for store, scan_ids in zip(stores, selected, strict=True)
    ]
    if layer != LABEL:
        return [replace(audit, not_written=_NOT_SAVED if write else "") for audit in audits]
    if write:
        audits = [_save(store.reader, audit) for store, audit in zip(stores, audits, strict=True)]
    readers = (*(store.reader for store in stores), *others)
    keys = [
        key
        for reader in readers
        for key in scan_keys(reader.url, reader.root.dataset, reader.table)
    ]
    return audit_across(keys, audits)


def _check_mask(
    stores: Sequence[AuditedStore], selected: Sequence[Sequence[str]], mask: str
) -> None:
    """Refuse a further mask that no chosen scan has, or that shows no vertebra in any of them."""
    names: dict[str, None] = {}
    schemes: set[str] = set()
    chosen, found = [], False
    for store, scan_ids in zip(stores, selected, strict=True):
        table = store.reader.table
        table = table.isel(scan=np.isin(table.scan.to_numpy().astype(str), scan_ids))
        chosen.append(table)
        if has_masks(table, [mask]).any():
            found = True
            structures = scans_by_structure(table, mask)
            if structures is None:
                return  # the table has no room for them
            names |= dict.fromkeys(structures)
            masked = table.isel(scan=has_masks(table, [mask]))
            schemes |= {str(name) for name in masked.mask_scheme.sel(mask=mask).to_numpy()}
    if not found and any(selected):
        store_names = ", ".join(store.reader.name for store in stores)
        raise no_such_mask(store_names, chosen, [mask])
    if names and VALUE_OF_NAME.keys().isdisjoint(names):
        raise UsageError(
            f"the mask {mask!r} has the scheme {' and '.join(sorted(schemes))}, and none of its "
            f"labels is a vertebra: {_listed(names)}. The audit checks vertebrae only."
        )


def _listed(names: Collection[str]) -> str:
    """Return the first of many names as text."""
    more = len(names) - _MOST_NAMES
    return f"{', '.join([*names][:_MOST_NAMES])}{f' and {more} more' if more > 0 else ''}"


def _selected_scans(reader: StoreReader, selection: ScanSelection) -> list[str]:
    """Return the ids of the selected scans that this store has."""
    known_ids = set(reader.table.scan.to_numpy().tolist())
    if selection.scans is not None:
        scan_ids = tuple(name for name in selection.scans if name in known_ids)
        selection = replace(selection, scans=scan_ids)
    return selection.scan_ids(reader.columns, reader.name)


def _save(reader: StoreReader, audit: StoreAudit) -> StoreAudit:
    """Save an audit in its store. If the store is read-only, return an audit that says so."""
    if not audit.scans:
        return audit
    try:
        save_audit(reader, audit)
    except ReadOnlyStoreError as problem:
        return replace(audit, not_written=f"{problem} The findings are only reported.")
    reader.forget_table()
    return audit
