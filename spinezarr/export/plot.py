"""What do all plots share: frame, colors, boxes of values, names of vertebrae?

The colors are those of Okabe and Ito [1]_, which can be distinguished with any color vision.

References
----------
.. [1] M. Okabe, K. Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text

from spinezarr.card import REGIONS, Region
from spinezarr.export.picture_text import to_drawable

__all__ = [
    "GRID_COLOR",
    "MARK_COLORS",
    "QUIET_COLOR",
    "SMALL_FONT",
    "TEXT_COLOR",
    "add_legend",
    "add_region_legend",
    "draw_values",
    "legend_name",
    "name_vertebrae",
    "new_plot",
    "new_plots",
    "region_color",
]

TEXT_COLOR: Final = "#222222"
QUIET_COLOR: Final = "#6b6b6b"
GRID_COLOR: Final = "#e3e3e3"
MARK_COLORS: Final = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
SMALL_FONT: Final = 7.5
_DPI: Final = 150
_WIDTH_INCHES: Final = 10
_HEIGHT_INCHES: Final = 5.6
_MORE_HEIGHT_INCHES: Final = 3.6
"""Height of each plot but the first."""
_REGION_COLORS: Final[dict[Region, str]] = {
    "cervical": MARK_COLORS[0],
    "thoracic": MARK_COLORS[2],
    "lumbar": MARK_COLORS[1],
}
_OTHER_COLOR: Final = "#8c8c8c"
_MAX_NAME_LENGTH: Final = 40
_MAX_HORIZONTAL_LENGTH: Final = 3
"""Longest name of a vertebra in characters that fits below its bar."""
_MIN_BOX_VALUES: Final = 10
"""Fewest values for a box. Fewer values are drawn individually, because percentiles say little."""


def new_plot(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """Return a white figure with one plot. No global state of matplotlib is used."""
    figure, (axes,) = new_plots(title, subtitle, 1)
    return figure, axes


def new_plots(title: str, subtitle: str, count: int) -> tuple[Figure, list[Axes]]:
    """Return a white figure with plots below each other, as :func:`new_plot` does with one."""
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.09)
    height_inches = _HEIGHT_INCHES + (count - 1) * _MORE_HEIGHT_INCHES
    figure = Figure((_WIDTH_INCHES, height_inches), dpi=_DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    plots = [figure.add_subplot(count, 1, number) for number in range(1, count + 1)]
    title_text = plots[0].set_title(
        title, loc="left", pad=28, fontsize=14, fontweight="bold", color=TEXT_COLOR
    )
    _draw_literally(title_text)
    subtitle_text = plots[0].annotate(subtitle, (0, 1), (0, 10), "axes fraction", "offset points")
    subtitle_text.set(fontsize=9.5, color=QUIET_COLOR)
    for axes in plots:
        axes.set_axisbelow(True)
        axes.grid(visible=True, axis="y", color=GRID_COLOR, linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=TEXT_COLOR, labelsize=9)
    return figure, plots


def _draw_literally(text: Text) -> None:
    """Draw a text literally, without formulas and TeX, whatever the user's matplotlibrc says."""
    text.set_fontfamily("DejaVu Sans")  # 'to_drawable' checks text against this font
    text.set_parse_math(False)
    text.set_usetex(False)


def legend_name(name: str) -> str:
    """Return the name of a source for a legend, which would hide names that begin with ``_``."""
    text = to_drawable(name, _MAX_NAME_LENGTH) or "scans"
    return f" {text}" if text.startswith("_") else text


def region_color(name: str) -> str:
    """Return the color of the region of a vertebra."""
    colors = (_REGION_COLORS[region] for region, names in REGIONS.items() if name in names)
    return next(colors, _OTHER_COLOR)


def draw_values(
    axes: Axes,
    position: float,
    values: npt.NDArray[np.float64],
    color: str,
    width: float = 0.66,
) -> None:
    """Draw a box and the values beyond its whiskers; draw few values individually."""
    if values.size < _MIN_BOX_VALUES:
        axes.plot(np.full(values.size, position), values, "o", color=color, markersize=5)
        return
    axes.boxplot(
        values,
        positions=[position],
        widths=width,
        whis=(5, 95),
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": color, "edgecolor": TEXT_COLOR, "linewidth": 0.8},
        medianprops={"color": "black", "linewidth": 1.6},
        whiskerprops={"color": TEXT_COLOR, "linewidth": 0.8},
        capprops={"color": TEXT_COLOR, "linewidth": 0.8},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": QUIET_COLOR, "alpha": 0.5},
    )


def name_vertebrae(axes: Axes, names: Sequence[str]) -> None:
    """Name the vertebrae at the positions 0, 1, 2, … of the horizontal axis."""
    axes.set_xticks(range(len(names)), [to_drawable(name, _MAX_NAME_LENGTH) for name in names])
    for label in axes.get_xticklabels():
        _draw_literally(label)
        label.set_rotation(90 if len(label.get_text()) > _MAX_HORIZONTAL_LENGTH else 0)
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.tick_params(axis="x", length=0)


def add_region_legend(axes: Axes, names: Sequence[str]) -> None:
    """Add a legend with the colors of the regions of these vertebrae."""
    used = dict.fromkeys(region_color(name) for name in names)
    regions = {color: region for region, color in _REGION_COLORS.items()}
    for color in used:
        axes.bar(0, 0, color=color, label=regions.get(color, "other"))
    add_legend(axes)


def add_legend(axes: Axes) -> None:
    """Add a legend below the plot, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if not handles:
        return
    legend = axes.figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        _draw_literally(text)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
