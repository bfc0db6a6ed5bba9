"""Where a header says twice that its voxels lie, and whether both agree.

A NIfTI header states the spacing in ``pixdim`` and in the sform, and the place in the qform and in
the sform [1]_. nibabel, and so spinezarr, goes by the sform if its code is above 0; other programs
take the spacing from ``pixdim``, or prefer the qform. Where these differ, two programs see two
volumes.

References
----------
.. [1] NIfTI-1.1 header, "3D image (volume) orientation and location in space",
   https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

import math
import sys
from typing import Protocol

import numpy as np

from spinezarr.geometry import (
    GRID_TOLERANCE,
    Matrix4x4,
    ShapeIJK,
    corner_distance_mm,
)

__all__ = [
    "NiftiGeometry",
    "conflicting_pixdim_mm",
    "is_default_affine",
    "qform_affine",
    "qform_sform_distance_mm",
]


class NiftiGeometry(Protocol):
    """Fields of a NIfTI header, named as in ``nifti1.h``."""

    @property
    def sform_code(self) -> int:
        """0 if the header states no sform."""
        ...

    @property
    def qform_code(self) -> int:
        """0 if the header states no qform."""
        ...

    @property
    def pixdim(self) -> tuple[float, ...]:
        """The first four: qfac, then mm."""
        ...

    @property
    def quatern_bcd(self) -> tuple[float, ...]:
        """Three parts of the unit quaternion that turns the axes."""
        ...

    @property
    def qoffset_xyz(self) -> tuple[float, ...]:
        """Position of the first voxel, RAS+ mm."""
        ...


def qform_affine(place: NiftiGeometry) -> Matrix4x4:
    """Return voxel ``(i, j, k, 1)`` to RAS+ mm as the qform states it (method 2 of ``nifti1.h``).

    A quaternion that is longer than 1 is shortened, as in nifti_clib.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> turned = SimpleNamespace(pixdim=(-1, 2, 2, 3), quatern_bcd=(0, 0, 1), qoffset_xyz=(5, 6, 7))
    >>> (qform_affine(turned) + 0.0).tolist()
    [[-2.0, 0.0, 0.0, 5.0], [0.0, -2.0, 0.0, 6.0], [0.0, 0.0, -3.0, 7.0], [0.0, 0.0, 0.0, 1.0]]
    """
    b, c, d = np.array(place.quatern_bcd, float) / max(1.0, math.hypot(*place.quatern_bcd))
    a = np.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    qfac, *spacing = place.pixdim
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing) * [1, 1, -1 if qfac < 0 else 1]
    affine[:3, 3] = place.qoffset_xyz
    return affine


def conflicting_pixdim_mm(
    place: NiftiGeometry, shape_ijk: ShapeIJK, affine: Matrix4x4
) -> tuple[float, float, float] | None:
    """Return the spacing in ``pixdim``, mm along i, j and k, if the sform states another one.

    Parameters
    ----------
    place
        Of the header.
    shape_ijk
        Voxels along the file's axes.
    affine
        The one that was taken, voxel ``(i, j, k, 1)`` to RAS+ mm.

    Returns
    -------
    tuple of float or None
        None if the sform was not taken, or if over the whole volume the two differ by less than
        a tenth of the smallest voxel spacing.
    """
    if place.sform_code <= 0:
        return None
    stated = np.array(place.pixdim[1:], float)
    taken = np.linalg.norm(affine[:3, :3], axis=0)
    steps = np.maximum(np.array(shape_ijk) - 1, 1)
    if (np.abs(stated - taken) <= GRID_TOLERANCE * taken.min() / steps).all():
        return None
    i, j, k = stated.tolist()
    return (i, j, k)


def qform_sform_distance_mm(
    place: NiftiGeometry, shape_ijk: ShapeIJK, affine: Matrix4x4
) -> float | None:
    """Return how far the qform places a corner from where the sform does, in mm.

    Parameters
    ----------
    place, shape_ijk, affine
        As of :func:`conflicting_pixdim_mm`.

    Returns
    -------
    float or None
        None if the header does not state both, or if no corner is further off than a tenth of the
        smallest voxel spacing.
    """
    if place.sform_code <= 0 or place.qform_code <= 0:
        return None
    # Numbers of a damaged header may be further off than any number can say.
    with np.errstate(over="ignore", invalid="ignore"):
        distance = corner_distance_mm(shape_ijk, qform_affine(place), affine)
    smallest = float(np.linalg.norm(affine[:3, :3], axis=0).min())
    if distance <= GRID_TOLERANCE * smallest:
        return None
    return distance if math.isfinite(distance) else sys.float_info.max


def is_default_affine(affine: Matrix4x4) -> bool:
    """Whether an affine is what programs write for an array without a place.

    That is voxels of 1 mm from the origin on, along the world axes, in any directions: nibabel's
    identity, and ITK's, which is LPS.

    Examples
    --------
    >>> is_default_affine(np.diag([-1.0, -1.0, 1.0, 1.0]))
    True
    >>> is_default_affine(np.diag([0.7, 0.7, 1.0, 1.0]))
    False
    """
    return bool(np.array_equal(np.abs(affine), np.eye(4)))
