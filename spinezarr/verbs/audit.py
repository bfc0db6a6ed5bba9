"""Which defects do the annotations and data of stores have?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from spinezarr.audit.cross_scan_rules import scan_keys
from spinezarr.audit.run import StoreAudit, audit_across, audit_store, save_audit
from spinezarr.errors import ReadOnlyStoreError
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection, check_scan_ids
from spinezarr.stream.read.engine import Engine

__all__ = ["AuditedStore", "audit_stores"]


@dataclass(frozen=True, slots=True)
class AuditedStore:
    """An opened store to audit."""

    reader: StoreReader
    engine: Engine


def audit_stores(
    stores: Sequence[AuditedStore],
    selection: ScanSelection,
    *,
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
        If a store has no such split, source or vertebra.
    """
    selected = [_selected_scans(store.reader, selection) for store in stores]
    if selection.scans is not None:
        known_ids = {
            name for store in stores for name in store.reader.table.scan.to_numpy().tolist()
        }
        check_scan_ids(selection.scans, known_ids, ", ".join(store.reader.name for store in stores))
    counter = ProgressCounter(on_progress, "audit", "scans", sum(map(len, selected)))
    audits = [
        audit_store(store.reader, store.engine, scan_ids, on_scan=counter.add)
        for store, scan_ids in zip(stores, selected, strict=True)
    ]
    if write:
        audits = [_save(store.reader, audit) for store, audit in zip(stores, audits, strict=True)]
    readers = (*(store.reader for store in stores), *others)
    keys = [
        key
        for reader in readers
        for key in scan_keys(reader.url, reader.root.dataset, reader.table)
    ]
    return audit_across(keys, audits)


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
