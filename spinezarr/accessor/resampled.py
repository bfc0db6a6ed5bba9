"""What does a dataset look like at another spacing?

Grid, filter and interpolation are those of :mod:`spinezarr.derive`, so a whole scan gets the voxels
of a derived store. Lazy arrays stay lazy: each block of planes is a task that takes the planes of
the source that it depends on.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import delayed

from spinezarr.accessor.dataset_grid import AXES, DatasetGrid
from spinezarr.accessor.memory_source import MemorySource
from spinezarr.derive.grid import DerivedGrid
from spinezarr.derive.parameters import Derivation
from spinezarr.derive.sampling import PlainSampling, Sampling, image_sampling
from spinezarr.errors import UsageError
from spinezarr.geometry import ShapeZYX, affine_rows, axis_positions_mm
from spinezarr.store.attributes import ATTRIBUTES_OF_ANY_GRID
from spinezarr.store.layout import IMAGE
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.spacing import NATIVE_SPACING

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["resampled"]

_BLOCK_BYTES: Final = 32 << 20
"""Bytes of the planes that one task computes."""
_KEPT_ATTRIBUTES: Final = (*ATTRIBUTES_OF_ANY_GRID, "centroids")
"""Attributes that are kept; centers are in mm."""


def resampled(
    dataset: "xr.Dataset",
    grid: DatasetGrid,
    derivation: Derivation,
    block_bytes: int = _BLOCK_BYTES,
) -> "xr.Dataset":
    """Return a dataset at another spacing.

    Parameters
    ----------
    dataset
        A scan, or a part of one, whose positions increase along each axis.
    grid
        Its grid.
    derivation
        Spacing, and whether images are filtered along axes on which they get fewer voxels.
    block_bytes
        Bytes of the planes that are computed at once.

    Raises
    ------
    UsageError
        If a variable has some of the three axes, but not all.
    """
    derived = DerivedGrid.resampled(
        grid.shape_zyx,
        grid.spacing_zyx_mm,
        grid.affine,
        derivation.target_zyx_mm or NATIVE_SPACING,
    )
    antialias = derivation.image_filter is not None
    variables = {
        name: array
        if not {*AXES} & {*array.dims}
        else (
            AXES,
            _Blocks.of(array, derived, block_bytes, antialias=antialias).all_of(array),
            array.attrs,
        )
        for name, array in dataset.data_vars.items()
    }
    positions_mm = axis_positions_mm(derived.affine, derived.shape_zyx)
    coordinates: dict[Any, Any] = {
        name: coordinate
        for name, coordinate in dataset.coords.items()
        if not {*AXES} & {*coordinate.dims}
    }
    coordinates |= {axis: (axis, positions_mm[axis], dataset.coords[axis].attrs) for axis in AXES}
    kept = {name: dataset.attrs[name] for name in _KEPT_ATTRIBUTES if name in dataset.attrs}
    new = dataset.drop_vars([*dataset.variables]).assign_coords(coordinates)
    new = new.assign(variables)
    new.attrs = {
        **kept,
        "affine": [list(row) for row in affine_rows(derived.affine)],
        "affine_columns": "x, y, z, 1",
        "shape_zyx": list(derived.shape_zyx),
        "spacing_zyx_mm": list(derived.spacing_zyx_mm),
    }
    return new


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Computes blocks of planes of a variable on a new grid."""

    array: ArraySpec
    grid: DerivedGrid
    antialias: bool
    planes: int
    """Number of planes of a block."""

    @classmethod
    def of(
        cls, variable: "xr.DataArray", grid: DerivedGrid, block_bytes: int, *, antialias: bool
    ) -> "_Blocks":
        if variable.dims != AXES:
            raise UsageError(
                f"the variable {variable.name!r} has the dimensions "
                f"({', '.join(map(str, variable.dims))}), expected (z, y, x). Leave it out by "
                f"dataset.drop_vars({variable.name!r})."
            )
        name = str(variable.name)
        array = ArraySpec.in_memory("", name, grid.source_shape_zyx, variable.dtype)
        plane_bytes = math.prod(grid.shape_zyx[1:]) * variable.dtype.itemsize
        return cls(array, grid, antialias, max(1, block_bytes // plane_bytes))

    def all_of(self, variable: "xr.DataArray") -> "npt.NDArray[Any] | da.Array":
        """Return all values on the new grid; lazy if those of the variable are lazy."""
        if not isinstance(variable.data, da.Array):
            values: npt.NDArray[Any] = np.asarray(variable.values)
            return np.concatenate(
                [self.compute(values[low:high], low, planes) for planes, low, high in self.parts()]
            )
        compute = delayed(self.compute, pure=True)
        lazy: da.Array = da.concatenate(
            [
                da.from_delayed(
                    compute(variable.data[low:high], low, planes),
                    (len(planes), *self.grid.shape_zyx[1:]),
                    meta=np.empty((0, 0, 0), variable.dtype),
                )
                for planes, low, high in self.parts()
            ]
        )
        return lazy

    def parts(self) -> Iterator[tuple[range, int, int]]:
        """Yield the planes of each block, and first and last of those that they depend on."""
        n, n_source = self.grid.shape_zyx[0], self.grid.source_shape_zyx[0]
        margin = self._sampling(MemorySource(np.empty((0, 0, 0)))).margin_z
        for first in range(0, n, self.planes):
            planes = range(first, min(first + self.planes, n))
            positions = self.grid.positions_zyx(planes)[0]
            low = max(0, math.floor(positions[0]) - margin)
            yield planes, low, min(n_source, math.ceil(positions[-1]) + 1 + margin)

    def compute(self, source: npt.NDArray[Any], first: int, planes: range) -> npt.NDArray[Any]:
        """Return some planes, given the planes of the source from ``first`` on."""
        shape: ShapeZYX = (len(planes), *self.grid.shape_zyx[1:])
        out = np.empty(shape, self.array.dtype)
        self._sampling(MemorySource(source, first)).fill(self.grid.positions_zyx(planes), out)
        return out

    def _sampling(self, source: MemorySource) -> Sampling:
        if self.array.name == IMAGE or self.array.dtype.kind == "f":
            step = self.grid.step_zyx
            return image_sampling(source, self.array, step, antialias=self.antialias)
        return PlainSampling(source, self.array, linear=False)
