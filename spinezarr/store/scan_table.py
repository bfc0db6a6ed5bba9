"""How is the scan table kept in memory?

It is kept as NumPy arrays. Drawing patches needs no more, and importing xarray takes longer than
reading a batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Column", "ScanTable", "TableColumns"]

COORDINATES = ("scan", "vertebra", "axis", "mask", "structure")
"""Columns with the names along each axis; the last two are there if scans have further masks."""


class TableColumns(Protocol):
    """Columns of the scan table by name: a :class:`ScanTable`, or the ``xarray.Dataset`` of it."""

    def __getitem__(self, name: str, /) -> Any:  # noqa: ANN401  an array of NumPy or of xarray
        """Return a column, which :func:`numpy.asarray` reads."""


class Column(NamedTuple):
    """One column."""

    dimensions: tuple[str, ...]
    """Names of its axes: ``scan``, and after it ``vertebra`` and ``axis`` (z, y, x), or ``mask``
    and ``structure``."""
    values: npt.NDArray[Any]
    """One value for each row; texts are Python objects."""
    attributes: Mapping[str, Any]
    """Attributes that describe the values, such as their unit."""


@dataclass(frozen=True, slots=True, eq=False)
class ScanTable:
    """The scan table, or some of its rows."""

    columns: Mapping[str, Column]
    attributes: Mapping[str, Any]
    """Attributes that describe the dataset."""

    @classmethod
    def of(cls, table: "xr.Dataset") -> "ScanTable":
        """Return the table that a dataset of xarray holds."""
        columns = {
            str(name): Column(tuple(map(str, variable.dims)), variable.to_numpy(), variable.attrs)
            for name, variable in table.variables.items()
        }
        return cls(columns, table.attrs)

    def __len__(self) -> int:
        return len(self["scan"])

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self.columns[name].values

    def take(self, rows: npt.NDArray[np.integer[Any]]) -> "ScanTable":
        """Return some rows, by their numbers."""
        return replace(
            self,
            columns={
                name: column._replace(values=column.values[rows])
                if column.dimensions[0] == "scan"
                else column
                for name, column in self.columns.items()
            },
        )

    def to_xarray(self) -> "xr.Dataset":
        """Return the same table as a dataset of xarray, which shares its arrays."""
        import xarray as xr  # noqa: PLC0415  its import is slow, and training does not need it

        columns = {
            name: (column.dimensions, column.values, dict(column.attributes))
            for name, column in self.columns.items()
        }
        coordinates = [name for name in COORDINATES if name in columns]
        return xr.Dataset(columns, attrs=dict(self.attributes)).set_coords(coordinates)
