"""How is a variable of a dataset written as NIfTI, with the axes and the type of its source?

A whole scan becomes the file that the export writes. A part of a scan has the axes and the type of
that file, too, so it is what nibabel cuts out of the file. A dataset whose attributes do not
describe the source, such as a resampled one, is written with the axes of the store.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from pydantic import ValidationError

from spinezarr.accessor.dataset_grid import DatasetGrid, values_zyx, voxel_variable
from spinezarr.errors import DamagedMetadataError
from spinezarr.export.nifti import write_values, write_values_of_array
from spinezarr.export.nifti_placement import NiftiPlacement
from spinezarr.geometry import AxisMap, affine_rows
from spinezarr.scaling import Scaling
from spinezarr.store.attributes import ScanAttributes, SourceRecord
from spinezarr.store.layout import IMAGE, LABEL
from spinezarr.store.scan_handle import ArraySpec

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["write_variable"]

Record = TypeVar("Record", bound=SourceRecord)


def write_variable(dataset: "xr.Dataset", name: str, path: Path) -> None:
    """Write a variable of a dataset as NIfTI.

    Parameters
    ----------
    dataset
        A scan, or a part of one.
    name
        Name of the variable.
    path
        Path ending in ``.nii.gz`` or ``.nii``.

    Raises
    ------
    UsageError
        If the dataset is no scan or has no such variable, if the path has another ending, if a file
        of the same name with the other ending exists, or if no type holds the values.
    """
    grid = DatasetGrid.of(dataset)
    values = values_zyx(voxel_variable(dataset, name))
    facts = _facts(dataset)
    spec = None if facts is None else _array_of(facts, name)
    if facts is None or spec is None:
        write_values(path, values, grid.affine)
        return
    if not grid.is_whole:
        facts = _cropped(facts, grid)
    write_values_of_array(path, spec, facts, values)


def _facts(dataset: "xr.Dataset") -> ScanAttributes | None:
    """Return the attributes of the stored scan; None if the dataset does not have all of them."""
    known = ScanAttributes.model_fields.keys()
    attributes = {name: value for name, value in dataset.attrs.items() if name in known}
    try:
        # The manifest is not needed, and a dataset of Store.scan does not have it.
        return ScanAttributes.model_validate_json(json.dumps({**attributes, "manifest": {}}))
    except (ValidationError, DamagedMetadataError, TypeError, ValueError):
        return None


def _array_of(facts: ScanAttributes, name: str) -> ArraySpec | None:
    """Describe an array of the stored scan; None if the scan has none of that name."""
    dtype, scaling = np.dtype(np.uint8), None
    if name == IMAGE:
        dtype = np.dtype(facts.image_stored_dtype)
        scaling = None if facts.image_scaling is None else Scaling(*facts.image_scaling)
    elif not (name == LABEL and facts.label_source is not None) and name not in facts.masks:
        return None
    array = ArraySpec.in_memory(facts.scan_id, name, facts.shape_zyx, dtype)
    return array if scaling is None else replace(array, scaling=scaling)


def _cropped(facts: ScanAttributes, grid: DatasetGrid) -> ScanAttributes:
    """Return the attributes with the sources cut as the dataset is."""
    label_source = facts.label_source
    masks = {
        name: mask
        if mask.source is None
        else mask.model_copy(update={"source": _cropped_source(mask.source, grid)})
        for name, mask in facts.masks.items()
    }
    changes: dict[str, Any] = {
        "image_source": _cropped_source(facts.image_source, grid),
        "label_source": None if label_source is None else _cropped_source(label_source, grid),
        "masks": masks,
        "spacing_zyx_mm": grid.spacing_zyx_mm,
    }
    return facts.model_copy(update=changes)


def _cropped_source(record: Record, grid: DatasetGrid) -> Record:
    """Return the record of a source file, of which the same part was cut out."""
    axis_map = AxisMap.from_axcodes(record.orientation)
    shape = [0, 0, 0]
    crop = np.eye(4)
    for stored, (axis, flip) in enumerate(
        zip(axis_map.source_axis_zyx, axis_map.flip_zyx, strict=True)
    ):
        n, step, start = grid.shape_zyx[stored], grid.step_zyx[stored], grid.start_zyx[stored]
        shape[axis] = n
        crop[axis, axis] = step
        # The first voxel along a flipped axis is the last one of the dataset.
        last = record.shape_ijk[axis] - 1 - start - step * (n - 1)
        crop[axis, 3] = last if flip else start
    affine = np.array(record.affine_ijk) @ crop
    shape_ijk = (shape[0], shape[1], shape[2])
    placement = NiftiPlacement.from_affine(affine, shape_ijk)
    return record.model_copy(
        update={
            "shape_ijk": shape_ijk,
            "affine_ijk": affine_rows(affine),
            "nifti": None if record.nifti is None else placement.fields,
        }
    )
