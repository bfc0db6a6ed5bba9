"""Which interface do exports need to read the voxels of a store?"""

from typing import Any, Protocol

import numpy.typing as npt

from spinezarr.geometry import Box
from spinezarr.store.scan_handle import ArraySpec

__all__ = ["VoxelReader"]


class VoxelReader(Protocol):
    """Reads voxels of a store, as :class:`spinezarr.stream.read.engine.Engine` does."""

    def read_into(self, array: ArraySpec, box: Box, out: npt.NDArray[Any]) -> None:
        """Fill ``out``, of the box's shape ``(z, y, x)``, with the voxels of ``box``."""
        ...
