"""Do ``pixdim``, qform and sform of a NIfTI header agree?

A NIfTI header states the spacing in ``pixdim`` and in the sform. It states the position in the
qform and in the sform [1]_. nibabel, and so spinezarr, uses the sform if its code is above 0. Other
programs use ``pixdim``, or prefer the qform. If these differ, two programs see different volumes.

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
    """The fields of a NIfTI header that give the positions of voxels, named as in ``nifti1.h``."""

    @property
    def sform_code(self) -> int:
        """Code of the sform; 0 if the header has none."""
        ...

    @property
    def qform_code(self) -> int:
        """Code of the qform; 0 if the header has none."""
        ...

    @property
    def pixdim(self) -> tuple[float, ...]:
        """First four values of ``pixdim``: qfac, then the spacing along i, j and k in mm."""
        ...

    @property
    def quatern_bcd(self) -> tuple[float, ...]:
        """Parts b, c and d of the unit quaternion that rotates the axes."""
        ...

    @property
    def qoffset_xyz(self) -> tuple[float, ...]:
        """Position of the first voxel in RAS+ mm."""
        ...


def qform_affine(fields: NiftiGeometry) -> Matrix4x4:
    """Return the affine that the qform states (method 2 of ``nifti1.h``).

    A quaternion longer than 1 is shortened to 1, as nifti_clib does.

    Returns
    -------
    numpy.ndarray
        4 x 4, from voxel ``(i, j, k, 1)`` to RAS+ mm.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> turned = SimpleNamespace(pixdim=(-1, 2, 2, 3), quatern_bcd=(0, 0, 1), qoffset_xyz=(5, 6, 7))
    >>> (qform_affine(turned) + 0.0).tolist()
    [[-2.0, 0.0, 0.0, 5.0], [0.0, -2.0, 0.0, 6.0], [0.0, 0.0, -3.0, 7.0], [0.0, 0.0, 0.0, 1.0]]
    """
    b, c, d = np.array(fields.quatern_bcd, float) / max(1.0, math.hypot(*fields.quatern_bcd))
    a = np.sqrt(max(0.0, 1 - (b * b + c * c + d * d)))
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    qfac, *spacing = fields.pixdim
    affine = np.eye(4)
    affine[:3, :3] = rotation * np.array(spacing) * [1, 1, -1 if qfac < 0 else 1]
    affine[:3, 3] = fields.qoffset_xyz
    return affine


def conflicting_pixdim_mm(
    fields: NiftiGeometry, shape_ijk: ShapeIJK, affine_ijk: Matrix4x4
) -> tuple[float, float, float] | None:
    """Return the spacing in ``pixdim`` if it conflicts with the sform.

    Parameters
    ----------
    fields
        Fields of the header.
    shape_ijk
        Number of voxels along the axes of the file.
    affine_ijk
        4 x 4 matrix of the sform, from voxel ``(i, j, k, 1)`` to RAS+ mm.

    Returns
    -------
    tuple of float or None
        Spacing in mm along i, j and k. None if the header has no sform, or if the two spacings
        differ by less than a tenth of the smallest voxel spacing over the whole volume.
    """
    if fields.sform_code <= 0:
        return None
    pixdim_mm = np.array(fields.pixdim[1:], float)
    spacing = np.linalg.norm(affine_ijk[:3, :3], axis=0)
    steps = np.maximum(np.array(shape_ijk) - 1, 1)
    if (np.abs(pixdim_mm - spacing) <= GRID_TOLERANCE * spacing.min() / steps).all():
        return None
    i, j, k = pixdim_mm.tolist()
    return (i, j, k)


def qform_sform_distance_mm(
    fields: NiftiGeometry, shape_ijk: ShapeIJK, affine_ijk: Matrix4x4
) -> float | None:
    """Return the largest distance in mm between the corners by qform and by sform.

    Parameters
    ----------
    fields, shape_ijk, affine_ijk
        As for :func:`conflicting_pixdim_mm`.

    Returns
    -------
    float or None
        None if the header does not state both, or if the distance is at most a tenth of the
        smallest voxel spacing.
    """
    if fields.sform_code <= 0 or fields.qform_code <= 0:
        return None
    # The numbers of a damaged header may overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        distance = corner_distance_mm(shape_ijk, qform_affine(fields), affine_ijk)
    smallest = float(np.linalg.norm(affine_ijk[:3, :3], axis=0).min())
    if distance <= GRID_TOLERANCE * smallest:
        return None
    return distance if math.isfinite(distance) else sys.float_info.max


def is_default_affine(affine_ijk: Matrix4x4) -> bool:
    """Whether an affine is the default that programs write if they know no position.

    These are voxels of 1 mm along the world axes, in any directions, with the first voxel at the
    origin: the identity of nibabel (RAS) and that of ITK (LPS).

    Examples
    --------
    >>> is_default_affine(np.diag([-1.0, -1.0, 1.0, 1.0]))
    True
    >>> is_default_affine(np.diag([0.7, 0.7, 1.0, 1.0]))
    False
    """
    return bool(np.array_equal(np.abs(affine_ijk), np.eye(4)))
