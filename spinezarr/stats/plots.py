"""Which vertebrae does a dataset show, how large are they, and how fine is its voxel spacing?

Each plot answers one of these questions.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from spinezarr.export.picture_text import to_drawable
from spinezarr.export.plot import (
    GRID_COLOR,
    MARK_COLORS,
    QUIET_COLOR,
    SMALL_FONT,
    TEXT_COLOR,
    add_legend,
    add_region_legend,
    draw_values,
    legend_name,
    name_vertebrae,
    new_plot,
    region_color,
)
from spinezarr.stats.statistics import Statistics, to_file_axes, volumes_cm3

__all__ = ["draw_detection", "draw_spacing", "draw_volumes"]

_SOURCE_MARKS: Final = tuple(zip(MARK_COLORS, "os^DvP", strict=True))


def draw_detection(statistics: Statistics) -> Figure:
    """Draw the share of scans whose mask shows each vertebra, from head to tail."""
    names = [name for name, row in statistics.vertebrae.items() if row.scans]
    rows = [statistics.vertebrae[name] for name in names]
    figure, axes = new_plot(
        f"{to_drawable(statistics.title)}: vertebrae that the scans show",
        f"Share of all {statistics.scans:,} scans. Above each bar: number of scans.",
    )
    bars = axes.bar(
        range(len(names)),
        [row.detection_percent for row in rows],
        color=[region_color(name) for name in names],
        width=0.8,
    )
    counts = [str(row.scans) for row in rows]
    for label in axes.bar_label(bars, counts, padding=2, fontsize=SMALL_FONT, color=TEXT_COLOR):
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    axes.set_ylim(0, 106)
    axes.yaxis.set_major_locator(MultipleLocator(20))
    axes.set_ylabel("Scans that show the vertebra (%)")
    name_vertebrae(axes, names)
    add_region_legend(axes, names)
    return figure


def draw_volumes(table: xr.Dataset) -> Figure:
    """Draw percentiles 5, 25, 50, 75 and 95 of the volume of each vertebra, from head to tail."""
    volumes = volumes_cm3(table)
    figure, axes = new_plot(
        f"{to_drawable(table.attrs['title'])}: volume of the vertebrae",
        "Boxes: median and quartiles; whiskers: 5th to 95th percentile; dots: scans beyond, or all "
        "of few scans. On top: number of scans.",
    )
    for position, (name, values) in enumerate(volumes.items()):
        draw_values(axes, position, values, region_color(name))
        count = axes.text(
            position, 0.985, str(values.size), ha="center", va="top", fontsize=SMALL_FONT
        )
        count.set(transform=axes.get_xaxis_transform(), color=TEXT_COLOR)
    largest = max((values.max() for values in volumes.values()), default=1.0)
    axes.set_ylim(0, 1.1 * largest)
    axes.set_ylabel("Volume (cm³)")
    name_vertebrae(axes, list(volumes))
    add_region_legend(axes, list(volumes))
    return figure


def draw_spacing(table: xr.Dataset) -> Figure:
    """Draw the slice distance against the pixel spacing, with one mark for each scan."""
    spacing = to_file_axes(table, "spacing_zyx_mm")
    in_plane, between = np.sqrt(spacing[:, 0] * spacing[:, 1]), spacing[:, 2]
    figure, axes = new_plot(
        f"{to_drawable(table.attrs['title'])}: voxel spacing",
        "One mark for each scan. Slices are counted along the third axis of the source file.",
    )
    groups = _largest_groups([str(name) for name in table.source.to_numpy()])
    for (name, rows), (color, marker) in zip(groups.items(), _SOURCE_MARKS, strict=False):
        marks = axes.scatter(in_plane[rows], between[rows], c=color, marker=marker, s=30)
        marks.set(alpha=0.5, linewidths=0, label=f"{legend_name(name)} ({len(rows):,})")
    axes.axline((0, 0), slope=1, color=QUIET_COLOR, linewidth=1, dashes=(5, 4), label="isotropic")
    if in_plane.size:
        axes.set_xlim(0.93 * in_plane.min(), 1.07 * in_plane.max())
        axes.set_ylim(0, 1.08 * between.max())
    axes.set_xlabel("Pixel spacing in a slice (mm)")
    axes.set_ylabel("Spacing of slices (mm)")
    axes.grid(visible=True, axis="x", color=GRID_COLOR, linewidth=0.8)
    add_legend(axes)
    return figure


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
