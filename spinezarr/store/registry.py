"""What does a store record about all of its scans, and how is that kept up to date?

The registry has three parts: the scan table for readers, the ledger by which the next ingest skips
finished scans, and the audit log. The table shows the audit results, so it is written again if they
change.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from spinezarr.errors import (
    CorruptStoreError,
    DamagedMetadataError,
    LostLockError,
    ReadOnlyStoreError,
)
from spinezarr.store.array_metadata import Separator, other_separator
from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.audit_log import AUDIT_FILE, AuditLog, scan_identity
from spinezarr.store.bundle import TABLE_BUNDLE, bundle_files
from spinezarr.store.files import (
    list_sizes,
    publish_file,
    publish_group,
    read_files,
    remove_files,
)
from spinezarr.store.layout import METADATA, TABLE
from spinezarr.store.ledger import LEDGER_FILE, FolderRecord, Ledger, LedgerEntry
from spinezarr.store.lock import LATE_FILE
from spinezarr.store.metadata import table_files
from spinezarr.store.table import (
    build_table,
    update_table,
    with_audit_columns,
    with_audit_results,
)
from spinezarr.store.table_file import parse_table
from spinezarr.store.table_reader import read_table
from spinezarr.store.writable import WritableStore

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ScanRegistry"]


class ScanRegistry:
    """The scan table, the ledger and the audit log of a store, as its writer sees them.

    Parameters
    ----------
    store
        Files of the store.
    root
        Attributes of its root.
    """

    def __init__(self, store: WritableStore, root: RootAttributes) -> None:
        self._store = store
        self._root = root

    def table(self) -> "xr.Dataset | None":
        """Read the scan table; None if it is missing or damaged."""
        try:
            read = partial(read_files, self._store.fs)
            return read_table(read, f"{self._store.path}/{TABLE}", self._store.name).to_xarray()
        except CorruptStoreError:
            return None

    def ledger(self) -> Ledger | None:
        """Read the ledger of the last ingest; None if that run was cut off."""
        try:
            return Ledger.of_file(self._store.fs.cat_file(f"{self._store.path}/{LEDGER_FILE}"))
        except (FileNotFoundError, DamagedMetadataError):
            return None

    def forget_ledger(self) -> None:
        """Delete the ledger, so that the next ingest checks every file of the store."""
        try:
            self._store.remove(self._store.path, [LEDGER_FILE])
        except LostLockError:
            raise
        except OSError:  # a bucket may allow writes and forbid deletes
            with suppress(OSError):
                path = f"{self._store.path}/{LEDGER_FILE}"
                publish_file(self._store.fs, path, Ledger().to_file())

    def audit_log(self) -> AuditLog:
        """Read the results of the last audits; an empty log if there was none.

        Raises
        ------
        CorruptStoreError
            If the log is damaged.
        """
        path = f"{self._store.path}/{AUDIT_FILE}"
        try:
            return AuditLog.of_file(self._store.fs.cat_file(path))
        except FileNotFoundError:
            return AuditLog()
        except DamagedMetadataError as problem:
            raise CorruptStoreError(
                f"{path}: is not what spinezarr writes ({problem}). "
                f"Run 'spinezarr audit {self._store.name}' over all scans again to write it anew."
            ) from problem

    def drop_damaged_audit_log(self) -> None:
        """Delete the audit log if it is damaged; the next audit makes it again."""
        try:
            self.audit_log()
        except CorruptStoreError:
            self._store.remove(self._store.path, [AUDIT_FILE])

    def write_table(
        self,
        known: "xr.Dataset | None",
        changed: Mapping[str, ScanAttributes],
        entries: Mapping[str, LedgerEntry],
        folders: Mapping[str, FolderRecord] | None = None,
    ) -> "xr.Dataset":
        """Write the scan table and the ledger again.

        Parameters
        ----------
        known
            The current table. Its rows stay, except those of scans in ``changed``. None makes a
            table of the scans in ``changed`` alone.
        changed
            Scans that are new, or differ from their row in ``known``, by scan id.
        entries
            Ledger entries of all scans of the store, by scan id.
        folders
            Ledger records of folders with DICOM files.

        Returns
        -------
        xarray.Dataset
            The new table.

        Raises
        ------
        CorruptStoreError
            If the audit log, whose results the table shows, is damaged.
        LostLockError
            If another run has taken the store over.
        """
        ledger = Ledger(
            scans=dict(sorted(entries.items())), folders=dict(sorted((folders or {}).items()))
        )
        audited = self.audit_log().current(ledger.identities)
        if known is None:
            table = build_table(self._root, changed.values(), audited)
        else:
            table = update_table(self._root, known, changed, audited)
        store = self._store
        with store.changing():
            self.publish_table(table)
            publish_file(store.fs, f"{store.path}/{LEDGER_FILE}", ledger.to_file())
            if store.has_late_write:
                remove_files(store.fs, store.path, [LATE_FILE])
                store.has_late_write = False
        return table

    def update_rows(self, scans: Iterable[ScanAttributes]) -> None:
        """Write the scan table again after further masks of some scans have changed.

        The ledger and the audit log stay, as neither depends on further masks. A row of another
        version of a scan stays too: the ingest that was cut off there writes it.

        Parameters
        ----------
        scans
            Attributes of the scans as they are published.

        Raises
        ------
        LostLockError
            If another run has taken the store over.
        """
        known = self.table()
        if known is None:
            return
        listed = dict(zip(known.scan.to_numpy(), known.content_checksum.to_numpy(), strict=True))
        changed = {
            scan.scan_id: scan
            for scan in scans
            if listed.get(scan.scan_id) == scan.content_checksum
        }
        if not changed:
            return
        table = update_table(self._root, known, changed, {})
        with self._store.changing():
            self.publish_table(with_audit_columns(table, known))

    def write_audit_log(
        self, log: AuditLog, table: "xr.Dataset", scans: Mapping[str, ScanAttributes]
    ) -> None:
        """Write the results of an audit, then show them in the scan table.

        Parameters
        ----------
        log
            All results.
        table
            The scan table as it was read; its rows stay.
        scans
            Stored attributes of the scans in ``log``, by scan id.

        Raises
        ------
        ReadOnlyStoreError
            If the store cannot be written.
        """
        identities = {scan_id: scan_identity(scan) for scan_id, scan in scans.items()}
        store = self._store
        with store.changing():
            try:
                publish_file(store.fs, f"{store.path}/{AUDIT_FILE}", log.to_file())
            except OSError as problem:
                raise ReadOnlyStoreError(
                    f"{store.name}: cannot be written: {problem}."
                ) from problem
            self.publish_table(with_audit_results(table, log.current(identities)))

    def publish_table(self, table: "xr.Dataset") -> None:
        """Write the files of a table, make them visible at once, and write the bundle."""
        fs, folder = self._store.fs, f"{self._store.path}/{TABLE}"
        old = list_sizes(fs, folder).keys()
        separator: Separator = "/"
        with suppress(FileNotFoundError, DamagedMetadataError):
            separator = other_separator(parse_table(fs.cat_file(f"{folder}/{METADATA}")).separator)
        files = table_files(table, separator)
        # The old bundle is removed first, so that a bundle that exists always equals the folder.
        self._remove_bundle()
        publish_group(fs, folder, files, replaces=METADATA in old)
        bundled = {key: data for key, data in files.items() if not key.endswith(f"/{METADATA}")}
        publish_file(fs, f"{self._store.path}/{TABLE_BUNDLE}", bundle_files(bundled))
        remove_files(fs, folder, old - files.keys())

    def _remove_bundle(self) -> None:
        """Delete the bundle, so that readers read the table's own files."""
        try:
            remove_files(self._store.fs, self._store.path, [TABLE_BUNDLE])
        except OSError:  # a bucket may allow writes and forbid deletes
            publish_file(self._store.fs, f"{self._store.path}/{TABLE_BUNDLE}", b"")
