"""The scan table: one row a scan, so that choosing scans never opens them."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.vertebrae import ANATOMICAL_ORDER

__all__ = ["build_table", "natural_key"]

_STRING = np.dtypes.StringDType()
_MM3_PER_CM3 = 1000.0


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Sort names as people do.

    Examples
    --------
    >>> sorted(["liver_10", "liver_9"], key=natural_key)
    ['liver_9', 'liver_10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)


def build_table(root: RootAttributes, scans: Iterable[ScanAttributes]) -> xr.Dataset:
    """Lay out scans as a table over ``scan``, ``vertebra`` and ``axis``.

    Parameters
    ----------
    root
        The dataset they belong to.
    scans
        In any order; rows come in natural order of the scan ids.

    Returns
    -------
    xarray.Dataset
        Vertebrae in anatomical order. Positions are RAS+ mm in ``centroid_mm`` and voxel indices in
        ``bbox_start_zyx`` and ``bbox_stop_zyx`` (half open); NaN and -1 where a vertebra is absent.
    """
    rows = sorted(scans, key=lambda scan: natural_key(scan.scan_id))
    variables: dict[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]] = {
        **_scan_columns(rows),
        **_vertebra_columns(rows),
    }
    coordinates = {
        "scan": ("scan", _strings(row.scan_id for row in rows)),
        "vertebra": ("vertebra", _strings(ANATOMICAL_ORDER)),
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
    source = [
        row.image_source.size_bytes + (row.label_source.size_bytes if row.label_source else 0)
        for row in rows
    ]
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
            numbers((sum(row.other_labels.values()) for row in rows), "i8"),
            {"long_name": "voxels of values outside the label scheme"},
        ),
        "image_checksum": ("scan", _strings(row.image_checksum for row in rows), {}),
        "image_sha256": (
            "scan",
            _strings(row.image_source.sha256 for row in rows),
            {"long_name": "sha256 of the source image file"},
        ),
        "source_bytes": ("scan", numbers(source, "i8"), {"units": "byte"}),
        "stored_bytes": ("scan", numbers(stored, "i8"), {"units": "byte"}),
    }


def _vertebra_columns(rows: Sequence[ScanAttributes]) -> dict[str, Any]:
    shape = (len(rows), len(ANATOMICAL_ORDER))
    count = np.zeros(shape, "i8")
    volume = np.full(shape, np.nan)
    centroid = np.full((*shape, 3), np.nan)
    start = np.full((*shape, 3), -1, "i4")
    stop = np.full((*shape, 3), -1, "i4")
    for i, row in enumerate(rows):
        affine = np.array(row.affine)
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
        for name, vertebra in row.vertebrae.items():
            at = i, ANATOMICAL_ORDER.index(name)
            count[at] = vertebra.voxel_count
            volume[at] = vertebra.voxel_count * voxel_mm3 / _MM3_PER_CM3
            centroid[at] = (affine @ (*vertebra.centroid_zyx[::-1], 1))[2::-1]
            start[at] = vertebra.start_zyx
            stop[at] = vertebra.stop_zyx
    by_vertebra = ("scan", "vertebra")
    by_axis = (*by_vertebra, "axis")
    return {
        "voxel_count": (by_vertebra, count, {}),
        "volume_cm3": (by_vertebra, volume, {"units": "cm3"}),
        "centroid_mm": (by_axis, centroid, {"units": "mm", "frame": "RAS+"}),
        "bbox_start_zyx": (by_axis, start, {"units": "voxel"}),
        "bbox_stop_zyx": (by_axis, stop, {"units": "voxel"}),
    }
