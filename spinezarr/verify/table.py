"""Is the scan table intact, and do its rows agree with the scans?"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spinezarr.errors import CorruptStoreError, DamagedMetadataError
from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.audit_log import AuditLog, scan_identity
from spinezarr.store.bundle import TABLE_BUNDLE, unbundle_files
from spinezarr.store.layout import TABLE
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.mask_columns import mask_column_forms
from spinezarr.store.table import build_table, update_table
from spinezarr.store.table_file import parse_table
from spinezarr.store.table_reader import read_table as read_table_files
from spinezarr.verify.fault import Fault
from spinezarr.verify.files import OnBytes, StoreFiles, read_error, seal_problem, unreadable

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["check_table_files", "compare_table", "read_table"]

_METADATA = f"{TABLE}/zarr.json"


def check_table_files(
    files: StoreFiles, on_bytes: OnBytes
) -> tuple[dict[str, ManifestEntry] | None, list[Fault]]:
    """Read every byte of the table and of its bundle.

    Returns
    -------
    manifest
        Entries of the files of the table, by key in the store; None if they cannot be read.
    faults
        Faults of these files.
    """
    written = "the scan table's metadata as spinezarr wrote them"
    try:
        raw = files.read(_METADATA)
    except OSError as problem:
        return None, [read_error(None, _METADATA, problem, written)]
    on_bytes(len(raw))
    if (found := seal_problem(raw)) is not None:
        return None, [Fault(None, _METADATA, "damaged", found, written)]
    try:
        manifest = {f"{TABLE}/{key}": entry for key, entry in parse_table(raw).manifest.items()}
    except DamagedMetadataError as error:
        return None, [Fault(None, _METADATA, "damaged", unreadable(error), written)]
    faults = [f for key, entry in manifest.items() for f in files.check(None, key, entry, on_bytes)]
    # The bundle leaves out the metadata of the columns, because those of the table repeat them.
    bundled = {key: e for key, e in manifest.items() if not key.endswith("/zarr.json")}
    bundled[_METADATA] = ManifestEntry.of(raw)
    faults += _bundle_faults(files, bundled, on_bytes)
    return manifest, faults


def _bundle_faults(
    files: StoreFiles, table: Mapping[str, ManifestEntry], on_bytes: OnBytes
) -> Iterator[Fault]:
    """Compare the bundle with the table's files, whose entries ``table`` holds by key."""
    written = f"the files of {TABLE}/, as spinezarr wrote them"
    try:
        data = files.read(TABLE_BUNDLE)
    except OSError as problem:
        yield read_error(None, TABLE_BUNDLE, problem, written)
        return
    on_bytes(len(data))
    if (problem_found := seal_problem(data)) is not None:
        yield Fault(None, TABLE_BUNDLE, "damaged", problem_found, written)
        return
    try:
        bundled_files = {f"{TABLE}/{key}": content for key, content in unbundle_files(data).items()}
    except DamagedMetadataError as error:
        yield Fault(None, TABLE_BUNDLE, "damaged", unreadable(error), written)
        return
    if {key: ManifestEntry.of(content) for key, content in bundled_files.items()} != table:
        yield Fault(None, TABLE_BUNDLE, "damaged", "other files", written)


def read_table(files: StoreFiles, url: str) -> tuple["xr.Dataset | None", list[Fault]]:
    """Read a table whose files are all intact; return it or its fault."""
    try:
        table = read_table_files(files.read_paths, f"{files.path}/{TABLE}", url)
        return table.to_xarray(), []
    except CorruptStoreError as problem:
        return None, [Fault(None, _METADATA, "damaged", unreadable(problem), "a table")]


def compare_table(
    table: "xr.Dataset",
    root: RootAttributes,
    scans: Iterable[ScanAttributes],
    log: AuditLog,
    *,
    every_scan: bool,
) -> Iterator[Fault]:
    """Find rows that differ from the attributes of their scans.

    Parameters
    ----------
    table
        The scan table as it was read.
    root
        Attributes of the root.
    scans
        Attributes of the scans that could be read.
    log
        Results of the last audit.
    every_scan
        Whether ``scans`` are all scans of the store. Only then, it is a fault if none of them has
        a column.
    """
    attributes_of = {scan.scan_id: scan for scan in scans}
    identities = {scan_id: scan_identity(scan) for scan_id, scan in attributes_of.items()}
    expected = build_table(root, attributes_of.values(), log.current(identities))
    names = table.scan.to_numpy().tolist()
    if len(set(names)) != len(names):
        yield Fault(None, TABLE, "disagrees", "several rows of one scan", "one row for each scan")
    if every_scan:
        for name in sorted(map(str, set(table.variables) - set(expected.variables))):
            yield Fault(
                None,
                TABLE,
                "disagrees",
                f"a column {name!r}",
                "no such column, because no scan has it",
            )
        if table.attrs != expected.attrs:
            attributes = f"{expected.attrs}, as in the root"
            yield Fault(None, TABLE, "disagrees", f"{table.attrs}", attributes)
    else:
        # A finding about one scan may depend on scans that are not checked.
        expected = expected.drop_vars(["audit", "audit_findings"])
        expected = _with_places_of_masks(expected, update_table(root, table, attributes_of, {}))
    shared = [name for name in expected.scan.to_numpy().tolist() if name in names]
    expected_rows = expected.isel(scan=np.isin(expected.scan.to_numpy().astype(object), shared))
    yield from _cell_faults(
        table.isel(scan=[names.index(name) for name in shared]), expected_rows, shared
    )


def _with_places_of_masks(expected: "xr.Dataset", together: "xr.Dataset") -> "xr.Dataset":
    """Return the rows of some scans with the columns of further masks as the table of all has them.

    Parameters
    ----------
    expected
        Table of some scans. Masks and structures that only other scans have are not in it.
    together
        The same rows, together with those of all other scans.
    """
    rows = {name: row for row, name in enumerate(together.scan.to_numpy().tolist())}
    chosen = together.isel(scan=[rows[name] for name in expected.scan.to_numpy().tolist()])
    columns = {
        name: chosen.variables[name] for name in mask_column_forms() if name in chosen.variables
    }
    return expected.drop_vars(mask_column_forms(), errors="ignore").assign(columns)


def _cell_faults(
    table: "xr.Dataset", expected: "xr.Dataset", names: Sequence[str]
) -> Iterator[Fault]:
    """Compare two tables of the same scans by row, and yield at most one fault for each scan."""
    fault_of_row: dict[int, str] = {}
    for name, variable in expected.variables.items():
        if name not in table.variables:
            yield Fault(
                None,
                TABLE,
                "disagrees",
                f"no column {name!r}",
                "a column, because the scans have it",
            )
            continue
        column = table.variables[name]
        cells, expected_cells = column.to_numpy(), variable.to_numpy()
        if (column.dims, column.attrs) != (variable.dims, variable.attrs):
            yield Fault(None, TABLE, "disagrees", f"{name} {column.attrs}", f"{variable.attrs}")
        elif "scan" not in column.dims:
            if cells.tolist() != expected_cells.tolist():
                yield Fault(None, TABLE, "disagrees", f"{name} {cells}", f"{expected_cells}")
        else:
            for row in _differing(cells, expected_cells):
                text = f"{name} {cells[row].tolist() if cells.ndim > 1 else cells[row]}"
                fault_of_row.setdefault(row, text)
    for row, text in sorted(fault_of_row.items()):
        yield Fault(names[row], TABLE, "disagrees", text, "the value in the scan's attributes")


def _differing(cells: npt.NDArray[Any], expected: npt.NDArray[Any]) -> list[int]:
    """Return the rows in which two arrays differ; NaN equals NaN.

    Columns of other masks or structures have other shapes. The names of these are compared instead.
    """
    if cells.shape != expected.shape:
        return []
    is_equal = cells == (expected.astype(object) if expected.dtype.kind == "T" else expected)
    if expected.dtype.kind == "f":
        is_equal |= np.isnan(cells) & np.isnan(expected)
    rows: list[int] = np.flatnonzero(
        ~np.all(is_equal, axis=tuple(range(1, is_equal.ndim)))
    ).tolist()
    return rows
