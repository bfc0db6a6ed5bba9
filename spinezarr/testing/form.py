"""Form of a stored volume, in the choices that all file formats share."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from spinezarr.errors import UsageError
from spinezarr.testing.orientation import check_orientation

__all__ = ["DTYPES", "VolumeForm"]

DTYPES: Final = (
    "uint8",
    "int8",
    "uint16",
    "int16",
    "uint32",
    "int32",
    "uint64",
    "int64",
    "float32",
    "float64",
)
"""Data types that a file may store."""


@dataclass(frozen=True, slots=True)
class VolumeForm:
    """Form of a stored volume in any file format.

    Examples
    --------
    >>> VolumeForm(orientation="LRS")
    Traceback (most recent call last):
    ...
    spinezarr.errors.UsageError: orientation must be one of 48 such as 'LPS', got 'LRS'
    >>> VolumeForm(dtype="float16")
    Traceback (most recent call last):
    ...
    spinezarr.errors.UsageError: dtype must be one of uint8, int8, uint16, int16, uint32, int32, \
uint64, int64, float32, float64; got 'float16'
    """

    orientation: str = "LPS"
    """Directions toward which the file's axes increase."""
    dtype: str = "int16"
    """Data type of the stored numbers, one of :data:`DTYPES`."""
    oblique_deg: float = 0.0
    """Rotation of the whole patient about the middle of the volume; no voxel is resampled."""
    big_endian: bool = False
    """Whether numbers are stored with the most significant byte first."""

    def __post_init__(self) -> None:
        check_orientation(self.orientation, self.oblique_deg)
        if self.dtype not in DTYPES:
            raise UsageError(f"dtype must be one of {', '.join(DTYPES)}; got {self.dtype!r}")

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Data type with byte order."""
        return np.dtype(self.dtype).newbyteorder(">" if self.big_endian else "<")
