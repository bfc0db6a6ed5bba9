"""Text on a picture, sized in pixels."""

from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

__all__ = [
    "DPI",
    "EM_PER_CHARACTER",
    "LETTER_FONT",
    "QUIET_COLOUR",
    "TEXT_COLOUR",
    "name_width",
    "write",
    "write_name",
]

DPI: Final = 100
EM_PER_CHARACTER: Final = 0.65
"""Width of the widest usual characters."""
TEXT_COLOUR: Final = "#f0f0f0"
QUIET_COLOUR: Final = "#9aa0aa"
LETTER_FONT: Final = "DejaVu Sans Mono"
_FONT: Final = "DejaVu Sans"


def name_width(name: str, px: float) -> float:
    """Return the pixels that a name of this height takes up at most."""
    return EM_PER_CHARACTER * px * len(name)


def write_name(axes: Axes, at: tuple[float, float], name: str, px: float, *, ha: str) -> None:
    """Write a vertebra's name at millimetres, legible on bone and on air."""
    text = write(axes, at, name, px, ha=ha, va="center_baseline", color="white")
    outline = [withStroke(linewidth=2.4, foreground="black")]
    text.set(transform=axes.transData, path_effects=outline, zorder=4)


def write(
    where: Figure | Axes,
    at: tuple[float, float],
    text: str,
    px: float,
    *,
    ha: str = "center",
    va: str = "center",
    color: str = TEXT_COLOUR,
    family: str = _FONT,
) -> Text:
    """Write plain text at a share of the figure or axes."""
    written = where.text(*at, text, ha=ha, va=va, color=color, parse_math=False)
    written.set(fontfamily=family, fontsize=px * 72 / DPI)
    if isinstance(where, Axes):
        written.set_transform(where.transAxes)
    return written
