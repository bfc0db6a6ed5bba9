"""How does an array in memory become a volume, as if it were read from a file?"""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid, ShapeZYX
from spinezarr.scaling import Scaling

__all__ = ["ArrayVolume", "SliceableArray"]


class SliceableArray(Protocol):
    """An array of NumPy, dask, xarray or PyTorch, whose planes are taken by slicing."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of elements along each axis."""
        ...

    def __getitem__(self, planes: slice, /) -> Any:  # noqa: ANN401  what numpy.asarray reads
        """Return some planes along the first axis."""
        ...


class ArrayVolume:
    """A volume with the axes ``(z, y, x)`` of the store; see :class:`.Volume`.

    Parameters
    ----------
    values_zyx
        Values with axes ``(z, y, x)``. They are taken slab by slab along z.
    dtype
        Type of the values.
    """

    def __init__(self, values_zyx: SliceableArray, dtype: np.dtype[Any]) -> None:
        self._values_zyx = values_zyx
        self._dtype = dtype

    @property
    def grid(self) -> Grid:
        """Shape of the array, with axes in the order of the store and no position."""
        z, y, x = self._values_zyx.shape
        return Grid((x, y, z), np.eye(4))

    @property
    def shape_zyx(self) -> ShapeZYX:
        """Shape of the array."""
        return self.grid.shape_zyx

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values."""
        return self._dtype

    @property
    def scaling(self) -> Scaling | None:
        """Always None."""
        return None

    def unscaled(self) -> "ArrayVolume":
        """Return itself."""
        return self

    @property
    def notes(self) -> tuple[str, ...]:
        """Always empty."""
        return ()

    def slabs(self, thicknesses: Iterable[int], /) -> Iterator[npt.NDArray[Any]]:
        """Yield the values slab by slab along z, with axes ``(x, y, z)``."""
        start = 0
        for thickness in thicknesses:
            planes = np.asarray(self._values_zyx[start : start + thickness])
            yield planes.astype(self._dtype, copy=False).T
            start += thickness

    def source_file(self) -> SourceFile:
        """Raise RuntimeError, as there is no file."""
        raise RuntimeError("an array in memory has no file")
