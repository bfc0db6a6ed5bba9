"""What does a picture need to know about one slice of a scan?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Plane
from spinezarr.vertebrae import NAME_OF_VALUE, Color

__all__ = ["LABEL_LEGEND", "MaskLegend", "PreviewPlane", "PreviewPoint"]

_Index = TypeVar("_Index", float, npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class MaskLegend:
    """Names and colors of the values of a mask."""

    names: Mapping[int, str] = field(default_factory=lambda: MappingProxyType(NAME_OF_VALUE))
    """Name of each value; values without a name are shown as numbers."""
    colors: Mapping[int, Color] = field(default_factory=dict)
    """Color of each value that has another one than its name; see
    :func:`spinezarr.vertebrae.label_color`."""


LABEL_LEGEND: Final = MaskLegend()
"""The vertebrae of ``label``."""


@dataclass(frozen=True, slots=True)
class PreviewPoint:
    """The annotated center of a vertebra, projected onto a slice along its normal."""

    name: str
    """Name of the level, such as ``L1`` or ``S1``."""
    row: float
    """Voxel index along the rows, which may be fractional."""
    column: float
    """Voxel index along the columns, which may be fractional."""


@dataclass(frozen=True, slots=True, eq=False)
class PreviewPlane:
    """One slice of a scan, and where it lies."""

    plane: Plane
    """Orientation of the slice."""
    image: npt.NDArray[Any]
    """CT numbers in HU with axes (row, column): sagittal (z, y), coronal (z, x), axial (y, x).

    The indices increase toward superior, anterior and right, as in the store.
    """
    label: npt.NDArray[np.uint8] | None
    """Label values of the same voxels; None for a scan without a mask."""
    spacing_rows_columns_mm: tuple[float, float]
    """Distance in mm between neighboring rows, and between neighboring columns."""
    position_mm: float
    """World coordinate of the slice along its normal, in RAS+ mm."""
    origin_rows_columns_mm: tuple[float, float] | None = None
    """World coordinates (row, column) of the center of the first voxel, in RAS+ mm.

    If None, the lines that show where the other planes cut are left out.
    """
    points: tuple[PreviewPoint, ...] = ()
    """Annotated centers, drawn as dots. They are named if the label lacks their level."""
    legend: MaskLegend = LABEL_LEGEND
    """Names and colors of the label values."""

    def __post_init__(self) -> None:
        if self.image.ndim != 2 or not self.image.size:  # noqa: PLR2004
            raise UsageError(f"{self.plane} slice: expected 2 axes, got shape {self.image.shape}")
        if self.label is not None and self.label.shape != self.image.shape:
            raise UsageError(
                f"{self.plane} slice: label shape {self.label.shape} differs from "
                f"image shape {self.image.shape}; cut both at the same voxels"
            )
        if min(self.spacing_rows_columns_mm) <= 0:
            raise UsageError(
                f"{self.plane} slice: spacing {self.spacing_rows_columns_mm} mm is not positive"
            )

    @property
    def size_rows_columns_mm(self) -> tuple[float, float]:
        """Extent in mm along rows and columns, from voxel edge to voxel edge."""
        rows, columns = self.image.shape
        return rows * self.spacing_rows_columns_mm[0], columns * self.spacing_rows_columns_mm[1]

    def to_panel_mm(self, rows: _Index, columns: _Index) -> tuple[_Index, _Index]:
        """Convert voxel indices to panel coordinates in mm, (across, up)."""
        row, column = self.origin_rows_columns_mm or (0.0, 0.0)
        return column + columns * self.spacing_rows_columns_mm[
            1
        ], row + rows * self.spacing_rows_columns_mm[0]
