"""How is a derived array computed with bounded memory, a few planes at a time?"""

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.derive.grid import DerivedGrid
from spinezarr.derive.sampling import Sampling
from spinezarr.geometry import ShapeZYX

__all__ = ["DerivedArray"]

_BLOCK_BYTES: Final = 128 << 20
"""Bytes of memory for one block of planes, as far as a single plane does not need more.

A block with a filter reads some planes twice, so it should have many more planes than the filter.
"""


class DerivedArray:
    """The voxels of a derived scan; a :class:`spinezarr.formats.array_volume.SliceableArray`.

    Blocks of planes are computed when they are needed, and the last one is kept. So the planes
    should be taken in ascending order.

    Parameters
    ----------
    sampling
        Computes the values.
    grid
        Grid of the derived scan.
    block_bytes
        Bytes of memory for one block.
    """

    def __init__(
        self, sampling: Sampling, grid: DerivedGrid, block_bytes: int = _BLOCK_BYTES
    ) -> None:
        self._sampling = sampling
        self._grid = grid
        self.shape: Final[ShapeZYX] = grid.shape_zyx
        self._planes_per_block = self._fitting_planes(block_bytes)
        self._number = -1
        """Number of the block that is kept."""
        self._block: npt.NDArray[Any] = np.empty((0, 0, 0), sampling.dtype)

    def _fitting_planes(self, block_bytes: int) -> int:
        """Return the largest number of planes whose computation fits into ``block_bytes``."""
        step_z, *steps_yx = self._grid.step_zyx
        _, *shape_yx = self.shape
        source_plane = self._sampling.source_bytes * math.prod(
            min(math.ceil(n * step) + 1, size)
            for n, step, size in zip(
                shape_yx, steps_yx, self._grid.source_shape_zyx[1:], strict=True
            )
        )
        margin = 2 * self._sampling.margin_z * source_plane
        plane = step_z * source_plane + math.prod(shape_yx) * self._sampling.value_bytes
        return max(1, int((block_bytes - margin) / plane))

    def __getitem__(self, planes: slice) -> npt.NDArray[Any]:
        """Return some planes along z, a new array or a view of the block that is kept."""
        wanted = range(*planes.indices(self.shape[0]))
        per_block = self._planes_per_block
        parts = []
        for number in range(wanted.start // per_block, -(-wanted.stop // per_block)):
            first = number * per_block
            block = self._block_of(number)
            parts.append(block[max(wanted.start - first, 0) : wanted.stop - first])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _block_of(self, number: int) -> npt.NDArray[Any]:
        if number != self._number:
            first = number * self._planes_per_block
            planes = range(first, min(first + self._planes_per_block, self.shape[0]))
            # The block that was kept may still be in use, so it is not written again.
            block = np.empty((len(planes), *self.shape[1:]), self._sampling.dtype)
            self._sampling.fill(self._grid.positions_zyx(planes), block)
            self._block, self._number = block, number
        return self._block
