"""Reorders volumes into any orientation of file axes, with nibabel's transforms."""

from itertools import permutations, product
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError

# nibabel has few annotations, so strict mypy would refuse each call.
_nib: Any = nib

__all__ = ["all_axcodes", "check_orientation", "oriented"]

_MAX_OBLIQUE_DEG: Final = 40.0
"""Largest angle; beyond about 45 degrees another orientation would be the closest."""
_OBLIQUE_AXIS: Final = np.array([2.0, 2.0, 1.0]) / 3
"""Unit vector (x, y, z) of the rotation; it is parallel to no axis, so the whole affine changes."""


def all_axcodes() -> tuple[str, ...]:
    """List all 48 orientations, sorted.

    Examples
    --------
    >>> len(all_axcodes()), all_axcodes()[:3]
    (48, ('AIL', 'AIR', 'ALI'))
    """
    pairs = ("RL", "AP", "SI")
    codes = ("".join(c) for order in permutations(pairs) for c in product(*order))
    return tuple(sorted(codes))


def check_orientation(orientation: str, oblique_deg: float) -> None:
    """Refuse orientations and angles that :func:`oriented` does not support.

    Raises
    ------
    UsageError
        If the orientation is not one of the 48, or the angle is too large to keep it.
    """
    if orientation not in all_axcodes():
        raise UsageError(f"orientation must be one of 48 such as 'LPS', got {orientation!r}")
    if abs(oblique_deg) > _MAX_OBLIQUE_DEG:
        raise UsageError(f"oblique_deg must be within {_MAX_OBLIQUE_DEG:g}, got {oblique_deg}")


def oriented(
    array_zyx: npt.NDArray[Any],
    affine_xyz: npt.NDArray[np.float64],
    orientation: str,
    oblique_deg: float,
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Reorder a volume into file order.

    Parameters
    ----------
    array_zyx
        Values with axes (z, y, x), toward superior, anterior and right.
    affine_xyz
        4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm.
    orientation
        Directions toward which the file's axes are to increase.
    oblique_deg
        Rotation of the whole patient about the middle of the volume; no voxel is resampled.

    Returns
    -------
    array_ijk
        Values with the axes in file order; the array is a view of ``array_zyx``.
    affine_ijk_ras
        4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm.
    """
    array_xyz = array_zyx.transpose(2, 1, 0)
    transform = _nib.orientations.ornt_transform(
        _nib.orientations.axcodes2ornt("RAS"), _nib.orientations.axcodes2ornt(orientation)
    )
    affine = _oblique_affine(affine_xyz, array_zyx.shape, oblique_deg)
    affine = affine @ _nib.orientations.inv_ornt_aff(transform, array_xyz.shape)
    return _nib.orientations.apply_orientation(array_xyz, transform), affine


def _oblique_affine(
    affine_xyz: npt.NDArray[np.float64], shape_zyx: tuple[int, ...], degrees: float
) -> npt.NDArray[np.float64]:
    """Rotate the patient about the middle of the volume (Rodrigues' formula).

    Parameters
    ----------
    affine_xyz
        4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm before the rotation.
    shape_zyx
        Voxels along z, y and x.
    degrees
        Angle of the rotation; 0 returns the affine unchanged.
    """
    if degrees == 0:
        return affine_xyz
    x, y, z = _OBLIQUE_AXIS
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.radians(degrees)
    rotation = np.eye(4)
    rotation[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    middle = (affine_xyz @ [*((n - 1) / 2 for n in shape_zyx[::-1]), 1])[:3]
    rotation[:3, 3] = middle - rotation[:3, :3] @ middle
    return np.asarray(rotation @ affine_xyz)
