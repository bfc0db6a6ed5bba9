"""Which interface does a reader of boxes of voxels have?

:class:`~spinezarr.stream.read.batch_reader.BatchReader` and others use :class:`BoxReader`.
:class:`~spinezarr.stream.read.engine.Engine` implements it for a store, and
:class:`~spinezarr.stream.read.layered_reader.LayeredReader` for layers that it keeps in memory.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from spinezarr.geometry import Box
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.buffer_pool import BufferPool
from spinezarr.stream.read.summary import ReadSummary

__all__ = ["BoxRead", "BoxReader"]


@dataclass(frozen=True, slots=True, eq=False)
class BoxRead:
    """A box of a stored array, and the array in memory that its voxels go to."""

    array: ArraySpec
    box: Box
    """Voxels inside the stored array."""
    out: npt.NDArray[Any]
    """Shape ``box.shape_zyx``. It may be a strided view, of any dtype that holds the voxels."""


class BoxReader(Protocol):
    """Reads boxes of voxels; shared between threads."""

    @property
    def buffers(self) -> BufferPool:
        """Pool of memory for voxels."""
        ...

    @property
    def concurrent_calls(self) -> int:
        """Number of calls of :meth:`read` that should run at once, though most of them wait."""
        ...

    def read(self, reads: Iterable[BoxRead], *, threads: int = 1) -> None:
        """Fill the outputs of some boxes.

        Parameters
        ----------
        reads
            The boxes to read. No two outputs overlap.
        threads
            Number of threads that decode.

        Raises
        ------
        CorruptStoreError
            If a shard or chunk is missing or damaged. The outputs are undefined then.
        """
        ...

    def explain(self, boxes: Sequence[tuple[ArraySpec, Box]]) -> ReadSummary:
        """Count what reading some boxes would take. Nothing is read."""
        ...
