"""Random patches and slices of a store, batch after batch."""

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.reader import ArraySpec, StoreReader
from spinezarr.stream.batch import Batch
from spinezarr.stream.draw import PatchRequest, Sampler
from spinezarr.stream.engine import BoxRead, Engine
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["PADDING_HU", "PatchStream"]

PADDING_HU: Final = -1024
"""Image value outside the volume: air."""
_AXES: Final = ("z", "y", "x")


@dataclass(frozen=True, slots=True, eq=False)
class PatchStream:
    """An epoch of random patches; iterate over it for batches.

    Made by :meth:`spinezarr.Store.patches` and :meth:`spinezarr.Store.slices`. The same seed, epoch
    and index always give the same patch, whatever the batch size or number of threads. Iterating
    again gives the same batches; :meth:`at_epoch` gives others.
    """

    reader: StoreReader
    engine: Engine
    sampler: Sampler
    batch_size: int
    n_samples: int
    """Samples of one epoch."""
    epoch: int
    with_label: bool
    image_dtype: np.dtype[Any]
    flat_axis: int | None
    """Axis (0, 1, 2 for z, y, x) that slices leave out; None for patches."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("n_samples", self.n_samples)):
            if value < 1:
                raise UsageError(f"{name} {value}: must be at least 1.")
        if self.epoch < 0:
            raise UsageError(f"epoch {self.epoch}: must not be negative.")

    def __len__(self) -> int:
        """Return the number of batches of one epoch; the last may be smaller."""
        return math.ceil(self.n_samples / self.batch_size)

    def at_epoch(self, epoch: int) -> "PatchStream":
        """Return the same stream with the draws of another epoch."""
        return replace(self, epoch=epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch; a few are read ahead."""
        pool = _pool(os.getpid())
        waiting: deque[Future[Batch]] = deque()
        try:
            for number in range(len(self)):
                waiting.append(pool.submit(self.__getitem__, number))
                if len(waiting) > _threads():
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def __getitem__(self, number: int) -> Batch:
        """Read batch ``number`` of the epoch.

        Raises
        ------
        IndexError
            If the epoch has no such batch.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of an epoch of {len(self)}")
        first = number * self.batch_size
        last = min(first + self.batch_size, self.n_samples)
        return self.read([self.request(index) for index in range(first, last)])

    def request(self, index: int) -> PatchRequest:
        """Draw sample ``index`` of the epoch, without reading it."""
        return self.sampler.draw(self.epoch, index, self._find_voxel)

    def read(self, requests: Sequence[PatchRequest]) -> Batch:
        """Read patches of the stream's size into one batch."""
        (batch,) = self.read_together([requests])
        return batch

    def read_together(self, groups: Sequence[Sequence[PatchRequest]]) -> list[Batch]:
        """Read several batches; a chunk that several of them need is read once."""
        reads: list[BoxRead] = []
        batches = [self._plan(requests, reads) for requests in groups]
        self.engine.read(reads)
        return batches

    def _plan(self, requests: Sequence[PatchRequest], reads: list[BoxRead]) -> Batch:
        """Allocate a batch, and add what fills it to ``reads``."""
        n, size = len(requests), self.sampler.size_zyx
        image = self.engine.buffers.empty((n, *size), self.image_dtype)
        label = self.engine.buffers.empty((n, *size), np.uint8) if self.with_label else None
        padding = np.zeros((n, 3, 2), np.int64)
        affine = np.empty((n, 4, 4))
        for i, request in enumerate(requests):
            scan = self.reader.scan(request.scan_id)
            reads += _inside(scan.image, request.box, image[i], PADDING_HU)
            if label is not None:
                if scan.label is None:
                    raise UsageError(f"scan {request.scan_id!r} has no mask; read without labels.")
                reads += _inside(scan.label, request.box, label[i], 0)
            padding[i] = _padding(request.box, scan.image.shape_zyx)
            affine[i] = _shifted(scan.affine, request.box.start_zyx)
        kept = [axis for axis in range(3) if axis != self.flat_axis]
        shape = (n, *(size[axis] for axis in kept))
        return Batch(
            image=image.reshape(shape),
            label=None if label is None else label.reshape(shape),
            dims=tuple(_AXES[axis] for axis in kept),
            scan_id=tuple(request.scan_id for request in requests),
            start_zyx=np.array([request.box.start_zyx for request in requests]),
            padding_zyx=padding,
            affine=affine,
            vertebra=tuple(request.vertebra for request in requests),
            index=np.array([request.index for request in requests]),
        )

    def _find_voxel(self, scan_id: str, vertebra: str, k: int) -> ShapeZYX:
        """Find the k-th voxel of a vertebra: chunk by the stored counts, then inside that chunk."""
        value = VALUE_OF_NAME[vertebra]
        table = self.reader.label_chunks(scan_id)
        rows = table[table[:, 0] == value]
        ends = np.cumsum(rows[:, 4])
        row = int(np.searchsorted(ends, k, side="right"))
        rank = k - int(ends[row] - rows[row, 4])
        label = self.reader.scan(scan_id).label
        if label is None:
            raise UsageError(f"scan {scan_id!r} has no mask.")
        origin = [int(i) * n for i, n in zip(rows[row, 1:4], label.chunk_shape_zyx, strict=True)]
        whole = Box.at((origin[0], origin[1], origin[2]), label.chunk_shape_zyx)
        inside = whole.intersect(Box((0, 0, 0), label.shape_zyx)) or whole
        voxels = np.empty(inside.shape_zyx, np.uint8)
        self.engine.read_into(label, inside, voxels)
        at = np.flatnonzero(voxels == value)[rank]
        z, y, x = (int(i) for i in np.unravel_index(at, voxels.shape))
        return (origin[0] + z, origin[1] + y, origin[2] + x)


def _inside(array: ArraySpec, box: Box, out: npt.NDArray[Any], outside: int) -> Iterator[BoxRead]:
    """Yield what is to be read of a box that may leave the volume; fill the rest of ``out``."""
    inside = box.intersect(Box((0, 0, 0), array.shape_zyx))
    if inside != box:
        out[...] = outside
    if inside is not None:
        z, y, x = (-start for start in box.start_zyx)
        yield BoxRead(array, inside, out[inside.shift((z, y, x)).slices])


def _padding(box: Box, shape_zyx: ShapeZYX) -> npt.NDArray[np.int64]:
    before = np.maximum(-np.array(box.start_zyx), 0)
    after = np.maximum(np.array(box.stop_zyx) - shape_zyx, 0)
    return np.stack([before, after], axis=1)


def _shifted(affine: npt.NDArray[np.float64], start_zyx: ShapeZYX) -> npt.NDArray[np.float64]:
    """Move the origin of an affine to the voxel at which a patch starts."""
    moved = affine.copy()
    moved[:3, 3] = (affine @ (*start_zyx[::-1], 1.0))[:3]
    return moved


def _threads() -> int:
    return os.cpu_count() or 1


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001  a forked process needs its own
    return ThreadPoolExecutor(_threads(), thread_name_prefix="spinezarr-stream")
