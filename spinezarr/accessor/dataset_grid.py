"""On which grid do the voxels of a dataset lie, after any crop?

The attribute ``affine`` of a dataset stays that of the stored scan, whatever xarray cuts out of it.
The coordinates follow each cut: they are ``affine[i][3] + spacing * index``, so they tell which
voxels of the scan are left. That also holds for oblique scans, whose coordinates are no true
positions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Matrix4x4, ShapeZYX, SpacingZYX

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["AXES", "DatasetGrid", "scan_name", "values_zyx", "voxel_variable"]

AXES: Final = ("z", "y", "x")
_AFFINE: Final = "affine"
_TOLERANCE: Final = 1e-3
"""Largest distance in voxels of a coordinate from a regular grid.

It is more than the rounding of float32, and less than any program can show.
"""
_SPACING_TOLERANCE: Final = 1e-3
"""Largest relative difference between the stated spacing and that of the affine."""
_OPEN: Final = (
    "Open a scan by spinezarr.open(store).scan(scan_id), or by "
    "xarray.open_zarr('<store>/scans/<scan_id>')"
)


@dataclass(frozen=True, slots=True, eq=False)
class DatasetGrid:
    """The grid of a dataset, and its place in the scan that the attributes describe."""

    shape_zyx: ShapeZYX
    """Number of voxels along each axis."""
    start_zyx: tuple[float, float, float]
    """Position of the first voxel, in voxels of the scan."""
    step_zyx: tuple[float, float, float]
    """Distance of neighboring voxels, in voxels of the scan; negative along a reversed axis."""
    affine: Matrix4x4
    """4 x 4 matrix from voxel ``(x, y, z, 1)`` of the dataset to RAS+ mm."""
    spacing_zyx_mm: SpacingZYX
    is_whole: bool
    """Whether the dataset has all voxels of the scan, in their order."""

    @classmethod
    def of(cls, dataset: "xr.Dataset") -> "DatasetGrid":
        """Find the grid of a dataset by its coordinates.

        Raises
        ------
        UsageError
            If the dataset is no scan, or its coordinates are no regular grid.
        """
        scan_affine = _scan_affine(dataset.attrs)
        lengths_zyx = np.linalg.norm(scan_affine[:3, :3], axis=0)[::-1]
        start, step = np.zeros(3), np.ones(3)
        for axis, name in enumerate(AXES):
            position_mm = _coordinate(dataset, name)
            index = (position_mm - scan_affine[2 - axis, 3]) / lengths_zyx[axis]
            start[axis], step[axis] = _start_and_step(index, name)
        z, y, x = (int(dataset.sizes[name]) for name in AXES)
        shape = dataset.attrs.get("shape_zyx")
        is_same_grid = not start.any() and (step == 1).all()
        affine = scan_affine
        if not is_same_grid:
            crop = np.eye(4)
            crop[range(3), range(3)] = step[::-1]
            crop[:3, 3] = start[::-1]
            affine = scan_affine @ crop
        spacing = _stated_spacing(dataset.attrs, lengths_zyx) * np.abs(step)
        return cls(
            shape_zyx=(z, y, x),
            start_zyx=_three(start),
            step_zyx=_three(step),
            affine=affine,
            spacing_zyx_mm=_three(spacing),
            is_whole=is_same_grid and (shape is None or np.array_equal(shape, (z, y, x))),
        )

    @property
    def reversed_axes(self) -> tuple[str, ...]:
        """Names of the axes along which positions decrease."""
        return tuple(name for name, step in zip(AXES, self.step_zyx, strict=True) if step < 0)


def voxel_variable(dataset: "xr.Dataset", name: str) -> "xr.DataArray":
    """Return a variable that has one value for each voxel.

    Raises
    ------
    UsageError
        If there is none of that name, or it has other dimensions than ``(z, y, x)``.
    """
    if name not in dataset.data_vars:
        known = sorted(str(o) for o, array in dataset.data_vars.items() if array.dims == AXES)
        raise UsageError(
            f"{scan_name(dataset)}: has no variable {name!r} over (z, y, x); it has "
            f"{', '.join(known) or 'none'}."
        )
    array = dataset[name]
    if array.dims != AXES:
        hint = (
            ". Reorder them by dataset.transpose('z', 'y', 'x')."
            if set(array.dims) == {*AXES}
            else ". Select a single position along the others, and keep the three axes."
        )
        raise UsageError(
            f"{scan_name(dataset)}: {name!r} has the dimensions "
            f"({', '.join(map(str, array.dims))}), expected (z, y, x){hint}"
        )
    return array


def values_zyx(array: "xr.DataArray") -> npt.NDArray[Any]:
    """Return the values of a variable, which are computed if they are lazy."""
    values: npt.NDArray[Any] = np.asarray(array.values)
    return values


def scan_name(dataset: "xr.Dataset") -> str:
    """Return the name of the scan for messages."""
    scan_id = dataset.attrs.get("scan_id")
    return f"scan {scan_id!r}" if isinstance(scan_id, str) else "this dataset"


def _scan_affine(attributes: Mapping[str, Any]) -> Matrix4x4:
    if _AFFINE not in attributes:
        raise UsageError(
            "this dataset has no attribute 'affine', so it is no scan of a spinezarr store, or an "
            f"operation has dropped its attributes. {_OPEN}; keep attributes by "
            "xarray.set_options(keep_attrs=True)."
        )
    try:
        affine = np.array(attributes[_AFFINE], np.float64)
    except (TypeError, ValueError):
        affine = np.empty(0)
    is_valid = affine.shape == (4, 4) and np.isfinite(affine).all()
    if not is_valid or affine[3].tolist() != [0, 0, 0, 1] or not np.linalg.det(affine[:3, :3]):
        raise UsageError(
            "the attribute 'affine' of this dataset is no invertible 4 x 4 matrix from voxels to "
            f"mm. {_OPEN}."
        )
    return affine


def _coordinate(dataset: "xr.Dataset", name: str) -> npt.NDArray[np.float64]:
    """Return the positions in mm along an axis.

    Raises
    ------
    UsageError
        If there are none.
    """
    scan = scan_name(dataset)
    if name not in dataset.coords:
        raise UsageError(
            f"{scan}: has no coordinate {name!r} with positions in mm. {_OPEN}, and keep its "
            "coordinates."
        )
    coordinate = dataset.coords[name]
    if coordinate.dims == ():
        raise UsageError(
            f"{scan}: the axis {name!r} is reduced to a single position. Keep it as an axis of one "
            f"voxel: dataset.isel({name}=[index])."
        )
    if coordinate.dims != (name,) or coordinate.dtype.kind not in "iuf":
        raise UsageError(
            f"{scan}: the coordinate {name!r} must have numbers in mm along {name!r}; it has "
            f"{coordinate.dtype} along ({', '.join(map(str, coordinate.dims))})."
        )
    if not coordinate.size:
        raise UsageError(f"{scan}: has no voxel along {name!r}. Choose a larger part of the scan.")
    return np.asarray(coordinate.values, np.float64)


def _start_and_step(index: npt.NDArray[np.float64], name: str) -> tuple[float, float]:
    """Return the first of some indices, and the distance of neighbors.

    Both are whole numbers if all indices are. The step of a single index is 1.

    Raises
    ------
    UsageError
        If the distances differ.
    """
    count = np.arange(len(index))
    start = float(index[0])
    step = float((index[-1] - start) / (len(index) - 1)) if len(index) > 1 else 1.0
    for first, distance in ((_rounded(start), _rounded(step)), (start, step)):
        is_near = np.abs(first + distance * count - index) <= _TOLERANCE
        if distance and is_near.all():
            return first, distance
    raise UsageError(
        f"the positions along {name!r} are not evenly spaced, so no affine describes them. Cut by "
        "slices, such as dataset.isel(z=slice(10, 40, 2)), and not by lists of voxels."
    )


def _rounded(value: float) -> float:
    """Return the nearest whole number, or NaN for a value that is not finite."""
    return float(np.rint(value)) if np.isfinite(value) else float("nan")


def _stated_spacing(
    attributes: Mapping[str, Any], lengths_zyx: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return the spacing in the attributes, or that of the affine if these contradict it."""
    try:
        stated = np.array(attributes.get("spacing_zyx_mm"), np.float64)
    except (TypeError, ValueError):
        return lengths_zyx
    agrees = stated.shape == (3,) and np.allclose(stated, lengths_zyx, _SPACING_TOLERANCE, 0)
    return stated if agrees else lengths_zyx


def _three(values: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    z, y, x = values.tolist()
    return (z, y, x)
