"""What are the columns of the scan table while it is made?"""

import re
from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["MM3_PER_CM3", "TEXT", "Columns", "natural_key", "text_array"]

MM3_PER_CM3: Final = 1000.0
TEXT: Final = np.dtypes.StringDType()
"""Data type of columns of text."""
Columns = dict[str, tuple[tuple[str, ...], npt.NDArray[Any], dict[str, Any]]]
"""Dimensions, values and attributes of each column by name."""


def text_array(values: Iterable[str]) -> npt.NDArray[Any]:
    """Return texts as an array of one axis."""
    return np.array(list(values), dtype=TEXT)


def natural_key(name: str) -> tuple[tuple[int, int | str], ...]:
    """Return a key that sorts names by their numbers, as people do.

    Examples
    --------
    >>> sorted(["liver_10", "liver_9"], key=natural_key)
    ['liver_9', 'liver_10']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((0, int(part)) if part.isdecimal() else (1, part) for part in parts if part)
