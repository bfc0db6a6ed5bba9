"""Where does each voxel lie: grids, axis directions and boxes?

World coordinates are RAS+ millimeters (x to the patient's right, y anterior, z superior), as in
NIfTI [1]_. Source arrays have axes ``(i, j, k)`` in file order; stored arrays have axes
``(z, y, x)``, each increasing toward superior, anterior and right.

References
----------
.. [1] NIfTI-1.1 header, section "3D image (volume) orientation and location in space",
   https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt

__all__ = [
    "GRID_TOLERANCE",
    "SHEAR_TOLERANCE_DEG",
    "SLICE_AXIS",
    "AffineRows",
    "AxisMap",
    "Box",
    "Grid",
    "Matrix4x4",
    "Plane",
    "ShapeIJK",
    "ShapeZYX",
    "SpacingZYX",
    "affine_rows",
    "axis_positions_mm",
    "corner_distance_mm",
    "max_corner_distance_mm",
    "oblique_angle_deg",
    "shear_deg",
]


Matrix4x4 = npt.NDArray[np.float64]
AffineRow = tuple[float, float, float, float]
AffineRows = tuple[AffineRow, AffineRow, AffineRow, AffineRow]
Plane = Literal["axial", "coronal", "sagittal"]
"""Orientation of a slice through a volume."""
SLICE_AXIS: Final[dict[Plane, int]] = {"axial": 0, "coronal": 1, "sagittal": 2}
"""Axis of ``(z, y, x)`` along which the slices of a plane are stacked."""
_AFFINES_KEPT: Final = 64
"""Number of affines whose orientation is cached. A scan has a few."""
GRID_TOLERANCE: Final = 0.1
"""Largest distance of the corners of two files on one grid, as a share of the smallest spacing.

This is far more than the rounding of float32 affines and quaternions, and far less than a mask can
resolve.
"""
SHEAR_TOLERANCE_DEG: Final = 0.1
"""Axes that deviate from a right angle by more than this are sheared. A smaller angle is rounding.

The directions in TotalSegmentator's files are perpendicular to 2e-4, which is 0.01 degrees.
"""
ShapeIJK = tuple[int, int, int]
ShapeZYX = tuple[int, int, int]
SpacingZYX = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open block of voxels: ``start <= index < stop`` on each axis.

    Indices are literal: a negative index lies before the first voxel and does not count from the
    end.

    Examples
    --------
    >>> Box((0, 8, 8), (4, 16, 16)).shape_zyx
    (4, 8, 8)
    """

    start_zyx: ShapeZYX
    """First voxel of the box."""
    stop_zyx: ShapeZYX
    """Voxel after the last one of the box."""

    def __post_init__(self) -> None:
        if any(stop <= start for start, stop in zip(self.start_zyx, self.stop_zyx, strict=True)):
            raise ValueError(f"empty box: start {self.start_zyx}, stop {self.stop_zyx} (z, y, x)")

    @classmethod
    def at(cls, start_zyx: ShapeZYX, shape_zyx: ShapeZYX) -> Self:
        """Make the box of ``shape_zyx`` voxels whose first voxel is ``start_zyx``."""
        z, y, x = (a + n for a, n in zip(start_zyx, shape_zyx, strict=True))
        return cls(start_zyx, (z, y, x))

    @property
    def shape_zyx(self) -> ShapeZYX:
        """Number of voxels along each axis."""
        z, y, x = (b - a for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Index into a NumPy array with axes ``(z, y, x)``; the start must not be negative."""
        z, y, x = (slice(a, b) for a, b in zip(self.start_zyx, self.stop_zyx, strict=True))
        return (z, y, x)

    def shift(self, offset_zyx: ShapeZYX) -> "Box":
        """Move the box by ``offset_zyx`` voxels."""
        z, y, x = (a + o for a, o in zip(self.start_zyx, offset_zyx, strict=True))
        return Box.at((z, y, x), self.shape_zyx)

    def intersect(self, other: "Box") -> "Box | None":
        """Return the voxels of both boxes, or None if they share none.

        Examples
        --------
        >>> Box((-2, 0, 0), (2, 4, 4)).intersect(Box((0, 0, 0), (9, 9, 9)))
        Box(start_zyx=(0, 0, 0), stop_zyx=(2, 4, 4))
        """
        start = tuple(max(a, b) for a, b in zip(self.start_zyx, other.start_zyx, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop_zyx, other.stop_zyx, strict=True))
        if any(b <= a for a, b in zip(start, stop, strict=True)):
            return None
        return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _orientations() -> ModuleType:
    # nibabel takes long to import, and training does not need it.
    return import_module("nibabel.orientations")


@lru_cache(_AFFINES_KEPT)
def _orientation(affine: bytes) -> npt.NDArray[np.float64]:
    """Return nibabel's orientation array of an affine, which every property of a grid needs."""
    orientation = _orientations().io_orientation(np.frombuffer(affine).reshape(4, 4))
    return np.asarray(orientation, np.float64)


@dataclass(frozen=True, slots=True)
class AxisMap:
    """A map from source axes to stored axes, with the flip of each.

    A map is a permutation with flips, so it never interpolates a voxel value.

    Examples
    --------
    >>> las = np.diag([-1.0, 1.0, 2.0, 1.0])
    >>> AxisMap.from_affine(las).axcodes
    'LAS'
    >>> AxisMap.from_affine(las).flip_zyx
    (False, False, True)
    """

    source_axis_zyx: tuple[int, int, int]
    """Source axis (0, 1, 2 for i, j, k) of each of z, y and x."""
    flip_zyx: tuple[bool, bool, bool]
    """Whether the source axis has the opposite direction, for each of z, y and x."""

    @classmethod
    def from_affine(cls, affine: Matrix4x4) -> Self:
        """Return the map closest to a 4 x 4 affine from voxel ``(i, j, k, 1)`` to RAS+ mm."""
        return cls._of_orientation(_orientation(np.asarray(affine, np.float64).tobytes()))

    @classmethod
    def from_axcodes(cls, axcodes: str) -> Self:
        """Return the map of an array whose axes i, j, k increase toward three anatomical letters.

        Examples
        --------
        >>> AxisMap.from_axcodes("PIR").source_axis_zyx
        (1, 0, 2)
        """
        return cls._of_orientation(_orientations().axcodes2ornt(tuple(axcodes)))

    @classmethod
    def _of_orientation(cls, orientation: npt.NDArray[np.float64]) -> Self:
        """Convert nibabel's orientation array: (world axis, direction) of each source axis."""
        world = [int(axis) for axis in orientation[:, 0]]
        axes = [world.index(axis) for axis in (2, 1, 0)]
        flips = [bool(orientation[axis, 1] < 0) for axis in axes]
        return cls((axes[0], axes[1], axes[2]), (flips[0], flips[1], flips[2]))

    @property
    def axcodes(self) -> str:
        """Directions toward which source axes i, j, k increase, e.g. ``'LPS'``."""
        letters = ["?", "?", "?"]
        for axis, flip, (towards, away) in zip(
            self.source_axis_zyx, self.flip_zyx, (("S", "I"), ("A", "P"), ("R", "L")), strict=True
        ):
            letters[axis] = away if flip else towards
        return "".join(letters)

    def to_zyx(self, array_ijk: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view with axes ``(z, y, x)`` of an array with axes ``(i, j, k)``."""
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in self.flip_zyx)
        return array_ijk.transpose(self.source_axis_zyx)[flips]

    def from_zyx(self, array_zyx: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view with axes ``(i, j, k)`` of an array with axes ``(z, y, x)``."""
        flips = tuple(slice(None, None, -1 if flip else 1) for flip in self.flip_zyx)
        inverse = tuple(self.source_axis_zyx.index(axis) for axis in range(3))
        return array_zyx[flips].transpose(inverse)

    def slab_boxes(self, shape_zyx: ShapeZYX, thickness_zyx: ShapeZYX) -> list[Box]:
        """Cut a volume into slabs across the slowest source axis, in source order.

        Parameters
        ----------
        shape_zyx
            Shape of the stored volume.
        thickness_zyx
            Thickness of a slab, if it were cut across each of the stored axes.

        Returns
        -------
        list of Box
            Boxes of stored voxels. Each begins at a multiple of the thickness.

        Examples
        --------
        >>> boxes = AxisMap.from_axcodes("RAI").slab_boxes((100, 4, 4), (64, 32, 32))
        >>> [(box.start_zyx[0], box.stop_zyx[0]) for box in boxes]
        [(64, 100), (0, 64)]
        """
        axis = self.source_axis_zyx.index(2)
        boxes = []
        for start in range(0, shape_zyx[axis], thickness_zyx[axis]):
            low, high = [0, 0, 0], list(shape_zyx)
            low[axis], high[axis] = start, min(start + thickness_zyx[axis], shape_zyx[axis])
            boxes.append(Box((low[0], low[1], low[2]), (high[0], high[1], high[2])))
        return boxes[::-1] if self.flip_zyx[axis] else boxes

    def shape_zyx(self, shape_ijk: ShapeIJK) -> ShapeZYX:
        """Return a source shape in the order ``(z, y, x)``."""
        z, y, x = (shape_ijk[axis] for axis in self.source_axis_zyx)
        return (z, y, x)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Shape of a source volume, and positions of its voxels.

    An affine maps voxel indices to RAS+ mm, as in nibabel. Its suffix names the order of the
    indices: ``(i, j, k)`` in the file, ``(x, y, z)`` in the store.
    """

    shape_ijk: ShapeIJK
    """Number of voxels along the axes of the file."""
    affine_ijk: Matrix4x4 = field(repr=False)
    """4 x 4 matrix from voxel ``(i, j, k, 1)`` of the file to RAS+ mm."""

    @property
    def axis_map(self) -> AxisMap:
        """Map from the axes of the file to the stored axes."""
        return AxisMap.from_affine(self.affine_ijk)

    @property
    def shape_zyx(self) -> ShapeZYX:
        """Number of voxels along the stored axes."""
        return self.axis_map.shape_zyx(self.shape_ijk)

    @property
    def affine_xyz(self) -> Matrix4x4:
        """4 x 4 matrix from stored voxel ``(x, y, z, 1)`` to RAS+ mm.

        Its columns are in the order of NIfTI:
        ``nibabel.Nifti1Image(image.transpose(2, 1, 0), affine)`` is the stored volume.
        """
        axis_map = self.axis_map
        to_source = np.zeros((4, 4))
        to_source[3, 3] = 1
        for stored, (axis, flip) in enumerate(
            zip(axis_map.source_axis_zyx[::-1], axis_map.flip_zyx[::-1], strict=True)
        ):
            to_source[axis, stored] = -1 if flip else 1
            to_source[axis, 3] = self.shape_ijk[axis] - 1 if flip else 0
        return self.affine_ijk @ to_source

    @property
    def spacing_zyx_mm(self) -> SpacingZYX:
        """Distance in mm between neighboring voxels along the stored axes."""
        x, y, z = np.linalg.norm(self.affine_xyz[:3, :3], axis=0).tolist()
        return (z, y, x)

    def describe(self) -> str:
        """Return shape, directions, spacing and origin as one line for messages."""
        affine = self.affine_ijk
        spacing = " x ".join(f"{s:.4g}" for s in np.linalg.norm(affine[:3, :3], axis=0))
        origin = ", ".join(f"{o:.2f}" for o in affine[:3, 3])
        shape = " x ".join(str(n) for n in self.shape_ijk)
        return f"{shape} voxels, {self.axis_map.axcodes}, {spacing} mm, first voxel at ({origin})"


def affine_rows(affine: Matrix4x4) -> AffineRows:
    """Return the rows of a 4 x 4 matrix as tuples, the form in which records hold it.

    Examples
    --------
    >>> affine_rows(np.eye(4))[1]
    (0.0, 1.0, 0.0, 0.0)
    """
    first, second, third, last = (_row(*row) for row in affine.tolist())
    return first, second, third, last


def _row(a: float, b: float, c: float, d: float) -> AffineRow:
    return a, b, c, d


def max_corner_distance_mm(a: Grid, b: Grid) -> float:
    """Return the largest distance in mm between the same corner of two grids of one shape.

    The corners are compared as stored, ``(z, y, x)``. Two affine grids of one shape coincide
    everywhere if and only if their corners do.
    """
    x, y, z = a.shape_zyx[::-1]
    return corner_distance_mm((x, y, z), a.affine_xyz, b.affine_xyz)


def corner_distance_mm(shape_ijk: ShapeIJK, a: Matrix4x4, b: Matrix4x4) -> float:
    """Return the largest distance in mm between the positions that two affines give to one voxel.

    Parameters
    ----------
    shape_ijk
        Shape of the array.
    a, b
        4 x 4 matrices from voxel ``(i, j, k, 1)`` to mm.

    Examples
    --------
    >>> corner_distance_mm((3, 5, 5), np.eye(4), np.diag([1.5, 1.0, 1.0, 1.0]))
    1.0
    """
    corners = np.array([(*c, 1) for c in product(*((0, n - 1) for n in shape_ijk))], float).T
    return float(np.linalg.norm((a - b)[:3] @ corners, axis=0).max())


def shear_deg(affine: Matrix4x4) -> float:
    """Return the largest deviation of two voxel axes from a right angle, in degrees.

    Examples
    --------
    >>> sheared = np.eye(4)
    >>> sheared[1, 2] = np.tan(np.radians(15))
    >>> round(shear_deg(sheared), 6), round(oblique_angle_deg(sheared), 6)
    (15.0, 7.5)
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    cosine = np.abs(directions.T @ directions - np.eye(3)).max()
    return float(np.degrees(np.arcsin(min(1.0, cosine))))


def oblique_angle_deg(affine: Matrix4x4) -> float:
    """Return the largest angle in degrees between a voxel axis and the nearest world axis.

    The axes of a sheared grid are replaced by the nearest perpendicular ones, which the polar
    decomposition gives. A shear alone therefore counts with half its angle.

    Examples
    --------
    >>> round(oblique_angle_deg(np.diag([-0.7, -0.7, 2.5, 1.0])), 6)
    0.0
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    if shear_deg(affine) > SHEAR_TOLERANCE_DEG:
        left, _, right = np.linalg.svd(directions)
        directions = left @ right
    return float(np.degrees(np.arccos(np.clip(np.abs(directions).max(axis=0), -1, 1))).max())


def axis_positions_mm(
    affine_xyz: Matrix4x4, shape_zyx: ShapeZYX
) -> dict[str, npt.NDArray[np.float64]]:
    """Return the positions in mm of the voxels along the stored axes ``z``, ``y`` and ``x``.

    Each starts at the world position of the first voxel and grows by the voxel spacing. On an
    oblique grid, only the affine gives true positions.

    Examples
    --------
    >>> axis_positions_mm(np.diag([0.5, 0.5, 2.0, 1.0]), (3, 2, 1))["z"]
    array([0., 2., 4.])
    """
    spacing_xyz = np.linalg.norm(affine_xyz[:3, :3], axis=0)
    return {
        axis: affine_xyz[i, 3] + spacing_xyz[i] * np.arange(n)
        for axis, i, n in zip("zyx", (2, 1, 0), shape_zyx, strict=True)
    }
