"""Which label value, name, anatomical order and color does each vertebra have?

All stores use this one label scheme. The values are those that CTSpine1K and VerSe share [1]_: 0
background, 1-7 C1-C7, 8-19 T1-T12, 20-24 L1-L5, 25 L6, 26 sacrum, 27 coccyx, 28 T13. T13 lies
between T12 and L1, so the values are not in the order of the spine; :data:`ANATOMICAL_ORDER` is.

References
----------
.. [1] Sekuboyina et al., "VerSe: A vertebrae labelling and segmentation benchmark",
   https://doi.org/10.1016/j.media.2021.102166, and https://github.com/anjany/verse
"""

import colorsys
import re
from typing import Final, Literal

__all__ = [
    "ANATOMICAL_ORDER",
    "BACKGROUND",
    "LEVELS",
    "MULTI_SEGMENT_LEVELS",
    "NAME_OF_VALUE",
    "OPTIONAL_LEVELS",
    "VALUE_OF_NAME",
    "Color",
    "LabelState",
    "hex_color",
    "hex_of",
    "label_color",
    "levels_between",
    "named_color",
    "structure_color",
    "vertebra_color",
    "vertebra_of",
]

LabelState = Literal["all-visible", "whole-only", "predicted", "unknown"]
"""Whether vertebrae cut by the end of the volume are annotated (``all-visible``) or background
(``whole-only``), or whether a model has drawn the whole mask (``predicted``)."""

BACKGROUND: Final = 0
"""Label of voxels that belong to no vertebra."""

NAME_OF_VALUE: Final[dict[int, str]] = {
    **{value: f"C{value}" for value in range(1, 8)},
    **{value: f"T{value - 7}" for value in range(8, 20)},
    **{value: f"L{value - 19}" for value in range(20, 26)},
    26: "sacrum",
    27: "coccyx",
    28: "T13",
}
"""Vertebra name of each label value.

Examples
--------
>>> NAME_OF_VALUE[20], NAME_OF_VALUE[25], NAME_OF_VALUE[28]
('L1', 'L6', 'T13')
"""

VALUE_OF_NAME: Final[dict[str, int]] = {name: value for value, name in NAME_OF_VALUE.items()}
"""Label value of each vertebra name."""

ANATOMICAL_ORDER: Final[tuple[str, ...]] = (
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 14)),
    *(f"L{n}" for n in range(1, 7)),
    "sacrum",
    "coccyx",
)
"""All vertebra names, from head to tail.

Examples
--------
>>> ANATOMICAL_ORDER.index("T12") < ANATOMICAL_ORDER.index("T13") < ANATOMICAL_ORDER.index("L1")
True
"""

OPTIONAL_LEVELS: Final = frozenset({"T13", "L6"})
"""Levels that most people do not have, so their absence is no gap."""

MULTI_SEGMENT_LEVELS: Final = frozenset({"sacrum", "coccyx"})
"""Bones with several segments, whose centers do not follow the step between vertebrae."""

LEVELS: Final[tuple[str, ...]] = (
    *ANATOMICAL_ORDER[: ANATOMICAL_ORDER.index("sacrum")],
    "S1",
    "S2",
    *ANATOMICAL_ORDER[ANATOMICAL_ORDER.index("sacrum") :],
)
"""All levels that a mask or an annotated center may name, from head to tail.

S1 and S2 are parts of the sacrum. Some datasets annotate their centers, but they have no label
value.
"""

Color = tuple[float, float, float]
"""Red, green and blue, each from 0 to 1."""
_GOLDEN_ANGLE = 0.381966
"""Step on the hue circle, as a share of it, by which the hues of neighbors differ much."""
_OTHER_COLOR: Final = (0.85, 0.85, 0.85)
_SPELLING: Final = re.compile(
    "(?:vertebrae?[ _-])?([a-z]+[0-9]*)(?:[ _-]vertebrae?)?", re.ASCII | re.IGNORECASE
)
"""A vertebra, as masks name it: ``L1``, ``vertebrae_L1`` of TotalSegmentator, ``L1 vertebra``."""
_NAME_OF_LOWERCASE: Final = {name.lower(): name for name in VALUE_OF_NAME}


def vertebra_of(name: str) -> str | None:
    """Return the vertebra that a name of a mask means, whatever its spelling.

    Parameters
    ----------
    name
        Name of a label value, as a label scheme or a user writes it.

    Returns
    -------
    str or None
        Name of the vertebra in :data:`VALUE_OF_NAME`; None for other structures.

    Examples
    --------
    >>> vertebra_of("vertebrae_L1"), vertebra_of("Sacrum"), vertebra_of("L1_disc")
    ('L1', 'sacrum', None)
    """
    found = _SPELLING.fullmatch(name)
    return None if found is None else _NAME_OF_LOWERCASE.get(found[1].lower())


def levels_between(upper: str, lower: str) -> tuple[str, ...]:
    """Return the levels that lie between two others in everybody.

    Examples
    --------
    >>> levels_between("T11", "L1"), levels_between("T12", "L1"), levels_between("L5", "sacrum")
    (('T12',), (), ())
    """
    first, last = LEVELS.index(upper), LEVELS.index(lower)
    between = LEVELS[first + 1 : last]
    return tuple(n for n in between if n in ANATOMICAL_ORDER and n not in OPTIONAL_LEVELS)


def vertebra_color(value: int) -> Color:
    """Return the color in which all pictures and pages show a vertebra.

    Adjacent vertebrae have hues that are far apart.
    """
    order = ANATOMICAL_ORDER.index(NAME_OF_VALUE[value])
    return colorsys.hsv_to_rgb((order * _GOLDEN_ANGLE) % 1, 0.75, 1.0)


def structure_color(value: int) -> Color:
    """Return the color of a value of a further mask that is no vertebra.

    Adjacent values have hues that are far apart.
    """
    return colorsys.hsv_to_rgb((value * _GOLDEN_ANGLE) % 1, 0.5, 1.0)


def named_color(name: str, value: int) -> Color:
    """Return the color of a value of a further mask, whose scheme gives it a name.

    A name of a vertebra has the color of the vertebra in all masks, whatever its value is.

    Examples
    --------
    >>> named_color("vertebrae_L1", 31) == vertebra_color(20)
    True
    >>> named_color("liver", 5) == structure_color(5)
    True
    """
    vertebra = vertebra_of(name)
    return structure_color(value) if vertebra is None else vertebra_color(VALUE_OF_NAME[vertebra])


def label_color(value: int | None) -> Color:
    """Return the color of any label value, which is gray if it is not a vertebra.

    Examples
    --------
    >>> label_color(20) == vertebra_color(20), label_color(99), label_color(None)
    (True, (0.85, 0.85, 0.85), (0.85, 0.85, 0.85))
    """
    return vertebra_color(value) if value in NAME_OF_VALUE else _OTHER_COLOR


def hex_color(value: int) -> str:
    """Return the color of any label value in hexadecimal notation, as web pages write it.

    Examples
    --------
    >>> hex_color(1), hex_color(20), hex_color(99)
    ('#ff4040', '#405fff', '#d9d9d9')
    """
    return hex_of(label_color(value))


def hex_of(color: Color) -> str:
    """Return a color in hexadecimal notation, as web pages write it.

    Examples
    --------
    >>> hex_of((1.0, 0.5, 0.0))
    '#ff8000'
    """
    return "#" + "".join(f"{round(255 * part):02x}" for part in color)
