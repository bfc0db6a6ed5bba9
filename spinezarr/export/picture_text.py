"""Text on a picture, sized in pixels, and what of a stranger's text a picture can show."""

from functools import cache
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from spinezarr.text import to_printable

__all__ = [
    "DPI",
    "EM_PER_CHARACTER",
    "LETTER_FONT",
    "QUIET_COLOR",
    "TEXT_COLOR",
    "draw_name",
    "draw_text",
    "name_width",
    "to_drawable",
]

DPI: Final = 100
EM_PER_CHARACTER: Final = 0.65
"""Width of the widest usual characters."""
TEXT_COLOR: Final = "#f0f0f0"
QUIET_COLOR: Final = "#9aa0aa"
LETTER_FONT: Final = "DejaVu Sans Mono"
_FONT: Final = "DejaVu Sans"
_LONGEST: Final = 120
"""Characters of a title or name; more would make pictures of any size."""


def to_drawable(text: str, longest: int | None = _LONGEST) -> str:
    """Return text of others as a picture can show it: one line, in letters that the font has.

    Others stand as escapes, as matplotlib would draw an empty box and warn. Nothing in it is a
    formula, as long as it is drawn with ``parse_math=False`` and without TeX.
    """
    shown = to_printable(text, longest)
    if shown.isascii():
        return shown
    return "".join(
        char if ord(char) in _letters() else char.encode("ascii", "backslashreplace").decode()
        for char in shown
    )


@cache
def _letters() -> frozenset[int]:
    """Return the code points that the font has, which comes with matplotlib."""
    return frozenset(get_font(findfont(_FONT)).get_charmap())


def name_width(name: str, px: float) -> float:
    """Return the pixels that a name of this height takes up at most."""
    return EM_PER_CHARACTER * px * len(name)


def draw_name(axes: Axes, at: tuple[float, float], name: str, px: float, *, ha: str) -> None:
    """Write a vertebra's name at millimeters, legible on bone and on air."""
    text = draw_text(axes, at, name, px, ha=ha, va="center_baseline", color="white")
    outline = [withStroke(linewidth=2.4, foreground="black")]
    text.set(transform=axes.transData, path_effects=outline, zorder=4)


def draw_text(
    where: Figure | Axes,
    at: tuple[float, float],
    text: str,
    px: float,
    *,
    ha: str = "center",
    va: str = "center",
    color: str = TEXT_COLOR,
    family: str = _FONT,
) -> Text:
    """Write plain text at a share of the figure or axes."""
    written = where.text(*at, text, ha=ha, va=va, color=color, parse_math=False, usetex=False)
    written.set(fontfamily=family, fontsize=px * 72 / DPI)
    if isinstance(where, Axes):
        written.set_transform(where.transAxes)
    return written
