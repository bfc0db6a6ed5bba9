"""Which sizes and shapes do vertebrae have?

Each vertebra is a union of a few solids in its own frame.

The local frame of a vertebra is ``(u, v, w)`` in millimeters from the center of its body: u to the
patient's right, v anterior, w toward the head along the spine.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.vertebrae import ANATOMICAL_ORDER

__all__ = ["CORTICAL_HU", "Body", "Capsule", "Solid", "VertebraSize", "size_of", "solids_of"]

Array = npt.NDArray[np.float32]
Vector = tuple[float, float, float]

CORTICAL_HU: Final = 800.0
"""Value in HU of the dense shell of a vertebra, which the blur of a clinical scan lowers."""
_SPONGY_HU: Final = 240.0
_ARCH_HU: Final = 380.0
"""Value in HU inside the arch, which is mostly shell and so is denser than the body."""

_KEY_LEVELS: Final = (
    "C1",
    "C3",
    "C7",
    "T1",
    "T6",
    "T12",
    "L1",
    "L3",
    "L5",
    "L6",
    "sacrum",
    "coccyx",
)
# Round figures for an adult, in mm (slope: drop per length); only their plausibility matters.
_TABLE: Final[dict[str, tuple[float, ...]]] = {
    "width": (17, 18, 23, 27, 30, 38, 41, 45, 50, 50, 52, 18),
    "depth": (13, 15, 17, 18, 26, 30, 32, 34, 35, 35, 30, 10),
    "height": (13, 13, 14, 16, 20, 25, 27, 28, 28, 28, 90, 30),
    "disc": (4, 5, 5, 4, 4.5, 7, 8.5, 10.5, 10.5, 10.5, 3, 0),
    "canal_u": (13, 12, 11.5, 10, 8.5, 10, 11, 11.5, 12.5, 12.5, 8, 2),
    "canal_v": (9, 8, 8, 8, 8, 8.5, 9, 9, 9, 9, 5, 2),
    "transverse": (34, 26, 31, 37, 32, 27, 38, 46, 46, 46, 0, 0),
    "spinous": (5, 13, 30, 31, 32, 23, 28, 30, 21, 21, 0, 0),
    "spinous_slope": (0.2, 0.5, 0.5, 0.6, 1.15, 0.45, 0.25, 0.2, 0.25, 0.25, 0, 0),
    "spinous_w": (3.5, 4, 5, 6, 6.5, 8.5, 10, 10.5, 7.5, 7.5, 0, 0),
    "pedicle_u": (2.8, 2.8, 3.2, 3.6, 2.8, 4, 4, 5, 8, 8, 0, 0),
    "pedicle_w": (3.4, 3.4, 3.6, 4.5, 5.5, 8, 8, 7.5, 7.5, 7.5, 0, 0),
}


@dataclass(frozen=True, slots=True)
class VertebraSize:
    """Measures of one level, in millimeters at natural scale."""

    width: float
    """Width of the body, left to right."""
    depth: float
    """Depth of the body, front to back."""
    height: float
    """Height of the body."""
    disc: float
    """Height of the disc below."""
    canal_u: float
    """Half the width of the canal."""
    canal_v: float
    """Half the depth of the canal."""
    transverse: float
    """Distance from the midline to the tip of a transverse process; 0 for none."""
    spinous: float
    """Distance from the arch to the tip of the spinous process."""
    spinous_slope: float
    """Descent of the spinous process per length."""
    spinous_w: float
    """Half the height of the spinous process."""
    pedicle_u: float
    """Half the width of a pedicle."""
    pedicle_w: float
    """Half the height of a pedicle."""

    @property
    def canal_center_v(self) -> float:
        """Position of the middle of the canal along v; negative, because it is behind the body."""
        return -(0.42 * self.depth + self.canal_v)


@cache
def size_of(name: str) -> VertebraSize:
    """Interpolate the measures of a level between the tabulated ones.

    Examples
    --------
    >>> size_of("C3").width < size_of("T13").width < size_of("L6").width
    True
    """
    position = ANATOMICAL_ORDER.index(name)
    key_positions = [ANATOMICAL_ORDER.index(key) for key in _KEY_LEVELS]
    return VertebraSize(
        **{k: float(np.interp(position, key_positions, row)) for k, row in _TABLE.items()}
    )


@dataclass(frozen=True, slots=True)
class Capsule:
    """A rod between two points whose thickness differs along u, v and w."""

    start: Vector
    """Center of one end."""
    stop: Vector
    """Center of the other end."""
    radius: Vector
    """Half the thickness along u, v and w."""
    clear_canal: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Half width, half depth and v of the canal, which the rod leaves free; zeros for no canal."""
    inside_hu: float = _ARCH_HU
    """Hounsfield units of the spongy inside."""

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Return the corners of the box that holds the solid."""
        low = tuple(min(a, b) - r for a, b, r in self._rows)
        high = tuple(max(a, b) + r for a, b, r in self._rows)
        return (low[0], low[1], low[2]), (high[0], high[1], high[2])

    @property
    def _rows(self) -> tuple[Vector, ...]:
        return tuple(zip(self.start, self.stop, self.radius, strict=True))

    def grown(self, min_radius: Vector) -> "Capsule":
        """Return the rod with radii of at least ``min_radius``, so that coarse voxels show it."""
        u, v, w = (max(r, m) for r, m in zip(self.radius, min_radius, strict=True))
        return Capsule(self.start, self.stop, (u, v, w), self.clear_canal, self.inside_hu)

    def depth(self, u: Array, v: Array, w: Array) -> Array:
        """Return the depth below the surface, roughly in millimeters; it is negative outside."""
        local = [(c - a) * (1 / r) for c, (a, _, r) in zip((u, v, w), self._rows, strict=True)]
        along = [(b - a) / r for a, b, r in self._rows]
        length2 = max(sum(d * d for d in along), 1e-6)
        projected = sum(c * d for c, d in zip(local, along, strict=True))
        t = np.clip(projected / length2, 0, 1)
        squared = sum(c * c for c in local) + t * (t * length2 - 2 * projected)
        inside = (1 - np.sqrt(np.maximum(squared, 0))) * min(self.radius)
        cu, cv, center = self.clear_canal
        if cu > 0:
            canal = np.sqrt((u / cu) ** 2 + ((v - center) / cv) ** 2) - 1
            inside = np.minimum(inside, canal * min(cu, cv))
        return np.asarray(inside, np.float32)


@dataclass(frozen=True, slots=True)
class Body:
    """A vertebral body: a waisted drum with a flat back and hollow endplates; it may taper."""

    width: float
    """Width at the endplates, left to right."""
    depth_v: float
    """Depth at the endplates, front to back."""
    height: float
    """Height along the spine."""
    taper: float = 0.0
    """Fraction of the width that is lost from the top to the bottom (sacrum, coccyx)."""
    inside_hu: float = _SPONGY_HU
    """Hounsfield units of the spongy inside."""

    @property
    def bounds(self) -> tuple[Vector, Vector]:
        """Return the corners of the box that holds the solid."""
        u, v, w = self.width / 2, self.depth_v / 2, self.height / 2
        return (-u, -v, -w), (u, v, w)

    def grown(self, min_radius: Vector) -> "Body":
        """Return the drum with at least ``min_radius`` as half of each size."""
        u, v, w = (2 * m for m in min_radius)
        width, depth, height = max(self.width, u), max(self.depth_v, v), max(self.height, w)
        return Body(width, depth, height, self.taper, self.inside_hu)

    def depth(self, u: Array, v: Array, w: Array) -> Array:
        """Return the depth below the surface, roughly in millimeters; it is negative outside."""
        a, b, c = self.width / 2, self.depth_v / 2, self.height / 2
        level = np.clip(w / c, -1, 1)
        girth = 0.88 + 0.12 * level**2
        if self.taper:
            girth = girth * (1 - self.taper * (1 - level) / 2)
        r2 = ((u / a) ** 2 + (v / b) ** 2) / girth**2
        side = (1 - np.sqrt(r2)) * min(a, b)
        back = v + b * 0.84
        hollow = 0.07 * self.height * np.clip(1 - 1.3 * r2, 0, None)
        cap = c - min(1.0, 30 / self.height) * hollow - np.abs(w)
        return np.asarray(np.minimum(np.minimum(side, back), cap), np.float32)


Solid = Capsule | Body


@cache
def solids_of(name: str) -> tuple[Solid, ...]:
    """Return the solids whose union is one vertebra, the body first."""
    size = size_of(name)
    if name in {"sacrum", "coccyx"}:
        body = Body(size.width, size.depth, size.height, taper=0.55)
        if name == "coccyx":
            return (body,)
        alae = tuple(
            Capsule((side * 16, -4, 30), (side * 32, -10, -4), (13, 13, 20), inside_hu=_SPONGY_HU)
            for side in (-1, 1)
        )
        return (body, *alae)
    solids: list[Solid] = [Body(size.width, size.depth, size.height), _spinous(size)]
    for side in (-1, 1):
        solids += _half_arch(size, side)
    return tuple(solids)


def _spinous(size: VertebraSize) -> Capsule:
    """Return the spinous process: a plate that slopes down from the arch to the tip."""
    back = size.canal_center_v - size.canal_v - 3
    tip = back - size.spinous + 3
    drop = size.spinous_slope * size.spinous
    top = -0.18 * size.height
    radius = (2.6 + size.spinous_w / 10, min(size.spinous_w, 6), size.spinous_w)
    return Capsule((0, back, top), (0, tip, top - drop), radius)


def _half_arch(size: VertebraSize, side: int) -> list[Solid]:
    """Return the pedicle, lamina, joint processes and transverse process of one side."""
    height, middle = size.height, size.canal_center_v
    canal = (size.canal_u, size.canal_v, middle)
    pedicle_center_u = size.canal_u + size.pedicle_u
    back = middle - size.canal_v - 1.5
    thickness = 1.6 + size.pedicle_w / 4
    # A cervical canal is wider than the body: its pedicles start at the body and go outward.
    root = min(pedicle_center_u, 0.4 * size.width + size.pedicle_u)
    pedicle = Capsule(
        (side * root, -0.3 * size.depth, 0.17 * height),
        (side * pedicle_center_u, middle - 0.35 * size.canal_v, 0.13 * height),
        (size.pedicle_u, size.pedicle_u + 1, size.pedicle_w),
        canal,
    )
    lamina = Capsule(
        (side * pedicle_center_u, middle - 0.4 * size.canal_v, 0.02 * height),
        (0, back - 0.5, -0.2 * height),
        (thickness + 0.6, thickness, 0.3 * height),
        canal,
    )
    joint = (0.8 * thickness + 1.2, 0.8 * thickness + 0.4, 0.16 * height)
    upper = Capsule(
        (side * (pedicle_center_u + 1.5), middle - 0.6 * size.canal_v, 0),
        (side * (pedicle_center_u + 2.5), middle - 0.55 * size.canal_v, 0.55 * height),
        joint,
        canal,
    )
    lower = Capsule(
        (side * pedicle_center_u, middle - 0.8 * size.canal_v, 0),
        (side * (pedicle_center_u - 0.5), back - 1.2, -0.72 * height),
        joint,
        canal,
    )
    reach = size.transverse - 3
    transverse = Capsule(
        (side * pedicle_center_u, middle - 0.2 * size.canal_v, 0.1 * height),
        (side * reach, middle - 0.2 * size.canal_v - 0.2 * reach, 0.12 * height),
        (3, 2.6 + size.pedicle_w / 8, 2.2 + size.pedicle_w / 3),
        canal,
    )
    return [pedicle, lamina, upper, lower, transverse]
