"""Draws the surroundings of the spine: skin, fat, muscle, organs, ribs, table and air."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import ShapeZYX, SpacingZYX
from spinezarr.testing.anatomy import size_of
from spinezarr.testing.spine import Spine
from spinezarr.testing.texture import SmoothField
from spinezarr.vertebrae import ANATOMICAL_ORDER

__all__ = ["SoftTissue"]

Image = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

# Textbook magnitudes of Hounsfield units.
_AIR, _LUNG, _FAT, _MUSCLE, _LIVER, _BLOOD, _KIDNEY = -1000, -850, -100, 55, 100, 140, 130
_RIB, _MARROW = 620, 200
_FOAM, _CARBON = -930, -280

_SKIN_MM: Final = 1.8
# Thresholds on a field of unit variance for organ (60 % of it), gas (rare) and lung vessel (rare).
_ORGAN_LEVEL, _GAS_LEVEL, _VESSEL_LEVEL = -0.25, 1.75, 2.1
_GAS_AHEAD: Final = 0.3
"""Smallest distance of gas from the spine toward the front, as a fraction of 120 mm."""
_RIB_CORE: Final = 0.4
"""Squared radius of the marrow, as a fraction of the rib's squared radius."""

_KEY_LEVELS: Final = ("C1", "C4", "C7", "T2", "T5", "T9", "T12", "L3", "L5", "sacrum")
# Half width of the body, and distances in mm from the middle of the spine to the skin.
_HALF_WIDTH: Final = (72, 62, 120, 172, 172, 162, 156, 152, 168, 175)
_FRONT: Final = (95, 62, 78, 95, 128, 142, 138, 130, 125, 115)
_BEHIND: Final = (95, 72, 84, 88, 94, 98, 97, 95, 96, 98)
_FAT_MM: Final = (5, 5, 7, 10, 12, 14, 17, 20, 22, 25)
_WALL_MM: Final = (6, 6, 9, 16, 14, 9, 9, 10, 14, 20)


def _order(name: str) -> int:
    return ANATOMICAL_ORDER.index(name)


@dataclass(frozen=True, slots=True)
class _Section:
    """Measures of one slice, in mm at the size of this patient."""

    level: float
    """Position in the anatomical order."""
    spine_y: float
    spine_x: float
    scale: float
    half_width: float
    half_depth: float
    middle_y: float
    fat: float
    wall: float


@dataclass(frozen=True, slots=True, eq=False)
class SoftTissue:
    """The tissue around the spine, which is drawn slice by slice."""

    spine: Spine
    """The spine, which determines the position of each region of the trunk."""
    y: Image
    """Position of each pixel toward anterior in mm, warped so that no outline is an ellipse."""
    x: Image
    """Position of each pixel toward the right in mm, warped like ``y``."""
    warp: Image
    """A smooth field of unit variance, which roughens straight borders."""
    table: Image
    """Value in HU of each pixel outside the patient."""
    organs: SmoothField
    """Shapes of bowel and organs."""
    gas: SmoothField
    """Field that decides where the bowel holds gas."""
    grain: SmoothField
    """Fine texture: vessels, muscle fibers, spongy bone."""
    ribs: bool
    """Whether thoracic levels carry ribs."""

    @classmethod
    def make(
        cls,
        rng: np.random.Generator,
        spine: Spine,
        shape_zyx: ShapeZYX,
        spacing: SpacingZYX,
        *,
        ribs: bool,
    ) -> "SoftTissue":
        """Draw the random shapes of a patient."""
        plane_shape = (1, *shape_zyx[1:])
        y, x = (
            ((np.arange(n, dtype=np.float32) + 0.5 - n / 2) * step).astype(np.float32)
            for n, step in zip(shape_zyx[1:], spacing[1:], strict=True)
        )
        table = _table(y[:, None], x[None, :], spine)
        scale = spine.scale_xy
        warp = [SmoothField.make(rng, plane_shape, spacing, 45 * scale).slice(0) for _ in range(2)]
        grid = [c + np.float32(2.5 * scale) * w for c, w in zip((y[:, None], x), warp, strict=True)]
        organs, gas, grain = (
            SmoothField.make(rng, shape_zyx, spacing, knot * scale) for knot in (14, 19, 4.5)
        )
        return cls(spine, grid[0], grid[1], warp[0], table, organs, gas, grain, ribs)

    def slice(self, index: int, z_mm: float) -> Image:
        """Draw one slice in Hounsfield units, without the spine."""
        s = self._section(z_mm)
        grain = self.grain.slice(index)
        depth = _depth(self.y - s.middle_y, self.x, s.half_depth, s.half_width)
        hu = np.where(depth > 0, np.float32(_FAT), self.table)
        hu[(depth > 0) & (depth < _SKIN_MM)] = _MUSCLE
        hu[depth > s.fat] = _MUSCLE
        inner = depth > s.fat + s.wall
        self._viscera(hu, inner, s, index)
        self._vessels(hu, s)
        self._back(hu, s)
        self._chest(hu, inner, s, grain)
        if self.ribs:
            self._ribs(hu, depth, s, z_mm)
        hu += np.where(hu > _FAT - 100, 11 * grain, 0)
        return hu

    def _section(self, z_mm: float) -> _Section:
        scale, level = self.spine.scale_xy, self.spine.level_at(z_mm)
        keys = [_order(name) for name in _KEY_LEVELS]
        width, front, behind, fat, wall = (
            float(np.interp(level, keys, row)) * scale
            for row in (_HALF_WIDTH, _FRONT, _BEHIND, _FAT_MM, _WALL_MM)
        )
        spine_y, spine_x = self.spine.center_at(z_mm)
        middle_y = _mean_y(self.spine) * 0.7 + spine_y * 0.3 + (front - behind) / 2
        half_depth = (front + behind) / 2
        return _Section(level, spine_y, spine_x, scale, width, half_depth, middle_y, fat, wall)

    def _ellipse(
        self, s: _Section, right: float, front: float, half_width: float, half_depth: float
    ) -> Mask:
        """Return the pixels of an ellipse, whose position from the spine is in natural mm."""
        u = (self.x - (s.spine_x + right * s.scale)) * np.float32(1 / (half_width * s.scale))
        v = (self.y - (s.spine_y + front * s.scale)) * np.float32(1 / (half_depth * s.scale))
        return np.asarray(u * u + v * v < 1)

    def _viscera(self, hu: Image, inner: Mask, s: _Section, index: int) -> None:
        """Draw the abdomen: bowel in fat, gas in its front part, liver, spleen and kidneys."""
        if s.level < _order("T9"):
            return
        organ = self.organs.slice(index)
        hu[inner] = np.where(organ[inner] > _ORGAN_LEVEL, 42 + 6 * organ[inner], _FAT)
        forward = (self.y - s.spine_y) * np.float32(1 / (120 * s.scale))
        gas = inner & (forward > _GAS_AHEAD) & (self.gas.slice(index) + forward > _GAS_LEVEL)
        hu[gas] = -980
        dome = _bump(s.level, _order("T12") + 0.4, 3.1)
        if dome > 0:
            hu[inner & self._ellipse(s, 68, 58, 92 * dome, 82 * dome)] = _LIVER
            hu[inner & self._ellipse(s, -112, 12, 40 * dome, 52 * dome)] = _LIVER + 10
        kidney = _bump(s.level, _order("L1") + 0.6, 2.0)
        if kidney > 0:
            for side in (-1, 1):
                hu[self._ellipse(s, side * 74, 2, 40 * kidney, 38 * kidney)] = _FAT
                hu[self._ellipse(s, side * 74, 0, 29 * kidney, 27 * kidney)] = _KIDNEY
                hu[self._ellipse(s, side * 66, 3, 11 * kidney, 9 * kidney)] = 10

    def _vessels(self, hu: Image, s: _Section) -> None:
        """Draw aorta and vena cava in front of the spine, psoas beside it, trachea in the neck."""
        ahead = 17 + 10 * min(1.0, max(0.0, (s.level - 6) / 14))
        if _order("T4") < s.level < _order("L5"):
            hu[self._ellipse(s, -12, ahead, 12, 12)] = _BLOOD
            hu[self._ellipse(s, 16, ahead + 1, 11, 9)] = _BLOOD - 20
        psoas = _bump(s.level, _order("L5"), 5.4)
        if psoas > 0:
            for side in (-1, 1):
                hu[self._ellipse(s, side * (32 + 8 * psoas), 0, 19 * psoas, 25 * psoas)] = _MUSCLE
        if s.level < _order("T4"):
            hu[self._ellipse(s, 0, 28, 13, 14)] = 70
            hu[self._ellipse(s, 0, 27, 8, 9)] = _AIR

    def _back(self, hu: Image, s: _Section) -> None:
        """Draw muscles on both sides of the spinous processes, with fat between them."""
        half_width = 30 if s.level > _order("C7") else 20
        hu[self._ellipse(s, 0, -40, half_width + 14, 26)] = _FAT + 10
        for side in (-1, 1):
            hu[self._ellipse(s, side * (half_width - 6), -48, half_width - 6, 22)] = _MUSCLE
        hu[self._ellipse(s, 0, -26, 22, 20)] = _MUSCLE - 10

    def _chest(self, hu: Image, inner: Mask, s: _Section, grain: Image) -> None:
        """Draw lungs with vessels above the domes of the diaphragm, and the heart between them."""
        if not _order("C7") < s.level < _order("T13"):
            return
        chest = np.zeros(hu.shape, bool)
        for side in (-1, 1):
            u = (self.x - (s.spine_x + side * 78 * s.scale)) * np.float32(1 / (88 * s.scale))
            v = (self.y - (s.spine_y + 28 * s.scale)) * np.float32(1 / (110 * s.scale))
            r2 = u * u + v * v
            base = _order("T12") + 0.2 - (3.0 if side > 0 else 2.4) * np.clip(1 - r2, 0, 1)
            apex = 0.45 * (s.level - _order("C7"))
            chest |= (s.level < base) & (r2 < apex) & (self.x * side > s.spine_x * side)
        chest &= inner & ~self._ellipse(s, 0, -34, 42, 32)
        chest &= np.abs(self.x - s.spine_x) > (20 + 5 * self.warp) * np.float32(s.scale)
        heart = _bump(s.level, _order("T8") + 0.3, 3.4)
        if heart > 0:
            chest &= ~self._ellipse(s, -16, 72, 58 * heart, 46 * heart)
        hu[chest] = _LUNG + 30 * grain[chest]
        hu[chest & (grain > _VESSEL_LEVEL)] = 20

    def _ribs(self, hu: Image, depth: Image, s: _Section, z_mm: float) -> None:
        """Draw the ribs: arcs along the chest wall that descend toward the front."""
        ring = np.flatnonzero(
            (np.abs(depth - s.fat - s.wall * 0.7) < 5.5 * s.scale)
            & (np.abs(self.x - s.spine_x) > 26 * s.scale)
        )
        if not ring.size:
            return
        ahead = (self.y.ravel()[ring] - s.spine_y) + 30 * s.scale
        across = depth.ravel()[ring] - s.fat - s.wall * 0.7
        for z_rib, scale_z in self._rib_heights():
            drop = z_mm - z_rib + (0.55 * scale_z / s.scale) * ahead
            r2 = (across / (4.2 * s.scale)) ** 2 + (drop / (6.5 * scale_z)) ** 2
            hit = (r2 < 1) & (ahead < 150 * s.scale)
            hu.ravel()[ring[hit]] = np.where(r2[hit] > _RIB_CORE, _RIB, _MARROW)

    def _rib_heights(self) -> Iterator[tuple[float, float]]:
        for placed in self.spine.vertebrae:
            if placed.name.startswith("T"):
                yield placed.center_zyx_mm[0], placed.scale_z


def _mean_y(spine: Spine) -> float:
    return float(np.mean([placed.center_zyx_mm[1] for placed in spine.vertebrae]))


def _bump(level: float, center: float, half_length: float) -> float:
    """Return the radius of a unit ball along the spine, cut at ``level``."""
    return float(np.sqrt(max(0.0, 1 - ((level - center) / half_length) ** 2)))


def _depth(y: Image, x: Image, half_y: float, half_x: float) -> Image:
    """Return the depth below the outline of a rounded box, roughly in mm."""
    v, u = (y / half_y) ** 2, (x / half_x) ** 2
    rho4 = v * v + u * u + np.float32(1.2) * u * v
    return np.asarray((1 - np.sqrt(np.sqrt(rho4))) * min(half_y, half_x), np.float32)


def _table(y: Image, x: Image, spine: Spine) -> Image:
    """Draw the air and the table, a curved shell of carbon fiber around foam."""
    scale = spine.scale_xy
    lowest = _mean_y(spine) * 0.7 + 0.3 * min(p.center_zyx_mm[1] for p in spine.vertebrae)
    behind = max(
        np.interp(_order(p.name), [_order(k) for k in _KEY_LEVELS], _BEHIND)
        for p in spine.vertebrae
    )
    below = (lowest - behind * scale - 6 * scale + x**2 / (1400 * scale)) - y
    in_table_width = np.abs(x) < 215 * size_of("L3").width / 45 * scale
    table = np.full(below.shape, _AIR, np.float32)
    thickness = np.where(in_table_width, 24 * scale, 0)
    table[(below > 0) & (below < thickness)] = _FOAM
    shell = (np.abs(below - 1.5 * scale) < 1.5 * scale) | (np.abs(below - thickness) < 1.5 * scale)
    table[shell & in_table_width] = _CARBON
    return table
