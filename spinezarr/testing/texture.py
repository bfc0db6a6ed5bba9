"""Makes smooth random fields and scanner noise from a seed, one slice at a time."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import ShapeZYX, SpacingZYX

__all__ = ["SmoothField", "correlated_noise", "soften"]

Image = npt.NDArray[np.float32]

_NOISE_TAP = np.float32(0.22)
"""Neighbor weight that gives a lag-1 correlation of 0.40.

Quiet patches of the LIDC-IDRI files have 0.15 to 0.66.
"""

_SPLINE_VARIANCE = 0.479
"""Mean of the summed squares of the four cubic B-spline weights."""


@dataclass(frozen=True, slots=True, eq=False)
class _Taps:
    """The four neighboring knots of each sample of an axis, with their cubic B-spline weights."""

    first: npt.NDArray[np.intp]
    """Index of the first knot."""
    weights: Image
    """Weights, 4 x samples."""

    @classmethod
    def make(cls, n: int, step: float) -> Self:
        """Place ``n`` samples at distances of ``step`` knots."""
        position = np.arange(n) * step
        first = position.astype(np.intp)
        t = position - first
        rows = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        return cls(first, (np.stack(rows) / 6).astype(np.float32))

    @property
    def knots(self) -> int:
        """Number of knots that the samples need."""
        return int(self.first[-1]) + 4


@dataclass(frozen=True, slots=True, eq=False)
class SmoothField:
    """A random field of zero mean and unit variance, smooth over some millimeters.

    The field is a cubic B-spline of random coefficients. It is evaluated without matrix products,
    because those of BLAS start threads, which cost more than they gain here.
    """

    coefficients: Image
    """One normal number per knot, with axes (z, y, x)."""
    taps_zyx: tuple[_Taps, _Taps, _Taps]
    """Knots and weights of the samples along each axis."""

    @classmethod
    def make(
        cls, rng: np.random.Generator, shape_zyx: ShapeZYX, spacing: SpacingZYX, knot_mm: float
    ) -> Self:
        """Draw a field over a grid, with knots ``knot_mm`` apart."""
        z, y, x = (_Taps.make(n, s / knot_mm) for n, s in zip(shape_zyx, spacing, strict=True))
        scale = np.float32(_SPLINE_VARIANCE**-1.5)
        knots = (z.knots, y.knots, x.knots)
        return cls(rng.standard_normal(knots, dtype=np.float32) * scale, (z, y, x))

    def slice(self, index: int) -> Image:
        """Evaluate the field on one slice of constant z."""
        z, y, x = self.taps_zyx
        start = z.first[index]
        knots = self.coefficients[start : start + 4]
        plane = sum(w * layer for w, layer in zip(z.weights[:, index], knots, strict=True))
        resampled_x = np.zeros((y.knots, x.first.size), np.float32)
        for tap, weight in enumerate(x.weights):
            resampled_x += np.take(plane, x.first + tap, axis=1) * weight
        out = np.zeros((y.first.size, x.first.size), np.float32)
        for tap, weight in enumerate(y.weights):
            rows = np.take(resampled_x, y.first + tap, axis=0)
            rows *= weight[:, None]
            out += rows
        return out


def soften(image: Image, tap: np.float32) -> Image:
    """Filter with ``(tap, 1, tap)`` along both axes; the edge is repeated.

    The sum of the filter's weights is not 1, but ``(1 + 2 * tap) ** 2``.
    """
    padded = np.pad(image, 1, mode="edge")
    rows = padded[:-2] + padded[2:]
    rows *= tap
    rows += padded[1:-1]
    out = rows[:, :-2] + rows[:, 2:]
    out *= tap
    out += rows[:, 1:-1]
    return out


def correlated_noise(rng: np.random.Generator, shape_yx: tuple[int, int]) -> Image:
    """Draw a slice of noise of unit variance, correlated as a reconstruction kernel does it."""
    white = rng.standard_normal(shape_yx, dtype=np.float32)
    white *= 1 / (1 + 2 * _NOISE_TAP**2)
    return soften(white, _NOISE_TAP)
