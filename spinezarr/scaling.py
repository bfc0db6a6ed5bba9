"""How do the stored numbers of an array become its values?

The formula is ``value = number * slope + intercept``. NIfTI calls the two ``scl_slope`` and
``scl_inter``, DICOM RescaleSlope and RescaleIntercept, CF ``scale_factor`` and ``add_offset`` [1]_.
The arithmetic is that of nibabel's ``apply_read_scaling`` and of xarray's decoding, so that all
three give the same float64.

References
----------
.. [1] https://cfconventions.org, section 8.1 "Packed Data"
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from spinezarr.errors import DamagedMetadataError

__all__ = ["VALUE_DTYPE", "Scaling"]

VALUE_DTYPE: Final = np.dtype(np.float64)
"""Data type of scaled values."""
_BLOCK_VALUES: Final = 1 << 18
"""Number of values that are computed at once before they are cast to another type."""
_SCALE, _OFFSET = "scale_factor", "add_offset"


@dataclass(frozen=True, slots=True)
class Scaling:
    """The slope and the intercept of a whole array.

    Examples
    --------
    >>> Scaling(0.5, -10.0).values(np.array([0, 3], np.uint8))
    array([-10. ,  -8.5])
    """

    slope: float
    """Factor of each number."""
    intercept: float
    """Value that is added to the product."""

    @classmethod
    def of_attributes(cls, attributes: Mapping[str, Any]) -> Self | None:
        """Read the CF attributes of an array; None if it is not scaled.

        Raises
        ------
        DamagedMetadataError
            If one of the attributes is not a finite float.
        """
        if _SCALE not in attributes:
            return None
        slope, intercept = attributes[_SCALE], attributes.get(_OFFSET, 0.0)
        for name, value in ((_SCALE, slope), (_OFFSET, intercept)):
            if not isinstance(value, float) or not math.isfinite(value):
                raise DamagedMetadataError(
                    f"{type(value).__name__} {value!r:.60}", "a finite float", name
                )
        return cls(slope, intercept)

    @staticmethod
    def without_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of an array without those of the scaling."""
        return {k: v for k, v in attributes.items() if k not in (_SCALE, _OFFSET)}

    @property
    def attributes(self) -> dict[str, float]:
        """CF attributes of the scaling. Readers use their type, float, as the type of the values.

        An intercept of 0 is left out, because adding it would turn -0.0 into 0.0.
        """
        offset = {_OFFSET: self.intercept} if self.intercept else {}
        return {_SCALE: self.slope, **offset}

    def values(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Return the values of an array of any shape, as float64."""
        return self._into(numbers, np.empty(numbers.shape, VALUE_DTYPE))

    def values_into(self, numbers: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Write the values into ``out``.

        Parameters
        ----------
        numbers
            Stored numbers.
        out
            Array of the same shape and any type; it may be a strided view. The values are computed
            in float64 and cast.
        """
        if out.dtype == VALUE_DTYPE:
            self._into(numbers, out)
            return
        rows = max(1, _BLOCK_VALUES * len(numbers) // max(1, numbers.size))
        for first in range(0, len(numbers), rows):
            part = slice(first, first + rows)
            out[part] = self.values(numbers[part])

    def _into(
        self, numbers: npt.NDArray[Any], out: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        # With a Python float, float32 numbers would stay in float32.
        np.multiply(numbers, np.float64(self.slope), out=out)
        if self.intercept:
            out += self.intercept
        return out

    def is_finite_for(self, dtype: np.dtype[Any]) -> bool:
        """Whether all finite numbers of a data type have finite values in float64."""
        limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
        with np.errstate(over="ignore"):
            return bool(np.isfinite(self.values(np.array([limits.min, limits.max], dtype))).all())
