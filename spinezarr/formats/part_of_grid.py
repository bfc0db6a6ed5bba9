"""Where does a part of a volume, such as one slice of a mask, lie on the grid of the volume?

Programs leave out the empty slices and margins of a segmentation, so its file covers only a part of
the image.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from spinezarr.errors import GridMismatchError
from spinezarr.geometry import GRID_TOLERANCE, Grid, Matrix4x4, ShapeIJK, corner_distance_mm
from spinezarr.text import MultilineText

__all__ = ["PartOfGrid", "turned_like"]

_MAX_SHIFT: Final = 0.4
"""Largest distance of a part from the voxels of the image, as a share of the smallest spacing.

Beyond half a voxel, the nearest voxel would be another one.
"""


def turned_like(grid: Grid, affine_ijk: Matrix4x4) -> Grid:
    """Return a grid with its axes in the order and directions that are closest to those of another.

    No voxel moves.

    Parameters
    ----------
    grid
        Grid to turn.
    affine_ijk
        4 x 4 matrix whose first three columns are the directions of the axes i, j and k.

    Examples
    --------
    >>> axial = Grid((4, 5, 6), np.diag([1.0, 1.0, 2.0, 1.0]))
    >>> sagittal = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])
    >>> turned = turned_like(axial, sagittal)
    >>> turned.shape_ijk, turned.affine_ijk[:3, 3].tolist()
    ((5, 6, 4), [0.0, 0.0, 10.0])
    """
    wanted = Grid((1, 1, 1), affine_ijk).axis_map
    shape_zyx = grid.shape_zyx
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    shape_ijk = [0, 0, 0]
    for stored, (axis, flip) in enumerate(
        zip(wanted.source_axis_zyx, wanted.flip_zyx, strict=True)
    ):
        x_axis = 2 - stored
        shape_ijk[axis] = shape_zyx[stored]
        turn[x_axis, axis] = -1 if flip else 1
        turn[x_axis, 3] = shape_zyx[stored] - 1 if flip else 0
    return Grid((shape_ijk[0], shape_ijk[1], shape_ijk[2]), grid.affine_xyz @ turn)


@dataclass(frozen=True, slots=True, eq=False)
class PartOfGrid:
    """A grid, turned to the axes of its parts, that tells where parts lie on it."""

    image: Grid
    """Grid of the image as its file states it."""
    whole: Grid
    """The same grid with axes in the order and directions of the parts."""
    path: str
    """Path of the file of the parts, for messages."""

    @classmethod
    def of(cls, image: Grid, affine_ijk: Matrix4x4, path: str) -> "PartOfGrid":
        """Turn the grid of an image to the axes of ``affine_ijk``."""
        return cls(image, turned_like(image, affine_ijk), path)

    def start_of(
        self, shape_ijk: ShapeIJK, affine_ijk: Matrix4x4, *, rounding_mm: float = 0.0
    ) -> tuple[int, int, int]:
        """Return the voxel of :attr:`whole` at which a part starts.

        Parameters
        ----------
        shape_ijk
            Shape of the part.
        affine_ijk
            4 x 4 matrix from voxel ``(i, j, k, 1)`` of the part to RAS+ mm.
        rounding_mm
            Error of positions in the file, in addition to the tolerance of all grids.

        Raises
        ------
        GridMismatchError
            If the part does not lie on the voxels of the image, or extends beyond it.
        """
        whole = self.whole.affine_ijk
        index = np.rint((np.linalg.inv(whole) @ affine_ijk[:, 3])[:3])
        moved = whole.copy()
        moved[:3, 3] += whole[:3, :3] @ index
        distance_mm = corner_distance_mm(shape_ijk, moved, affine_ijk)
        spacing_mm = float(np.linalg.norm(whole[:3, :3], axis=0).min())
        tolerance_mm = min(GRID_TOLERANCE * spacing_mm + rounding_mm, _MAX_SHIFT * spacing_mm)
        if distance_mm > tolerance_mm:
            raise self._error(
                f"it lies {distance_mm:.3g} mm off the voxels of the image", shape_ijk, affine_ijk
            )
        i, j, k = (int(start) for start in index)
        for start, size, available in zip((i, j, k), shape_ijk, self.whole.shape_ijk, strict=True):
            if start < 0 or start + size > available:
                raise self._error("it extends beyond the image", shape_ijk, affine_ijk)
        return (i, j, k)

    def _error(self, problem: str, shape_ijk: ShapeIJK, affine_ijk: Matrix4x4) -> GridMismatchError:
        return GridMismatchError(
            MultilineText(
                f"{self.path}: a part of the mask does not fit its image: {problem}:",
                f"  image: {self.image.describe()}",
                f"  part:  {Grid(shape_ijk, affine_ijk).describe()}",
                "Get the mask that belongs to this image, or all slices of the image.",
            )
        )
