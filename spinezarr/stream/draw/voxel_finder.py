"""What draws ask of stored scans: chunk shapes, and voxels of a vertebra."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.retry import retry_if_rewritten
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["StoredVoxelFinder"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredVoxelFinder:
    """The scans of a store; see :class:`spinezarr.stream.draw.window.Volumes`."""

    reader: StoreReader
    engine: Engine

    def prefetch_scans(self, scan_ids: Iterable[str]) -> None:
        """Read what is known of some scans, together."""
        self.reader.prefetch_scans(scan_ids)

    def chunk_shape_zyx(self, scan_id: str) -> ShapeZYX:
        """Return the voxels of a chunk of a scan's image and mask."""
        return self.reader.listed_scan(scan_id).image.chunk_shape_zyx

    def chunk_voxels(
        self, scan_id: str, vertebra: str, k: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Find the k-th voxel of a vertebra, and the others in its chunk."""
        return self.chunk_voxels_of_label(scan_id, VALUE_OF_NAME[vertebra], k)

    def chunk_voxels_of_label(
        self, scan_id: str, value: int, k: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Find the k-th voxel of a label: chunk by the stored counts, then inside that chunk.

        Returns
        -------
        numpy.ndarray
            Voxels of that label in that chunk, shape ``(m, 3)``: z, y, x in the scan.
        int
            Which of them is the k-th.
        """
        return retry_if_rewritten(lambda: self._labeled_around(scan_id, value, k))

    def _labeled_around(
        self, scan_id: str, value: int, k: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        scan = self.reader.listed_scan(scan_id)
        label = scan.label
        if label is None:
            raise UsageError(f"scan {scan_id!r} has no mask.")
        table = self.reader.label_chunks(scan_id)
        rows = table[table[:, 0] == value]
        ends = np.cumsum(rows[:, 4])
        if not len(ends) or k >= ends[-1]:
            raise scan.wrong_label_count(value)
        row = int(np.searchsorted(ends, k, side="right"))
        rank = k - int(ends[row] - rows[row, 4])
        origin = [int(i) * n for i, n in zip(rows[row, 1:4], label.chunk_shape_zyx, strict=True)]
        whole = Box.at((origin[0], origin[1], origin[2]), label.chunk_shape_zyx)
        inside = whole.intersect(Box((0, 0, 0), label.shape_zyx)) or whole
        voxels = np.empty(inside.shape_zyx, np.uint8)
        self.engine.read_into(label, inside, voxels)
        found = np.argwhere(voxels == value)
        if rank >= len(found):
            raise scan.wrong_label_count(value)
        return found + origin, rank
