"""Which scans does the copy of a store hold, and which files do they need?"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from spinezarr.errors import CorruptStoreError, DamagedMetadataError, UsageError
from spinezarr.store.attributes import RootAttributes, ScanAttributes, parse_scan_group
from spinezarr.store.audit_log import AUDIT_FILE, AuditLog, scan_identity
from spinezarr.store.bundle import TABLE_BUNDLE, bundle_files
from spinezarr.store.layout import METADATA, SCANS, TABLE, scan_key
from spinezarr.store.ledger import LEDGER_FILE, Ledger, LedgerEntry
from spinezarr.store.lock import LATE_FILE, LOCK_FILE
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.mask_writer import without_masks
from spinezarr.store.metadata import root_files, table_files
from spinezarr.store.reader import StoreReader
from spinezarr.store.recovery import is_scan_file
from spinezarr.store.sharding import crc32
from spinezarr.store.table import build_table

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "CopyPlan",
    "PlannedScan",
    "ScanCounts",
    "is_content",
    "is_store_key",
    "scan_metadata_keys",
    "write_order",
]

_SHARED_KEYS: Final = {
    METADATA,
    f"{SCANS}/{METADATA}",
    TABLE_BUNDLE,
    AUDIT_FILE,
    LEDGER_FILE,
    LOCK_FILE,
    LATE_FILE,
}
"""Keys of the files that all scans share, without those of the scan table."""


@dataclass(frozen=True, slots=True)
class PlannedScan:
    """One scan as the copy will have it."""

    attributes: ScanAttributes
    metadata: bytes = field(repr=False)
    """Content of its ``zarr.json``."""

    @property
    def scan_id(self) -> str:
        """Id of the scan."""
        return self.attributes.scan_id

    @property
    def folder(self) -> str:
        """Key of the folder of the scan."""
        return scan_key(self.scan_id)

    @property
    def files(self) -> dict[str, ManifestEntry]:
        """Entries of the files of the scan except its ``zarr.json``, by key in the store.

        Voxels and coordinates come before the metadata of arrays.
        """
        manifest = self.attributes.manifest
        return {f"{self.folder}/{key}": manifest[key] for key in sorted(manifest, key=write_order)}


@dataclass(frozen=True, slots=True)
class ScanCounts:
    """Number of scans, files and bytes."""

    scans: int
    objects: int
    """Number of files; each is an object in a bucket."""
    size_bytes: int


@dataclass(frozen=True, slots=True)
class CopyPlan:
    """All that a copy of a store needs, except the voxels."""

    root: RootAttributes
    scans: tuple[PlannedScan, ...]
    failed: Mapping[str, str]
    """Why other scans cannot be copied, by scan id."""
    ledger: Ledger
    """Entries of the scans, so that an ingest into the copy skips them."""
    audit: AuditLog
    """Audit results of the scans."""

    @classmethod
    def of(
        cls,
        reader: StoreReader,
        scan_ids: Sequence[str],
        left_out_masks: Mapping[str, Mapping[str, str]],
    ) -> "CopyPlan":
        """Read the metadata of the scans to copy.

        Parameters
        ----------
        reader
            The store to copy.
        scan_ids
            Ids of the scans.
        left_out_masks
            Further masks that are not copied: a mapping from scan ids for each name of a mask.
        """
        paths = {scan_id: f"{reader.path}/{scan_key(scan_id)}/{METADATA}" for scan_id in scan_ids}
        shared = {key: f"{reader.path}/{key}" for key in (LEDGER_FILE, AUDIT_FILE)}
        contents = reader.objects.read([*paths.values(), *shared.values()])
        ledger, audit = Ledger(), AuditLog()
        # A web server may hide both, and the copy is complete without them.
        if shared[LEDGER_FILE] in contents:
            with suppress(DamagedMetadataError):  # an ingest then reads all scans again
                ledger = Ledger.of_file(contents[shared[LEDGER_FILE]])
        if shared[AUDIT_FILE] in contents:
            audit = _parse_audit(reader, contents[shared[AUDIT_FILE]])
        scans: list[PlannedScan] = []
        failed: dict[str, str] = {}
        entries: dict[str, LedgerEntry] = {}
        for scan_id, path in paths.items():
            masks = [name for name, scans_of in left_out_masks.items() if scan_id in scans_of]
            try:
                scan = _planned_scan(contents.get(path), masks, reader.root.dataset, scan_id)
            except DamagedMetadataError as problem:
                failed[scan_id] = (
                    f"{reader.objects.name(path)}: is not what spinezarr writes ({problem})."
                )
                continue
            identity = scan_identity(scan.attributes)
            known = ledger.scans.get(scan_id)
            is_same = known is not None and known.identity == identity and not masks
            # Without inputs, the next ingest reads the scan again.
            entries[scan_id] = (
                known
                if known is not None and is_same
                else LedgerEntry(inputs="", stamp="", identity=identity)
            )
            scans.append(scan)
        audited = {name: result for name, result in audit.scans.items() if name in entries}
        return cls(
            reader.root,
            tuple(scans),
            failed,
            Ledger(scans=entries, folders=ledger.folders),
            AuditLog(scans=audited),
        )

    @property
    def counts(self) -> ScanCounts:
        """Numbers of the scans of the copy. Files that all scans share are left out."""
        sizes = [
            size
            for scan in self.scans
            for size in (len(scan.metadata), *(entry.size_bytes for entry in scan.files.values()))
        ]
        return ScanCounts(len(self.scans), len(sizes), sum(sizes))

    def only(self, scan_ids: Collection[str]) -> "CopyPlan":
        """Return the plan for some of the scans."""
        return replace(
            self,
            scans=tuple(scan for scan in self.scans if scan.scan_id in scan_ids),
            ledger=self.ledger.model_copy(
                update={"scans": {k: v for k, v in self.ledger.scans.items() if k in scan_ids}}
            ),
        )

    def with_others(self, stored: Iterable[bytes], ledger: Ledger, audit: AuditLog) -> "CopyPlan":
        """Return a plan whose table, ledger and audit log also list scans that the copy has.

        Parameters
        ----------
        stored
            The ``zarr.json`` of each of these scans.
        ledger, audit
            Ledger and audit log of the copy.

        Raises
        ------
        UsageError
            If one of them is no scan of this dataset.
        """
        others: list[PlannedScan] = []
        for data in stored:
            try:
                scan = parse_scan_group(data).attributes
            except DamagedMetadataError:
                continue  # it has no row in the table, and 'spinezarr verify' reports it
            if scan.dataset != self.root.dataset:
                raise UsageError(
                    f"the target holds scan {scan.scan_id!r} of the dataset {scan.dataset!r}, not "
                    f"of {self.root.dataset!r}. Choose another place."
                )
            others.append(PlannedScan(scan, data))
        entries = {
            scan.scan_id: ledger.scans.get(scan.scan_id)
            or LedgerEntry(inputs="", stamp="", identity=scan_identity(scan.attributes))
            for scan in others
        }
        entries |= self.ledger.scans
        audited = {name: found for name, found in audit.scans.items() if name in entries}
        return CopyPlan(
            self.root,
            (*others, *self.scans),
            self.failed,
            Ledger(scans=entries, folders={**ledger.folders, **self.ledger.folders}),
            AuditLog(scans={**audited, **self.audit.scans}),
        )

    def table(self) -> "xr.Dataset":
        """Return the scan table of the copy."""
        scans = (scan.attributes for scan in self.scans)
        return build_table(self.root, scans, self.audit.current(self.ledger.identities))

    def registry_files(self) -> dict[str, bytes]:
        """Return the files that all scans share, by key; the root comes last."""
        columns = table_files(self.table(), "/")
        bundled = {key: data for key, data in columns.items() if not key.endswith(f"/{METADATA}")}
        audit = {AUDIT_FILE: self.audit.to_file()} if self.audit.scans else {}
        root = root_files(self.root.model_dump(mode="json"))
        return {
            **audit,
            LEDGER_FILE: self.ledger.to_file(),
            **{f"{TABLE}/{key}": columns[key] for key in sorted(columns, key=write_order)},
            TABLE_BUNDLE: bundle_files(bundled),
            f"{SCANS}/{METADATA}": root[f"{SCANS}/{METADATA}"],
            METADATA: root[METADATA],
        }


def _parse_audit(reader: StoreReader, data: bytes) -> AuditLog:
    try:
        return AuditLog.of_file(data)
    except DamagedMetadataError as problem:
        raise CorruptStoreError(
            f"{reader.name}/{AUDIT_FILE}: is damaged ({problem}). Run 'spinezarr audit "
            f"{reader.name}' over all scans again to write it anew."
        ) from problem


def _planned_scan(
    data: bytes | None, left_out_masks: Sequence[str], dataset: str, scan_id: str
) -> PlannedScan:
    if data is None:
        raise DamagedMetadataError("no such file", "the metadata of the scan")
    scan = parse_scan_group(data).attributes
    if (scan.dataset, scan.scan_id) != (dataset, scan_id):
        found = f"dataset and scan {(scan.dataset, scan.scan_id)}"
        raise DamagedMetadataError(found, f"{(dataset, scan_id)}")
    masks = [name for name in left_out_masks if name in scan.masks]
    if masks:
        data = without_masks(data, masks)
        scan = parse_scan_group(data).attributes
    return PlannedScan(scan, data)


def write_order(key: str) -> tuple[int, str]:
    """Return a sort key: values first, then the metadata of arrays, then those of the group.

    Examples
    --------
    >>> sorted(["zarr.json", "image/zarr.json", "image/c/0/0/0"], key=write_order)
    ['image/c/0/0/0', 'image/zarr.json', 'zarr.json']
    """
    if key == METADATA:
        return 2, key
    return int(key.endswith(f"/{METADATA}")), key


def is_store_key(key: str) -> bool:
    """Whether a key is one that files of a store may have.

    Examples
    --------
    >>> is_store_key("scans/a/image/c/0/0/0"), is_store_key("scans/a/zarr.json")
    (True, True)
    >>> is_store_key("holiday.jpg"), is_store_key("scans/a/holiday.jpg")
    (False, False)
    """
    if key in _SHARED_KEYS or key.startswith(f"{TABLE}/"):
        return True
    folder, _, rest = key.partition("/")
    _, slash, name = rest.partition("/")
    return folder == SCANS and bool(slash) and (name == METADATA or is_scan_file(name))


def is_content(data: bytes, entry: ManifestEntry) -> bool:
    """Whether bytes are the file that an entry describes."""
    return (len(data), f"{crc32(data):08x}") == (entry.size_bytes, entry.crc32)


def scan_metadata_keys(keys: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield scan id and key of each ``zarr.json`` of a scan among keys of a store."""
    for key in keys:
        parts = key.split("/")
        if len(parts) == 3 and parts[0] == SCANS and parts[2] == METADATA:  # noqa: PLR2004
            yield parts[1], key
