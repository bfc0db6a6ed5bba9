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
from spinezarr.store.reader import ScanHandle, StoreReader
from spinezarr.stream.batch import Batch
from spinezarr.stream.draw import PatchRequest, PositionZYX, Sampler
from spinezarr.stream.engine import BoxRead, Engine
from spinezarr.stream.resample import Resampling, Source
from spinezarr.stream.spacing import Positions, StepZYX, grid_shape_zyx, positions_along, step_zyx
from spinezarr.vertebrae import BACKGROUND, VALUE_OF_NAME

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
    neighbours: int = 0
    """Further slices of the image on either side of each slice."""
    neighbour_step_mm: float | None = None
    """Distance between them; None for the scan's own slices, one after the other."""

    def __post_init__(self) -> None:
        for name, value in (("batch_size", self.batch_size), ("n_samples", self.n_samples)):
            if value < 1:
                raise UsageError(f"{name} {value}: must be at least 1.")
        if self.neighbours < 0:
            raise UsageError(f"neighbours {self.neighbours}: must not be negative.")
        step_mm = self.neighbour_step_mm
        if step_mm is not None and not (self.neighbours and 0 < step_mm < math.inf):
            raise UsageError(
                f"neighbour_step_mm {step_mm}: must be above 0, beside neighbours of 1 or more."
            )
        if not 0 <= self.epoch < 1 << 64:
            raise UsageError(f"epoch {self.epoch}: must not be negative, nor 2**64 or more.")

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
        return self.sampler.draw(self.epoch, index, self._find_centre)

    def read(self, requests: Sequence[PatchRequest]) -> Batch:
        """Read patches of the stream's size into one batch."""
        (batch,) = self.read_together([requests])
        return batch

    def read_together(self, groups: Sequence[Sequence[PatchRequest]]) -> list[Batch]:
        """Read several batches; a chunk that several of them need is read once."""
        reads: list[BoxRead] = []
        resamplings: list[Resampling] = []
        batches = [self._plan(requests, reads, resamplings) for requests in groups]
        self.engine.read(reads)
        for resampling in resamplings:
            resampling.run()
        return batches

    def _plan(
        self,
        requests: Sequence[PatchRequest],
        reads: list[BoxRead],
        resamplings: list[Resampling],
    ) -> Batch:
        """Allocate a batch, and add what fills it to ``reads``, then ``resamplings``."""
        n, size = len(requests), self.sampler.size_zyx
        kept = [axis for axis in range(3) if axis != self.flat_axis]
        shape = tuple(size[axis] for axis in kept)
        slices = (2 * self.neighbours + 1,) if self.neighbours else ()
        empty = self.engine.buffers.empty
        image = empty((n, *slices, *shape), self.image_dtype)
        label = empty((n, *shape), np.uint8) if self.with_label else None
        padding = np.zeros((n, 3, 2), np.int64)
        affine = np.empty((n, 4, 4))
        for i, request in enumerate(requests):
            scan = self.reader.scan(request.scan_id)
            step = step_zyx(scan.attributes.spacing_zyx_mm, self.sampler.spacing_zyx_mm)
            volume = Box((0, 0, 0), grid_shape_zyx(scan.image.shape_zyx, step))
            fills = self._fill(
                scan,
                request.box,
                step,
                volume,
                image=image[i],
                label=None if label is None else label[i],
            )
            for fill in fills:
                if isinstance(fill, Resampling):
                    resamplings.append(fill)
                    reads.append(fill.read)
                else:
                    reads.append(fill)
            padding[i] = _padding(request.box, volume)
            affine[i] = _moved(scan.affine, request.box.start_zyx, step)
        return Batch(
            image=image,
            label=label,
            dims=(*("slice" for _ in slices), *(_AXES[axis] for axis in kept)),
            scan_id=tuple(request.scan_id for request in requests),
            start_zyx=np.array([request.box.start_zyx for request in requests]),
            padding_zyx=padding,
            affine=affine,
            spacing_zyx_mm=np.linalg.norm(affine[:, :3, 2::-1], axis=1),
            vertebra=tuple(request.vertebra for request in requests),
            index=np.array([request.index for request in requests]),
        )

    def _fill(
        self,
        scan: ScanHandle,
        box: Box,
        step: StepZYX,
        volume: Box,
        *,
        image: npt.NDArray[Any],
        label: npt.NDArray[np.uint8] | None,
    ) -> Iterator[BoxRead | Resampling]:
        """Yield what fills image and label of one patch; fill what lies outside the volume."""
        if label is not None and scan.label is None:
            raise UsageError(f"scan {scan.attributes.scan_id!r} has no mask; read without labels.")
        inside = box.intersect(volume)
        if inside != box:
            image[...] = PADDING_HU
            if label is not None:
                label[...] = BACKGROUND
        if inside is None:
            return
        z, y, x = (-start for start in box.start_zyx)
        within = inside.shift((z, y, x)).slices
        positions = [
            positions_along(*along)
            for along in zip(
                inside.start_zyx, inside.stop_zyx, step, scan.image.shape_zyx, strict=True
            )
        ]
        source = around = Source.of(positions)
        channels = [*within]
        flat = self.flat_axis
        if flat is not None:
            if self.neighbours:
                positions[flat] = self._slices_around(scan, flat, inside.start_zyx[flat])
                around = Source.of(positions)
                channels[flat] = slice(None)
                image = np.moveaxis(image, 0, flat)
            else:
                image = np.expand_dims(image, flat)
            label = None if label is None else np.expand_dims(label, flat)
        yield around.plan(scan.image, image[tuple(channels)], linear=True)
        if label is not None and scan.label is not None:
            yield source.plan(scan.label, label[within], linear=False)

    def _slices_around(self, scan: ScanHandle, axis: int, centre: int) -> Positions:
        """Return the slices beside one; beyond the volume its outermost slice is repeated."""
        k = self.neighbours
        last = scan.image.shape_zyx[axis] - 1
        if self.neighbour_step_mm is None:
            if k <= centre <= last - k:
                return range(centre - k, centre + k + 1)
            ratio = 1.0
        else:
            ratio = self.neighbour_step_mm / scan.attributes.spacing_zyx_mm[axis]
        nearest: npt.NDArray[np.float64] = centre + np.rint(np.arange(-k, k + 1) * ratio)
        return nearest.clip(0, last)

    def _find_centre(self, scan_id: str, vertebra: str, k: int | None) -> PositionZYX:
        """Find the k-th voxel of a vertebra, or for None its centroid."""
        if k is None:
            return self._centroid(scan_id, vertebra)
        return self._find_voxel(scan_id, vertebra, k)

    def _centroid(self, scan_id: str, vertebra: str) -> PositionZYX:
        """Find a vertebra's annotated centroid, unless it is off its label; else the label's."""
        scan = self.reader.scan(scan_id)
        annotated = scan.attributes.centroids.get(vertebra)
        labelled = scan.attributes.vertebrae.get(vertebra)
        if annotated is not None and (labelled is None or annotated.is_near_label):
            affine = scan.affine
            offset = np.array(annotated.position_zyx_mm[::-1]) - affine[:3, 3]
            x, y, z = np.linalg.solve(affine[:3, :3], offset).tolist()
            return (z, y, x)
        if labelled is None:
            raise UsageError(f"scan {scan_id!r} has no centroid of {vertebra}.")
        return labelled.centroid_zyx

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


def _padding(box: Box, volume: Box) -> list[tuple[int, int]]:
    """Return how many voxels of a box lie before and after a volume along each axis."""
    starts = zip(box.start_zyx, volume.start_zyx, strict=True)
    stops = zip(box.stop_zyx, volume.stop_zyx, strict=True)
    return [
        (max(first - start, 0), max(stop - last, 0))
        for (start, first), (stop, last) in zip(starts, stops, strict=True)
    ]


def _moved(
    affine: npt.NDArray[np.float64], start_zyx: ShapeZYX, step: StepZYX
) -> npt.NDArray[np.float64]:
    """Move the origin of an affine to the voxel of a grid at which a patch starts."""
    moved = affine.copy()
    moved[:3, :3] *= step[::-1]
    moved[:3, 3] += moved[:3, :3] @ start_zyx[::-1]
    return moved


def _threads() -> int:
    return os.cpu_count() or 1


@cache
def _pool(process: int) -> ThreadPoolExecutor:  # noqa: ARG001  a forked process needs its own
    return ThreadPoolExecutor(_threads(), thread_name_prefix="spinezarr-stream")
