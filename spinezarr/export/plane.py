"""One slice of a scan, ready to be drawn."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Plane

__all__ = ["PreviewPlane", "PreviewPoint"]

_Index = TypeVar("_Index", float, npt.NDArray[Any])


@dataclass(frozen=True, slots=True)
class PreviewPoint:
    """The annotated center of a vertebra, projected onto a slice along its normal."""

    name: str
    """Level, e.g. ``L1`` or ``S1``."""
    row: float
    """Voxel index, need not be whole."""
    column: float
    """Likewise."""


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
    spacing_rows_columns_mm: tuple[float, float]
    """Distance between neighboring voxels along rows and columns."""
    position_mm: float
    """World coordinate of the slice along its normal."""
    origin_rows_columns_mm: tuple[float, float] | None = None
    """World coordinates of the first voxel's center: that of its row, that of its column.

    None leaves out the lines that show where the other planes cut.
    """
    points: tuple[PreviewPoint, ...] = ()
    """Annotated centers, shown as dots; named where the label does not show their level."""
    structures: Mapping[int, str] = field(default_factory=dict)
    """Names of label values that are no vertebrae, where they are known."""

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
        """Extent along rows and columns, voxel edge to voxel edge."""
        rows, columns = self.image.shape
        return rows * self.spacing_rows_columns_mm[0], columns * self.spacing_rows_columns_mm[1]

    def to_panel_mm(self, rows: _Index, columns: _Index) -> tuple[_Index, _Index]:
        """Panel coordinates in mm, across and up, of voxel indices."""
        row, column = self.origin_rows_columns_mm or (0.0, 0.0)
        return column + columns * self.spacing_rows_columns_mm[
            1
        ], row + rows * self.spacing_rows_columns_mm[0]
