"""Where on the picture is each slice drawn, in pixels from the top left corner?"""

from dataclasses import dataclass
from typing import Final

from spinezarr.export.plane import PreviewPlane

__all__ = [
    "CAPTION_LINE",
    "HEADER_STRIP",
    "LETTER_STRIP",
    "MARGIN",
    "SCALE_STRIP",
    "TITLE_HEIGHT",
    "Panel",
    "arrange",
    "strips_around",
]

TITLE_HEIGHT: Final = 42
CAPTION_LINE: Final = 18
MARGIN: Final = 16
LETTER_STRIP: Final = 18
HEADER_STRIP: Final = 22
SCALE_STRIP: Final = 18
_MAX_WIDTH: Final = 1600
_MAX_HEIGHT: Final = 900
_MIN_WIDTH: Final = 720
_MIN_COLUMN_WIDTH: Final = 150
_NAME_GUTTER: Final = 56
_HEIGHT_ABOVE_SLICE: Final = HEADER_STRIP + LETTER_STRIP
_HEIGHT_BELOW_SLICE: Final = LETTER_STRIP + SCALE_STRIP
_PANELS_HEIGHT: Final = _MAX_HEIGHT - TITLE_HEIGHT - MARGIN - CAPTION_LINE
"""Height in pixels for panels, below the title and above one line of caption."""
_AXIAL_ENLARGEMENT: Final = 2.0
"""Largest scale of the axial panel, relative to the other panels."""


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A slice, and its position on the picture."""

    content: PreviewPlane
    px_per_mm: float
    left: float
    """Pixels from the left edge of the picture to that of the slice."""
    top: float
    """Pixels from the top edge of the picture to that of the slice."""

    @property
    def width(self) -> float:
        """Width of the slice in pixels."""
        return self.content.size_rows_columns_mm[1] * self.px_per_mm

    @property
    def height(self) -> float:
        """Height of the slice in pixels."""
        return self.content.size_rows_columns_mm[0] * self.px_per_mm

    @property
    def edges_mm(self) -> tuple[float, float, float, float]:
        """Edges in mm: smallest and largest column coordinate, then those of the rows."""
        left, bottom = self.content.to_panel_mm(-0.5, -0.5)
        height, width = self.content.size_rows_columns_mm
        return left, left + width, bottom, bottom + height


def arrange(planes: list[PreviewPlane]) -> tuple[list[Panel], float, float]:
    """Place the slices in a row, or stack the upright ones, whichever shows them larger.

    Returns
    -------
    panels : list of Panel
        The placed slices.
    width : float
        Width of the picture in pixels.
    height : float
        Height of the panels in pixels, without title and caption.
    """
    in_row = [[plane] for plane in planes]
    upright = [plane for plane in planes if plane.plane != "axial"]
    stacked = [column for column in (upright, planes[len(upright) :]) if column]
    columns = max((in_row, stacked), key=_common_scale)
    scales = [_common_scale(columns)] * len(columns)
    if columns[-1][0].plane == "axial" and len(columns) > 1:
        scales[-1] = _axial_scale(columns, scales[0])
    column_widths = [_column_width(c, s) for c, s in zip(columns, scales, strict=True)]
    gutters = [_gutter(column) for column in columns]
    content_width = sum(column_widths) + sum(gutters) + len(columns) * LETTER_STRIP + 2 * MARGIN
    width = max(content_width, _MIN_WIDTH)
    panels: list[Panel] = []
    x = MARGIN + (width - content_width) / 2
    for column, scale, column_width, gutter in zip(
        columns, scales, column_widths, gutters, strict=True
    ):
        top = float(TITLE_HEIGHT)
        for plane in column:
            left = x + gutter + (column_width - plane.size_rows_columns_mm[1] * scale) / 2
            panels.append(Panel(plane, scale, left, top + _HEIGHT_ABOVE_SLICE))
            top += _column_height([plane], scale)
        x += gutter + column_width + LETTER_STRIP
    return panels, width, max(map(_column_height, columns, scales))


def strips_around(plane: PreviewPlane) -> tuple[float, float, float, float]:
    """Return the pixels that a slice needs for names and letters: left, right, below, above."""
    return _gutter([plane]), LETTER_STRIP, _HEIGHT_BELOW_SLICE, _HEIGHT_ABOVE_SLICE


def _gutter(column: list[PreviewPlane]) -> float:
    """Return the pixels left of a column for letters and for names in the sagittal panel."""
    has_names = any(p.plane == "sagittal" and (p.label is not None or p.points) for p in column)
    return _NAME_GUTTER if has_names else LETTER_STRIP


def _free_width(columns: list[list[PreviewPlane]]) -> float:
    """Return the total width in pixels that the panels of all columns may have."""
    return _MAX_WIDTH - 2 * MARGIN - sum(_gutter(c) + LETTER_STRIP for c in columns)


def _column_width(column: list[PreviewPlane], scale: float) -> float:
    return max(max(p.size_rows_columns_mm[1] for p in column) * scale, _MIN_COLUMN_WIDTH)


def _column_height(column: list[PreviewPlane], scale: float) -> float:
    return sum(
        p.size_rows_columns_mm[0] * scale + _HEIGHT_ABOVE_SLICE + _HEIGHT_BELOW_SLICE
        for p in column
    )


def _common_scale(columns: list[list[PreviewPlane]]) -> float:
    """Return the largest number of pixels per mm at which all columns fit."""
    width_mm = sum(max(p.size_rows_columns_mm[1] for p in column) for column in columns)
    scales = [_free_width(columns) / width_mm]
    for column in columns:
        free_height = _PANELS_HEIGHT - len(column) * (_HEIGHT_ABOVE_SLICE + _HEIGHT_BELOW_SLICE)
        scales.append(free_height / sum(p.size_rows_columns_mm[0] for p in column))
    return min(scales)


def _axial_scale(columns: list[list[PreviewPlane]], scale: float) -> float:
    """Return the pixels per mm of the axial column, enlarged if the others leave space."""
    others = sum(_column_width(column, scale) for column in columns[:-1])
    height_mm, width_mm = columns[-1][0].size_rows_columns_mm
    width_scale = (_free_width(columns) - others) / width_mm
    largest_scale = min(
        width_scale,
        (_PANELS_HEIGHT - _HEIGHT_ABOVE_SLICE - _HEIGHT_BELOW_SLICE) / height_mm,
        scale * _AXIAL_ENLARGEMENT,
    )
    return max(largest_scale, scale)
