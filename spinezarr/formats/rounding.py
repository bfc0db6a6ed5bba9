"""Labels that a file holds with a rounding error, as whole numbers again.

Programs that save floats as scaled integers, such as nibabel for a float array with
``set_data_dtype(np.int16)``, move a label by up to half a step of the scale: 24 comes back as
24.0000004.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import LabelError

__all__ = ["LABEL_TOLERANCE", "Rounding", "round_labels"]

LABEL_TOLERANCE: Final = 1e-3
"""Distance from a whole number up to which a mask value is rounded.

Labels up to 65 saved as scaled 16-bit integers are off by at most half of 65 / 65535. Interpolated
masks, in which values in between mean something else, are off by far more.
"""


@dataclass(slots=True)
class Rounding:
    """How many values of a mask were rounded, and how far."""

    voxels: int = 0
    largest: float = 0.0

    def add(self, other: "Rounding") -> None:
        """Count the values of another part, too."""
        self.voxels += other.voxels
        self.largest = max(self.largest, other.largest)


def round_labels(values: npt.NDArray[Any], highest: int) -> tuple[npt.NDArray[Any], Rounding]:
    """Round mask values that are close to whole numbers.

    Parameters
    ----------
    values
        Of any type and shape.
    highest
        The largest label.

    Returns
    -------
    labels
        Whole numbers from 0 to ``highest``, in the type of ``values``.
    rounding
        What was rounded.

    Raises
    ------
    LabelError
        If a value is further than :data:`LABEL_TOLERANCE` from all of these; names it.

    Examples
    --------
    >>> labels, rounding = round_labels(np.array([0, 23.9999996, 24.0000004]), 255)
    >>> labels.tolist(), rounding.voxels
    ([0.0, 24.0, 24.0], 2)
    """
    labels = np.clip(np.rint(values), 0, highest)
    with np.errstate(invalid="ignore"):
        off = np.abs(values.astype(np.float64) - labels)
    # NaN is within no distance.
    wrong = ~(off <= LABEL_TOLERANCE)
    if wrong.any():
        raise LabelError(
            f"the mask holds the value {values[wrong].flat[0].item()!r}; labels are whole numbers "
            f"from 0 to {highest}."
        )
    return labels, Rounding(int(np.count_nonzero(off)), float(off.max(initial=0.0)))
