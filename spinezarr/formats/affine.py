"""Whether an affine from a file places voxels in space."""

import numpy as np

from spinezarr.errors import FormatError
from spinezarr.geometry import Matrix4x4

__all__ = ["check_affine"]


def check_affine(affine: Matrix4x4, path: str) -> None:
    """Refuse an affine that no voxel grid can have.

    Parameters
    ----------
    affine
        4 x 4, voxel index ``(i, j, k, 1)`` to mm.
    path
        For messages.

    Raises
    ------
    FormatError
        If it is not finite, an axis has no length, or the axes lie in one plane.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite([*affine.ravel(), *lengths]).all() or lengths.min() == 0:
        raise FormatError(f"{path}: its affine places no voxel in space: {affine.tolist()}.")
    # The volume of a voxel against that of a box with its edges: 1 when square, 0 when flat.
    if abs(np.linalg.det(affine[:3, :3])) < 1e-3 * lengths.prod():
        raise FormatError(f"{path}: its affine folds the volume flat: {affine.tolist()}.")
