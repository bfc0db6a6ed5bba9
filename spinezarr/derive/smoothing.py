"""How is an image filtered before it is sampled more coarsely, so that fine detail is not aliased?

The filter is a Gaussian. It widens the point spread function of the source to that of the target,
if both are taken as Gaussians that are as wide as a voxel at half maximum [1]_. With a step of
``k`` voxels, its variance is ``(k**2 - 1) / (8 ln 2)`` voxels squared.

References
----------
.. [1] Cardoso et al., "Scale factor point spread function matching: beyond aliasing in image
   resampling", MICCAI 2015, https://doi.org/10.1007/978-3-319-24571-3_81
"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["filter_radius", "filter_sigma", "smooth_axis"]

_TRUNCATE: Final = 4.0
"""Standard deviations after which the weights are cut off, as in ``scipy.ndimage``."""


def filter_sigma(step: float) -> float:
    """Return the standard deviation in voxels of the source; 0 if nothing can be aliased.

    Examples
    --------
    >>> filter_sigma(0.5), round(filter_sigma(2.0), 4)
    (0.0, 0.7355)
    """
    return math.sqrt((step * step - 1) / (8 * math.log(2))) if step > 1 else 0.0


def filter_radius(sigma: float) -> int:
    """Return how many voxels on either side a filtered value depends on."""
    return int(_TRUNCATE * sigma + 0.5)


def smooth_axis(
    values: npt.NDArray[Any], axis: int, sigma: float, padding: tuple[int, int]
) -> npt.NDArray[Any]:
    """Return values that are filtered along one axis.

    Parameters
    ----------
    values
        float32 or float64, with as many values on either side as the radius of the filter, except
        at the ends of the volume.
    axis
        Axis to filter along.
    sigma
        Standard deviation in voxels, above 0.
    padding
        Number of values that are missing at either end. The outermost value is repeated there.

    Returns
    -------
    numpy.ndarray
        Filtered values in the dtype of ``values``, without those of the radius on either side.
    """
    radius = filter_radius(sigma)
    distances = np.arange(radius + 1)
    weights = np.exp(-0.5 * (distances / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum()
    widths = [(0, 0)] * values.ndim
    widths[axis] = padding
    padded = np.pad(values, widths, mode="edge") if any(padding) else values
    n = padded.shape[axis] - 2 * radius

    def shifted(distance: int) -> npt.NDArray[Any]:
        part = [slice(None)] * values.ndim
        part[axis] = slice(radius + distance, radius + distance + n)
        return padded[tuple(part)]

    smooth: npt.NDArray[Any] = shifted(0) * values.dtype.type(weights[0])
    for distance in range(1, radius + 1):
        pair = shifted(-distance) + shifted(distance)
        pair *= values.dtype.type(weights[distance])
        smooth += pair
    return smooth
