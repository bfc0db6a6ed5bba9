"""The scan table: one row a scan, so that choosing scans never opens them."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.audit_log import AuditedScan
from spinezarr.vertebrae import LEVELS

__all__ = ["ANOMALY", "ERRATUM", "build_table", "natural_key", "with_audit"]

ANOMALY, ERRATUM = "anomaly", "erratum"
"""Columns for anatomical variants and for known errors of the annotation."""

_STRING = np.dtypes.StringDType()
_MM3_PER_CM3 = 1000.0
_NO_NAME = re.compile(r"[/\\\x00-\x1f\x7f\ud800-\udfff]")
"""What names of arrays, and so of folders, do not hold."""
_NAME_BYTES = 200
"""Length of names; file systems allow 255 bytes."""


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort names as people do.

    Examples
    --------
    >>> sorted(["liver_10", "liver_9"], key=natural_key)
    ['liver_9', 'liver_10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def build_table(
    root: RootAttributes,
    scans: Iterable[ScanAttributes],
    audited: Mapping[str, AuditedScan] | None = None,
) -> xr.Dataset:
    """Lay out scans as a table over ``scan``, ``vertebra`` and ``axis``.

    Parameters
    ----------
    root
        The dataset they belong to.
    scans
        In any order; rows come in natural order of the scan ids.
    audited
        What the audit found, by scan id; scans that it leaves out are not audited.

    Returns
    -------
    xarray.Dataset
        Vertebrae in anatomical order. Positions are RAS+ mm in ``centroid_mm`` (the mean of the
        label's voxels) and ``annotated_centroid_mm`` (from the dataset's own centroid file), and
        voxel indices in ``bbox_start_zyx`` and ``bbox_stop_zyx`` (half open); NaN and -1 where a
        vertebra is absent. What the dataset's own tables say is text, by scan, in columns of
        their names; ``anomaly`` and ``erratum`` are always there.
    """
    rows = sorted(scans, key=lambda scan: natural_key(scan.scan_id))
    variables: dict[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]] = {
        **_scan_columns(rows),
        **_audit_columns((row.scan_id for row in rows), audited or {}),
        **_vertebra_columns(rows),
    }
    if root.pseudonym_key is not None:
        variables["image_sha256"][2]["long_name"] = "keyed hash of the sha256 of the source image"
    variables |= _joined_columns(rows, taken={*variables, "scan", "vertebra", "axis"})
    coordinates = {
        "scan": ("scan", _strings(row.scan_id for row in rows)),
        "vertebra": ("vertebra", _strings(LEVELS)),
        "axis": ("axis", _strings("zyx")),
    }
    attributes = root.model_dump(mode="json", exclude={"format", "format_version"})
    return xr.Dataset(variables, coordinates, {k: v for k, v in attributes.items() if v})


def _strings(values: Iterable[str]) -> npt.NDArray[Any]:
    return np.array(list(values), dtype=_STRING)


def _scan_columns(rows: Sequence[ScanAttributes]) -> dict[str, Any]:
    def numbers(values: Iterable[Any], dtype: str) -> npt.NDArray[Any]:
        return np.array(list(values), dtype)

    n = len(rows)
    ranges = numbers((row.image_range_hu or (np.nan,) * 2 for row in rows), "f8").reshape(n, 2)
    stored = [sum(entry.size_bytes for entry in row.manifest.values()) for row in rows]
    by_axis = ("scan", "axis")
    mm = {"units": "mm"}
    return {
        "patient_id": ("scan", _strings(row.patient_id for row in rows), {}),
        "source": ("scan", _strings(row.source for row in rows), {}),
        "split": ("scan", _strings(row.split for row in rows), {}),
        "split_index": ("scan", numbers((row.split_index for row in rows), "i4"), {}),
        "shape_zyx": (
            by_axis,
            numbers((row.shape_zyx for row in rows), "i4").reshape(n, 3),
            {"units": "voxel"},
        ),
        "spacing_mm": (
            by_axis,
            numbers((row.spacing_zyx_mm for row in rows), "f8").reshape(n, 3),
            mm,
        ),
        "orientation": (
            "scan",
            _strings(row.image_source.orientation for row in rows),
            {"long_name": "directions of the source file's axes"},
        ),
        "label_state": ("scan", _strings(row.label_state for row in rows), {}),
        "image_dtype": ("scan", _strings(row.image_dtype for row in rows), {}),
        "image_min_hu": ("scan", ranges[:, 0], {"units": "HU"}),
        "image_max_hu": ("scan", ranges[:, 1], {"units": "HU"}),
        "other_label_voxels": (
            "scan",
            numbers(map(_outside_scheme, rows), "i8"),
            {"long_name": "voxels of values outside the label scheme"},
        ),
        "image_checksum": ("scan", _strings(row.image_checksum for row in rows), {}),
        "image_sha256": (
            "scan",
            _strings(row.image_source.sha256 for row in rows),
            {"long_name": "sha256 of the source image file"},
        ),
        "source_bytes": (
            "scan",
            numbers((row.source_bytes for row in rows), "i8"),
            {"units": "byte"},
        ),
        "stored_bytes": ("scan", numbers(stored, "i8"), {"units": "byte"}),
    }


def with_audit(table: xr.Dataset, audited: Mapping[str, AuditedScan]) -> xr.Dataset:
    """Return a scan table that was read, ready to be written, with other audit results.

    Rows of scans that cannot be read any more stay.
    """
    texts = {
        name: variable.astype(_STRING)
        for name, variable in table.variables.items()
        if variable.dtype.kind == "O"
    }
    names = map(str, table.scan.to_numpy())
    return table.assign(texts).assign(_audit_columns(names, audited))


def _audit_columns(scan_ids: Iterable[str], audited: Mapping[str, AuditedScan]) -> dict[str, Any]:
    results = [audited.get(scan_id) for scan_id in scan_ids]
    return {
        "audit": (
            "scan",
            _strings("" if found is None else found.verdict for found in results),
            {"long_name": "ok, or worst severity found; empty if not audited"},
        ),
        "audit_findings": (
            "scan",
            _strings("" if found is None else found.summary for found in results),
            {},
        ),
    }


def _outside_scheme(row: ScanAttributes) -> int:
    """Voxels of values that are neither vertebrae nor structures the recipe names."""
    return sum(n for value, n in row.other_labels.items() if value not in row.structures)


def _joined_columns(rows: Sequence[ScanAttributes], taken: Collection[str]) -> dict[str, Any]:
    """Return what the dataset's own tables say; a name that is ours gets ``_in_source`` behind.

    Names that cannot be a Zarr array's are changed; ``long_name`` then holds them as they were.
    """
    said = [{**row.sidecar, **row.columns} for row in rows]
    names = dict.fromkeys([ANOMALY, ERRATUM, *(name for cells in said for name in cells)])
    columns: dict[str, Any] = {}
    used = set(taken)
    for name in names:
        texts = _strings(cells.get(name, "") for cells in said)
        column = _free_name(name, used, names)
        used.add(column)
        columns[column] = ("scan", texts, {} if column == name else {"long_name": name})
    return columns


def _free_name(name: str, taken: Collection[str], wanted: Collection[str]) -> str:
    """Return a name that an array can have and no other column has or will have.

    References
    ----------
    Zarr v3, "Node names": https://zarr-specs.readthedocs.io/en/latest/v3/core/
    """
    column = _NO_NAME.sub("_", name)
    while len(column.encode()) > _NAME_BYTES:
        column = column[:-1]
    if not column.strip(".") or column.startswith("__") or column == "zarr.json":
        column = f"column_{column}"
    if column in taken:
        column = f"{column}_in_source"
    free, count = column, 1
    while free in taken or (free != name and free in wanted):
        count += 1
        free = f"{column}_{count}"
    return free


def _vertebra_columns(rows: Sequence[ScanAttributes]) -> dict[str, Any]:
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
            at = i, LEVELS.index(name)
            count[at] = vertebra.voxel_count
            volume[at] = vertebra.voxel_count * voxel_mm3 / _MM3_PER_CM3
            centroid[at] = (affine @ (*vertebra.centroid_zyx[::-1], 1))[2::-1]
            start[at] = vertebra.start_zyx
            stop[at] = vertebra.stop_zyx
        for name, point in row.centroids.items():
            at = i, LEVELS.index(name)
            annotated[at] = point.position_zyx_mm
            distance[at] = np.nan if point.label_distance_mm is None else point.label_distance_mm
    by_vertebra = ("scan", "vertebra")
    by_axis = (*by_vertebra, "axis")
    return {
        "voxel_count": (by_vertebra, count, {}),
        "volume_cm3": (by_vertebra, volume, {"units": "cm3"}),
        "centroid_mm": (by_axis, centroid, {"units": "mm", "frame": "RAS+"}),
        "annotated_centroid_mm": (by_axis, annotated, {"units": "mm", "frame": "RAS+"}),
        "annotated_centroid_distance_mm": (
            by_vertebra,
            distance,
            {"units": "mm", "long_name": "to the nearest voxel of the vertebra's label"},
        ),
        "bbox_start_zyx": (by_axis, start, {"units": "voxel"}),
        "bbox_stop_zyx": (by_axis, stop, {"units": "voxel"}),
    }
