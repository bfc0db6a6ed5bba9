"""When is a mask value with a rounding error still a label?

Some programs save floats as scaled integers, such as nibabel for a float array with
``set_data_dtype(np.int16)``. This moves a label by up to half a step of the scale: 24 becomes
24.0000004.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import LabelError

__all__ = ["LABEL_TOLERANCE", "Rounding", "round_labels"]

LABEL_TOLERANCE: Final = 1e-3
"""Largest distance from a whole number at which a mask value is rounded.

Labels up to 65 saved as scaled 16-bit integers are off by at most half of 65 / 65535. The values of
interpolated masks are off by far more, and must not be rounded.
"""


@dataclass(slots=True)
class Rounding:
    """Counts the rounded values of a mask."""

    voxels: int = 0
    """Number of rounded voxels."""
    largest: float = 0.0
    """Largest distance by which a value was rounded."""

    def add(self, other: "Rounding") -> None:
        """Add the counts of another part."""
        self.voxels += other.voxels
        self.largest = max(self.largest, other.largest)


def round_labels(values: npt.NDArray[Any], highest: int) -> tuple[npt.NDArray[Any], Rounding]:
    """Round mask values that are close to whole numbers.

    Parameters
    ----------
    values
        Mask values, of any type and shape.
    highest
        Largest allowed label.

    Returns
    -------
    labels
        Whole numbers from 0 to ``highest``, in the type and shape of ``values``.
    rounding
        Count of the rounded values.

    Raises
    ------
    LabelError
        If a value is further than :data:`LABEL_TOLERANCE` from all of these; the message names it.

    Examples
    --------
    >>> labels, rounding = round_labels(np.array([0, 23.9999996, 24.0000004]), 255)
    >>> labels.tolist(), rounding.voxels
    ([0.0, 24.0, 24.0], 2)
    """
    labels = np.clip(np.rint(values), 0, highest)
    with np.errstate(invalid="ignore"):
        distances = np.abs(values.astype(np.float64) - labels)
    # Written as a negation, because every comparison with NaN is false.
    too_far = ~(distances <= LABEL_TOLERANCE)
    if too_far.any():
        raise LabelError(
            f"the mask holds the value {values[too_far].flat[0].item()!r}; labels are whole "
            f"numbers from 0 to {highest}."
        )
    return labels, Rounding(int(np.count_nonzero(distances)), float(distances.max(initial=0.0)))
