"""How do image and masks of one scan get encoded side by side, with one progress and one memory?"""

import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Final, TypeVar

from typing_extensions import Buffer

from spinezarr.formats.volume import Volume
from spinezarr.geometry import Grid, ShapeZYX
from spinezarr.ingestion.voxels.chunks import DoesNotFitError
from spinezarr.ingestion.voxels.encode import ChunkEncoder, Facts, encode_volume
from spinezarr.ingestion.voxels.memory import MemoryBudget, Workspace
from spinezarr.store.layout import IMAGE
from spinezarr.store.scan_writer import ScanWriter

__all__ = ["ScanProgress", "VoxelWriter"]

Result = TypeVar("Result")

_IMAGE_THIRDS: Final = 2
"""Thirds of the memory that the image gets.

The mask gets the rest, because its voxels are half as large.
"""
_REPORT_PERIOD_S: Final = 0.1


class _StoppedError(Exception):
    """Ends a thread whose result is no longer needed."""


class ScanProgress:
    """Adds up the progress of several threads on one scan.

    Only the thread that runs the scan reports the sum.

    Parameters
    ----------
    shapes
        Shapes of the volumes that are encoded.
    on_share
        Called with each further share of the scan that is done (0 to 1).
    """

    def __init__(
        self, shapes: Iterable[tuple[int, int, int]], on_share: Callable[[float], None]
    ) -> None:
        self._voxels = sum(map(math.prod, shapes))
        self._on_share = on_share
        self._lock = threading.Lock()
        self._unreported = 0
        self._stopped = False

    def count(self, voxels: int) -> None:
        """Add voxels, or subtract them if negative. Any thread may call it."""
        if self._stopped:
            raise _StoppedError
        with self._lock:
            self._unreported += voxels

    def report(self) -> None:
        """Report the voxels that were counted since the last report."""
        with self._lock:
            voxels, self._unreported = self._unreported, 0
        if voxels:
            self._on_share(voxels / self._voxels)

    def count_and_report(self, voxels: int) -> None:
        """Add voxels and report them, in the thread that runs the scan."""
        self.count(voxels)
        self.report()

    def stop(self) -> None:
        """Make the next call of :meth:`count` raise, so that its thread ends."""
        self._stopped = True


@dataclass(frozen=True, slots=True)
class VoxelWriter:
    """Writes the voxels of one scan."""

    writer: ScanWriter
    pool: Executor
    """Threads that encode chunks."""
    progress: ScanProgress
    memory: MemoryBudget
    """Memory that the scan may use."""
    scratch: str | None
    """Folder for scratch files; None for the system's temporary folder."""

    def encode(
        self,
        array: str,
        volume: Volume,
        grid: Grid,
        encoder: ChunkEncoder[Facts],
        on_voxels: Callable[[int], None],
    ) -> list[Facts]:
        """Encode a volume into the shards of ``array``.

        If it fails, its voxels are subtracted from the progress.
        """
        encoded_voxels = 0

        def count(voxels: int) -> None:
            nonlocal encoded_voxels
            encoded_voxels += voxels
            on_voxels(voxels)

        def write(shard_zyx: ShapeZYX, parts: Iterable[Buffer]) -> None:
            self.writer.write_shard(array, shard_zyx, parts)

        try:
            return encode_volume(
                volume,
                grid,
                encoder,
                profile=self.writer.profile,
                write_shard=write,
                pool=self.pool,
                on_voxels=count,
                workspace=self._workspace(array),
            )
        except DoesNotFitError:
            on_voxels(-encoded_voxels)
            raise

    def wait_for(self, future: Future[Result]) -> Result:
        """Return the result of another thread, and report progress meanwhile."""
        while not wait([future], _REPORT_PERIOD_S).done:
            self.progress.report()
        self.progress.report()
        return future.result()

    def _workspace(self, array: str) -> Workspace:
        thirds = _IMAGE_THIRDS if array == IMAGE else 3 - _IMAGE_THIRDS
        return Workspace(self.memory.share(thirds, 3), self.scratch)
