"""Which vertebrae does a dataset show, how large are they, and how fine is its voxel spacing?

Each plot answers one of these questions. The colors are those of Okabe and Ito [1]_, which can be
distinguished with any color vision.

References
----------
.. [1] M. Okabe, K. Ito, "Color Universal Design", https://jfly.uni-koeln.de/color/
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from matplotlib.ticker import MultipleLocator

from spinezarr.card import REGIONS
from spinezarr.export.picture_text import to_drawable
from spinezarr.stats.statistics import Statistics, to_file_axes, volumes_cm3

__all__ = ["draw_detection", "draw_spacing", "draw_volumes"]

_DPI: Final = 150
_TEXT: Final = "#222222"
_QUIET: Final = "#6b6b6b"
_GRID: Final = "#e3e3e3"
_REGION_COLORS: Final = {"cervical": "#0072B2", "thoracic": "#009E73", "lumbar": "#E69F00"}
_OTHER_COLOR: Final = "#8c8c8c"
_SMALL: Final = 7.5
_SOURCE_MARKS: Final = (
    ("#0072B2", "o"),
    ("#E69F00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#56B4E9", "v"),
    ("#D55E00", "P"),
)
_MAX_NAME_LENGTH: Final = 40
_MAX_HORIZONTAL_LENGTH: Final = 3
"""Longest name of a vertebra in characters that fits below its bar."""
_MIN_BOX_VALUES: Final = 10
"""Fewest values for a box. Fewer values are drawn individually, because percentiles say little."""


def draw_detection(statistics: Statistics) -> Figure:
    """Draw the share of scans whose mask shows each vertebra, from head to tail."""
    names = [name for name, row in statistics.vertebrae.items() if row.scans]
    rows = [statistics.vertebrae[name] for name in names]
    figure, axes = _new_plot(
        f"{to_drawable(statistics.title)}: vertebrae that the scans show",
        f"Share of all {statistics.scans:,} scans. Above each bar: number of scans.",
    )
    bars = axes.bar(
        range(len(names)),
        [row.detection_percent for row in rows],
        color=[_color(name) for name in names],
        width=0.8,
    )
    counts = [str(row.scans) for row in rows]
    for label in axes.bar_label(bars, counts, padding=2, fontsize=_SMALL, color=_TEXT):
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_ylim(0, 106)
    axes.yaxis.set_major_locator(MultipleLocator(20))
    axes.set_ylabel("Scans that show the vertebra (%)")
    _name_vertebrae(axes, names)
    return figure


def draw_volumes(table: xr.Dataset) -> Figure:
    """Draw percentiles 5, 25, 50, 75 and 95 of the volume of each vertebra, from head to tail."""
    volumes = volumes_cm3(table)
    figure, axes = _new_plot(
        f"{to_drawable(table.attrs['title'])}: volume of the vertebrae",
        "Boxes: median and quartiles; whiskers: 5th to 95th percentile; dots: scans beyond, or all "
        "of few scans. On top: number of scans.",
    )
    for position, (name, values) in enumerate(volumes.items()):
        _draw_values(axes, position, values, _color(name))
        count = axes.text(position, 0.985, str(values.size), ha="center", va="top", fontsize=_SMALL)
        count.set(transform=axes.get_xaxis_transform(), color=_TEXT)
    largest = max((values.max() for values in volumes.values()), default=1.0)
    axes.set_ylim(0, 1.1 * largest)
    axes.set_ylabel("Volume (cm³)")
    _name_vertebrae(axes, list(volumes))
    return figure


def draw_spacing(table: xr.Dataset) -> Figure:
    """Draw the slice distance against the pixel spacing, with one mark for each scan."""
    spacing = to_file_axes(table, "spacing_zyx_mm")
    in_plane, between = np.sqrt(spacing[:, 0] * spacing[:, 1]), spacing[:, 2]
    figure, axes = _new_plot(
        f"{to_drawable(table.attrs['title'])}: voxel spacing",
        "One mark for each scan. Slices are counted along the third axis of the source file.",
    )
    groups = _largest_groups([str(name) for name in table.source.to_numpy()])
    for (name, rows), (color, marker) in zip(groups.items(), _SOURCE_MARKS, strict=False):
        marks = axes.scatter(in_plane[rows], between[rows], c=color, marker=marker, s=30)
        marks.set(alpha=0.5, linewidths=0, label=f"{_legend_name(name)} ({len(rows):,})")
    axes.axline((0, 0), slope=1, color=_QUIET, linewidth=1, dashes=(5, 4), label="isotropic")
    if in_plane.size:
        axes.set_xlim(0.93 * in_plane.min(), 1.07 * in_plane.max())
        axes.set_ylim(0, 1.08 * between.max())
    axes.set_xlabel("Pixel spacing in a slice (mm)")
    axes.set_ylabel("Spacing of slices (mm)")
    axes.grid(visible=True, axis="x", color=_GRID, linewidth=0.8)
    _add_legend(axes)
    return figure


def _new_plot(title: str, subtitle: str) -> tuple[Figure, Axes]:
    """Return a white figure with one plot. No global state of matplotlib is used."""
    layout = ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.09)
    figure = Figure((10, 5.6), dpi=_DPI, facecolor="white", layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    title_text = axes.set_title(
        title, loc="left", pad=28, fontsize=14, fontweight="bold", color=_TEXT
    )
    _draw_literally(title_text)
    subtitle_text = axes.annotate(subtitle, (0, 1), (0, 10), "axes fraction", "offset points")
    subtitle_text.set(fontsize=9.5, color=_QUIET)
    axes.set_axisbelow(True)
    axes.grid(visible=True, axis="y", color=_GRID, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_TEXT, labelsize=9)
    return figure, axes


def _draw_literally(text: Text) -> None:
    """Draw a text literally, without formulas and TeX, whatever the user's matplotlibrc says."""
    text.set_fontfamily("DejaVu Sans")  # 'to_drawable' checks text against this font
    text.set_parse_math(False)
    text.set_usetex(False)


def _legend_name(name: str) -> str:
    """Return the name of a source for a legend, which would hide names that begin with ``_``."""
    text = to_drawable(name, _MAX_NAME_LENGTH) or "scans"
    return f" {text}" if text.startswith("_") else text


def _color(name: str) -> str:
    region = next((region for region, names in REGIONS.items() if name in names), "")
    return _REGION_COLORS.get(region, _OTHER_COLOR)


def _draw_values(axes: Axes, position: int, values: npt.NDArray[np.float64], color: str) -> None:
    """Draw a box and the values beyond its whiskers; draw few values individually."""
    if values.size < _MIN_BOX_VALUES:
        axes.plot(np.full(values.size, position), values, "o", color=color, markersize=5)
        return
    axes.boxplot(
        values,
        positions=[position],
        widths=0.66,
        whis=(5, 95),
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": color, "edgecolor": _TEXT, "linewidth": 0.8},
        medianprops={"color": "black", "linewidth": 1.6},
        whiskerprops={"color": _TEXT, "linewidth": 0.8},
        capprops={"color": _TEXT, "linewidth": 0.8},
        flierprops={"marker": ".", "markersize": 3, "markeredgecolor": _QUIET, "alpha": 0.5},
    )


def _name_vertebrae(axes: Axes, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), [to_drawable(name, _MAX_NAME_LENGTH) for name in names])
    for label in axes.get_xticklabels():
        _draw_literally(label)
        label.set_rotation(90 if len(label.get_text()) > _MAX_HORIZONTAL_LENGTH else 0)
    axes.set_xlim(-0.6, max(len(names), 1) - 0.4)
    axes.tick_params(axis="x", length=0)
    used = dict.fromkeys(_color(name) for name in names)
    regions = {color: region for region, color in _REGION_COLORS.items()}
    for color in used:
        axes.bar(0, 0, color=color, label=regions.get(color, "other"))
    _add_legend(axes)


def _add_legend(axes: Axes) -> None:
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


def _largest_groups(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the rows of each name, the largest group first; the smallest groups are joined."""
    ranked = [name for name, _ in Counter(names).most_common()]
    separate = set(
        ranked if len(ranked) <= len(_SOURCE_MARKS) else ranked[: len(_SOURCE_MARKS) - 1]
    )
    groups: dict[str, list[int]] = {}
    for name in ranked:
        rows = [row for row, other_name in enumerate(names) if other_name == name]
        groups.setdefault(name if name in separate else "others", []).extend(rows)
    return groups
