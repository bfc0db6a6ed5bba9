"""How are values distributed, in bins with round widths?"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Histogram"]

_STEPS: Final = (0.05, 0.1, 0.2, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0)
"""Allowed widths of bins."""
_MAX_BINS: Final = 24
_ROUNDING: Final = 1e-6
"""Tolerance in bins. A value on the edge of two bins belongs to the upper one despite rounding."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of values in bins of equal width."""

    edges: tuple[float, ...]
    """Edges of the bins, one more than there are bins; empty without values."""
    counts: tuple[int, ...]
    """Number of values in each bin, which includes its lower edge and excludes its upper one."""

    @classmethod
    def of(cls, values: npt.NDArray[np.float64]) -> "Histogram":
        """Count positive values in at most 24 bins with edges at multiples of their width.

        Examples
        --------
        >>> Histogram.of(np.array([0.7, 0.7, 0.75, 0.82]))
        Histogram(edges=(0.7, 0.75, 0.8, 0.85), counts=(2, 1, 1))
        """
        if not values.size:
            return cls((), ())
        largest = float(values.max())
        steps = (step for step in _STEPS if _n_bins(values, step) <= _MAX_BINS)
        step = next(steps, largest)
        bins = np.floor(values / step + _ROUNDING).astype(np.int64)
        first = int(bins.min())
        counts = np.bincount(bins - first)
        edges = [round((first + bin_number) * step, 9) for bin_number in range(counts.size + 1)]
        return cls(tuple(edges), tuple(counts.tolist()))


def _n_bins(values: npt.NDArray[np.float64], step: float) -> float:
    first, last = np.floor(np.array([values.min(), values.max()]) / step + _ROUNDING)
    return float(last - first + 1)
