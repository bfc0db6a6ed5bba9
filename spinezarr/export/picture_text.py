"""How is text drawn on a picture, sized in pixels and safe for foreign text?"""

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
"""Width of the widest usual characters in em."""
TEXT_COLOR: Final = "#f0f0f0"
QUIET_COLOR: Final = "#9aa0aa"
LETTER_FONT: Final = "DejaVu Sans Mono"
_FONT: Final = "DejaVu Sans"
_MAX_TEXT_CHARACTERS: Final = 120
"""Longest title or name in characters. Without a limit, pictures could have any size."""


def to_drawable(text: str, longest: int | None = _MAX_TEXT_CHARACTERS) -> str:
    """Return foreign text in one line, with characters that the font has.

    Other characters are escaped, because matplotlib would draw an empty box and warn. The text must
    be drawn with ``parse_math=False`` and without TeX, so that no part of it is a formula.
    """
    shown = to_printable(text, longest)
    if shown.isascii():
        return shown
    return "".join(
        char
        if ord(char) in _code_points_of_font()
        else char.encode("ascii", "backslashreplace").decode()
        for char in shown
    )


@cache
def _code_points_of_font() -> frozenset[int]:
    """Return the code points of the font, which matplotlib ships."""
    return frozenset(get_font(findfont(_FONT)).get_charmap())


def name_width(name: str, px: float) -> float:
    """Return the largest width in pixels of a name that is ``px`` high."""
    return EM_PER_CHARACTER * px * len(name)


def draw_name(axes: Axes, position: tuple[float, float], name: str, px: float, *, ha: str) -> None:
    """Draw the name of a vertebra at a position in mm, legible on bone and on air."""
    text = draw_text(axes, position, name, px, ha=ha, va="center_baseline", color="white")
    outline = [withStroke(linewidth=2.4, foreground="black")]
    text.set(transform=axes.transData, path_effects=outline, zorder=4)


def draw_text(
    target: Figure | Axes,
    position: tuple[float, float],
    text: str,
    px: float,
    *,
    ha: str = "center",
    va: str = "center",
    color: str = TEXT_COLOR,
    family: str = _FONT,
) -> Text:
    """Draw plain text at a position in shares of the figure or axes."""
    artist = target.text(*position, text, ha=ha, va=va, color=color, parse_math=False, usetex=False)
    artist.set(fontfamily=family, fontsize=px * 72 / DPI)
    if isinstance(target, Axes):
        artist.set_transform(target.transAxes)
    return artist
