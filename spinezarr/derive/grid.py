"""On which grid do the voxels of a derived scan lie?

It is a box of the grid on which streams resample the source: see :mod:`spinezarr.stream.spacing`.
So the voxels of a derived scan are those that a stream with the same spacing reads.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spinezarr.derive.parameters import Derivation
from spinezarr.errors import UsageError
from spinezarr.geometry import Box, Matrix4x4, ShapeZYX, SpacingZYX
from spinezarr.store.attributes import ScanAttributes
from spinezarr.stream.spacing import (
    NATIVE_SPACING,
    Positions,
    StepZYX,
    TargetZYX,
    grid_affine,
    grid_shape_zyx,
    positions_along,
    step_zyx,
)

__all__ = ["DerivedGrid", "box_with_margin"]


@dataclass(frozen=True, slots=True, eq=False)
class DerivedGrid:
    """The grid of a derived scan, and the positions of its voxels in the source."""

    source_shape_zyx: ShapeZYX
    """Shape of the source in voxels."""
    step_zyx: StepZYX
    """Distance of neighboring voxels, in voxels of the source."""
    box: Box
    """Voxels of the resampled source that the derived scan has."""
    affine: Matrix4x4
    """4 x 4 matrix from voxel ``(x, y, z, 1)`` of the derived scan to RAS+ mm."""
    spacing_zyx_mm: SpacingZYX

    @classmethod
    def of(cls, scan: ScanAttributes, derivation: Derivation) -> "DerivedGrid":
        """Return the grid of a scan.

        Parameters
        ----------
        scan
            Attributes of the source.
        derivation
            How it is derived.

        Raises
        ------
        UsageError
            If the scan shall be cropped to its vertebrae and has none.
        """
        step = step_zyx(scan.spacing_zyx_mm, derivation.target_zyx_mm or NATIVE_SPACING)
        box = None
        if derivation.crop is not None:
            box = _spine_box(scan, step, derivation.margin_mm or 0.0)
        return cls.resampled(
            scan.shape_zyx,
            scan.spacing_zyx_mm,
            np.array(scan.affine),
            derivation.target_zyx_mm or NATIVE_SPACING,
            box,
        )

    @classmethod
    def resampled(
        cls,
        shape_zyx: ShapeZYX,
        spacing_zyx_mm: SpacingZYX,
        affine: Matrix4x4,
        target_zyx_mm: TargetZYX,
        box: Box | None = None,
    ) -> "DerivedGrid":
        """Return the grid of a volume that is resampled, or of a part of it.

        Parameters
        ----------
        shape_zyx, spacing_zyx_mm
            Shape of the volume in voxels, and distance between neighboring voxels.
        affine
            4 x 4 matrix from voxel ``(x, y, z, 1)`` of the volume to RAS+ mm.
        target_zyx_mm
            Spacing of the grid in mm; None along an axis for that of the volume.
        box
            Voxels of the resampled volume that are kept; None for all.
        """
        step = step_zyx(spacing_zyx_mm, target_zyx_mm)
        whole = Box((0, 0, 0), grid_shape_zyx(shape_zyx, step))
        box = whole if box is None else box
        if box != whole or step != (1.0, 1.0, 1.0):
            affine = grid_affine(affine, box.start_zyx, step)
        z, y, x = (
            mm if wanted is None or along == 1 else wanted
            for mm, wanted, along in zip(spacing_zyx_mm, target_zyx_mm, step, strict=True)
        )
        return cls(shape_zyx, step, box, affine, (z, y, x))

    @property
    def shape_zyx(self) -> ShapeZYX:
        """Shape of the derived scan in voxels."""
        return self.box.shape_zyx

    @property
    def start_zyx(self) -> tuple[float, float, float]:
        """Position of the first voxel, in voxels of the source."""
        z, y, x = (
            float(start * step)
            for start, step in zip(self.box.start_zyx, self.step_zyx, strict=True)
        )
        return (z, y, x)

    def positions_zyx(self, planes: range) -> list[Positions]:
        """Return the positions of some planes along z, in voxels of the source."""
        start, stop = list(self.box.start_zyx), list(self.box.stop_zyx)
        start[0], stop[0] = start[0] + planes.start, start[0] + planes.stop
        axes = zip(start, stop, self.step_zyx, self.source_shape_zyx, strict=True)
        return [positions_along(*axis) for axis in axes]

    def contains(self, position_zyx_mm: Sequence[float]) -> bool:
        """Whether a position in RAS+ mm, ``(z, y, x)``, lies in a voxel of the derived scan."""
        z, y, x = self.index_of(position_zyx_mm)
        inside = zip((z, y, x), self.shape_zyx, strict=True)
        return all(-0.5 <= index <= n - 0.5 for index, n in inside)  # noqa: PLR2004  half a voxel

    def index_of(self, position_zyx_mm: Sequence[float]) -> tuple[float, float, float]:
        """Return the voxel index ``(z, y, x)`` of a position in RAS+ mm, ``(z, y, x)``."""
        point = np.array([*position_zyx_mm[::-1], 1.0])
        x, y, z = np.linalg.solve(self.affine, point)[:3].tolist()
        return (z, y, x)


def _spine_box(scan: ScanAttributes, step: StepZYX, margin_mm: float) -> Box:
    """Return the box of the grid around all vertebrae and a margin."""
    vertebrae = scan.vertebrae.values()
    if not vertebrae:
        lack = "it has no mask" if scan.label_state == "none" else "its mask shows no vertebra"
        raise UsageError(
            f"{lack}, so there is no spine to crop to. Choose other scans, or leave out --crop."
        )
    z, y, x = np.min([vertebra.start_zyx for vertebra in vertebrae], axis=0).tolist()
    stop_z, stop_y, stop_x = np.max([v.stop_zyx for v in vertebrae], axis=0).tolist()
    spine = Box((z, y, x), (stop_z, stop_y, stop_x))
    shape = grid_shape_zyx(scan.shape_zyx, step)
    return box_with_margin(spine, margin_mm, scan.spacing_zyx_mm, shape, step)


def box_with_margin(
    box: Box,
    margin_mm: float,
    spacing_zyx_mm: SpacingZYX,
    shape_zyx: ShapeZYX,
    step: StepZYX = (1.0, 1.0, 1.0),
) -> Box:
    """Return the part of a grid around a box of voxels and a margin.

    It is rounded outward, so that no part of the box is lost between two voxels of the grid.

    Parameters
    ----------
    box
        The box, in voxels of the volume.
    margin_mm
        Margin on each side in mm.
    spacing_zyx_mm
        Distance between neighboring voxels of the volume.
    shape_zyx
        Shape of the grid, beyond which no margin reaches.
    step
        Distance of neighboring voxels of the grid, in voxels of the volume.

    Examples
    --------
    >>> box_with_margin(Box((4, 4, 0), (6, 6, 6)), 3.0, (2.0, 1.0, 1.0), (10, 10, 6))
    Box(start_zyx=(2, 1, 0), stop_zyx=(8, 9, 6))
    """
    start, stop = [0, 0, 0], [0, 0, 0]
    for axis, n in enumerate(shape_zyx):
        margin = margin_mm / spacing_zyx_mm[axis]
        low, high = box.start_zyx[axis] - margin, box.stop_zyx[axis] - 1 + margin
        start[axis] = min(max(math.floor(low / step[axis]), 0), n - 1)
        stop[axis] = min(max(math.ceil(high / step[axis]) + 1, start[axis] + 1), n)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
