"""Makes structures that are not in the mask of a phantom: S1, and organs as boxes."""

from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.testing.phantom import Phantom
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["organ_box", "s1_of_sacrum"]

Mask = npt.NDArray[np.bool_]

_HALF_BOX: Final = 0.06
"""Half the side of a box, as a fraction of the volume's side."""


def s1_of_sacrum(phantom: Phantom) -> Mask:
    """Return the mask (z, y, x) of the sacrum's voxels that are nearer to S1 than to S2."""
    sacrum = phantom.label == VALUE_OF_NAME["sacrum"]
    part = np.zeros(sacrum.shape, np.bool_)
    if "S1" not in phantom.centers_mm:
        return part
    zyx = np.argwhere(sacrum)
    points_mm = zyx[:, ::-1] @ phantom.affine_xyz[:3, :3].T + phantom.affine_xyz[:3, 3]
    distance_mm = [
        np.linalg.norm(points_mm - phantom.centers_mm[name], axis=1) for name in ("S1", "S2")
    ]
    part[tuple(zyx[distance_mm[0] < distance_mm[1]].T)] = True
    return part


def organ_box(phantom: Phantom, place_zyx: tuple[float, float, float]) -> Mask:
    """Return the mask (z, y, x) of a box without the spine.

    ``place_zyx`` is the middle of the box, in fractions of the volume.
    """
    mask = np.zeros(phantom.label.shape, np.bool_)
    z, y, x = (
        slice(round((share - _HALF_BOX) * n), round((share + _HALF_BOX) * n))
        for share, n in zip(place_zyx, phantom.label.shape, strict=True)
    )
    mask[z, y, x] = phantom.label[z, y, x] == 0
    return mask
