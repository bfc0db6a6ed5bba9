"""What does the scan table hold, and how is it made from scans?

It has one row for each scan, so a user can select scans without opening any of them.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.audit_log import AuditedScan
from spinezarr.store.layout import FORMAT_VERSION
from spinezarr.store.mask_columns import (
    MASK,
    STRUCTURE,
    MaskCells,
    cells_of_scan,
    cells_of_table,
    mask_column_forms,
    mask_columns,
)
from spinezarr.store.table_columns import MM3_PER_CM3, TEXT, Columns, natural_key, text_array
from spinezarr.text import is_printable
from spinezarr.vertebrae import LEVELS

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "ANOMALY",
    "ERRATUM",
    "ERRATUM_APPLIED",
    "build_table",
    "fixed_columns",
    "natural_key",
    "root_from_table",
    "table_attributes",
    "update_table",
    "with_audit_columns",
    "with_audit_results",
]

ANOMALY, ERRATUM = "anomaly", "erratum"
"""Columns for anatomical variants and for known annotation errors, which every table has."""
ERRATUM_APPLIED = "erratum_applied"
"""Column with what a list of errata has changed in the mask, which not every table has."""

_INVALID_CHARACTERS = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")
"""Characters that the name of an array must not have, as it is also the name of a folder."""
_MAX_NAME_BYTES = 200
"""Longest name of a column in bytes; file systems allow 255."""


def build_table(
    root: RootAttributes,
    scans: Iterable[ScanAttributes],
    audited: Mapping[str, AuditedScan] | None = None,
) -> "xr.Dataset":
    """Lay out scans as a table over ``scan``, ``vertebra`` and ``axis``.

    Parameters
    ----------
    root
        Attributes of the store's root.
    scans
        Attributes of the scans in any order; the rows are in natural order of the scan ids.
    audited
        Audit results by scan id; other scans count as not audited.

    Returns
    -------
    xarray.Dataset
        The scan table; vertebrae are in anatomical order. ``centroid_zyx_mm`` (mean of the label's
        voxels) and ``annotated_centroid_zyx_mm`` (from the dataset's own centroid file) are
        positions in RAS+ mm, NaN for an absent vertebra. ``bbox_start_zyx`` and ``bbox_stop_zyx``
        (half open) are voxel indices, -1 for an absent vertebra. Each column of the dataset's own
        tables is a column of text; ``anomaly`` and ``erratum`` always exist.
    """
    return _lay_out(root, _rows_of_scans(list(scans)), audited or {})


def table_attributes(root: RootAttributes) -> dict[str, str]:
    """Return the attributes of the table, which describe its dataset."""
    attributes = root.model_dump(mode="json", exclude={"format", "format_version"})
    return {name: value for name, value in attributes.items() if value}


def root_from_table(attributes: Mapping[str, str]) -> RootAttributes:
    """Return the attributes of the root from those of the table; see :func:`table_attributes`."""
    empty = dict.fromkeys(("title", "license", "citation"), "")
    fields = {"format_version": FORMAT_VERSION, **empty, **attributes}
    return RootAttributes.model_validate(fields)


@cache
def fixed_columns() -> Mapping[str, tuple[tuple[str, ...], np.dtype[Any]]]:
    """Return dimensions and data type of the columns that every table has, by name."""
    columns = {**_rows_of_scans([]).columns, **_audit_columns((), {})}
    texts = {name: ((name,), TEXT) for name in ("scan", "vertebra", "axis")}
    texts |= dict.fromkeys((ANOMALY, ERRATUM), (("scan",), TEXT))
    return {name: (dims, values.dtype) for name, (dims, values, _) in columns.items()} | texts


def update_table(
    root: RootAttributes,
    known: "xr.Dataset",
    changed: Mapping[str, ScanAttributes],
    audited: Mapping[str, AuditedScan],
) -> "xr.Dataset":
    """Return the table of all scans, given the old table and the scans that changed.

    The result equals that of :func:`build_table` for all scans.

    Parameters
    ----------
    root
        Attributes of the store's root.
    known
        The old table as it was read.
    changed
        Attributes of scans that are new or whose row changed, by scan id.
    audited
        Audit results of all scans, as in :func:`build_table`.
    """
    names = known.scan.to_numpy().tolist()
    is_unchanged = np.array([name not in changed for name in names], bool)
    rows = _rows_of_table(known.isel(scan=np.flatnonzero(is_unchanged)))
    return _lay_out(root, rows.join(_rows_of_scans(list(changed.values()))), audited)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows of a table in any order. The columns of the dataset's own tables have no names yet."""

    scan_ids: list[str]
    columns: Columns
    source_cells: list[dict[str, str]]
    """Cells of the dataset's own tables for each scan, by column; without empty texts."""
    masks: list[dict[str, MaskCells]]
    """Cells of the further masks of each scan, by the name of the mask."""

    def join(self, other: "_Rows") -> "_Rows":
        columns = {
            name: (dims, np.concatenate([values, other.columns[name][1]]), attributes)
            for name, (dims, values, attributes) in self.columns.items()
        }
        return _Rows(
            self.scan_ids + other.scan_ids,
            columns,
            self.source_cells + other.source_cells,
            self.masks + other.masks,
        )


def _rows_of_scans(scans: Sequence[ScanAttributes]) -> _Rows:
    source_cells = [{**scan.sidecar, **scan.columns} for scan in scans]
    return _Rows(
        [scan.scan_id for scan in scans],
        {**_scan_columns(scans), **_vertebra_columns(scans)},
        [{name: text for name, text in cells.items() if text} for cells in source_cells],
        [cells_of_scan(scan) for scan in scans],
    )


def _rows_of_table(table: "xr.Dataset") -> _Rows:
    """Return the rows of a table that was read."""
    layout = _rows_of_scans([]).columns
    columns: Columns = {
        name: (dims, table[name].to_numpy().astype(empty.dtype), attributes)
        for name, (dims, empty, attributes) in layout.items()
    }
    own = {*columns, *_audit_columns((), {}), *mask_column_forms()}
    source_names = set(map(str, table.data_vars)) - own
    source_texts = {
        str(table[name].attrs.get("long_name", name)): table[name].to_numpy().tolist()
        for name in sorted(source_names)
    }
    scan_ids = [str(name) for name in table.scan.to_numpy()]
    source_cells = [
        {name: text for name, column in source_texts.items() if (text := column[i])}
        for i in range(len(scan_ids))
    ]
    return _Rows(scan_ids, columns, source_cells, cells_of_table(table))


def _lay_out(root: RootAttributes, rows: _Rows, audited: Mapping[str, AuditedScan]) -> "xr.Dataset":
    """Sort rows, and name the columns of the dataset's own tables."""
    keys = [natural_key(name) for name in rows.scan_ids]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    scan_ids = [rows.scan_ids[i] for i in order]
    columns: Columns = {
        name: (dims, values[order], attributes)
        for name, (dims, values, attributes) in rows.columns.items()
    }
    columns |= _audit_columns(scan_ids, audited)
    if root.pseudonym_key is not None:
        columns["image_sha256"][2]["long_name"] = "keyed hash of the sha256 of the source image"
    source_cells = [rows.source_cells[i] for i in order]
    # A name stays taken without further masks, so that no column gets another name with the first.
    taken = {*columns, *mask_column_forms(), "scan", "vertebra", "axis"}
    columns |= _source_columns(source_cells, taken=taken)
    columns |= mask_columns([rows.masks[i] for i in order])
    coordinates: Columns = {
        "scan": (("scan",), text_array(scan_ids), {}),
        "vertebra": (("vertebra",), text_array(LEVELS), {}),
        "axis": (("axis",), text_array("zyx"), {}),
    }
    coordinates |= {name: columns.pop(name) for name in (MASK, STRUCTURE) if name in columns}
    import xarray as xr  # noqa: PLC0415  its import is slow, and training makes no table

    return xr.Dataset(columns, coordinates, table_attributes(root))


def _column(
    values: Iterable[Any], dtype: npt.DTypeLike, **attributes: str
) -> tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]:
    """Return a column with one value for each scan."""
    return ("scan",), np.array(list(values), dtype), attributes


def _scan_columns(rows: Sequence[ScanAttributes]) -> Columns:
    """Return the columns with one row for each scan, without its vertebrae."""
    return {
        **_membership_columns(rows),
        **_grid_columns(rows),
        **_value_columns(rows),
        **_content_columns(rows),
    }


def _membership_columns(rows: Sequence[ScanAttributes]) -> Columns:
    """Return patient, source and split of each scan."""
    return {
        "patient_id": _column((row.patient_id for row in rows), TEXT),
        "source": _column((row.source for row in rows), TEXT),
        "split": _column((row.split for row in rows), TEXT),
        "split_index": _column((row.split_index for row in rows), "i4"),
    }


def _grid_columns(rows: Sequence[ScanAttributes]) -> Columns:
    """Return the grid of each scan."""
    by_axis, n = ("scan", "axis"), len(rows)
    shapes = np.array([row.shape_zyx for row in rows], "i4").reshape(n, 3)
    spacings = np.array([row.spacing_zyx_mm for row in rows], "f8").reshape(n, 3)
    return {
        "shape_zyx": (by_axis, shapes, {"units": "voxel"}),
        "spacing_zyx_mm": (by_axis, spacings, {"units": "mm"}),
        "orientation": _column(
            (row.image_source.orientation for row in rows),
            TEXT,
            long_name="directions of the source file's axes",
        ),
    }


def _value_columns(rows: Sequence[ScanAttributes]) -> Columns:
    """Return types and ranges of the values in the image and mask of each scan."""
    ranges = [row.image_range_hu or (np.nan, np.nan) for row in rows]
    return {
        "label_state": _column((row.label_state for row in rows), TEXT),
        "image_dtype": _column((row.image_dtype for row in rows), TEXT),
        "image_stored_dtype": _column(
            (row.image_stored_dtype for row in rows),
            TEXT,
            long_name="type of the stored numbers, before their scaling",
        ),
        "image_min_hu": _column((low for low, _ in ranges), "f8", units="HU"),
        "image_max_hu": _column((high for _, high in ranges), "f8", units="HU"),
        "image_nan_voxels": _column(
            (row.image_nan_voxels for row in rows),
            "i8",
            long_name="voxels of the image that are not a number",
        ),
        "image_infinite_voxels": _column(
            (row.image_infinite_voxels for row in rows),
            "i8",
            long_name="voxels of the image that are infinite",
        ),
        "other_label_voxels": _column(
            map(_outside_scheme, rows),
            "i8",
            long_name="voxels of values outside the label scheme",
        ),
    }


def _content_columns(rows: Sequence[ScanAttributes]) -> Columns:
    """Return hashes and sizes of each scan's source files and stored files."""
    stored = (sum(entry.size_bytes for entry in row.manifest.values()) for row in rows)
    return {
        "image_checksum": _column((row.image_checksum for row in rows), TEXT),
        "content_checksum": _column(
            (row.content_checksum for row in rows),
            TEXT,
            long_name="hash of grid, type and voxels of image and mask",
        ),
        "masks": _column(
            (" ".join(row.masks) for row in rows),
            TEXT,
            long_name="names of the masks beside label",
        ),
        "mask_checksums": _column(
            (" ".join(map(row.mask_checksum, row.masks)) for row in rows),
            TEXT,
            long_name="hash of the voxels of each of these masks",
        ),
        "image_sha256": _column(
            (row.image_source.sha256 for row in rows),
            TEXT,
            long_name="sha256 of the source image file",
        ),
        "source_bytes": _column((row.source_bytes for row in rows), "i8", units="byte"),
        "stored_bytes": _column(stored, "i8", units="byte"),
    }


def with_audit_results(table: "xr.Dataset", audited: Mapping[str, AuditedScan]) -> "xr.Dataset":
    """Replace the audit results in a table that was read, so that it can be written.

    Rows of scans that can no longer be read stay.
    """
    texts = {
        name: variable.astype(TEXT)
        for name, variable in table.variables.items()
        if variable.dtype.kind == "O"
    }
    names = map(str, table.scan.to_numpy())
    return table.assign(texts).assign(_audit_columns(names, audited))


def with_audit_columns(table: "xr.Dataset", known: "xr.Dataset") -> "xr.Dataset":
    """Replace the audit results of a table by those of another table with the same scans."""
    columns = (known[name] for name in _audit_columns((), {}))
    texts = {
        str(column.name): (("scan",), text_array(column.to_numpy()), column.attrs)
        for column in columns
    }
    return table.assign(texts)


def _audit_columns(scan_ids: Iterable[str], audited: Mapping[str, AuditedScan]) -> Columns:
    results = [audited.get(scan_id) for scan_id in scan_ids]
    return {
        "audit": _column(
            ("" if result is None else result.verdict for result in results),
            TEXT,
            long_name="ok, or worst severity found; empty if not audited",
        ),
        "audit_findings": _column(
            ("" if result is None else result.summary for result in results), TEXT
        ),
    }


def _outside_scheme(row: ScanAttributes) -> int:
    """Return the number of voxels that are neither a vertebra nor a structure of the recipe."""
    return sum(n for value, n in row.other_labels.items() if value not in row.structures)


def _source_columns(source_cells: Sequence[Mapping[str, str]], taken: Collection[str]) -> Columns:
    """Return the columns of the dataset's own tables.

    A name that spinezarr uses itself gets the suffix ``_in_source``. A name that no Zarr array can
    have is changed. The attribute ``long_name`` then holds the original name. Columns without text
    are left out and the others are sorted, so that the table depends on its scans alone and not on
    the order in which they were added.
    """
    source_names = sorted({name for cells in source_cells for name in cells} - {ANOMALY, ERRATUM})
    names = [ANOMALY, ERRATUM, *source_names]
    columns: Columns = {}
    used = set(taken)
    for name in names:
        texts = text_array(cells.get(name, "") for cells in source_cells)
        column = _free_name(name, used, names)
        used.add(column)
        columns[column] = (("scan",), texts, {} if column == name else {"long_name": name})
    return columns


def _free_name(name: str, taken: Collection[str], originals: Collection[str]) -> str:
    """Return a valid name of an array that is neither taken nor the original name of another.

    References
    ----------
    Zarr v3, "Node names": https://zarr-specs.readthedocs.io/en/latest/v3/core/
    """
    shown = name if is_printable(name) else (c if is_printable(c) else "_" for c in name)
    column = _INVALID_CHARACTERS.sub("_", "".join(shown))
    while len(column.encode()) > _MAX_NAME_BYTES:
        column = column[:-1]
    if not column.strip("._") or column.startswith("__") or column == "zarr.json":
        column = f"column_{column}"
    if column in taken:
        column = f"{column}_in_source"
    candidate, count = column, 1
    while candidate in taken or (candidate != name and candidate in originals):
        count += 1
        candidate = f"{column}_{count}"
    return candidate


def _vertebra_columns(rows: Sequence[ScanAttributes]) -> Columns:
    shape = (len(rows), len(LEVELS))
    count = np.zeros(shape, "i8")
    volume = np.full(shape, np.nan)
    centroid = np.full((*shape, 3), np.nan)
    start = np.full((*shape, 3), -1, "i4")
    stop = np.full((*shape, 3), -1, "i4")
    annotated = np.full((*shape, 3), np.nan)
    distance = np.full(shape, np.nan)
    for i, row in enumerate(rows):
        affine = np.array(row.affine)
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
        for name, vertebra in row.vertebrae.items():
            cell = i, LEVELS.index(name)
            count[cell] = vertebra.voxel_count
            volume[cell] = vertebra.voxel_count * voxel_mm3 / MM3_PER_CM3
            centroid[cell] = (affine @ (*vertebra.centroid_zyx[::-1], 1))[2::-1]
            start[cell] = vertebra.start_zyx
            stop[cell] = vertebra.stop_zyx
        for name, point in row.centroids.items():
            cell = i, LEVELS.index(name)
            annotated[cell] = point.position_zyx_mm
            distance[cell] = np.nan if point.label_distance_mm is None else point.label_distance_mm
    by_vertebra = ("scan", "vertebra")
    by_axis = (*by_vertebra, "axis")
    return {
        "voxel_count": (by_vertebra, count, {}),
        "volume_cm3": (by_vertebra, volume, {"units": "cm3"}),
        "centroid_zyx_mm": (by_axis, centroid, {"units": "mm", "frame": "RAS+"}),
        "annotated_centroid_zyx_mm": (by_axis, annotated, {"units": "mm", "frame": "RAS+"}),
        "annotated_centroid_distance_mm": (
            by_vertebra,
            distance,
            {"units": "mm", "long_name": "to the nearest voxel of the vertebra's label"},
        ),
        "bbox_start_zyx": (by_axis, start, {"units": "voxel"}),
        "bbox_stop_zyx": (by_axis, stop, {"units": "voxel"}),
    }
