"""Places each vertebra of a phantom, and draws its voxels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, ShapeZYX, SpacingZYX
from spinezarr.testing.anatomy import (
    CORTICAL_HU,
    Body,
    Capsule,
    Solid,
    VertebraSize,
    size_of,
    solids_of,
)
from spinezarr.vertebrae import ANATOMICAL_ORDER

__all__ = [
    "Patch",
    "PlacedVertebra",
    "Spine",
    "fit_spine",
    "render_canal",
    "render_disc",
    "render_vertebra",
]

_DISC_HU = 95.0
_CANAL_HU = 15.0
_SHELL_MM = 1.5

# Lean of the head end toward the front, in degrees: lordosis, kyphosis, lordosis, sacral slope.
_LEAN_KEYS = ("C1", "C4", "C7", "T1", "T4", "T8", "T12", "L1", "L3", "L4", "L5", "sacrum", "coccyx")
_LEAN_DEG = (-10.0, 0.0, 17.0, 21.0, 14.0, 0.0, -10.0, -9.0, 2.0, 10.0, 22.0, 42.0, 20.0)

_LARGEST_SCALE = 1.15
"""Largest factor on the width of vertebrae; taller volumes stretch them along z only."""
_SPAN_MM = 110.0
"""Width in mm that a vertebra needs in the axial plane at natural scale, with a margin."""
_SACRAL_SEGMENTS = 5
_SWAY = 0.18
"""Fraction of the volume's depth that the curve of the spine may take up."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Values of one structure inside a box of voxels."""

    box: Box
    """Position in the volume."""
    inside: npt.NDArray[np.bool_]
    """Whether each voxel (z, y, x) of the box belongs to the structure."""
    hu: npt.NDArray[np.float32]
    """Value of each voxel (z, y, x) in HU; only those inside count."""
    deepest: tuple[int, int, int]
    """Index (z, y, x) in the box of the voxel farthest below the surface."""


@dataclass(frozen=True, slots=True)
class PlacedVertebra:
    """One level with its position, tilt and scale.

    Positions are in mm: z from the bottom of the volume, y and x from its middle.
    """

    name: str
    """Level, e.g. ``"L1"``."""
    center_zyx_mm: tuple[float, float, float]
    """Middle of the body."""
    pitch: float
    """Lean of the head end toward the front, in radians."""
    roll: float
    """Lean of the head end toward the right, in radians."""
    scale_z: float
    """Factor on heights."""
    scale_xy: float
    """Factor on widths and depths."""

    @property
    def size(self) -> VertebraSize:
        """Measures at natural scale."""
        return size_of(self.name)

    @property
    def body_centers_zyx_mm(self) -> dict[str, npt.NDArray[np.float64]]:
        """Middle of the body; the sacrum also has the middles of its segments S1 and S2."""
        center = np.array(self.center_zyx_mm)
        if self.name != "sacrum":
            return {self.name: center}
        along_w = self.axes[2] * self.scale_z * self.size.height / _SACRAL_SEGMENTS
        return {"S1": center + 2 * along_w, "S2": center + along_w, "sacrum": center}

    @property
    def axes(self) -> npt.NDArray[np.float64]:
        """Unit vectors (z, y, x) of the axes u, v and w, one per row."""
        sp, cp, sr, cr = (f(a) for a in (self.pitch, self.roll) for f in (np.sin, np.cos))
        return np.array([[-cp * sr, -sp * sr, cr], [-sp, cp, 0], [cp * cr, sp * cr, sr]])

    def corners_mm(self, solid: Solid) -> npt.NDArray[np.float64]:
        """Return the positions (z, y, x) in mm of the eight corners of a solid's box, 8 x 3."""
        scale = (self.scale_xy, self.scale_xy, self.scale_z)
        local = np.array(list(product(*zip(*solid.bounds, strict=True)))) * scale
        corners: npt.NDArray[np.float64] = local @ self.axes + np.array(self.center_zyx_mm)
        return corners


@dataclass(frozen=True, slots=True)
class Spine:
    """All vertebrae of a phantom from head to tail."""

    vertebrae: tuple[PlacedVertebra, ...]
    """Vertebrae from head to tail."""

    @property
    def scale_xy(self) -> float:
        """Factor on widths and depths, the same for the whole patient."""
        return self.vertebrae[0].scale_xy

    def level_at(self, z_mm: float) -> float:
        """Return the position in :data:`~spinezarr.vertebrae.ANATOMICAL_ORDER`, with fractions."""
        z = [v.center_zyx_mm[0] for v in reversed(self.vertebrae)]
        order = [float(ANATOMICAL_ORDER.index(v.name)) for v in reversed(self.vertebrae)]
        return float(np.interp(z_mm, z, order))

    def center_at(self, z_mm: float) -> tuple[float, float]:
        """Return the position (y, x) in mm of the line through the bodies."""
        z, y, x = zip(*(v.center_zyx_mm for v in reversed(self.vertebrae)), strict=True)
        return float(np.interp(z_mm, z, y)), float(np.interp(z_mm, z, x))


def fit_spine(
    rng: np.random.Generator,
    levels: Sequence[str],
    extent_zyx_mm: tuple[float, float, float],
    cut_share: float,
    margin_share: float,
) -> Spine:
    """Stack the levels along a curve and scale them to a volume of ``extent_zyx_mm``.

    If ``cut_share`` is above 0, that fraction of the first and last body lies outside the volume.
    Otherwise a fraction of ``margin_share`` of the volume stays empty at each end.
    """
    height, depth, width = extent_zyx_mm
    sway_deg, phase = rng.uniform(1.0, 3.5), rng.uniform(0, 2 * np.pi)
    roll = np.radians(sway_deg) * np.sin(phase + 0.5 * np.arange(len(levels)))
    draft = _stack(levels, _leans(levels), roll)
    bottom, top = _reach(draft, cut_share, margin_share)
    sway = np.ptp([v.center_zyx_mm[1] for v in draft]) * height / (top - bottom)
    straighten = min(1.0, _SWAY * depth / max(sway, 1e-6))
    draft = _stack(levels, _leans(levels) * straighten, roll)
    bottom, top = _reach(draft, cut_share, margin_share)
    scale_z = height / (top - bottom)
    scale_xy = min(scale_z, _LARGEST_SCALE, width / _SPAN_MM, depth / _SPAN_MM)
    centers = np.array([v.center_zyx_mm for v in draft])
    centers[:, 0] = (centers[:, 0] - bottom) * scale_z
    centers[:, 1:] *= scale_z
    centers[:, 1:] -= (centers[:, 1:].max(axis=0) + centers[:, 1:].min(axis=0)) / 2
    centers[:, 1] += max(-32 * scale_xy, -0.45 * depth + _SWAY * depth / 2 + 72 * scale_xy)
    return Spine(
        tuple(
            PlacedVertebra(v.name, (z, y, x), v.pitch, v.roll, scale_z, scale_xy)
            for v, (z, y, x) in zip(draft, centers.tolist(), strict=True)
        )
    )


def _leans(levels: Sequence[str]) -> npt.NDArray[np.float64]:
    key_positions = [ANATOMICAL_ORDER.index(key) for key in _LEAN_KEYS]
    positions = [ANATOMICAL_ORDER.index(name) for name in levels]
    return np.radians(np.interp(positions, key_positions, _LEAN_DEG))


def _stack(
    levels: Sequence[str], pitch: npt.NDArray[np.float64], roll: npt.NDArray[np.float64]
) -> list[PlacedVertebra]:
    """Place the levels below one another at natural scale, with the first at the origin."""
    sizes = [size_of(name) for name in levels]
    centers = [np.zeros(3)]
    for i, (above, below) in enumerate(pairwise(sizes)):
        step = above.height / 2 + above.disc + below.height / 2
        share = above.height / (above.height + below.height)
        lean = pitch[i] * share + pitch[i + 1] * (1 - share)
        tilt = (roll[i] + roll[i + 1]) / 2
        up = np.array([np.cos(lean) * np.cos(tilt), np.sin(lean) * np.cos(tilt), np.sin(tilt)])
        centers.append(centers[-1] - step * up)
    return [
        PlacedVertebra(name, (float(z), float(y), float(x)), float(p), float(r), 1.0, 1.0)
        for name, (z, y, x), p, r in zip(levels, centers, pitch, roll, strict=True)
    ]


def _reach(
    vertebrae: Sequence[PlacedVertebra], cut_share: float, margin_share: float
) -> tuple[float, float]:
    """Return the lowest and highest z that the volume shows."""
    if cut_share > 0:
        first, last = vertebrae[0], vertebrae[-1]
        top = first.center_zyx_mm[0] + (0.5 - cut_share) * first.size.height
        return last.center_zyx_mm[0] - (0.5 - cut_share) * last.size.height, top
    # A later factor below 1 may reduce widths. Heights are linear in it, so both ends are checked.
    frames = [replace(v, scale_xy=factor) for v in vertebrae for factor in (0.0, 1.0)]
    z = [v.corners_mm(solid)[:, 0] for v in frames for solid in solids_of(v.name)]
    low, high = float(np.min(z)), float(np.max(z))
    margin = margin_share * (high - low)
    return low - margin, high + margin


def render_vertebra(
    placed: PlacedVertebra, shape_zyx: ShapeZYX, spacing: SpacingZYX
) -> Patch | None:
    """Return the voxels of a vertebra, or None if it lies outside the volume."""
    return _render(placed, solids_of(placed.name), shape_zyx, spacing, cortex=True)


def render_disc(
    above: PlacedVertebra, below: PlacedVertebra, shape_zyx: ShapeZYX, spacing: SpacingZYX
) -> Patch | None:
    """Return the voxels of the disc between two vertebrae."""
    height = above.size.disc + 0.25 * above.size.height
    body = Body(1.02 * above.size.width, 1.02 * above.size.depth, height, inside_hu=_DISC_HU)
    return _render(_between(above, below), [body], shape_zyx, spacing, cortex=False)


def render_canal(
    above: PlacedVertebra, below: PlacedVertebra, shape_zyx: ShapeZYX, spacing: SpacingZYX
) -> Patch | None:
    """Return the voxels of the canal from the middle of one vertebra to that of the next."""
    size = above.size
    half_height = 0.5 * (size.height + size.disc)
    v = size.canal_center_v
    radius = (size.canal_u, size.canal_v, 3.0)
    tube = Capsule((0, v, -half_height), (0, v, half_height), radius, inside_hu=_CANAL_HU)
    return _render(_between(above, below), [tube], shape_zyx, spacing, cortex=False)


def _between(above: PlacedVertebra, below: PlacedVertebra) -> PlacedVertebra:
    """Return the frame of the disc between two vertebrae."""
    a, b = (np.array(v.center_zyx_mm) for v in (above, below))
    share = above.size.height / (above.size.height + below.size.height)
    z, y, x = (a + (b - a) * share).tolist()
    pitch, roll = (above.pitch + below.pitch) / 2, (above.roll + below.roll) / 2
    return PlacedVertebra(above.name, (z, y, x), pitch, roll, above.scale_z, above.scale_xy)


def _render(
    placed: PlacedVertebra,
    solids: Sequence[Solid],
    shape_zyx: ShapeZYX,
    spacing: SpacingZYX,
    *,
    cortex: bool,
) -> Patch | None:
    """Return the voxels of the union of solids, each of which is drawn inside a small box."""
    dz, dy, dx = spacing
    voxel = (dx / placed.scale_xy, dy / placed.scale_xy, dz / placed.scale_z)
    grown_solids = [
        solid.grown((0.6 * voxel[0], 0.6 * voxel[1], 0.6 * voxel[2])) for solid in solids
    ]
    boxes = [_box_of(placed.corners_mm(solid), shape_zyx, spacing) for solid in grown_solids]
    visible = [
        (solid, box) for solid, box in zip(grown_solids, boxes, strict=True) if box is not None
    ]
    if not visible:
        return None
    hull = _hull(box for _, box in visible)
    depth = np.full(hull.shape_zyx, -1e3, np.float32)
    inside_hu = np.zeros(hull.shape_zyx, np.float32)
    z0, y0, x0 = hull.start_zyx
    for solid, box in visible:
        part = box.shift((-z0, -y0, -x0)).slices
        d = solid.depth(*_local(placed, box, shape_zyx, spacing))
        np.copyto(inside_hu[part], np.float32(solid.inside_hu), where=d > depth[part])
        np.maximum(depth[part], d, out=depth[part])
    if cortex:
        rim = max(_SHELL_MM, 0.6 * float(np.cbrt(np.prod(voxel))))
        shell_hu = CORTICAL_HU * float(np.clip(2.5 * _SHELL_MM / max(voxel), 0.5, 1))
        cortical = np.clip(1.35 - depth / rim, 0, 1)
        inside_hu += cortical * (shell_hu - inside_hu)
    z, y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return Patch(hull, depth > 0, inside_hu, (int(z), int(y), int(x)))


def _box_of(
    corners: npt.NDArray[np.float64], shape_zyx: ShapeZYX, spacing: SpacingZYX
) -> Box | None:
    """Return the part in the volume of the box of voxels that corners span, or None."""
    low, high = corners.min(axis=0), corners.max(axis=0)
    shift = np.array([0.0, shape_zyx[1] / 2, shape_zyx[2] / 2])
    start = np.floor(low / spacing + shift).astype(int).tolist()
    stop = (np.ceil(high / spacing + shift).astype(int) + 1).tolist()
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    return box.intersect(Box((0, 0, 0), shape_zyx))


def _hull(boxes: Iterator[Box]) -> Box:
    """Return the smallest box that holds all boxes."""
    starts, stops = zip(*((box.start_zyx, box.stop_zyx) for box in boxes), strict=True)
    low, high = np.min(starts, axis=0).tolist(), np.max(stops, axis=0).tolist()
    return Box((low[0], low[1], low[2]), (high[0], high[1], high[2]))


def _local(
    placed: PlacedVertebra, box: Box, shape_zyx: ShapeZYX, spacing: SpacingZYX
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the coordinates u, v, w of the voxels of a box, broadcastable to its shape."""
    middle = (0.0, shape_zyx[1] / 2, shape_zyx[2] / 2)
    z, y, x = np.ix_(
        *(
            ((np.arange(a, b) + 0.5 - m) * step - c).astype(np.float32)
            for a, b, m, step, c in zip(
                box.start_zyx, box.stop_zyx, middle, spacing, placed.center_zyx_mm, strict=True
            )
        )
    )
    (uz, uy, ux), (vz, vy, _), (wz, wy, wx) = placed.axes.astype(np.float32)
    a, b = np.float32(1 / placed.scale_xy), np.float32(1 / placed.scale_z)
    u = (z * uz + y * uy) * a + x * (ux * a)
    v = (z * vz + y * vy) * a
    w = (z * wz + y * wy) * b + x * (wx * b)
    return u, v, w
