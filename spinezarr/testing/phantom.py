"""Draws a phantom CT of a curved spine, with its vertebra mask, from a seed.

The phantom is made for tests, demos and benchmarks, which need no real scan then. Every voxel of
the mask is known to be right. The noise compresses about as badly as that of real CT.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX, SpacingZYX
from spinezarr.testing.soft_tissue import SoftTissue
from spinezarr.testing.spine import (
    Patch,
    Spine,
    fit_spine,
    render_canal,
    render_disc,
    render_vertebra,
)
from spinezarr.testing.texture import correlated_noise, soften
from spinezarr.vertebrae import ANATOMICAL_ORDER, VALUE_OF_NAME

__all__ = ["Phantom", "PhantomSpec", "make_phantom", "usual_levels"]

_SCANNER_MIN_HU: Final = -1024
"""Smallest value that scanners store inside the field of view."""
_SCANNER_MAX_HU: Final = 3071
"""Largest 12-bit value at the usual intercept of -1024."""
_NOT_DRAWN: Final = np.int16(-32768)
"""Marks voxels where no part of the spine is drawn."""
_BLUR_TAP: Final = np.float32(0.28)
"""Neighbor weight of the blur that imitates the point spread function of a scanner."""
_GRAIN_HU: Final = np.float32(22)
"""Standard deviation of spongy bone about its mean."""
_BONE_DRAWN_HU: Final = 200
"""Drawn values above this are bone; discs and the canal are below."""
_MIN_BONE_HU: Final = np.float32(130)
"""Smallest value of bone, also where the blur mixes it with the air of lungs or bowel."""
_CACHED_PHANTOMS: Final = 64
"""Number of small phantoms in the cache."""
_SMALL_VOXELS: Final = 1 << 18
"""Largest number of voxels of a phantom in the cache; the whole cache takes at most 50 MB."""
_MIN_VOXELS: Final = 8
"""Fewest voxels along an axis that can show a vertebra."""


def usual_levels(first: str, last: str) -> tuple[str, ...]:
    """Return the usual levels from ``first`` to ``last``, without T13 and L6.

    Examples
    --------
    >>> usual_levels("T12", "L2")
    ('T12', 'L1', 'L2')
    """
    usual = [name for name in ANATOMICAL_ORDER if name not in {"T13", "L6"}]
    return tuple(usual[usual.index(first) : usual.index(last) + 1])


@dataclass(frozen=True, slots=True)
class PhantomSpec:
    """Specification of a phantom; equal specifications give equal bytes.

    Examples
    --------
    >>> PhantomSpec(levels=("T11", "T13", "L1")).labeled
    ('T11', 'T13', 'L1')
    >>> PhantomSpec(levels=("L1", "T12"))
    Traceback (most recent call last):
    ...
    spinezarr.errors.UsageError: levels must run from head to tail, each once; got L1, T12
    """

    seed: int = 0
    """Seed of everything that is random."""
    shape_zyx: ShapeZYX = (160, 192, 192)
    """Number of voxels along each axis."""
    spacing_zyx_mm: SpacingZYX = (2.0, 1.8, 1.8)
    """Distance between neighboring voxels along each axis."""
    levels: tuple[str, ...] = ("T9", "T10", "T11", "T12", "L1", "L2", "L3", "L4", "L5")
    """Vertebrae from head to tail, which fill the volume along z.

    A level that is left out is missing in the patient. T13 and L6 are additional levels.
    """
    unlabeled: tuple[str, ...] = ()
    """Vertebrae that are drawn but not in the mask."""
    cut_share: float = 0.35
    """Fraction of the first and last body outside the volume; 0 shows all levels completely."""
    label_cut_ends: bool = True
    """Whether vertebrae that the volume cuts are in the mask, as in CTSpine1K but not in VerSe."""
    padding_hu: int | None = -1024
    """Value outside the circular field of view; None if the field of view is the whole slice."""
    noise_hu: float = 34.0
    """Standard deviation of the noise in the middle of the body; 0 for none."""
    ribs: bool = True
    """Whether thoracic levels carry ribs, which are never in the mask."""

    def __post_init__(self) -> None:
        self._check_grid()
        self._check_levels()
        if not 0 <= self.cut_share <= 0.5:  # noqa: PLR2004 - half a body
            raise UsageError(f"cut_share must be from 0 to 0.5, got {self.cut_share}")
        if not 0 <= self.noise_hu <= 500:  # noqa: PLR2004 - more noise would hide bone
            raise UsageError(f"noise_hu must be from 0 to 500, got {self.noise_hu}")
        if self.padding_hu is not None and not _NOT_DRAWN < self.padding_hu <= _SCANNER_MAX_HU:
            raise UsageError(f"padding_hu must fit int16, e.g. -1024; got {self.padding_hu}")

    def _check_grid(self) -> None:
        if min(self.shape_zyx) < _MIN_VOXELS:
            raise UsageError(
                f"shape_zyx must be three sizes of at least {_MIN_VOXELS}, got {self.shape_zyx}"
            )
        spacing = self.spacing_zyx_mm
        if not all(0 < s < np.inf for s in spacing):
            raise UsageError(f"spacing_zyx_mm must be three positive lengths, got {spacing}")

    def _check_levels(self) -> None:
        unknown = sorted({*self.levels, *self.unlabeled} - set(ANATOMICAL_ORDER))
        if unknown:
            raise UsageError(
                f"no vertebra is named {', '.join(unknown)}; known: {', '.join(ANATOMICAL_ORDER)}"
            )
        order = [ANATOMICAL_ORDER.index(name) for name in self.levels]
        if order != sorted(set(order)):
            raise UsageError(
                f"levels must run from head to tail, each once; got {', '.join(self.levels)}"
            )
        if len(self.levels) < 2:  # noqa: PLR2004 - one level makes no curve
            raise UsageError(f"levels must name at least two vertebrae, got {self.levels}")
        absent = [name for name in self.unlabeled if name not in self.levels]
        if absent:
            raise UsageError(f"unlabeled names {', '.join(absent)}, absent from levels")

    @property
    def labeled(self) -> tuple[str, ...]:
        """Levels that are drawn in the mask if no cut level is left out."""
        return tuple(name for name in self.levels if name not in self.unlabeled)


@dataclass(frozen=True, slots=True, eq=False)
class Phantom:
    """A drawn phantom; its axes (z, y, x) increase toward superior, anterior and right."""

    spec: PhantomSpec
    """Spec that the phantom was drawn from."""
    image: npt.NDArray[np.int16] = field(repr=False)
    """Values in Hounsfield units, with axes (z, y, x)."""
    label: npt.NDArray[np.uint8] = field(repr=False)
    """Mask (z, y, x) of 0 and keys of :data:`spinezarr.vertebrae.NAME_OF_VALUE`."""
    affine_xyz: npt.NDArray[np.float64] = field(repr=False)
    """4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm."""
    cut: tuple[str, ...]
    """Levels that the volume cuts, whether or not they are in the mask."""
    labeled: tuple[str, ...]
    """Levels in the mask, from head to tail."""
    centers_mm: dict[str, tuple[float, float, float]] = field(repr=False)
    """Middle (x, y, z) in RAS+ mm of the body of each level in the mask, from head to tail.

    S1 and S2 are present if the sacrum is. The middles of cut levels may lie outside the volume.
    """


def make_phantom(spec: PhantomSpec) -> Phantom:
    """Draw a phantom.

    Each vertebra that is not cut is one 26-connected piece of the mask. No mask voxel lies outside
    the field of view. The arrays belong to the caller. Small phantoms are drawn once in a process,
    because tests write the same phantoms to many folders.

    Examples
    --------
    >>> spec = PhantomSpec(shape_zyx=(40, 32, 32), spacing_zyx_mm=(4.0, 5.0, 5.0))
    >>> phantom = make_phantom(spec)
    >>> phantom.image.dtype.name, phantom.label.dtype.name, phantom.cut
    ('int16', 'uint8', ('T9', 'L5'))
    """
    if prod(spec.shape_zyx) > _SMALL_VOXELS:
        return _draw(spec)
    cached = _draw_once(spec)
    return replace(
        cached,
        image=cached.image.copy(),
        label=cached.label.copy(),
        affine_xyz=cached.affine_xyz.copy(),
        centers_mm=dict(cached.centers_mm),
    )


@lru_cache(_CACHED_PHANTOMS)
def _draw_once(spec: PhantomSpec) -> Phantom:
    return _draw(spec)


def _draw(spec: PhantomSpec) -> Phantom:
    shape, spacing = spec.shape_zyx, spec.spacing_zyx_mm
    position_rng, tissue_rng, noise_rng = (
        np.random.default_rng([spec.seed, stream]) for stream in range(3)
    )
    height, depth, width = (n * s for n, s in zip(shape, spacing, strict=True))
    margin = max(0.03, 1.5 / shape[0])  # solids grow by up to a voxel
    spine = fit_spine(position_rng, spec.levels, (height, depth, width), spec.cut_share, margin)
    image = np.full(shape, _NOT_DRAWN, np.int16)
    label = np.zeros(shape, np.uint8)
    in_view = _field_of_view(spec)
    cut = tuple(_draw_spine(spec, spine, in_view, image, label))
    soft = SoftTissue.make(tissue_rng, spine, shape, spacing, ribs=spec.ribs)
    _draw_slices(spec, soft, in_view, noise_rng, image)
    drawn = set(np.unique(label).tolist())
    labeled = tuple(name for name in spec.labeled if VALUE_OF_NAME[name] in drawn)
    affine_xyz = _affine(position_rng, shape, spacing)
    return Phantom(
        spec=spec,
        image=image,
        label=label,
        affine_xyz=affine_xyz,
        cut=cut,
        labeled=labeled,
        centers_mm=_centers(spine, labeled, shape, affine_xyz),
    )


def _centers(
    spine: Spine,
    labeled: tuple[str, ...],
    shape_zyx: ShapeZYX,
    affine_xyz: npt.NDArray[np.float64],
) -> dict[str, tuple[float, float, float]]:
    """Return the middles (x, y, z) of the bodies in RAS+ mm."""
    spacing_zyx_mm = np.diag(affine_xyz)[2::-1]
    shift = np.array([0, shape_zyx[1] / 2, shape_zyx[2] / 2]) - 0.5
    centers = {}
    for placed in spine.vertebrae:
        if placed.name in labeled:
            for name, center_zyx_mm in placed.body_centers_zyx_mm.items():
                index_xyz = (center_zyx_mm / spacing_zyx_mm + shift)[::-1]
                x, y, z = (affine_xyz[:3] @ [*index_xyz, 1]).tolist()
                centers[name] = (x, y, z)
    return centers


def _affine(
    rng: np.random.Generator, shape: ShapeZYX, spacing: SpacingZYX
) -> npt.NDArray[np.float64]:
    """Place the patient near the middle of the gantry, at a random position of the table."""
    dz, dy, dx = spacing
    jitter_x, jitter_y, bottom = rng.uniform((-15, -40, -900), (15, 10, -300))
    origin = (jitter_x - shape[2] * dx / 2, jitter_y - shape[1] * dy / 2, bottom)
    affine = np.diag([dx, dy, dz, 1.0])
    affine[:3, 3] = np.round(origin, 2)
    return affine


def _field_of_view(spec: PhantomSpec) -> npt.NDArray[np.bool_]:
    """Return the pixels within the circle that touches the far sides of a slice."""
    _, ny, nx = spec.shape_zyx
    if spec.padding_hu is None:
        return np.ones((ny, nx), bool)
    _, dy, dx = spec.spacing_zyx_mm
    y, x = ((np.arange(n) + 0.5 - n / 2) * s for n, s in ((ny, dy), (nx, dx)))
    return np.asarray(np.hypot(y[:, None], x) <= max(ny * dy, nx * dx) / 2)


def _draw_spine(
    spec: PhantomSpec,
    spine: Spine,
    in_view: npt.NDArray[np.bool_],
    image: npt.NDArray[np.int16],
    label: npt.NDArray[np.uint8],
) -> Iterator[str]:
    """Draw canal, discs and vertebrae, and yield the levels that the volume cuts."""
    for soft in _soft_patches(spec, spine):
        image[soft.box.slices][soft.inside] = soft.hu[soft.inside]
    occupied = np.zeros(spec.shape_zyx, bool)
    for placed in spine.vertebrae:
        patch = render_vertebra(placed, spec.shape_zyx, spec.spacing_zyx_mm)
        if patch is None:
            continue
        box_slices = patch.box.slices
        inside = patch.inside & ~occupied[box_slices] & in_view[box_slices[1:]]
        if touches_end(inside, patch.box, spec.shape_zyx):
            yield placed.name
            is_labeled = spec.label_cut_ends
        else:
            inside = connected_part(inside, patch.deepest)
            is_labeled = True
        occupied[box_slices] |= inside
        image[box_slices][inside] = patch.hu[inside]
        if is_labeled and placed.name not in spec.unlabeled:
            label[box_slices][inside] = VALUE_OF_NAME[placed.name]


def _soft_patches(spec: PhantomSpec, spine: Spine) -> Iterator[Patch]:
    """Yield the contents of the canal, then the discs."""
    for draw in (render_canal, render_disc):
        for above, below in zip(spine.vertebrae, spine.vertebrae[1:], strict=False):
            patch = draw(above, below, spec.shape_zyx, spec.spacing_zyx_mm)
            if patch is not None:
                yield patch


def touches_end(mask: npt.NDArray[np.bool_], box: Box, shape_zyx: ShapeZYX) -> bool:
    """Return whether the mask in a box reaches the first or last slice of the volume."""
    bottom = box.start_zyx[0] == 0 and bool(mask[0].any())
    return bottom or (box.stop_zyx[0] == shape_zyx[0] and bool(mask[-1].any()))


def connected_part(
    mask: npt.NDArray[np.bool_], start: tuple[int, int, int]
) -> npt.NDArray[np.bool_]:
    """Keep the voxels that are 26-connected to ``start``.

    Examples
    --------
    >>> connected_part(np.array([[[1, 1, 0, 1]]], bool), (0, 0, 0)).astype(int).tolist()
    [[[1, 1, 0, 0]]]
    """
    padded = np.pad(mask, 1)
    remaining = padded.ravel()
    _, ny, nx = padded.shape
    steps = np.add.outer(
        np.add.outer(np.arange(-1, 2) * ny * nx, np.arange(-1, 2) * nx), [-1, 0, 1]
    )
    first = int(np.ravel_multi_index([i + 1 for i in start], padded.shape))
    frontier = np.array([first]) if remaining[first] else np.empty(0, np.intp)
    reached = np.zeros_like(remaining)
    while frontier.size:
        reached[frontier] = True
        remaining[frontier] = False
        neighbors = (frontier[:, None] + steps.ravel()).ravel()
        frontier = np.unique(neighbors[remaining[neighbors]])
    return reached.reshape(padded.shape)[1:-1, 1:-1, 1:-1]


def _draw_slices(
    spec: PhantomSpec,
    soft: SoftTissue,
    in_view: npt.NDArray[np.bool_],
    rng: np.random.Generator,
    image: npt.NDArray[np.int16],
) -> None:
    """Put soft tissue around the spine, blur, add noise and pad, one slice at a time."""
    strength = _noise_strength(spec)
    for index, plane in enumerate(image):
        hu = soft.slice(index, (index + 0.5) * spec.spacing_zyx_mm[0])
        spine = plane != _NOT_DRAWN
        hu[spine] = plane[spine] + _GRAIN_HU * soft.grain.slice(index)[spine]
        hu = soften(hu, _BLUR_TAP)
        hu *= 1 / (1 + 2 * _BLUR_TAP) ** 2
        np.maximum(hu, _MIN_BONE_HU, out=hu, where=plane > _BONE_DRAWN_HU)
        if spec.noise_hu:
            hu += correlated_noise(rng, hu.shape) * strength
        np.clip(np.rint(hu), _SCANNER_MIN_HU, _SCANNER_MAX_HU, out=hu)
        if spec.padding_hu is not None:
            hu[~in_view] = spec.padding_hu
        plane[:] = hu


def _noise_strength(spec: PhantomSpec) -> npt.NDArray[np.float32]:
    """Return the standard deviation by pixel: fewer photons reach the middle of the body."""
    _, ny, nx = spec.shape_zyx
    _, dy, dx = spec.spacing_zyx_mm
    y, x = ((np.arange(n) + 0.5 - n / 2) * s for n, s in ((ny, dy), (nx, dx)))
    r2 = (y[:, None] / 150) ** 2 + (x / 190) ** 2
    return np.asarray(spec.noise_hu * (0.72 + 0.28 * np.exp(-r2)), np.float32)
