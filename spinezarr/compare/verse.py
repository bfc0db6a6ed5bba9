"""Which figures does VerSe's benchmark give a predicted mask?

The rules come from the public code of the benchmark [2]_ where it has one, otherwise from the paper
[1]_ or the pages of the challenge [3]_:

Identification rate
    Code: ``get_hits`` takes the vertebrae that both sides name as candidates. A vertebra is
    identified if its own true centroid is the nearest of the true centroids of the candidates to
    the predicted one, and at most 20 mm away. (Page and docstring say less than 20 mm; exactly
    20 mm is a hit in the code.) Of equal distances, the lowest label value wins. The notebook
    divides the hits by the true vertebrae of one scan. So a missing vertebra counts as not
    identified, and an invented one changes nothing. (The notebook rescales centroids by a mask that
    it has resampled to 1 mm before, so they stay in voxels of the file. Here they are in mm.)
Mean localization distance
    No code: the notebook says that there is no script for it, because it is not valid for missed
    vertebrae, and that VerSe 2020 did not use it. Page: the distance of each predicted centroid
    from the true one of the same name. A missing vertebra has no distance; it is left out here, as
    in the paper.
Dice
    Code: ``compute_dice`` compares two binary masks, and the notebook gives it all vertebrae as one
    mask, so that names do not count; two empty masks have 1. The paper defines the mean over the
    true vertebrae, which is used here. A missing vertebra has 0, and a mask without true vertebrae
    has no value.
Hausdorff distance
    No code, as for the mean localization distance. Paper: the largest distance between the surfaces
    of a vertebra, not a percentile; the mean over vertebrae. It is in mm, because masks were
    resampled to 1 mm. A missing vertebra is left out.

Means over scans are means of the values of the scans, as in the paper. The page of 2019 defines
identification rate and localization distance over all vertebrae of the test set instead.

Two things differ here. VerSe resampled both masks to 1 mm [2]_, and its centroids were annotated;
here, the voxels are those of the scan, and a centroid is the mean position of a label.

References
----------
.. [1] Sekuboyina et al., "VerSe: A vertebrae labelling and segmentation benchmark",
   https://doi.org/10.1016/j.media.2021.102166
.. [2] https://github.com/anjany/verse at 02b292b, ``utils/eval_utilities.py`` and
   ``utils/evaluate.ipynb``
.. [3] https://verse2019.grand-challenge.org/Tasks/
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
