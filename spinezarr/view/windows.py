"""Which Hounsfield units (HU) are drawn as black and white?"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError

__all__ = ["DEFAULT_WINDOW", "WINDOWS_HU", "WindowHU", "gray_of", "parse_window"]

WindowHU = tuple[float, float]
"""HU of black and of white."""
WINDOWS_HU: Final[Mapping[str, WindowHU]] = MappingProxyType(
    {
        "bone": (-500.0, 1300.0),
        "soft_tissue": (-160.0, 240.0),
        "lung": (-1350.0, 150.0),
    }
)
"""The presets: widths 1800, 400 and 1500 HU about levels of 400, 40 and -600.

Radiologists usually start from these, see "Windowing (CT)", https://doi.org/10.53347/rID-52108
"""
DEFAULT_WINDOW: Final = "bone"
_NUMBER: Final = r"[+-]?[0-9]{1,9}(?:[.][0-9]{1,9})?"
_WINDOW: Final = re.compile(rf"({_NUMBER}),({_NUMBER})", re.ASCII)


def parse_window(text: str) -> WindowHU:
    """Parse the name of a preset, or two HU.

    Raises
    ------
    UsageError
        If it is neither. The message lists the presets.

    Examples
    --------
    >>> parse_window("soft_tissue"), parse_window("-200,1000.5")
    ((-160.0, 240.0), (-200.0, 1000.5))
    """
    preset = WINDOWS_HU.get(text)
    if preset is not None:
        return preset
    match = _WINDOW.fullmatch(text)
    if match is None:
        raise UsageError(
            f"window: must be {', '.join(WINDOWS_HU)}, or the HU of black and white, such as "
            "-160,240."
        )
    low, high = float(match[1]), float(match[2])
    if not low < high:
        raise UsageError(f"window: black, {match[1]} HU, must be below white, {match[2]} HU.")
    return low, high


def gray_of(values_hu: npt.NDArray[np.generic], window_hu: WindowHU) -> npt.NDArray[np.uint8]:
    """Return shades of gray from 0 to 255, in the shape of ``values_hu``. NaN is black.

    Halves are rounded to even.

    Examples
    --------
    >>> gray_of(np.array([-2000.0, -500.0, 400.0, 1300.0, np.inf, np.nan]), WINDOWS_HU["bone"])
    array([  0,   0, 128, 255, 255,   0], dtype=uint8)
    """
    low, high = window_hu
    shades = np.clip(values_hu.astype(np.float64), low, high)
    shades -= low
    shades *= 255
    shades /= high - low
    np.nan_to_num(shades, copy=False, nan=0.0)
    return np.rint(shades, out=shades).astype(np.uint8)
