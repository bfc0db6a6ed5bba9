"""Where does the k-th voxel of a vertebra lie in a stored scan?

The scan's metadata count the voxels of each label in each chunk, so one chunk is read to find it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.box_reader import BoxRead, BoxReader
from spinezarr.stream.read.retry import retry_if_rewritten
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["StoredVoxelFinder"]


@dataclass(frozen=True, slots=True, eq=False)
class StoredVoxelFinder:
    """Finds voxels of labels in the scans of a store.

    It is a :class:`~spinezarr.stream.draw.window.VoxelFinder`.
    """

    reader: StoreReader
    """The opened store."""
    engine: BoxReader
    """Reads boxes of voxels of that store."""

    def prefetch_scans(self, scan_ids: Iterable[str]) -> None:
        """Read the metadata of some scans at once."""
        self.reader.prefetch_scans(scan_ids)

    def chunk_shape_zyx(self, scan_id: str) -> ShapeZYX:
        """Return the shape of the chunks of a scan's image and mask, in voxels."""
        return self.reader.listed_scan(scan_id).image.chunk_shape_zyx

    def chunk_voxels(
        self, scan_id: str, vertebra: str, k: int
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Return the voxels of a vertebra in the chunk of its k-th voxel.

        See :meth:`chunk_voxels_of_label`.
        """
        return self.chunk_voxels_of_label(scan_id, VALUE_OF_NAME[vertebra], k)

    def chunk_voxels_of_label(
        self, scan_id: str, value: int, k: int, mask: str = LABEL
    ) -> tuple[npt.NDArray[np.int64], int]:
        """Return the voxels of a label of a mask in the chunk of its k-th voxel.

        The stored counts of voxels tell the chunk. Then the chunk is read.

        Returns
        -------
        numpy.ndarray
            Shape ``(m, 3)``: z, y and x of each voxel of that label in that chunk.
        int
            Row of the k-th voxel.

        Raises
        ------
        UsageError
            If the scan has no mask ``label``.
        UnknownMaskError
            If the scan has no such further mask.
        CorruptStoreError
            If stored bytes are missing or damaged, or the stored counts are wrong.
        """
        return retry_if_rewritten(lambda: self._read_chunk_voxels(scan_id, value, k, mask))

    def _read_chunk_voxels(
        self, scan_id: str, value: int, k: int, mask: str
    ) -> tuple[npt.NDArray[np.int64], int]:
        scan = self.reader.listed_scan(scan_id)
        if mask == LABEL and scan.label is None:
            raise UsageError(f"scan {scan_id!r} has no mask.")
        label = self.reader.listed_mask(scan_id, mask)
        table = self.reader.label_chunks(scan_id, mask)
        rows = table[table[:, 0] == value]
        ends = np.cumsum(rows[:, 4])
        if not len(ends) or k >= ends[-1]:
            raise scan.wrong_label_count(value)
        row = int(np.searchsorted(ends, k, side="right"))
        rank = k - int(ends[row] - rows[row, 4])
        origin = [int(i) * n for i, n in zip(rows[row, 1:4], label.chunk_shape_zyx, strict=True)]
        chunk = Box.at((origin[0], origin[1], origin[2]), label.chunk_shape_zyx)
        inside = chunk.intersect(Box((0, 0, 0), label.shape_zyx)) or chunk
        voxels = np.empty(inside.shape_zyx, np.uint8)
        self.engine.read([BoxRead(label, inside, voxels)])
        positions = np.argwhere(voxels == value)
        if rank >= len(positions):
            raise scan.wrong_label_count(value)
        return positions + origin, rank
