"""How do files place voxels in space, and can an affine do that?"""

from typing import Final

import numpy as np

from spinezarr.errors import FormatError
from spinezarr.geometry import Matrix4x4

__all__ = ["LPS_TO_RAS", "check_affine"]

LPS_TO_RAS: Final[Matrix4x4] = np.diag([-1.0, -1.0, 1.0, 1.0])
"""Matrix from the coordinates of DICOM and MetaImage to those of NIfTI and of a store."""


def check_affine(affine: Matrix4x4, path: str) -> None:
    """Refuse an affine that no voxel grid can have.

    Parameters
    ----------
    affine
        4 x 4 matrix from voxel ``(i, j, k, 1)`` to mm.
    path
        Path of the file, for messages.

    Raises
    ------
    FormatError
        If the affine is not finite, an axis has no length, or the axes lie in one plane.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite([*affine.ravel(), *lengths]).all() or lengths.min() == 0:
        raise FormatError(
            f"{path}: its affine is not finite, or an axis has no length: {affine.tolist()}."
        )
    # Volume of a voxel relative to a box with the same edges: 1 if square, 0 if flat.
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * lengths.prod():
        raise FormatError(f"{path}: its axes lie in one plane: its affine is {affine.tolist()}.")
