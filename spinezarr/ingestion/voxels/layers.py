"""How are the planes of a source file gathered into layers that are one chunk thick?"""

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import Box, Grid, ShapeZYX
from spinezarr.ingestion.voxels.memory import ScratchFile

__all__ = ["Layer", "LayerInMemory", "LayerOnDisk", "Strip", "plan_strips"]

IJK = tuple[slice, slice, slice]


@dataclass(frozen=True, slots=True)
class Strip:
    """Planes of a source file that are read at once. They lie in one layer."""

    layer: Box
    """Box of the layer, in stored voxels."""
    start: int
    """First plane within the layer, in file order."""
    thickness: int
    """Number of planes in the strip."""
    is_last: bool
    """Whether the strip completes its layer."""


def plan_strips(grid: Grid, chunk_shape_zyx: ShapeZYX, planes: int) -> list[Strip]:
    """Return the strips of a source file in file order, each of at most ``planes`` planes.

    A layer is one chunk thick along the stored axis that the slowest axis of the file becomes.
    """
    axis = grid.axis_map.source_axis_zyx.index(2)
    return [
        Strip(layer, start, min(planes, depth - start), start + planes >= depth)
        for layer in grid.axis_map.slab_boxes(grid.shape_zyx, chunk_shape_zyx)
        for depth in [layer.shape_zyx[axis]]
        for start in range(0, depth, planes)
    ]


def _split_box(box: Box, axis: int, step: int) -> list[Box]:
    """Split a box into boxes of at most ``step`` voxels along an axis."""
    boxes = []
    for start in range(box.start_zyx[axis], box.stop_zyx[axis], step):
        low, high = list(box.start_zyx), list(box.stop_zyx)
        low[axis], high[axis] = start, min(start + step, high[axis])
        boxes.append(Box((low[0], low[1], low[2]), (high[0], high[1], high[2])))
    return boxes


class Layer(Protocol):
    """Gathers the strips of a layer, and returns them as blocks of whole chunks."""

    @property
    def in_memory(self) -> bool:
        """Whether the layer keeps its voxels in memory."""
        ...

    def put(self, start: int, values_ijk: npt.NDArray[Any]) -> None:
        """Store planes, the first at ``start``."""
        ...

    def blocks(self) -> list[Box]:
        """Return the boxes of stored voxels that :meth:`read` returns one by one."""
        ...

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return the stored voxels of a block, with axes ``(z, y, x)``."""
        ...

    def close(self) -> None:
        """Release memory or disk space."""
        ...


class LayerInMemory:
    """A layer in one array.

    Parameters
    ----------
    grid
        Grid of the volume.
    box
        Box of the layer, in stored voxels.
    dtype
        Type of the values.
    """

    def __init__(self, grid: Grid, box: Box, dtype: np.dtype[Any]) -> None:
        self._grid = grid
        self._box = box
        self._shape_kji = _shape_kji(grid, box)
        self._dtype = dtype
        self._planes_kji: npt.NDArray[Any] | None = None

    @property
    def in_memory(self) -> bool:
        """Always True."""
        return True

    def put(self, start: int, values_ijk: npt.NDArray[Any]) -> None:
        """See :class:`Layer`; a strip that is the whole layer is kept without a copy."""
        planes = values_ijk.T
        if planes.shape == self._shape_kji and planes.flags.c_contiguous:
            self._planes_kji = planes
            return
        if self._planes_kji is None:
            self._planes_kji = np.empty(self._shape_kji, self._dtype)
        self._planes_kji[start : start + len(planes)] = planes

    def blocks(self) -> list[Box]:
        """Return the whole layer; see :class:`Layer`."""
        return [self._box]

    def read(self, box: Box) -> npt.NDArray[Any]:
        """Return a view of all voxels; see :class:`Layer`."""
        del box
        if self._planes_kji is None:
            raise RuntimeError("a layer is read before it is gathered")
        return self._grid.axis_map.to_zyx(self._planes_kji.T)

    def close(self) -> None:
        """Do nothing, because the memory is freed with the last view."""


class LayerOnDisk:
    """A layer in a scratch file.

    Parameters
    ----------
    grid
        Grid of the volume.
    box
        Box of the layer, in stored voxels.
    dtype
        Type of the values.
    chunk_shape_zyx
        Shape of a chunk in voxels.
    scratch
        Folder of the scratch file.
    block_bytes
        Largest size of a block in bytes. A block holds at least one chunk.
    """

    def __init__(
        self,
        grid: Grid,
        box: Box,
        dtype: np.dtype[Any],
        *,
        chunk_shape_zyx: ShapeZYX,
        scratch: str | None,
        block_bytes: int,
    ) -> None:
        self._grid = grid
        self._box = box
        self._dtype = dtype
        self._chunk_shape_zyx = chunk_shape_zyx
        self._block_bytes = block_bytes
        self._shape_kji = _shape_kji(grid, box)
        self._file = ScratchFile(scratch)

    @property
    def in_memory(self) -> bool:
        """Always False."""
        return False

    def put(self, start: int, values_ijk: npt.NDArray[Any]) -> None:
        """See :class:`Layer`."""
        plane_bytes = math.prod(self._shape_kji[1:]) * self._dtype.itemsize
        self._file.write_at(start * plane_bytes, np.ascontiguousarray(values_ijk.T).data)

    def blocks(self) -> list[Box]:
        """Split along the second axis of the file, and the first if needed; see :class:`Layer`."""
        axes = self._grid.axis_map.source_axis_zyx
        fast, second = axes.index(0), axes.index(1)
        rows = _split_box(self._box, second, self._chunk_shape_zyx[second])
        step = self._chunk_shape_zyx[fast]
        column_bytes = math.prod(rows[0].shape_zyx) * self._dtype.itemsize
        column_bytes = column_bytes * step // self._box.shape_zyx[fast]
        columns = max(1, self._block_bytes // max(1, column_bytes))
        return [block for row in rows for block in _split_box(row, fast, columns * step)]

    def read(self, box: Box) -> npt.NDArray[Any]:
        """See :class:`Layer`."""
        i, j, k = self._file_slices(box)
        _, nj, ni = self._shape_kji
        item_bytes = self._dtype.itemsize
        block = np.empty((k.stop - k.start, j.stop - j.start, i.stop - i.start), self._dtype)
        whole_rows = i.stop - i.start == ni
        for plane, k_index in zip(block, range(k.start, k.stop), strict=True):
            if whole_rows:
                self._file.read_at((k_index * nj + j.start) * ni * item_bytes, plane.data)
                continue
            for row, j_index in zip(plane, range(j.start, j.stop), strict=True):
                self._file.read_at(((k_index * nj + j_index) * ni + i.start) * item_bytes, row.data)
        return self._grid.axis_map.to_zyx(block.T)

    def close(self) -> None:
        """Free the disk space."""
        self._file.close()

    def _file_slices(self, box: Box) -> IJK:
        """Return a box of stored voxels as slices along the axes (i, j, k) of the file.

        k counts from the first plane of the layer.
        """
        axis_map, shape = self._grid.axis_map, self._grid.shape_zyx
        slices_ijk = [slice(0), slice(0), slice(0)]
        for axis, source_axis in enumerate(axis_map.source_axis_zyx):
            low, high = box.start_zyx[axis], box.stop_zyx[axis]
            first, end = self._box.start_zyx[axis], self._box.stop_zyx[axis]
            if axis_map.flip_zyx[axis]:
                low, high = shape[axis] - high, shape[axis] - low
                first = shape[axis] - end
            offset = first if source_axis == 2 else 0  # noqa: PLR2004  k, the slowest axis
            slices_ijk[source_axis] = slice(low - offset, high - offset)
        return (slices_ijk[0], slices_ijk[1], slices_ijk[2])


def _shape_kji(grid: Grid, box: Box) -> tuple[int, int, int]:
    i, j, k = (box.shape_zyx[grid.axis_map.source_axis_zyx.index(axis)] for axis in range(3))
    return (k, j, i)
