"""Which figures does VerSe's benchmark give a predicted mask?

The rules are those of the benchmark [1]_ and of its public code [2]_:

- A vertebra that both masks name is identified if its own true centroid is the nearest of the true
  centroids to the predicted one, and at most 20 mm away. The candidates are the vertebrae that both
  masks name. The identification rate is the share of the true vertebrae that are identified.
- The mean localization distance is that between true and predicted centroids of the same name.
- Dice is the mean over the true vertebrae. A missing vertebra counts as 0.
- The Hausdorff distance is the mean over the vertebrae that both masks name.

Distances of a missing vertebra are undefined, so it is left out of their means. That is why VerSe
2020 ranked by identification rate and Dice alone [2]_. Invented vertebrae change no figure.

Two things differ here. VerSe resampled both masks to 1 mm, and its centroids were annotated; here,
the voxels are those of the scan, and a centroid is the mean position of a label.

References
----------
.. [1] Sekuboyina et al., "VerSe: A vertebrae labelling and segmentation benchmark",
   https://doi.org/10.1016/j.media.2021.102166
.. [2] https://github.com/anjany/verse at 02b292b, ``utils/eval_utilities.py`` and
   ``utils/evaluate.ipynb``; the same rule in words: https://verse2019.grand-challenge.org/Tasks/
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["IDENTIFICATION_MM", "VerseMeasures", "identified_levels", "mean"]

IDENTIFICATION_MM: Final = 20.0
"""Largest distance of the centroids of an identified vertebra [2]_."""

Point = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class VerseMeasures:
    """VerSe's measures of one scan. A measure is None if no vertebra defines it."""

    identification_rate: float | None
    mean_localization_distance_mm: float | None
    dice: float | None
    hausdorff_mm: float | None


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are defined; None if there is none.

    Examples
    --------
    >>> mean([1.0, None, 3.0]), mean([None])
    (2.0, None)
    """
    defined = [value for value in values if value is not None]
    return float(np.mean(defined)) if defined else None


def identified_levels(
    truth_mm: Mapping[str, Point], prediction_mm: Mapping[str, Point]
) -> Collection[str]:
    """Return the names of the vertebrae that are identified by VerSe's rule.

    Parameters
    ----------
    truth_mm, prediction_mm
        Centroid (x, y, z) of each vertebra in mm, by its true name.

    Examples
    --------
    T12 lies 12 mm too low, next to the true L1, which is 21 mm away from the predicted L1.

    >>> truth = {"T12": np.array([0, 0, 25.0]), "L1": np.array([0, 0, 0.0])}
    >>> prediction = {"T12": np.array([0, 0, 12.0]), "L1": np.array([0, 0, -21.0])}
    >>> identified_levels(truth, prediction)
    set()
    >>> sorted(identified_levels(truth, truth))
    ['L1', 'T12']
    """
    # For equal distances, the rule takes the lower label value.
    names = sorted(truth_mm.keys() & prediction_mm.keys(), key=VALUE_OF_NAME.__getitem__)
    if not names:
        return set()
    true_points = np.array([truth_mm[name] for name in names])
    identified = set()
    for own, name in enumerate(names):
        distances_mm = np.linalg.norm(true_points - prediction_mm[name], axis=1)
        if distances_mm.argmin() == own and distances_mm[own] <= IDENTIFICATION_MM:
            identified.add(name)
    return identified
