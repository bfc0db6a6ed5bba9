"""Is a whole store intact, and does it hold no other files?"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from spinezarr.errors import DamagedMetadataError, StoreNotFoundError
from spinezarr.processors import cpu_count
from spinezarr.redaction import redact_url
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, RemoteSettings
from spinezarr.store.attributes import OtherFormatError, RootAttributes, parse_root
from spinezarr.store.audit_log import AUDIT_FILE, AuditLog, scan_identity
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.files import PARTIAL
from spinezarr.store.layout import METADATA, SCANS, TABLE, scan_key
from spinezarr.store.ledger import LEDGER_FILE, Ledger
from spinezarr.store.lock import LATE_FILE, LOCK_FILE
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import check_scan_ids
from spinezarr.store.table import natural_key
from spinezarr.verify.fault import Fault
from spinezarr.verify.files import (
    OnBytes,
    StoreFiles,
    group_problem,
    read_error,
    seal_problem,
    unreadable,
)
from spinezarr.verify.scan import CheckedScan, check_scan
from spinezarr.verify.table import check_table_files, compare_table, read_table

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Verification", "verify_store"]

_Sealed = TypeVar("_Sealed", AuditLog, Ledger)
_SCANS_GROUP: Final = f"{SCANS}/{METADATA}"
_LARGEST_POOL: Final = 16
"""Most scans that are read at once. Each takes the memory of a chunk and of data read ahead."""


@dataclass(frozen=True, slots=True)
class Verification:
    """Result of the check of a store."""

    url: str = field(repr=False)
    scans: tuple[str, ...]
    """Ids of the scans that were read, in natural order."""
    faults: tuple[Fault, ...]
    leftovers: tuple[str, ...]
    """Files that a running or interrupted ingest leaves. They are not faults."""
    listed: bool
    """Whether the store could be listed, so that files that no manifest names were found."""
    not_compared: Mapping[str, int] = field(default_factory=dict)
    """Number of images and masks that were not compared with their source files, by the reason."""
    derived_from: str | None = None
    """Path or URL of the store that the store was derived from; None if it was ingested."""

    @property
    def damaged_scans(self) -> frozenset[str]:
        """Ids of the scans with a file that is missing or is not as it was written.

        Files of further masks do not count; see :attr:`damaged_masks`.
        """
        return frozenset(scan_id for scan_id, mask in self._damaged if mask is None)

    @property
    def damaged_masks(self) -> dict[str, frozenset[str]]:
        """Names of the further masks with such a file, by scan id.

        An ingest can write only those again that its recipe names.
        """
        masks: dict[str, set[str]] = defaultdict(set)
        for scan_id, mask in self._damaged:
            if mask is not None:
                masks[scan_id].add(mask)
        return {scan_id: frozenset(names) for scan_id, names in masks.items()}

    @property
    def _damaged(self) -> Iterator[tuple[str, str | None]]:
        """Scan id and further mask of each file that is missing or not as it was written."""
        for fault in self.faults:
            if fault.scan_id is not None and fault.kind in {"missing", "damaged", "misplaced"}:
                yield fault.scan_id, fault.mask

    @property
    def exit_code(self) -> int:
        """Exit code of the command: 0 if there are no faults, else 1."""
        return 1 if self.faults else 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as values that JSON has."""
        return {
            "url": redact_url(self.url),
            "scans": list(self.scans),
            "faults": [fault.to_json() for fault in self.faults],
            "leftovers": list(self.leftovers),
            "listed": self.listed,
            "not_compared": dict(self.not_compared),
        }


def verify_store(
    url: str,
    scans: Sequence[str] | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    remote: RemoteSettings = DEFAULT_REMOTE_SETTINGS,
    on_total: OnBytes = lambda _: None,
    on_bytes: OnBytes = lambda _: None,
) -> Verification:
    """Read every byte of a store and compare it with the checksums in the store.

    Parameters
    ----------
    url
        Path or fsspec URL. A web server cannot be listed: the scans are then those of the table,
        and files that no manifest names are not found.
    scans
        Ids of the scans to check, besides the table and the root; None for all scans.
    storage_options
        Options for the file system of ``url``.
    remote
        Bounds on the requests to a web server.
    on_total
        Called first with the number of bytes to read; 0 if it is unknown.
    on_bytes
        Called with the number of bytes of each read, from several threads.

    Raises
    ------
    StoreNotFoundError
        If there is no store, or one of another format.
    UnknownScanError
        If neither the table nor a folder has a scan in ``scans``.
    """
    files = StoreFiles.of_url(url, storage_options, remote)
    on_total(_total_bytes(files, scans))
    return _Check(url, files, storage_options, on_bytes).run(scans)


def _total_bytes(files: StoreFiles, scans: Sequence[str] | None) -> int:
    return sum(
        size
        for key, size in (files.sizes or {}).items()
        if scans is None or not key.startswith(f"{SCANS}/") or key.split("/")[1] in scans
    )


class _Check:
    """The state of one check of a store."""

    def __init__(
        self,
        url: str,
        files: StoreFiles,
        storage_options: Mapping[str, Any] | None,
        on_bytes: OnBytes,
    ) -> None:
        self._url = url
        self._storage_options = storage_options
        self._files = files
        self._on_bytes = on_bytes
        self._faults: list[Fault] = []
        self._known_keys = {
            *(METADATA, _SCANS_GROUP, AUDIT_FILE, LEDGER_FILE),
            *(f"{TABLE}/zarr.json", TABLE_BUNDLE),
        }
        """Keys of the files that belong to the store."""
        self._table_manifest: dict[str, ManifestEntry] | None = None

    def run(self, requested: Sequence[str] | None) -> Verification:
        root = self._root()
        self._scans_group()
        log = self._audit_log()
        manifest, faults = check_table_files(self._files, self._on_bytes)
        self._faults += faults
        self._table_manifest = manifest
        self._known_keys |= set(manifest or ())
        table = None
        if root is not None and manifest is not None and not faults:
            table, unread = read_table(self._files, self._url)
            self._faults += unread
        ids_in_table = set() if table is None else set(table.scan.to_numpy().tolist())
        ids_on_disk = self._scans_on_disk()
        names = sorted(ids_in_table | ids_on_disk, key=natural_key)
        if requested is not None:
            check_scan_ids(requested, names, redact_url(self._url))
            names = [name for name in names if name in requested]
        unfinished = self._unfinished(names, ids_in_table if table is not None else None)
        read_ids = [name for name in names if name not in unfinished]
        checked = self._check_scans(read_ids, root)
        self._compare(root, table, log, checked, every_scan=requested is None)
        self._compare_ledger(checked, every_scan=requested is None)
        leftovers = self._leftovers_and_extras(checked, unfinished, whole=requested is None)
        order = {None: -1, **{name: i for i, name in enumerate(names)}}
        origin = _origin(root, checked)
        faults = sorted(self._faults, key=lambda fault: order.get(fault.scan_id, len(order)))
        return Verification(
            self._url,
            tuple(read_ids),
            tuple(replace(fault, derived_from=origin) for fault in faults),
            leftovers,
            listed=self._files.sizes is not None,
            derived_from=origin,
        )

    def _root(self) -> RootAttributes | None:
        written = "the root's metadata as spinezarr wrote them"
        try:
            raw = self._files.read(METADATA)
            problem = seal_problem(raw)
            if problem is None:
                self._on_bytes(len(raw))
                return parse_root(raw)
            fault = Fault(None, METADATA, "damaged", problem, written)
        except OSError as error:
            fault = read_error(None, METADATA, error, written)
        except OtherFormatError as error:
            raise StoreNotFoundError(f"{redact_url(self._url)}: {error}") from error
        except DamagedMetadataError as error:
            fault = Fault(None, METADATA, "damaged", unreadable(error), written)
        if not any(self._files.exists(key) for key in (_SCANS_GROUP, f"{TABLE}/zarr.json")):
            StoreReader(self._url, self._storage_options)  # raises StoreNotFoundError
        self._faults.append(fault)
        return None

    def _scans_group(self) -> None:
        written = "the group of all scans as spinezarr wrote it"
        try:
            raw = self._files.read(_SCANS_GROUP)
        except OSError as problem:
            self._faults.append(read_error(None, _SCANS_GROUP, problem, written))
            return
        self._on_bytes(len(raw))
        if (found := group_problem(raw)) is not None:
            self._faults.append(Fault(None, _SCANS_GROUP, "damaged", found, written))

    def _audit_log(self) -> AuditLog | None:
        """Read the audit log; None if it is damaged."""
        return self._sealed(AUDIT_FILE, "the findings as spinezarr wrote them", AuditLog)

    def _compare_ledger(self, checked: Iterable[CheckedScan], *, every_scan: bool) -> None:
        """Find scans whose entry in the ledger belongs to another version."""
        written = "the ledger as spinezarr wrote it"
        if self._table_manifest is not None and not self._files.exists(LEDGER_FILE):
            self._faults.append(Fault(None, LEDGER_FILE, "missing", "no such file", written))
            return
        ledger = self._sealed(LEDGER_FILE, written, Ledger)
        if ledger is None:
            return
        attributes = {scan.scan_id: scan.attributes for scan in checked}
        for scan_id, scan in attributes.items():
            if scan is not None and ledger.identities.get(scan_id) != scan_identity(scan):
                found, expected = "an entry of another version", "an entry of the stored version"
                self._faults.append(Fault(scan_id, LEDGER_FILE, "disagrees", found, expected))
        for scan_id in sorted(ledger.scans.keys() - attributes.keys() if every_scan else ()):
            found, expected = "an entry of this scan", "no entry, because there is no such scan"
            self._faults.append(Fault(scan_id, LEDGER_FILE, "disagrees", found, expected))

    def _sealed(self, key: str, written: str, model: type[_Sealed]) -> _Sealed | None:
        """Read a sealed group. It is empty if the file is absent, and None if it is damaged."""
        try:
            raw = self._files.read(key)
            self._on_bytes(len(raw))
            if (found := seal_problem(raw)) is None:
                return model.of_file(raw)
        except FileNotFoundError:
            return model()
        except OSError as problem:
            self._faults.append(read_error(None, key, problem, written))
            return None
        except DamagedMetadataError as problem:
            found = unreadable(problem)
        self._faults.append(Fault(None, key, "damaged", found, written))
        return None

    def _scans_on_disk(self) -> set[str]:
        """Return the names of the folders with files of scans; empty if files cannot be listed."""
        parts = (key.split("/") for key in self._files.sizes or ())
        return {
            part[1]
            for part in parts
            if part[0] == SCANS and len(part) > 2 and not _is_leftover(part)  # noqa: PLR2004
        }

    def _unfinished(self, names: Iterable[str], ids_in_table: Collection[str] | None) -> set[str]:
        """Find scans that were never published. They have no metadata and no row in the table."""
        if self._files.sizes is None or ids_in_table is None:
            return set()
        unfinished = set()
        for name in names:
            metadata = f"{scan_key(name)}/zarr.json"
            if name not in ids_in_table and metadata not in self._files.sizes:
                unfinished.add(name)
                state = "files of a scan that was never finished"
                self._faults.append(Fault(name, scan_key(name), "unfinished", state, metadata))
        return unfinished

    def _check_scans(self, names: Sequence[str], root: RootAttributes | None) -> list[CheckedScan]:
        def check(name: str) -> CheckedScan:
            return check_scan(self._files, name, root, self._on_bytes)

        threads = min(_LARGEST_POOL, 4 * cpu_count())
        pool = ThreadPoolExecutor(threads, thread_name_prefix="spinezarr-verify")
        try:
            checked = list(pool.map(check, names))
        finally:
            pool.shutdown(cancel_futures=True)
        self._faults += [fault for scan in checked for fault in scan.faults]
        return checked

    def _compare(
        self,
        root: RootAttributes | None,
        table: "xr.Dataset | None",
        log: AuditLog | None,
        checked: Iterable[CheckedScan],
        *,
        every_scan: bool,
    ) -> None:
        if root is None or table is None or log is None:
            return
        rows = set(table.scan.to_numpy().tolist())
        readable = [s.attributes for s in checked if s.attributes is not None]
        for scan in checked:
            if scan.scan_id not in rows:
                found, expected = "no row of this scan", "a row, because the scan is in the store"
                self._faults.append(Fault(scan.scan_id, TABLE, "disagrees", found, expected))
            every_scan = every_scan and scan.attributes is not None
        self._faults += compare_table(table, root, readable, log, every_scan=every_scan)

    def _leftovers_and_extras(
        self, checked: Iterable[CheckedScan], unfinished: set[str], *, whole: bool
    ) -> tuple[str, ...]:
        """Find files that belong to no scan and no table. Return those that an ingest left."""
        checked_ids, unknown = set(), set(unfinished)
        for scan in checked:
            folder = scan_key(scan.scan_id)
            checked_ids.add(scan.scan_id)
            self._known_keys.add(f"{folder}/zarr.json")
            if scan.attributes is None:
                unknown.add(scan.scan_id)  # its manifest is unreadable
            else:
                self._known_keys |= {f"{folder}/{key}" for key in scan.attributes.manifest}
        leftovers: dict[str, None] = {}
        for key in self._files.sizes or ():
            parts = key.split("/")
            if parts[0] == TABLE and self._table_manifest is None:
                continue
            name = parts[1] if parts[0] == SCANS and len(parts) > 2 else None  # noqa: PLR2004
            if key in self._known_keys or name in unknown:
                continue
            if _is_leftover(parts):
                leftovers[_leftover(parts)] = None
            elif name is None or name in checked_ids or whole:
                description = f"a file of {(self._files.sizes or {})[key]} bytes"
                self._faults.append(
                    Fault(name, key, "extra", description, "no file, because no manifest names it")
                )
        return tuple(leftovers)


def _origin(root: RootAttributes | None, scans: Iterable[CheckedScan]) -> str | None:
    """Return the store that a store was derived from; if its root is lost, the scans say it."""
    if root is not None:
        return root.derived_from
    records = (scan.attributes.derived_from for scan in scans if scan.attributes is not None)
    return next((record.store for record in records if record is not None), None)


def _is_leftover(parts: Sequence[str]) -> bool:
    return list(parts) in ([LOCK_FILE], [LATE_FILE]) or any(
        part.endswith(PARTIAL) for part in parts
    )


def _leftover(parts: Sequence[str]) -> str:
    """Return the path of a leftover file, or of the folder of leftovers that it is in."""
    end = next((i for i, part in enumerate(parts) if part.endswith(PARTIAL)), 0)
    return "/".join(parts[: end + 1])
