"""How is an array in memory read by code that reads boxes of a store?"""

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from spinezarr.geometry import Box
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.buffer_pool import BufferPool

__all__ = ["MemorySource"]


class MemorySource:
    """Reads boxes of one array, of which some planes are in memory.

    It is a :class:`spinezarr.derive.sampling.VoxelSource` and a
    :class:`spinezarr.export.voxel_reader.VoxelReader`.

    Parameters
    ----------
    planes
        Some planes of the array, ``(z, y, x)``.
    first
        Index of the first of these planes along z.
    """

    def __init__(self, planes: npt.NDArray[Any], first: int = 0) -> None:
        self.buffers = BufferPool()
        self._planes = planes
        self._first = first

    def read(self, reads: Iterable[BoxRead], /) -> None:
        """Fill the outputs of some boxes, which lie in the planes."""
        for item in reads:
            self.read_into(item.array, item.box, item.out)

    def read_into(self, array: ArraySpec, box: Box, out: npt.NDArray[Any]) -> None:  # noqa: ARG002
        """Fill ``out`` with the voxels of a box, which lies in the planes."""
        out[...] = self._planes[box.shift((-self._first, 0, 0)).slices]
