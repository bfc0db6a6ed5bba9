"""On which grid of voxels does a patch lie?

Patches are cut out of a scan, or out of a scan resampled to another spacing. A resampled scan has
the axis directions and the first voxel of the scan. It has as many voxels as fit between the first
and last voxel of the scan, so every value is interpolated and none is extrapolated. The *step* is
the distance between two voxels of this grid, in voxels of the scan. It is 1 without resampling.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Matrix4x4, ShapeZYX
from spinezarr.store.scan_table import TableColumns

__all__ = [
    "MIN_MM",
    "NATIVE_SPACING",
    "Positions",
    "StepZYX",
    "TargetZYX",
    "grid_affine",
    "grid_shape_zyx",
    "patch_size",
    "positions_along",
    "step_zyx",
    "target_spacing",
]

TargetZYX = tuple[float | None, float | None, float | None]
"""Spacing to resample to, in mm along z, y and x; None keeps the scan's spacing."""
StepZYX = tuple[float, float, float]
"""Voxels of the scan from one voxel of the grid to the next, along z, y and x."""
Positions = range | npt.NDArray[np.float64]
"""Positions along an axis in voxels of the scan; a range if they are voxels in a row."""
NATIVE_SPACING: Final[TargetZYX] = (None, None, None)
_RELATIVE_TOLERANCE: Final = 1e-6
"""Relative difference up to which two spacings count as equal.

It is larger than the rounding of float32 in headers. A scan with an equal spacing is not resampled,
and its affine has its own spacing.
"""
MIN_MM: Final = 1e-3
"""Smallest spacing or size in mm that can be given; far smaller ones have no grid of numbers."""
_NUMBER_WORDS: Final = {2: "two", 3: "three"}


def step_zyx(spacing_zyx_mm: Sequence[float], target_zyx_mm: TargetZYX) -> StepZYX:
    """Return the step along z, y and x.

    Examples
    --------
    >>> step_zyx((2.5, 0.7, 0.7), (1.25, None, 1.4))
    (0.5, 1.0, 2.0)
    """
    z, y, x = (
        1.0 if target is None or abs(target / mm - 1) < _RELATIVE_TOLERANCE else target / mm
        for mm, target in zip(spacing_zyx_mm, target_zyx_mm, strict=True)
    )
    return (z, y, x)


def grid_shape_zyx(shape_zyx: Sequence[int], step_zyx: Sequence[float]) -> ShapeZYX:
    """Return the shape of the grid in voxels.

    Examples
    --------
    >>> grid_shape_zyx((5, 8, 8), (0.5, 1.0, 2.0))
    (9, 8, 4)
    """
    z, y, x = (
        n if step == 1 else math.floor((n - 1) / step + _RELATIVE_TOLERANCE) + 1
        for n, step in zip(shape_zyx, step_zyx, strict=True)
    )
    return (z, y, x)


def grid_affine(affine: Matrix4x4, start_zyx: ShapeZYX, step_zyx: StepZYX) -> Matrix4x4:
    """Return the affine of a part of the grid.

    Parameters
    ----------
    affine
        4 x 4 matrix from voxel ``(x, y, z, 1)`` of the scan to RAS+ mm.
    start_zyx
        First voxel of the part, in voxels of the grid.
    step_zyx
        Step of the grid.

    Examples
    --------
    >>> grid_affine(np.diag([0.5, 0.5, 2.0, 1.0]), (1, 0, 0), (0.5, 2.0, 2.0))[2].tolist()
    [0.0, 0.0, 1.0, 1.0]
    """
    moved = affine.copy()
    moved[:3, :3] *= step_zyx[::-1]
    moved[:3, 3] += moved[:3, :3] @ start_zyx[::-1]
    return moved


def positions_along(start: int, stop: int, step: float, n: int) -> Positions:
    """Return the positions of voxels ``start`` to ``stop - 1`` of the grid along an axis.

    Parameters
    ----------
    start, stop
        Voxels inside the grid.
    step
        Step along that axis.
    n
        Number of voxels of the scan along the axis. No position is beyond the last one.

    Returns
    -------
    range or numpy.ndarray
        Positions in voxels of the scan; a range if they are voxels in a row.
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
        Names of the axes to resample, e.g. ``"zyx"``.
    spacing_mm
        A number for each of these axes, or one for all; None keeps the scan's own spacing.

    Raises
    ------
    UsageError
        If ``spacing_mm`` is anything else.
    """
    if spacing_mm is None:
        return NATIVE_SPACING
    mm = dict(zip(axes, _numbers(spacing_mm, axes, _keyword("spacing", axes)), strict=True))
    return (mm.get("z"), mm.get("y"), mm.get("x"))


def patch_size(
    axes: str, size: object, size_mm: object, target_zyx_mm: TargetZYX, table: TableColumns
) -> ShapeZYX:
    """Return the shape of a patch in voxels.

    Parameters
    ----------
    axes
        Names of the patch's axes, e.g. ``"zyx"``. It is one voxel thick along the others.
    size
        Voxels along each axis. For three axes, one number may stand for all.
    size_mm
        Size in mm along each axis, in place of ``size``.
    target_zyx_mm
        Spacing to which patches are resampled.
    table
        Rows of the chosen scans. If no size is given, slices are as large as the largest scan.

    Raises
    ------
    UsageError
        If two sizes are given, or none for three axes; if a size is invalid; or if the patches of
        the chosen scans would differ in shape.
    """
    kind = "patch size" if axes == "zyx" else "slice size"
    if size is not None and size_mm is not None:
        raise UsageError(f"{kind} {size}, {_keyword('size', axes)} {size_mm}: give one of the two.")
    if size is not None:
        voxels = _numbers(size, axes, kind, whole=True)
    elif size_mm is not None:
        voxels = _covering_voxels(
            _numbers(size_mm, axes, _keyword("size", axes)), axes, target_zyx_mm, table
        )
    elif axes == "zyx":
        raise UsageError(f"{kind}: none is given; give size_zyx in voxels, or size_zyx_mm.")
    else:
        voxels = _largest_grid(axes, target_zyx_mm, table)
    voxels_by_axis = dict(zip(axes, voxels, strict=True))
    return (voxels_by_axis.get("z", 1), voxels_by_axis.get("y", 1), voxels_by_axis.get("x", 1))


def _keyword(quantity: str, axes: str) -> str:
    """Return the keyword argument of a size or spacing in mm, for a patch or for a slice."""
    return f"{quantity}_zyx_mm" if axes == "zyx" else f"{quantity}_mm"


def _numbers(value: object, axes: str, name: str, *, whole: bool = False) -> list[Any]:
    """Return one number for each axis. Numbers that are not whole are lengths in mm."""
    try:
        numbers = np.atleast_1d(np.asarray(value))
    except ValueError:  # nested tuples have unequal lengths
        numbers = np.empty(0)
    # One number means a cube. It is not accepted for slices, which are rarely square.
    one_for_all = not whole or axes == "zyx"
    fits = numbers.shape == (len(axes),) or (one_for_all and numbers.shape == (1,))
    fits = fits and numbers.dtype.kind in ("iu" if whole else "iuf")
    if not fits or not (whole or ((numbers >= MIN_MM) & np.isfinite(numbers)).all()):
        raise UsageError(
            f"{name} {value}: give {_NUMBER_WORDS[len(axes)]} "
            f"{'whole numbers' if whole else f'numbers of at least {MIN_MM}'} ({', '.join(axes)})"
            f"{', or one for all' if one_for_all else ''}."
        )
    return list(np.broadcast_to(numbers, len(axes)).tolist())


def _covering_voxels(
    size_mm: list[float], axes: str, target_zyx_mm: TargetZYX, table: TableColumns
) -> list[int]:
    """Return the number of voxels, at least one, that cover ``size_mm`` along each axis."""
    scans = np.asarray(table["spacing_zyx_mm"])[:, ["zyx".index(axis) for axis in axes]]
    target = [mm for axis, mm in zip("zyx", target_zyx_mm, strict=True) if axis in axes]
    spacings = scans if None in target else np.array([target], float)
    voxels = np.maximum(np.rint(np.array(size_mm) / spacings), 1).astype(int)
    if (voxels != voxels[0]).any():
        low, high = (
            " x ".join(f"{mm:.4g}" for mm in spacing_mm)
            for spacing_mm in (scans.min(axis=0), scans.max(axis=0))
        )
        raise UsageError(
            f"{_keyword('size', axes)} {tuple(size_mm)}: the chosen scans have voxels of {low} to "
            f"{high} mm ({', '.join(axes)}), so patches would differ in shape. Give "
            f"{_keyword('spacing', axes)} too, to which each is resampled, or choose scans "
            "of one spacing."
        )
    return list(voxels[0].tolist())


def _largest_grid(axes: str, target_zyx_mm: TargetZYX, table: TableColumns) -> list[int]:
    shapes, spacings = np.asarray(table["shape_zyx"]), np.asarray(table["spacing_zyx_mm"])
    grids = [
        grid_shape_zyx(shape_zyx, step_zyx(spacing_mm, target_zyx_mm))
        for shape_zyx, spacing_mm in zip(shapes.tolist(), spacings.tolist(), strict=True)
    ]
    largest = dict(zip("zyx", np.max(grids, axis=0).tolist(), strict=True))
    return [largest[axis] for axis in axes]
