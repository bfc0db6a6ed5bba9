"""Which vertebrae does a slice show, and where are their names drawn?"""

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
from spinezarr.vertebrae import BACKGROUND, VALUE_OF_NAME, Color, label_color

__all__ = [
    "POINT_PX",
    "Mark",
    "center_points",
    "draw_names_at_center",
    "draw_names_with_leader_lines",
    "label_regions",
    "spread_apart",
]

POINT_PX: Final = 8.0
"""Diameter in pixels of the dot for an annotated center."""
_NAME_PX: Final = 13.0
_MAX_NAME_LENGTH: Final = 40
_MIN_NAME_PX: Final = 8.0
_MAX_CROSSED_MM: Final = 10


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """The voxels of one label in a slice, or one annotated center."""

    name: str
    """Name of the level, in letters that a picture can show."""
    rows: npt.NDArray[Any]
    """Row index of each voxel. The index of a center may be fractional."""
    columns: npt.NDArray[Any]
    """Column index of each voxel. The index of a center may be fractional."""
    color: Color
    """Red, green and blue, each from 0 to 1."""

    @property
    def middle(self) -> tuple[float, float]:
        """Mean row and mean column."""
        return float(self.rows.mean()), float(self.columns.mean())

    def end(self, side: int) -> tuple[float, float]:
        """Return row and column of the outer end of the front half (1) or the back half (-1).

        In a sagittal slice, the front half is roughly the vertebral body, and the back half the
        arch.
        """
        columns = self.columns * side
        half = columns >= (columns.min() + columns.max()) / 2
        row = self.rows[half].mean()
        nearest = np.abs(self.rows[half] - row)
        return float(row), float(columns[half][nearest == nearest.min()].max() * side)


def label_regions(content: PreviewPlane) -> Iterator[Mark]:
    """Yield the labels of a slice without the background."""
    if content.label is None:
        return
    for value in np.unique(content.label).tolist():
        if value != BACKGROUND:
            rows, columns = np.nonzero(content.label == value)
            name = content.legend.names.get(value, str(value))
            color = content.legend.colors.get(value, label_color(VALUE_OF_NAME.get(name)))
            yield Mark(to_drawable(name, _MAX_NAME_LENGTH), rows, columns, color)


def center_points(content: PreviewPlane) -> list[Mark]:
    """Return the annotated centers that are projected onto a slice."""
    return [
        Mark(
            point.name,
            np.array([point.row]),
            np.array([point.column]),
            label_color(VALUE_OF_NAME.get(point.name)),
        )
        for point in content.points
    ]


def draw_names_at_center(axes: Axes, panel: Panel, regions: list[Mark], points: list[Mark]) -> None:
    """Draw names on their regions, the largest first; skip names that would cover another.

    If a name would cover the dot of its level, it is drawn below the dot.
    """
    voxel_px = np.prod(panel.content.spacing_rows_columns_mm) * panel.px_per_mm**2
    dots = {point.name: point for point in points}
    drawn_names: list[tuple[float, float, float]] = []
    for region in sorted(regions, key=lambda r: -r.rows.size):
        x, y = panel.content.to_panel_mm(*region.middle)
        half = name_width(region.name, _NAME_PX) / 2
        area_px = region.rows.size * voxel_px
        is_free = all(
            abs(x - drawn_x) * panel.px_per_mm >= half + drawn_half + 2
            or abs(y - drawn_y) * panel.px_per_mm >= _NAME_PX
            for drawn_x, drawn_y, drawn_half in drawn_names
        )
        if is_free and area_px >= _NAME_PX**2:
            drawn_names.append((x, y, half))
            if region.name in dots:
                dot_x, dot_y = panel.content.to_panel_mm(*dots[region.name].middle)
                min_distance_mm = (_NAME_PX + POINT_PX) / 2 / panel.px_per_mm
                if (
                    abs(dot_y - y) < min_distance_mm
                    and abs(dot_x - x) * panel.px_per_mm < half + POINT_PX
                ):
                    y = dot_y - min_distance_mm
            draw_name(axes, (x, y), region.name, _NAME_PX, ha="center")


def draw_names_with_leader_lines(axes: Axes, panel: Panel, regions: list[Mark]) -> bool:
    """Draw names next to the vertebrae, each with a line to its vertebra.

    Names are in front of the vertebrae. A vertebra that lies behind another has its name behind it.

    Returns
    -------
    bool
        Whether a name crosses the left edge of the panel.
    """
    largest = sorted(regions, key=lambda r: -r.rows.size)
    shown = largest[: max(1, int(panel.height // _MIN_NAME_PX))]
    column_spacing_mm = panel.content.spacing_rows_columns_mm[1]
    is_behind = [_lies_behind(region, regions, column_spacing_mm) for region in shown]
    crossing = False
    for side in (1, -1):
        marks = [r for r, behind in zip(shown, is_behind, strict=True) if behind == (side < 0)]
        marks.sort(key=lambda r: r.end(side)[0])
        crossing |= _draw_name_column(axes, panel, marks, regions, side)
    return crossing


def _lies_behind(region: Mark, regions: list[Mark], column_spacing_mm: float) -> bool:
    """Whether a line from a region to the front would cross much of other regions."""
    row, column = region.end(1)
    crossed = sum(
        int(np.count_nonzero((other.rows == round(row)) & (other.columns > column)))
        for other in regions
        if other is not region
    )
    return crossed * column_spacing_mm > _MAX_CROSSED_MM


def _draw_name_column(
    axes: Axes, panel: Panel, marks: list[Mark], regions: list[Mark], side: int
) -> bool:
    """Draw the names of marks, which are in ascending order, on one side, without overlaps."""
    if not marks:
        return False
    content, mm_per_px = panel.content, 1 / panel.px_per_mm
    left, right = panel.edges_mm[1], panel.edges_mm[0]
    low, high = panel.edges_mm[2:]
    ends = [content.to_panel_mm(*region.end(side)) for region in marks]
    name_px = min(_NAME_PX, max(panel.height / len(marks), _MIN_NAME_PX))
    half_mm = name_px / 2 * mm_per_px
    heights = spread_apart([y for _, y in ends], 2 * half_mm, low + half_mm, high - half_mm)
    all_x, all_y = content.to_panel_mm(
        np.concatenate([r.rows for r in regions]), np.concatenate([r.columns for r in regions])
    )
    crossing = False
    for region, (end, body), y in zip(marks, ends, heights, strict=True):
        start = end + side * content.spacing_rows_columns_mm[1] / 2
        nearby_x = side * all_x[np.abs(all_y - y) <= half_mm + content.spacing_rows_columns_mm[0]]
        x = side * nearby_x.max(initial=side * start) + side * 9 * mm_per_px
        width = (name_width(region.name, name_px) + 4) * mm_per_px
        x = min(x, left + 3 * mm_per_px) if side > 0 else max(x, right + width)
        line = Line2D([start, x], [body, y], color=region.color, linewidth=0.9, clip_on=False)
        axes.add_line(line)
        ha = "right" if side > 0 else "left"
        draw_name(axes, (x + side * 2 * mm_per_px, y), region.name, name_px, ha=ha)
        crossing |= bool(side > 0 and x + width > left)
    return crossing


def spread_apart(targets: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions as little as possible, so that each is ``gap`` above the last.

    This is a least squares problem: the positions minus ``gap`` times rank must ascend. Pooling
    neighbors solves it.

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
    offsets = [float(np.mean(pool)) for pool in pools for _ in pool]
    ceiling = max(low, high - (len(targets) - 1) * gap)
    return [min(max(offset, low), ceiling) + rank * gap for rank, offset in enumerate(offsets)]
