"""How is one scan covered with patches, for inference?

A :class:`GridStream` gives the patches of a :class:`~spinezarr.stream.epoch.tiling.Tiling`, and a
:class:`~spinezarr.stream.epoch.merger.Merger` puts predictions for them back into one volume.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box
from spinezarr.processors import cpu_count
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.merger import Merger, SaveMask, Weights
from spinezarr.stream.epoch.tiling import Tiling
from spinezarr.stream.read.batch_client import BatchClient, read_batches
from spinezarr.stream.read.batch_reader import BatchReader
from spinezarr.stream.read.layered_reader import LayeredReader
from spinezarr.stream.request import PatchRequest

__all__ = ["GridStream"]


@dataclass(frozen=True, slots=True, eq=False)
class GridStream:
    """Patches that cover one scan; iterate over it for batches.

    :meth:`spinezarr.Store.grid` makes it. Iterating reads each chunk once: layers of the volume,
    one chunk thick, stay in memory from their first patch to their last, and one more layer is read
    ahead. So memory holds the planes of about one patch and of two or three chunks. Reading a batch
    by its number reads the chunks of that batch only.
    """

    batch_reader: BatchReader
    """Reads patches of the size of the grid."""
    scan_id: str
    """The scan that is covered."""
    tiling: Tiling
    """Positions of the patches."""
    batch_size: int
    """Number of patches in a batch."""
    threads: int = field(default_factory=cpu_count)
    """Number of threads that decode."""
    client: BatchClient | None = None
    """Gets batches from the server of the store where that is faster; None if it has no server."""
    save_mask: SaveMask | None = None
    """Writes a further mask of the scan, for :meth:`Merger.save`."""

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"batch_size {self.batch_size}: must be at least 1.")

    @property
    def n_samples(self) -> int:
        """Number of patches in the grid."""
        return len(self.tiling)

    def __len__(self) -> int:
        """Return the number of batches; the last may be smaller."""
        return math.ceil(self.n_samples / self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        """Read batch ``number``.

        Raises
        ------
        IndexError
            If there is no such batch.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        return self.read(self._requests(number))

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        with LayeredReader(self.batch_reader.engine) as layers:
            reader = replace(self.batch_reader, engine=layers)
            for number in range(len(self)):
                yield from reader.read_together([self._requests(number)], threads=self.threads)

    def request(self, index: int) -> PatchRequest:
        """Return the request of patch ``index``, without reading it."""
        box = Box.at(self.tiling.start(index), self.tiling.size_zyx)
        return PatchRequest(index, self.scan_id, box, None)

    def read(self, requests: Sequence[PatchRequest]) -> Batch:
        """Read patches of the grid's size into one batch.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        (batch,) = read_batches(
            self.batch_reader, [requests], client=self.client, threads=self.threads
        )
        return batch

    def merger(
        self,
        weights: Weights = "gaussian",
        finish: Callable[[npt.NDArray[Any]], npt.NDArray[Any]] | None = None,
    ) -> Merger:
        """Return a new merger of predictions for these patches; see :class:`Merger`."""
        return Merger(self.tiling, weights, finish, self.save_mask)

    def _requests(self, number: int) -> list[PatchRequest]:
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of a grid of {len(self)}")
        first = number * self.batch_size
        last = min(first + self.batch_size, self.n_samples)
        return [self.request(index) for index in range(first, last)]
