"""How are slices through the spine drawn as one picture, with colored and named vertebrae?

The display is radiological. The head is up, and the patient's right is on the left of the coronal
and axial panels. Anterior is up in the axial panel, and on the left of the sagittal panel. Panels
are drawn in millimeters.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.transforms import Affine2D, Transform

from spinezarr.errors import UsageError
from spinezarr.export.marks import (
    POINT_PX,
    Mark,
    center_points,
    draw_names_at_center,
    draw_names_with_leader_lines,
    label_regions,
)
from spinezarr.export.panel import (
    CAPTION_LINE,
    HEADER_STRIP,
    LETTER_STRIP,
    MARGIN,
    SCALE_STRIP,
    TITLE_HEIGHT,
    Panel,
    arrange,
    strips_around,
)
from spinezarr.export.picture_text import (
    DPI,
    EM_PER_CHARACTER,
    LETTER_FONT,
    QUIET_COLOR,
    TEXT_COLOR,
    draw_text,
    to_drawable,
)
from spinezarr.export.plane import PreviewPlane
from spinezarr.geometry import Plane

__all__ = ["draw_on_axes", "draw_preview", "empty_axes"]


@dataclass(frozen=True, slots=True)
class _View:
    """World directions of the axes and edges of a plane."""

    normal: str
    rows: str
    columns: str
    left: str
    right: str
    up: str
    down: str
    color: str


_VIEWS: Final[dict[Plane, _View]] = {
    "sagittal": _View("x", "z", "y", left="A", right="P", up="S", down="I", color="#e6b566"),
    "coronal": _View("y", "z", "x", left="R", right="L", up="S", down="I", color="#6fc3df"),
    "axial": _View("z", "y", "x", left="R", right="L", up="A", down="P", color="#8fd18f"),
}

_CAPTION_PX: Final = 13
_MAX_CAPTION_LENGTH: Final = 2000
_WINDOW_HU: Final = (-400.0, 1100.0)
_FILL_ALPHA: Final = 0.38
_BACKGROUND_COLOR: Final = "#0d0e11"
_SCALE_BARS_MM: Final = (50, 20, 10, 5, 2, 1)
_LARGEST_SHARE_OF_STRIPS: Final = 2.0
"""Small axes are at most this many times as wide or high as their slice."""


def draw_preview(scan_id: str, planes: Sequence[PreviewPlane], caption: str) -> Figure:
    """Draw the slices of one scan next to each other, in millimeters.

    This function is safe to call from many threads, because it uses no global state of matplotlib.

    Parameters
    ----------
    scan_id
        Title of the picture.
    planes
        One to three slices of different orientations.
    caption
        Text below the panels, which is wrapped.

    Returns
    -------
    Figure
        Figure with an Agg canvas of at most about 1600 x 900 pixels. A long caption makes it
        higher.

    Raises
    ------
    UsageError
        If there is no plane, or two of one orientation.
    """
    orientations = [plane.plane for plane in planes]
    if not planes or len(set(orientations)) < len(orientations):
        raise UsageError(
            f"{scan_id}: a preview needs slices of different orientations, got {orientations}."
        )
    ordered = [plane for name in _VIEWS for plane in planes if plane.plane == name]
    panels, width, height = arrange(ordered)
    lines = _wrap(to_drawable(caption, longest=_MAX_CAPTION_LENGTH), width)
    title = to_drawable(scan_id)
    height += TITLE_HEIGHT + MARGIN + len(lines) * CAPTION_LINE
    figure = Figure((width / DPI, height / DPI), dpi=DPI, facecolor=_BACKGROUND_COLOR)
    FigureCanvasAgg(figure)
    for panel in panels:
        _draw_panel(figure, panel, ordered)
    title_px = min(19.0, (width - 2 * MARGIN) / (EM_PER_CHARACTER * max(len(title), 1)))
    middle = 1 - TITLE_HEIGHT / 2 / height
    draw_text(figure, (MARGIN / width, middle), title, title_px, ha="left")
    for n_lines_below, line in enumerate(reversed(lines)):
        position = (MARGIN / width, (MARGIN / 2 + n_lines_below * CAPTION_LINE) / height)
        draw_text(figure, position, line, _CAPTION_PX, ha="left", va="bottom", color=QUIET_COLOR)
    return figure


def _wrap(caption: str, width: float) -> list[str]:
    """Break a caption into lines that fit."""
    characters = int((width - 2 * MARGIN) / (EM_PER_CHARACTER * _CAPTION_PX))
    return textwrap.wrap(caption, characters, break_on_hyphens=False)


def _draw_panel(figure: Figure, panel: Panel, planes: Sequence[PreviewPlane]) -> None:
    """Draw one slice with its annotations, names, letters and scale bar."""
    width, height = figure.get_size_inches() * DPI
    bottom = height - panel.top - panel.height
    axes = figure.add_axes(
        (panel.left / width, bottom / height, panel.width / width, panel.height / height),
        label=panel.content.plane,
    )
    min_column_mm, max_column_mm, min_row_mm, max_row_mm = panel.edges_mm
    limits_mm = (max_column_mm, min_column_mm, min_row_mm, max_row_mm)
    _draw_slice(
        axes, panel, planes, limits_mm=limits_mm, window_hu=_WINDOW_HU, frame=axes.transAxes
    )


def empty_axes(content: PreviewPlane) -> Axes:
    """Return axes for a slice that fill a new figure of pyplot, which notebooks show."""
    import matplotlib.pyplot as plt  # noqa: PLC0415  has global state, which pictures do without

    (_,), width, height = arrange([content])
    figure = plt.figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor=_BACKGROUND_COLOR)
    return figure.add_axes((0, 0, 1, 1), label=content.plane)


def draw_on_axes(axes: Axes, content: PreviewPlane, window_hu: tuple[float, float]) -> None:
    """Draw one slice on axes of a caller, whose coordinates become mm.

    The axes get a dark background. Around the slice there is room for names, letters and the scale
    bar, whose sizes follow from the size that the axes have now.

    Parameters
    ----------
    axes
        Axes to draw on.
    content
        The slice.
    window_hu
        HU of black and of white.
    """
    axes.set_facecolor(_BACKGROUND_COLOR)
    px_per_display_px = DPI / axes.figure.dpi
    width, height = (float(size) * px_per_display_px for size in axes.bbox.size)
    across, up = content.size_rows_columns_mm[::-1]
    left, right, below, above = strips_around(content)
    px_per_mm = max(
        min((width - left - right) / across, (height - below - above) / up),
        min(width / across, height / up) / _LARGEST_SHARE_OF_STRIPS,
    )
    panel = Panel(content, px_per_mm, 0, 0)
    min_column_mm, max_column_mm, min_row_mm, max_row_mm = panel.edges_mm
    free_across = (width - panel.width - left - right) / 2
    free_up = (height - panel.height - below - above) / 2
    limits_mm = (
        max_column_mm + (left + free_across) / px_per_mm,
        min_column_mm - (right + free_across) / px_per_mm,
        min_row_mm - (below + free_up) / px_per_mm,
        max_row_mm + (above + free_up) / px_per_mm,
    )
    shares = Affine2D().scale(-across, up).translate(max_column_mm, min_row_mm)
    frame = shares + axes.transData
    _draw_slice(axes, panel, [content], limits_mm=limits_mm, window_hu=window_hu, frame=frame)


def _draw_slice(
    axes: Axes,
    panel: Panel,
    planes: Sequence[PreviewPlane],
    *,
    limits_mm: tuple[float, float, float, float],
    window_hu: tuple[float, float],
    frame: Transform,
) -> None:
    """Draw one slice; ``frame`` places shares of its width and height.

    ``limits_mm`` are the coordinates of the left, right, lower and upper end of the axes.
    """
    low, high = window_hu
    axes.imshow(
        np.clip(panel.content.image.astype(np.float32), low, high),
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        extent=panel.edges_mm,
        aspect="equal",
        interpolation="bicubic",
    )
    axes.set(xlim=limits_mm[:2], ylim=limits_mm[2:], xticks=[], yticks=[])
    axes.spines[:].set(color="#3a3d44", linewidth=0.8)
    _draw_cuts(axes, panel.content, planes)
    regions, points = list(label_regions(panel.content)), center_points(panel.content)
    for region in regions:
        _draw_region(axes, panel.content, region)
    for point in points:
        _draw_point(axes, panel.content, point)
    crossing = _draw_names(axes, panel, regions, points)
    _draw_letters(axes, panel, frame, raised=crossing)
    _draw_scale_bar(axes, panel, frame)


def _draw_region(axes: Axes, content: PreviewPlane, region: Mark) -> None:
    """Fill and outline one label along the edges of its voxels."""
    rows = np.arange(region.rows.min() - 1, region.rows.max() + 2)
    columns = np.arange(region.columns.min() - 1, region.columns.max() + 2)
    mask = np.zeros((rows.size, columns.size), np.float32)
    mask[region.rows - rows[0], region.columns - columns[0]] = 1
    x, y = content.to_panel_mm(rows, columns)
    color = [region.color]
    axes.contourf(x, y, mask, levels=[0.5, 2], colors=color, alpha=_FILL_ALPHA)
    axes.contour(x, y, mask, levels=[0.5], colors=color, linewidths=1.1)


def _draw_point(axes: Axes, content: PreviewPlane, point: Mark) -> None:
    """Draw the annotated center of a vertebra as a dot."""
    x, y = content.to_panel_mm(point.rows, point.columns)
    dot = Line2D(x, y, marker="o", markersize=POINT_PX * 72 / DPI, markeredgewidth=0.9)
    dot.set(markerfacecolor=point.color, markeredgecolor="black", linestyle="", zorder=3)
    axes.add_line(dot)


def _draw_names(axes: Axes, panel: Panel, regions: list[Mark], points: list[Mark]) -> bool:
    """Draw the names of labels, and of centers whose level has no label in the slice.

    Returns
    -------
    bool
        Whether a name crosses the left edge of the panel.
    """
    labeled = {region.name for region in regions}
    unlabeled_points = [point for point in points if point.name not in labeled]
    if panel.content.plane == "sagittal":
        return draw_names_with_leader_lines(axes, panel, regions + unlabeled_points)
    draw_names_at_center(axes, panel, regions, points)
    return draw_names_with_leader_lines(axes, panel, unlabeled_points)


def _draw_cuts(axes: Axes, content: PreviewPlane, planes: Sequence[PreviewPlane]) -> None:
    """Draw the lines where the other planes cut this one."""
    if content.origin_rows_columns_mm is None:
        return
    view = _VIEWS[content.plane]
    for other in planes:
        cut = _VIEWS[other.plane]
        draw = {view.columns: axes.axvline, view.rows: axes.axhline}.get(cut.normal)
        if draw is not None:
            draw(other.position_mm, color=cut.color, linewidth=0.8, alpha=0.5, dashes=(6, 5))


def _draw_letters(axes: Axes, panel: Panel, frame: Transform, *, raised: bool) -> None:
    """Draw header and direction letters around a panel.

    ``raised`` moves the left letter to the top, if names are at its usual position.
    """
    view = _VIEWS[panel.content.plane]
    across_per_px, up_per_px = 1 / panel.width, 1 / panel.height
    half = LETTER_STRIP / 2
    for letter, position in (
        (view.up, (0.5, 1 + half * up_per_px)),
        (view.down, (0.5, -half * up_per_px)),
        (view.left, (-half * across_per_px, 1 + half * up_per_px if raised else 0.5)),
        (view.right, (1 + half * across_per_px, 0.5)),
    ):
        text = draw_text(axes, position, letter, 14, color=QUIET_COLOR, family=LETTER_FONT)
        text.set_transform(frame)
    header = f"{panel.content.plane}   {view.normal} = {panel.content.position_mm:.1f} mm"
    above = 1 + (LETTER_STRIP + HEADER_STRIP / 2) * up_per_px
    draw_text(axes, (0.5, above), header, 13, color=view.color).set_transform(frame)


def _draw_scale_bar(axes: Axes, panel: Panel, frame: Transform) -> None:
    """Draw a scale bar of 50 mm below a panel, or a shorter one if the panel is narrower."""
    fitting = [mm for mm in _SCALE_BARS_MM if mm <= panel.content.size_rows_columns_mm[1]]
    if not fitting:
        return
    end = fitting[0] / panel.content.size_rows_columns_mm[1]
    y = -(LETTER_STRIP + SCALE_STRIP / 2) / panel.height
    bar = Line2D([0, end], [y, y], linewidth=2, color=TEXT_COLOR, solid_capstyle="butt")
    bar.set(transform=frame, clip_on=False)
    axes.add_line(bar)
    text_position = (end + 6 / panel.width, y)
    draw_text(axes, text_position, f"{fitting[0]} mm", 12, ha="left").set_transform(frame)
