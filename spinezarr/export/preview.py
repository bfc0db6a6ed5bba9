"""One picture of a scan: three planes through the spine, vertebrae coloured and named.

Radiological display: head up, the patient's right on the left of the coronal and axial panels,
anterior up in the axial and on the left of the sagittal panel. Panels are drawn in millimetres.
"""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.text import Text

from spinezarr.errors import UsageError
from spinezarr.geometry import Plane
from spinezarr.vertebrae import BACKGROUND, NAME_OF_VALUE, colour_of

__all__ = ["PreviewPlane", "draw_preview"]

_Index = TypeVar("_Index", float, npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class _View:
    """What a plane's axes are, in world directions."""

    normal: str
    rows: str
    columns: str
    left: str
    right: str
    up: str
    down: str
    colour: str


_VIEWS: Final[dict[Plane, _View]] = {
    "sagittal": _View("x", "z", "y", left="A", right="P", up="S", down="I", colour="#e6b566"),
    "coronal": _View("y", "z", "x", left="R", right="L", up="S", down="I", colour="#6fc3df"),
    "axial": _View("z", "y", "x", left="R", right="L", up="A", down="P", colour="#8fd18f"),
}

_DPI: Final = 100
_MAX_WIDTH, _MAX_HEIGHT = 1600, 900
_MIN_WIDTH = 720
_MIN_COLUMN = 150
_MARGIN = 16
_TITLE_HEIGHT = 42
_CAPTION_LINE = 18
_CAPTION_PX = 13
_LETTER_STRIP = 18
_HEADER_STRIP = 22
_SCALE_STRIP = 18
_NAME_GUTTER = 56
_ABOVE: Final = _HEADER_STRIP + _LETTER_STRIP
_BELOW: Final = _LETTER_STRIP + _SCALE_STRIP
_ROOM: Final = _MAX_HEIGHT - _TITLE_HEIGHT - _MARGIN - _CAPTION_LINE
"""Pixels that title and one line of caption leave to the panels' height."""
_AXIAL_ENLARGEMENT = 2.0

_WINDOW_HU: Final = (-400.0, 1100.0)
_FILL_ALPHA = 0.38
_BACKGROUND_COLOUR = "#0d0e11"
_TEXT_COLOUR = "#f0f0f0"
_QUIET_COLOUR = "#9aa0aa"
_UNKNOWN_COLOUR = (0.85, 0.85, 0.85)
_FONT = "DejaVu Sans"
_LETTER_FONT = "DejaVu Sans Mono"
_EM_PER_CHARACTER = 0.65
_NAME_PX, _SMALLEST_NAME_PX = 13.0, 8.0
_MAX_CROSSED_MM = 10
_SCALE_BARS_MM = (50, 20, 10, 5, 2, 1)


@dataclass(frozen=True, slots=True, eq=False)
class PreviewPlane:
    """One slice of a scan and where it lies."""

    plane: Plane
    """Its orientation."""
    image: npt.NDArray[Any]
    """HU, axes (rows, columns): sagittal (z, y), coronal (z, x), axial (y, x).

    Each index increases toward superior, anterior or right, as in the store.
    """
    label: npt.NDArray[np.uint8] | None
    """Label values on the same voxels, or None for a scan without mask."""
    spacing_mm: tuple[float, float]
    """Distance between neighbouring voxels along rows and columns."""
    position_mm: float
    """World coordinate of the slice along its normal."""
    origin_mm: tuple[float, float] | None = None
    """World coordinates of the first voxel's centre: that of its row, that of its column.

    None leaves out the lines that show where the other planes cut.
    """

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or not self.image.size:  # noqa: PLR2004
            raise UsageError(f"{self.plane} slice: expected 2 axes, got shape {self.image.shape}")
        if self.label is not None and self.label.shape != self.image.shape:
            raise UsageError(
                f"{self.plane} slice: label shape {self.label.shape} differs from "
                f"image shape {self.image.shape}; cut both at the same voxels"
            )
        if min(self.spacing_mm) <= 0:
            raise UsageError(f"{self.plane} slice: spacing {self.spacing_mm} mm is not positive")

    @property
    def size_mm(self) -> tuple[float, float]:
        """Extent along rows and columns, voxel edge to voxel edge."""
        rows, columns = self.image.shape
        return rows * self.spacing_mm[0], columns * self.spacing_mm[1]

    def at(self, rows: _Index, columns: _Index) -> tuple[_Index, _Index]:
        """Panel coordinates in mm, across and up, of voxel indices."""
        row, column = self.origin_mm or (0.0, 0.0)
        return column + columns * self.spacing_mm[1], row + rows * self.spacing_mm[0]


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    """A slice placed on the figure; pixels count from the top left corner."""

    content: PreviewPlane
    px_per_mm: float
    left: float
    top: float

    @property
    def width(self) -> float:
        return self.content.size_mm[1] * self.px_per_mm

    @property
    def height(self) -> float:
        return self.content.size_mm[0] * self.px_per_mm

    @property
    def edges_mm(self) -> tuple[float, float, float, float]:
        """Least and greatest column coordinate, least and greatest row coordinate."""
        left, bottom = self.content.at(-0.5, -0.5)
        height, width = self.content.size_mm
        return left, left + width, bottom, bottom + height


@dataclass(frozen=True, slots=True, eq=False)
class _Region:
    """The voxels of one label in a slice."""

    value: int
    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]

    @property
    def name(self) -> str:
        return NAME_OF_VALUE.get(self.value, str(self.value))

    @property
    def colour(self) -> tuple[float, float, float]:
        return colour_of(self.value) if self.value in NAME_OF_VALUE else _UNKNOWN_COLOUR

    def end(self, side: int) -> tuple[float, float]:
        """Row and column where one half of the region ends: 1 the front half, -1 the back half.

        In a sagittal slice the front half is about the vertebral body, the back half the arch.
        """
        columns = self.columns * side
        half = columns >= (columns.min() + columns.max()) / 2
        row = self.rows[half].mean()
        nearest = np.abs(self.rows[half] - row)
        return float(row), float(columns[half][nearest == nearest.min()].max() * side)


def draw_preview(scan_id: str, planes: Sequence[PreviewPlane], caption: str) -> Figure:
    """Draw the slices of one scan side by side, all in millimetres.

    Safe to call from many threads at once: nothing global is read or set.

    Parameters
    ----------
    scan_id
        Title of the picture.
    planes
        One to three slices, each of another orientation.
    caption
        Text below the panels; wrapped, never cut.

    Returns
    -------
    Figure
        With an Agg canvas, about 1600 x 900 pixels at most; a long caption makes it higher.

    Raises
    ------
    UsageError
        If there is no plane, or two of one orientation.
    """
    orientations = [plane.plane for plane in planes]
    if not planes or len(set(orientations)) < len(orientations):
        raise UsageError(f"{scan_id}: a preview needs one slice each, got {orientations}")
    ordered = [plane for name in _VIEWS for plane in planes if plane.plane == name]
    panels, width, height = _arrange(ordered)
    lines = _wrap(caption, width)
    height += _TITLE_HEIGHT + _MARGIN + len(lines) * _CAPTION_LINE
    figure = Figure((width / _DPI, height / _DPI), dpi=_DPI, facecolor=_BACKGROUND_COLOUR)
    FigureCanvasAgg(figure)
    for panel in panels:
        _draw_panel(figure, panel, ordered)
    title_px = min(19.0, (width - 2 * _MARGIN) / (_EM_PER_CHARACTER * max(len(scan_id), 1)))
    middle = 1 - _TITLE_HEIGHT / 2 / height
    _write(figure, (_MARGIN / width, middle), scan_id, title_px, ha="left")
    for below, line in enumerate(reversed(lines)):
        at = (_MARGIN / width, (_MARGIN / 2 + below * _CAPTION_LINE) / height)
        _write(figure, at, line, _CAPTION_PX, ha="left", va="bottom", color=_QUIET_COLOUR)
    return figure


def _wrap(caption: str, width: float) -> list[str]:
    """Break a caption into lines that fit."""
    characters = int((width - 2 * _MARGIN) / (_EM_PER_CHARACTER * _CAPTION_PX))
    return textwrap.wrap(caption, characters, break_on_hyphens=False)


def _arrange(planes: list[PreviewPlane]) -> tuple[list[_Panel], float, float]:
    """Place the slices: in a row, or the upright ones stacked, whichever shows them larger.

    Returns the panels and the width and height that they need, without title and caption.
    """
    in_row = [[plane] for plane in planes]
    upright = [plane for plane in planes if plane.plane != "axial"]
    stacked = [column for column in (upright, planes[len(upright) :]) if column]
    columns = max((in_row, stacked), key=_common_scale)
    scales = [_common_scale(columns)] * len(columns)
    if columns[-1][0].plane == "axial" and len(columns) > 1:
        scales[-1] = _axial_scale(columns, scales[0])
    inner = [_column_width(c, s) for c, s in zip(columns, scales, strict=True)]
    gutters = [_gutter(column) for column in columns]
    content_width = sum(inner) + sum(gutters) + len(columns) * _LETTER_STRIP + 2 * _MARGIN
    width = max(content_width, _MIN_WIDTH)
    panels: list[_Panel] = []
    x = _MARGIN + (width - content_width) / 2
    for column, scale, wide, gutter in zip(columns, scales, inner, gutters, strict=True):
        top = float(_TITLE_HEIGHT)
        for plane in column:
            left = x + gutter + (wide - plane.size_mm[1] * scale) / 2
            panels.append(_Panel(plane, scale, left, top + _ABOVE))
            top += _column_height([plane], scale)
        x += gutter + wide + _LETTER_STRIP
    return panels, width, max(map(_column_height, columns, scales))


def _gutter(column: list[PreviewPlane]) -> float:
    """Pixels left of a column's panels, for letters and the names of the sagittal one."""
    named = any(p.plane == "sagittal" and p.label is not None for p in column)
    return _NAME_GUTTER if named else _LETTER_STRIP


def _free_width(columns: list[list[PreviewPlane]]) -> float:
    """Pixels that the panels of all columns may share."""
    return _MAX_WIDTH - 2 * _MARGIN - sum(_gutter(c) + _LETTER_STRIP for c in columns)


def _column_width(column: list[PreviewPlane], scale: float) -> float:
    return max(max(p.size_mm[1] for p in column) * scale, _MIN_COLUMN)


def _column_height(column: list[PreviewPlane], scale: float) -> float:
    return sum(p.size_mm[0] * scale + _ABOVE + _BELOW for p in column)


def _common_scale(columns: list[list[PreviewPlane]]) -> float:
    """Pixels per millimetre at which all columns fit."""
    width_mm = sum(max(p.size_mm[1] for p in column) for column in columns)
    fits = [_free_width(columns) / width_mm]
    for column in columns:
        free = _ROOM - len(column) * (_ABOVE + _BELOW)
        fits.append(free / sum(p.size_mm[0] for p in column))
    return min(fits)


def _axial_scale(columns: list[list[PreviewPlane]], scale: float) -> float:
    """Enlarge the last column where the others leave space."""
    others = sum(_column_width(column, scale) for column in columns[:-1])
    height_mm, width_mm = columns[-1][0].size_mm
    across = (_free_width(columns) - others) / width_mm
    fits = min(across, (_ROOM - _ABOVE - _BELOW) / height_mm, scale * _AXIAL_ENLARGEMENT)
    return max(fits, scale)


def _draw_panel(figure: Figure, panel: _Panel, planes: Sequence[PreviewPlane]) -> None:
    """Draw one slice, its labels and its surroundings."""
    width, height = figure.get_size_inches() * _DPI
    bottom = height - panel.top - panel.height
    axes = figure.add_axes(
        (panel.left / width, bottom / height, panel.width / width, panel.height / height),
        label=panel.content.plane,
    )
    least, greatest, low, high = panel.edges_mm
    axes.imshow(
        np.clip(panel.content.image.astype(np.float32), *_WINDOW_HU),
        cmap="gray",
        vmin=_WINDOW_HU[0],
        vmax=_WINDOW_HU[1],
        origin="lower",
        extent=panel.edges_mm,
        aspect="equal",
        interpolation="bicubic",
    )
    axes.set(xlim=(greatest, least), ylim=(low, high), xticks=[], yticks=[])
    axes.spines[:].set(color="#3a3d44", linewidth=0.8)
    _draw_cuts(axes, panel.content, planes)
    regions = list(_regions(panel.content))
    for region in regions:
        _draw_region(axes, panel.content, region)
    crossing = False
    if panel.content.plane == "sagittal":
        crossing = _name_beside(axes, panel, regions)
    else:
        _name_at_centre(axes, panel, regions)
    _draw_letters(axes, panel, raised=crossing)
    _draw_scale_bar(axes, panel)


def _regions(content: PreviewPlane) -> Iterator[_Region]:
    """Yield the labels of a slice, background left out."""
    if content.label is None:
        return
    for value in np.unique(content.label).tolist():
        if value != BACKGROUND:
            rows, columns = np.nonzero(content.label == value)
            yield _Region(value, rows, columns)


def _draw_region(axes: Axes, content: PreviewPlane, region: _Region) -> None:
    """Fill and outline one label along its voxels' edges."""
    rows = np.arange(region.rows.min() - 1, region.rows.max() + 2)
    columns = np.arange(region.columns.min() - 1, region.columns.max() + 2)
    mask = np.zeros((rows.size, columns.size), np.float32)
    mask[region.rows - rows[0], region.columns - columns[0]] = 1
    x, y = content.at(rows, columns)
    colour = [region.colour]
    axes.contourf(x, y, mask, levels=[0.5, 2], colors=colour, alpha=_FILL_ALPHA)
    axes.contour(x, y, mask, levels=[0.5], colors=colour, linewidths=1.1)


def _draw_cuts(axes: Axes, content: PreviewPlane, planes: Sequence[PreviewPlane]) -> None:
    """Show where the other planes cut this one."""
    if content.origin_mm is None:
        return
    view = _VIEWS[content.plane]
    for other in planes:
        cut = _VIEWS[other.plane]
        draw = {view.columns: axes.axvline, view.rows: axes.axhline}.get(cut.normal)
        if draw is not None:
            draw(other.position_mm, color=cut.colour, linewidth=0.8, alpha=0.5, dashes=(6, 5))


def _draw_letters(axes: Axes, panel: _Panel, *, raised: bool) -> None:
    """Write header and direction letters around a panel; the left one on top where names are."""
    view = _VIEWS[panel.content.plane]
    dx, dy = 1 / panel.width, 1 / panel.height
    half = _LETTER_STRIP / 2
    for letter, at in (
        (view.up, (0.5, 1 + half * dy)),
        (view.down, (0.5, -half * dy)),
        (view.left, (-half * dx, 1 + half * dy if raised else 0.5)),
        (view.right, (1 + half * dx, 0.5)),
    ):
        _write(axes, at, letter, 14, color=_QUIET_COLOUR, family=_LETTER_FONT)
    header = f"{panel.content.plane}   {view.normal} = {panel.content.position_mm:.1f} mm"
    above = 1 + (_LETTER_STRIP + _HEADER_STRIP / 2) * dy
    _write(axes, (0.5, above), header, 13, color=view.colour)


def _draw_scale_bar(axes: Axes, panel: _Panel) -> None:
    """Draw a bar of 50 mm below a panel, or of less where that is wider than the panel."""
    fitting = [mm for mm in _SCALE_BARS_MM if mm <= panel.content.size_mm[1]]
    if not fitting:
        return
    end = fitting[0] / panel.content.size_mm[1]
    y = -(_LETTER_STRIP + _SCALE_STRIP / 2) / panel.height
    bar = Line2D([0, end], [y, y], linewidth=2, color=_TEXT_COLOUR, solid_capstyle="butt")
    bar.set(transform=axes.transAxes, clip_on=False)
    axes.add_line(bar)
    text_at = (end + 6 / panel.width, y)
    _write(axes, text_at, f"{fitting[0]} mm", 12, ha="left")


def _name_at_centre(axes: Axes, panel: _Panel, regions: list[_Region]) -> None:
    """Write names on their regions, the largest first; leave out what would cover another."""
    voxel_px = np.prod(panel.content.spacing_mm) * panel.px_per_mm**2
    taken: list[tuple[float, float, float]] = []
    for region in sorted(regions, key=lambda r: -r.rows.size):
        x, y = panel.content.at(float(region.rows.mean()), float(region.columns.mean()))
        half = _name_width(region.name, _NAME_PX) / 2
        area_px = region.rows.size * voxel_px
        room = all(
            abs(x - other_x) * panel.px_per_mm >= half + other_half + 2
            or abs(y - other_y) * panel.px_per_mm >= _NAME_PX
            for other_x, other_y, other_half in taken
        )
        if room and area_px >= _NAME_PX**2:
            taken.append((x, y, half))
            _write_name(axes, (x, y), region.name, _NAME_PX, ha="center")


def _name_beside(axes: Axes, panel: _Panel, regions: list[_Region]) -> bool:
    """Write names in front of the vertebrae, or behind those that stand behind another.

    Returns whether a name crosses the panel's left edge.
    """
    largest = sorted(regions, key=lambda r: -r.rows.size)
    shown = largest[: max(1, int(panel.height // _SMALLEST_NAME_PX))]
    d_column = panel.content.spacing_mm[1]
    hidden = [_stands_behind(region, regions, d_column) for region in shown]
    crossing = False
    for side in (1, -1):
        named = [r for r, behind in zip(shown, hidden, strict=True) if behind == (side < 0)]
        named.sort(key=lambda r: r.end(side)[0])
        crossing |= _name_column(axes, panel, named, regions, side)
    return crossing


def _stands_behind(region: _Region, regions: list[_Region], d_column: float) -> bool:
    """Whether a line forward from a region would cross much of the others."""
    row, column = region.end(1)
    crossed = sum(
        int(np.count_nonzero((other.rows == round(row)) & (other.columns > column)))
        for other in regions
        if other is not region
    )
    return crossed * d_column > _MAX_CROSSED_MM


def _name_column(
    axes: Axes, panel: _Panel, named: list[_Region], regions: list[_Region], side: int
) -> bool:
    """Write names of ascending regions on one side, spread so that none overlaps."""
    if not named:
        return False
    content, mm = panel.content, 1 / panel.px_per_mm
    left, right = panel.edges_mm[1], panel.edges_mm[0]
    low, high = panel.edges_mm[2:]
    ends = [content.at(*region.end(side)) for region in named]
    name_px = min(_NAME_PX, max(panel.height / len(named), _SMALLEST_NAME_PX))
    half = name_px / 2 * mm
    heights = _spread([y for _, y in ends], 2 * half, low + half, high - half)
    all_x, all_y = content.at(
        np.concatenate([r.rows for r in regions]), np.concatenate([r.columns for r in regions])
    )
    crossing = False
    for region, (end, body), y in zip(named, ends, heights, strict=True):
        start = end + side * content.spacing_mm[1] / 2
        beside = side * all_x[np.abs(all_y - y) <= half + content.spacing_mm[0]]
        x = side * beside.max(initial=side * start) + side * 9 * mm
        width = (_name_width(region.name, name_px) + 4) * mm
        x = min(x, left + 3 * mm) if side > 0 else max(x, right + width)
        line = Line2D([start, x], [body, y], color=region.colour, linewidth=0.9, clip_on=False)
        axes.add_line(line)
        ha = "right" if side > 0 else "left"
        _write_name(axes, (x + side * 2 * mm, y), region.name, name_px, ha=ha)
        crossing |= bool(side > 0 and x + width > left)
    return crossing


def _spread(targets: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending positions as little as possible so that each lies ``gap`` above the last.

    Least squares: positions less ``gap`` times rank must ascend, which pooling neighbours solves.

    Examples
    --------
    >>> _spread([0.0, 1.0, 9.0], gap=2.0, low=-10.0, high=10.0)
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


def _name_width(name: str, px: float) -> float:
    return _EM_PER_CHARACTER * px * len(name)


def _write_name(axes: Axes, at: tuple[float, float], name: str, px: float, *, ha: str) -> None:
    """Write a vertebra's name at millimetres, legible on bone and on air."""
    text = _write(axes, at, name, px, ha=ha, va="center_baseline", color="white")
    outline = [withStroke(linewidth=2.4, foreground="black")]
    text.set(transform=axes.transData, path_effects=outline, zorder=4)


def _write(
    where: Figure | Axes,
    at: tuple[float, float],
    text: str,
    px: float,
    *,
    ha: str = "center",
    va: str = "center",
    color: str = _TEXT_COLOUR,
    family: str = _FONT,
) -> Text:
    """Write plain text at a share of the figure or axes."""
    written = where.text(*at, text, ha=ha, va=va, color=color, parse_math=False)
    written.set(fontfamily=family, fontsize=px * 72 / _DPI)
    if isinstance(where, Axes):
        written.set_transform(where.transAxes)
    return written
