"""The grids that patches are cut from: a scan's own voxels, or the scan resampled to a spacing.

A resampled scan has the axis directions and the first voxel of the scan, and as many voxels of the
new spacing as lie between its first and last ones, so that every value is interpolated and none is
made up beyond the outermost voxels. *Step* is the number of voxels of the scan from one voxel of
the grid to the next; it is 1 where nothing is resampled.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import xarray as xr

from spinezarr.errors import UsageError
from spinezarr.geometry import ShapeZYX

__all__ = [
    "OWN_SPACING",
    "Positions",
    "StepZYX",
    "TargetZYX",
    "grid_shape_zyx",
    "patch_size",
    "positions_along",
    "step_zyx",
    "target_spacing",
]

TargetZYX = tuple[float | None, float | None, float | None]
"""Spacing in mm along z, y and x; None keeps the scan's own."""
StepZYX = tuple[float, float, float]
Positions = range | npt.NDArray[np.float64]
OWN_SPACING: Final[TargetZYX] = (None, None, None)
_ALIKE: Final = 1e-6
"""Relative difference up to which two spacings are one: above the rounding of float32 headers.

Such a scan is not resampled, and the affine says its own spacing.
"""
_COUNTS: Final = {2: "two", 3: "three"}


def step_zyx(spacing_zyx_mm: Sequence[float], target_zyx_mm: TargetZYX) -> StepZYX:
    """Return the step along each axis.

    Examples
    --------
    >>> step_zyx((2.5, 0.7, 0.7), (1.25, None, 1.4))
    (0.5, 1.0, 2.0)
    """
    z, y, x = (
        1.0 if target is None or abs(target / own - 1) < _ALIKE else target / own
        for own, target in zip(spacing_zyx_mm, target_zyx_mm, strict=True)
    )
    return (z, y, x)


def grid_shape_zyx(shape_zyx: Sequence[int], step_zyx: Sequence[float]) -> ShapeZYX:
    """Return how many voxels the grid has.

    Examples
    --------
    >>> grid_shape_zyx((5, 8, 8), (0.5, 1.0, 2.0))
    (9, 8, 4)
    """
    z, y, x = (
        n if step == 1 else math.floor((n - 1) / step + _ALIKE) + 1
        for n, step in zip(shape_zyx, step_zyx, strict=True)
    )
    return (z, y, x)


def positions_along(start: int, stop: int, step: float, n: int) -> Positions:
    """Return where voxels ``start`` to ``stop - 1`` of the grid lie along an axis of a scan.

    Parameters
    ----------
    start, stop
        Voxels inside the grid.
    step
        Along that axis.
    n
        Voxels of the scan along it; positions do not leave them.

    Returns
    -------
    range or numpy.ndarray
        In voxels of the scan; a range where they are voxels of it, one after the other.
    """
    if step == 1:
        return range(start, stop)
    positions: npt.NDArray[np.float64] = np.minimum(np.arange(start, stop) * step, n - 1)
    return positions


def target_spacing(axes: str, spacing_mm: object) -> TargetZYX:
    """Return the spacing to resample to; None along axes that are not named.

    Parameters
    ----------
    axes
        Names of the axes to resample, of ``"zyx"``.
    spacing_mm
        A number for each or one for all; None keeps the scan's own.

    Raises
    ------
    UsageError
        If it is anything else.
    """
    if spacing_mm is None:
        return OWN_SPACING
    mm = dict(zip(axes, _numbers(spacing_mm, axes, _keyword("spacing", axes)), strict=True))
    return (mm.get("z"), mm.get("y"), mm.get("x"))


def patch_size(
    axes: str, size: object, size_mm: object, target_zyx_mm: TargetZYX, table: xr.Dataset
) -> ShapeZYX:
    """Return the voxels of a patch: as asked, or enough to cover so many mm, or whole slices.

    Parameters
    ----------
    axes
        Names of the patch's axes, of ``"zyx"``; it measures one voxel along the others.
    size
        Voxels along each axis; for three axes, one number will do for all.
    size_mm
        In place of it: mm along each axis.
    target_zyx_mm
        Spacing to which patches are resampled.
    table
        The chosen scans. If neither size is given, slices are as large as the largest of them.

    Raises
    ------
    UsageError
        If there are two sizes, or none for three axes, or one is no size, or patches of the chosen
        scans would not all have one shape.
    """
    kind = "patch size" if axes == "zyx" else "slice size"
    if size is not None and size_mm is not None:
        raise UsageError(f"{kind} {size}, {_keyword('size', axes)} {size_mm}: give one of the two.")
    if size is not None:
        voxels = _numbers(size, axes, kind, whole=True)
    elif size_mm is not None:
        voxels = _covering(
            _numbers(size_mm, axes, _keyword("size", axes)), axes, target_zyx_mm, table
        )
    elif axes == "zyx":
        raise UsageError(f"{kind}: none is given; give size_zyx in voxels, or size_zyx_mm.")
    else:
        voxels = _largest(axes, target_zyx_mm, table)
    of_axis = dict(zip(axes, voxels, strict=True))
    return (of_axis.get("z", 1), of_axis.get("y", 1), of_axis.get("x", 1))


def _keyword(quantity: str, axes: str) -> str:
    """Return the keyword argument of a size or spacing in mm, for a patch or for a slice."""
    return f"{quantity}_zyx_mm" if axes == "zyx" else f"{quantity}_mm"


def _numbers(given: object, axes: str, name: str, *, whole: bool = False) -> list[Any]:
    """Return a number an axis: whole ones as they are, others only above 0."""
    try:
        numbers = np.atleast_1d(np.asarray(given))
    except ValueError:  # of nested tuples of unequal lengths
        numbers = np.empty(0)
    # The two sides of a slice are never meant to be equal, as those of a cube are.
    one_for_all = not whole or axes == "zyx"
    fits = numbers.shape == (len(axes),) or (one_for_all and numbers.shape == (1,))
    fits = fits and numbers.dtype.kind in ("iu" if whole else "iuf")
    if not fits or not (whole or ((numbers > 0) & np.isfinite(numbers)).all()):
        raise UsageError(
            f"{name} {given}: give {_COUNTS[len(axes)]} "
            f"{'whole numbers' if whole else 'numbers above 0'} ({', '.join(axes)})"
            f"{', or one for all' if one_for_all else ''}."
        )
    return list(np.broadcast_to(numbers, len(axes)).tolist())


def _covering(
    size_mm: list[float], axes: str, target_zyx_mm: TargetZYX, table: xr.Dataset
) -> list[int]:
    """Return how many voxels cover so many mm, at least one along each axis."""
    own = table.spacing_zyx_mm.sel(axis=list(axes)).to_numpy()
    target = [mm for axis, mm in zip("zyx", target_zyx_mm, strict=True) if axis in axes]
    spacings = own if None in target else np.array([target], float)
    voxels = np.maximum(np.rint(np.array(size_mm) / spacings), 1).astype(int)
    if (voxels != voxels[0]).any():
        low, high = (
            " x ".join(f"{mm:.4g}" for mm in ends) for ends in (own.min(axis=0), own.max(axis=0))
        )
        raise UsageError(
            f"{_keyword('size', axes)} {tuple(size_mm)}: the chosen scans have voxels of {low} to "
            f"{high} mm ({', '.join(axes)}), so patches would differ in shape. Give "
            f"{_keyword('spacing', axes)} too, to which each is resampled, or choose scans "
            "of one spacing."
        )
    return list(voxels[0].tolist())


def _largest(axes: str, target_zyx_mm: TargetZYX, table: xr.Dataset) -> list[int]:
    shapes, spacings = table.shape_zyx.to_numpy(), table.spacing_zyx_mm.to_numpy()
    grids = [
        grid_shape_zyx(shape_zyx, step_zyx(spacing_mm, target_zyx_mm))
        for shape_zyx, spacing_mm in zip(shapes.tolist(), spacings.tolist(), strict=True)
    ]
    largest = dict(zip("zyx", np.max(grids, axis=0).tolist(), strict=True))
    return [largest[axis] for axis in axes]
