"""The vertebrae that a slice shows: their voxels or annotated centers, and where names stand."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from spinezarr.export.panel import Panel
from spinezarr.export.picture_text import draw_name, name_width, to_drawable
from spinezarr.export.plane import PreviewPlane
from spinezarr.vertebrae import BACKGROUND, NAME_OF_VALUE, VALUE_OF_NAME, label_color

__all__ = [
    "POINT_PX",
    "Mark",
    "center_points",
    "draw_names_at_center",
    "draw_names_beside",
    "label_regions",
    "spread_apart",
]

POINT_PX: Final = 8.0
"""Width of the dot that shows an annotated center."""
_NAME_PX: Final = 13.0
_LONGEST_NAME: Final = 40
_SMALLEST_NAME_PX: Final = 8.0
_MAX_CROSSED_MM: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """What is shown of one level: the voxels of its label, or one point."""

    name: str
    """As a picture can show it."""
    rows: npt.NDArray[Any]
    """Voxel indices; of a point they need not be whole."""
    columns: npt.NDArray[Any]

    @property
    def color(self) -> tuple[float, float, float]:
        """RGB, each 0 to 1; gray for what the label scheme does not name."""
        return label_color(VALUE_OF_NAME.get(self.name))

    @property
    def middle(self) -> tuple[float, float]:
        """Mean row and column."""
        return float(self.rows.mean()), float(self.columns.mean())

    def end(self, side: int) -> tuple[float, float]:
        """Row and column where one half of the mark ends: 1 the front half, -1 the back half.

        In a sagittal slice the front half is about the vertebral body, the back half the arch.
        """
        columns = self.columns * side
        half = columns >= (columns.min() + columns.max()) / 2
        row = self.rows[half].mean()
        nearest = np.abs(self.rows[half] - row)
        return float(row), float(columns[half][nearest == nearest.min()].max() * side)


def label_regions(content: PreviewPlane) -> Iterator[Mark]:
    """Yield the labels of a slice, background left out."""
    if content.label is None:
        return
    names = {**content.structures, **NAME_OF_VALUE}
    for value in np.unique(content.label).tolist():
        if value != BACKGROUND:
            rows, columns = np.nonzero(content.label == value)
            yield Mark(to_drawable(names.get(value, str(value)), _LONGEST_NAME), rows, columns)


def center_points(content: PreviewPlane) -> list[Mark]:
    """Return the annotated centers that are projected onto a slice."""
    return [
        Mark(point.name, np.array([point.row]), np.array([point.column]))
        for point in content.points
    ]


def draw_names_at_center(axes: Axes, panel: Panel, regions: list[Mark], points: list[Mark]) -> None:
    """Write names on their regions, the largest first; leave out what would cover another.

    A name stands below the dot of its level where it would cover it.
    """
    voxel_px = np.prod(panel.content.spacing_rows_columns_mm) * panel.px_per_mm**2
    dots = {point.name: point for point in points}
    taken: list[tuple[float, float, float]] = []
    for region in sorted(regions, key=lambda r: -r.rows.size):
        x, y = panel.content.to_panel_mm(*region.middle)
        half = name_width(region.name, _NAME_PX) / 2
        area_px = region.rows.size * voxel_px
        room = all(
            abs(x - other_x) * panel.px_per_mm >= half + other_half + 2
            or abs(y - other_y) * panel.px_per_mm >= _NAME_PX
            for other_x, other_y, other_half in taken
        )
        if room and area_px >= _NAME_PX**2:
            taken.append((x, y, half))
            if region.name in dots:
                dot_x, dot_y = panel.content.to_panel_mm(*dots[region.name].middle)
                apart = (_NAME_PX + POINT_PX) / 2 / panel.px_per_mm
                if abs(dot_y - y) < apart and abs(dot_x - x) * panel.px_per_mm < half + POINT_PX:
                    y = dot_y - apart
            draw_name(axes, (x, y), region.name, _NAME_PX, ha="center")


def draw_names_beside(axes: Axes, panel: Panel, regions: list[Mark]) -> bool:
    """Write names in front of the vertebrae, or behind those that stand behind another.

    Returns whether a name crosses the panel's left edge.
    """
    largest = sorted(regions, key=lambda r: -r.rows.size)
    shown = largest[: max(1, int(panel.height // _SMALLEST_NAME_PX))]
    d_column = panel.content.spacing_rows_columns_mm[1]
    hidden = [_stands_behind(region, regions, d_column) for region in shown]
    crossing = False
    for side in (1, -1):
        named = [r for r, behind in zip(shown, hidden, strict=True) if behind == (side < 0)]
        named.sort(key=lambda r: r.end(side)[0])
        crossing |= _name_column(axes, panel, named, regions, side)
    return crossing


def _stands_behind(region: Mark, regions: list[Mark], d_column: float) -> bool:
    """Whether a line forward from a region would cross much of the others."""
    row, column = region.end(1)
    crossed = sum(
        int(np.count_nonzero((other.rows == round(row)) & (other.columns > column)))
        for other in regions
        if other is not region
    )
    return crossed * d_column > _MAX_CROSSED_MM


def _name_column(
    axes: Axes, panel: Panel, named: list[Mark], regions: list[Mark], side: int
) -> bool:
    """Write names of ascending regions on one side, spread so that none overlaps."""
    if not named:
        return False
    content, mm = panel.content, 1 / panel.px_per_mm
    left, right = panel.edges_mm[1], panel.edges_mm[0]
    low, high = panel.edges_mm[2:]
    ends = [content.to_panel_mm(*region.end(side)) for region in named]
    name_px = min(_NAME_PX, max(panel.height / len(named), _SMALLEST_NAME_PX))
    half = name_px / 2 * mm
    heights = spread_apart([y for _, y in ends], 2 * half, low + half, high - half)
    all_x, all_y = content.to_panel_mm(
        np.concatenate([r.rows for r in regions]), np.concatenate([r.columns for r in regions])
    )
    crossing = False
    for region, (end, body), y in zip(named, ends, heights, strict=True):
        start = end + side * content.spacing_rows_columns_mm[1] / 2
        beside = side * all_x[np.abs(all_y - y) <= half + content.spacing_rows_columns_mm[0]]
        x = side * beside.max(initial=side * start) + side * 9 * mm
        width = (name_width(region.name, name_px) + 4) * mm
        x = min(x, left + 3 * mm) if side > 0 else max(x, right + width)
        line = Line2D([start, x], [body, y], color=region.color, linewidth=0.9, clip_on=False)
        axes.add_line(line)
        ha = "right" if side > 0 else "left"
        draw_name(axes, (x + side * 2 * mm, y), region.name, name_px, ha=ha)
        crossing |= bool(side > 0 and x + width > left)
    return crossing


def spread_apart(targets: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions as little as possible so that each lies ``gap`` above the last.

    Least squares: positions less ``gap`` times rank must ascend, which pooling neighbors solves.

    Examples
    --------
    >>> spread_apart([0.0, 1.0, 9.0], gap=2.0, low=-10.0, high=10.0)
    [-0.5, 1.5, 9.0]
    """
    pools: list[list[float]] = []
    for rank, target in enumerate(targets):
        pools.append([target - rank * gap])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            last = pools.pop()
            pools[-1].extend(last)
    slack = [float(np.mean(pool)) for pool in pools for _ in pool]
    ceiling = max(low, high - (len(targets) - 1) * gap)
    return [min(max(s, low), ceiling) + rank * gap for rank, s in enumerate(slack)]
