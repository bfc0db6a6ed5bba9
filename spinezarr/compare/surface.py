"""How far apart are the surfaces of two labels?

A surface is the set of voxels of a label of which a face borders on another value, or on the
outside of the volume. Distances are those between centers of voxels in RAS+ mm, so they are also
right on grids that are anisotropic, oblique or sheared.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.compare.overlap import LabelMask
from spinezarr.errors import UsageError
from spinezarr.geometry import Box, Matrix4x4
from spinezarr.processors import cpu_count

try:
    from scipy.spatial import cKDTree
except ImportError as problem:
    raise UsageError("comparing masks needs SciPy: pip install 'spinezarr[compare]'") from problem

__all__ = ["MAX_SURFACE_VOXELS", "Surface", "SurfaceDistances"]

MAX_SURFACE_VOXELS: Final = 1_000_000
"""Largest number of voxels of a surface whose distances are computed.

A vertebra at a spacing of 0.2 mm has about 400 000 of them. Only the mask of an untrained network,
which is noise, has more, and would take gigabytes.
"""
_SLAB_VOXELS: Final = 1 << 22
"""Number of voxels of a box that are looked at at once."""
_PERCENTILE: Final = 95


class Surface:
    """The surface of one label.

    Parameters
    ----------
    points_xyz_mm
        Positions (x, y, z) of its voxels in RAS+ mm, shape (n, 3) with n > 0.
    """

    def __init__(self, points_xyz_mm: npt.NDArray[np.float64]) -> None:
        self.points_xyz_mm = points_xyz_mm
        self.tree = cKDTree(points_xyz_mm)

    @classmethod
    def of_label(
        cls, mask: LabelMask, value: int, box: Box, affine_xyz: Matrix4x4
    ) -> "Surface | None":
        """Return the surface of a label.

        Parameters
        ----------
        mask
            The whole mask. Only the voxels of the box and next to it are read.
        value
            Value of the label.
        box
            Box that holds all voxels of the label.
        affine_xyz
            4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm.

        Returns
        -------
        Surface or None
            None if it has more than :data:`MAX_SURFACE_VOXELS` voxels.
        """
        parts: list[npt.NDArray[np.intp]] = []
        found = 0
        _, height, width = box.shape_zyx
        thickness = max(_SLAB_VOXELS // (height * width), 1)
        for start in range(box.start_zyx[0], box.stop_zyx[0], thickness):
            stop = min(start + thickness, box.stop_zyx[0])
            slab = Box((start, *box.start_zyx[1:]), (stop, *box.stop_zyx[1:]))
            parts.append(_surface_voxels(mask, value, slab))
            found += len(parts[-1])
            if found > MAX_SURFACE_VOXELS:
                return None
        indices_xyz = np.concatenate(parts)[:, ::-1]
        return cls(indices_xyz @ affine_xyz[:3, :3].T + affine_xyz[:3, 3])

    def distances_mm(self, other: "Surface") -> npt.NDArray[np.float64]:
        """Return the distance from each point of this surface to the other surface."""
        distances, _ = other.tree.query(self.points_xyz_mm, workers=cpu_count())
        return np.asarray(distances, np.float64)


def _surface_voxels(mask: LabelMask, value: int, box: Box) -> npt.NDArray[np.intp]:
    """Return the indices (z, y, x) of the surface voxels in a box, shape (n, 3)."""
    start = [max(first - 1, 0) for first in box.start_zyx]
    stop = [min(last + 1, n) for last, n in zip(box.stop_zyx, mask.shape, strict=True)]
    around = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
    outside = [
        (int(low == first), int(high == last))
        for low, first, high, last in zip(start, box.start_zyx, stop, box.stop_zyx, strict=True)
    ]
    inside = np.pad(mask[around] == value, outside)
    center = (slice(1, -1),) * 3
    interior = inside[center].copy()
    for axis in range(3):
        for neighbor in (slice(None, -2), slice(2, None)):
            interior &= inside[tuple(neighbor if a == axis else slice(1, -1) for a in range(3))]
    indices_zyx = np.argwhere(inside[center] & ~interior)
    indices_zyx += np.array(box.start_zyx)
    return indices_zyx


@dataclass(frozen=True, slots=True)
class SurfaceDistances:
    """Distances between two surfaces, in mm.

    References
    ----------
    .. [1] Maier-Hein, Reinke et al., "Metrics reloaded: recommendations for image analysis
       validation", Nature Methods 21, 2024, https://doi.org/10.1038/s41592-023-02151-z
    """

    hausdorff_mm: float
    """Largest distance from a point of one surface to the other surface."""
    hausdorff95_mm: float
    """The larger of the 95th percentiles of the distances in the two directions [1]_."""
    assd_mm: float
    """Average symmetric surface distance: the mean of the distances of all points [1]_."""

    @classmethod
    def between(cls, a: Surface, b: Surface) -> "SurfaceDistances":
        """Measure two surfaces.

        Examples
        --------
        >>> plane = np.stack(np.meshgrid(range(9), range(9), [0.0]), axis=-1).reshape(-1, 3)
        >>> SurfaceDistances.between(Surface(plane), Surface(plane + [0, 0, 2.5]))
        SurfaceDistances(hausdorff_mm=2.5, hausdorff95_mm=2.5, assd_mm=2.5)
        """
        both = a.distances_mm(b), b.distances_mm(a)
        return cls(
            hausdorff_mm=float(max(distances.max() for distances in both)),
            hausdorff95_mm=float(max(np.percentile(distances, _PERCENTILE) for distances in both)),
            assd_mm=float(np.concatenate(both).mean()),
        )
