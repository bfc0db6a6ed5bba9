"""How do requests for patches become a batch?

Streams, grids and the server use the same steps: allocate the batch, plan which boxes of voxels
fill it, read them, replace NaN and infinity if requested, and resample.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.stream.batch import Batch
from spinezarr.stream.read.box_reader import BoxRead, BoxReader
from spinezarr.stream.read.nonfinite import Nonfinite, fill_nonfinite, nonfinite_fill
from spinezarr.stream.read.resample import Resampling, SourceRegion, resample_all
from spinezarr.stream.read.retry import retry_if_rewritten
from spinezarr.stream.read.summary import ReadSummary
from spinezarr.stream.read.tensors import Allocate
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import (
    MIN_MM,
    Positions,
    StepZYX,
    grid_affine,
    grid_shape_zyx,
    positions_along,
    step_zyx,
)
from spinezarr.vertebrae import BACKGROUND

__all__ = ["PADDING_HU", "BatchReader", "padding_zyx"]

PADDING_HU: Final = -1024
"""Image value outside the volume: air."""
_AXES: Final = ("z", "y", "x")


@dataclass(frozen=True, slots=True, eq=False)
class BatchReader:
    """Reads batches of patches of one shape.

    Parameters
    ----------
    reader
        The opened store.
    engine
        Reads boxes of voxels of that store.
    size_zyx
        Shape of a patch in voxels.
    spacing_zyx_mm
        Spacing that patches are resampled to; None keeps the scan's spacing along that axis.
    with_label
        Whether the masks ``label`` are read too.
    image_dtype
        Dtype of the images.
    flat_axis
        Axis (0, 1, 2 for z, y, x) that slices leave out; None for patches.
    neighbors
        Number of further slices of the image on either side of each slice.
    neighbor_step_mm
        Distance between these slices; None for the scan's own slices, one after the other.
    nonfinite
        How to handle voxels that are NaN or infinite.
    masks
        Names of further masks that are read too.
    allocate
        Returns memory for the voxels of a batch, as :func:`numpy.empty`; None to take that of the
        engine.

    Raises
    ------
    UsageError
        If ``neighbors`` or ``neighbor_step_mm`` is out of range.
    """

    reader: StoreReader
    engine: BoxReader
    size_zyx: ShapeZYX
    spacing_zyx_mm: tuple[float | None, float | None, float | None]
    with_label: bool
    image_dtype: np.dtype[Any]
    flat_axis: int | None = None
    neighbors: int = 0
    neighbor_step_mm: float | None = None
    nonfinite: Nonfinite = "refuse"
    masks: tuple[str, ...] = ()
    allocate: Allocate | None = None

    def __post_init__(self) -> None:
        if self.neighbors < 0:
            raise UsageError(f"neighbors {self.neighbors}: must not be negative.")
        step_mm = self.neighbor_step_mm
        if step_mm is not None and not (self.neighbors and MIN_MM <= step_mm < math.inf):
            raise UsageError(
                f"neighbor_step_mm {step_mm}: must be at least {MIN_MM}, and needs neighbors of 1 "
                "or more."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a patch in voxels, without the axis that slices leave out."""
        return tuple(n for axis, n in enumerate(self.size_zyx) if axis != self.flat_axis)

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of the masks that are read, ``label`` first."""
        return (LABEL, *self.masks) if self.with_label else self.masks

    @property
    def channels(self) -> tuple[int, ...]:
        """Number of slices in an image, as a tuple of one; empty if there are no neighbors."""
        return (2 * self.neighbors + 1,) if self.neighbors else ()

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the axes of an image, such as ``("z", "y", "x")``."""
        spatial = (name for axis, name in enumerate(_AXES) if axis != self.flat_axis)
        return (*("slice" for _ in self.channels), *spatial)

    @property
    def patch_bytes(self) -> int:
        """Bytes of the voxels of a patch, image and masks."""
        images = math.prod(self.channels) * self.image_dtype.itemsize
        return math.prod(self.size_zyx) * (images + len(self.mask_names))

    @property
    def empty(self) -> Allocate:
        """Returns memory for the voxels of a batch, as :func:`numpy.empty`."""
        return self.engine.buffers.empty if self.allocate is None else self.allocate

    @property
    def kind(self) -> tuple[Any, ...]:
        """Options that determine how much work a patch is, apart from its scan and position."""
        sampling = (self.spacing_zyx_mm, self.flat_axis, self.neighbors, self.neighbor_step_mm)
        return (self.size_zyx, self.with_label, self.masks, self.image_dtype.str, *sampling)

    def read_together(
        self, batches: Sequence[Sequence[PatchRequest]], *, threads: int
    ) -> list[Batch]:
        """Read several batches; a chunk that several of them need is read once.

        Raises
        ------
        UsageError
            If the mask ``label`` is requested and a scan has none.
        UnknownMaskError
            If a scan lacks a further mask that is requested.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        return retry_if_rewritten(lambda: self._read_together(batches, threads=threads))

    def read_labels(
        self, requests: Sequence[PatchRequest], mask: str, *, threads: int
    ) -> npt.NDArray[np.uint8]:
        """Read one mask of a batch without its images; errors are as in :meth:`read_together`."""
        return retry_if_rewritten(lambda: self._read_labels(requests, mask, threads=threads))

    def explain(self, batches: Sequence[Sequence[PatchRequest]]) -> ReadSummary:
        """Count what reading some batches would take. Nothing is read."""
        work = _Work([], [], [])
        for requests in batches:
            self._plan(requests, work)
        return self.engine.explain([(read.array, read.box) for read in work.reads])

    def _read_together(
        self, batches: Sequence[Sequence[PatchRequest]], *, threads: int
    ) -> list[Batch]:
        work = _Work([], [], [])
        self.reader.prefetch_scans(request.scan_id for requests in batches for request in requests)
        planned = [self._plan(requests, work) for requests in batches]
        self._do(work, threads)
        return planned

    def _read_labels(
        self, requests: Sequence[PatchRequest], mask: str, *, threads: int
    ) -> npt.NDArray[np.uint8]:
        work = _Work([], [], [])
        self.reader.prefetch_scans(request.scan_id for request in requests)
        labels = self.engine.buffers.empty((len(requests), *self.shape), np.uint8)
        for request, label in zip(requests, labels, strict=True):
            self._plan_patch(request, self._place(request), work, image=None, masks={mask: label})
        self._do(work, threads)
        return labels

    def _do(self, work: "_Work", threads: int) -> None:
        self.engine.read(work.reads, threads=threads)
        # NaN and infinity are replaced first, as interpolation would spread them.
        for voxels, fill in work.to_fill:
            fill_nonfinite(voxels, fill)
        resample_all(work.resamplings, threads=threads)

    def _plan(self, requests: Sequence[PatchRequest], work: "_Work") -> Batch:
        """Allocate a batch, and add the steps that fill it to ``work``."""
        n, empty = len(requests), self.empty
        image = empty((n, *self.channels, *self.shape), self.image_dtype)
        masks = {name: empty((n, *self.shape), np.uint8) for name in self.mask_names}
        padding = np.zeros((n, 3, 2), np.int64)
        affine = np.empty((n, 4, 4))
        for i, request in enumerate(requests):
            place = self._place(request)
            masks_i = {name: mask[i] for name, mask in masks.items()}
            self._plan_patch(request, place, work, image=image[i], masks=masks_i)
            padding[i] = padding_zyx(request.box, place.volume)
            affine[i] = grid_affine(place.scan.affine, request.box.start_zyx, place.step)
        return Batch(
            image=image,
            label=masks.pop(LABEL, None),
            masks=masks,
            dims=self.dims,
            scan_id=tuple(request.scan_id for request in requests),
            start_zyx=np.array([r.box.start_zyx for r in requests], np.int64).reshape(n, 3),
            padding_zyx=padding,
            affine=affine,
            spacing_zyx_mm=np.linalg.norm(affine[:, :3, 2::-1], axis=1),
            vertebra=tuple(request.vertebra for request in requests),
            index=np.array([request.index for request in requests], np.int64),
        )

    def _place(self, request: PatchRequest) -> "_Place":
        scan = self.reader.listed_scan(request.scan_id)
        step = step_zyx(scan.attributes.spacing_zyx_mm, self.spacing_zyx_mm)
        return _Place(scan, step, Box((0, 0, 0), grid_shape_zyx(scan.image.shape_zyx, step)))

    def _plan_patch(
        self,
        request: PatchRequest,
        place: "_Place",
        work: "_Work",
        *,
        image: npt.NDArray[Any] | None,
        masks: Mapping[str, npt.NDArray[np.uint8]],
    ) -> None:
        """Add the steps that fill the image and masks of one patch to ``work``."""
        scan = place.scan
        replacement = nonfinite_fill(self.nonfinite, scan.attributes)
        for fill in self._fills(request.box, place, image=image, masks=masks):
            read = fill.read if isinstance(fill, Resampling) else fill
            work.reads.append(read)
            if isinstance(fill, Resampling):
                work.resamplings.append(fill)
            if replacement is not None and read.array is scan.image:
                work.to_fill.append((read.out, replacement))

    def _fills(
        self,
        box: Box,
        place: "_Place",
        *,
        image: npt.NDArray[Any] | None,
        masks: Mapping[str, npt.NDArray[np.uint8]],
    ) -> Iterator[BoxRead | Resampling]:
        """Yield the steps that fill the image and masks of one patch; fill the padding at once."""
        scan, step, volume = place.scan, place.step, place.volume
        if LABEL in masks and scan.label is None:
            raise UsageError(
                f"scan {scan.attributes.scan_id!r} has no mask. Read without labels: labels=False."
            )
        inside = box.intersect(volume)
        if inside != box:
            if image is not None:
                image[...] = PADDING_HU
            for mask in masks.values():
                mask[...] = BACKGROUND
        if inside is None:
            return
        z, y, x = (-start for start in box.start_zyx)
        within = inside.shift((z, y, x)).slices
        positions = [
            positions_along(*axis)
            for axis in zip(
                inside.start_zyx, inside.stop_zyx, step, scan.image.shape_zyx, strict=True
            )
        ]
        mask_region = image_region = SourceRegion.of(positions)
        flat, buffers = self.flat_axis, self.engine.buffers
        if image is not None:
            channels = [*within]
            if flat is not None and self.neighbors:
                positions[flat] = self._slices_around(scan, flat, inside.start_zyx[flat])
                image_region = SourceRegion.of(positions)
                channels[flat] = slice(None)
                image = np.moveaxis(image, 0, flat)
            elif flat is not None:
                image = np.expand_dims(image, flat)
            out = image[tuple(channels)]
            yield image_region.plan(scan.image, out, linear=True, buffers=buffers)
        for name, mask in masks.items():
            array = self.reader.listed_mask(scan.attributes.scan_id, name)
            out = mask if flat is None else np.expand_dims(mask, flat)
            yield mask_region.plan(array, out[within], linear=False, buffers=buffers)

    def _slices_around(self, scan: ScanHandle, axis: int, center: int) -> Positions:
        """Return the positions of a slice and its neighbors along an axis.

        The outermost slice of the volume is repeated beyond the volume.
        """
        k = self.neighbors
        last = scan.image.shape_zyx[axis] - 1
        if self.neighbor_step_mm is None:
            if k <= center <= last - k:
                return range(center - k, center + k + 1)
            ratio = 1.0
        else:
            ratio = self.neighbor_step_mm / scan.attributes.spacing_zyx_mm[axis]
        nearest: npt.NDArray[np.float64] = center + np.rint(np.arange(-k, k + 1) * ratio)
        return nearest.clip(0, last)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """The steps that fill some batches: first ``reads``, then ``to_fill``, then ``resamplings``."""

    reads: list[BoxRead]
    to_fill: list[tuple[npt.NDArray[Any], float]]
    """Voxels that were read, and the number that replaces NaN and infinity among them."""
    resamplings: list[Resampling]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the patches of a scan lie."""

    scan: ScanHandle
    step: StepZYX
    volume: Box
    """All voxels of the scan, resampled if patches are."""


def padding_zyx(box: Box, volume: Box) -> list[tuple[int, int]]:
    """Return how many voxels of a box lie before and after a volume along z, y and x."""
    starts = zip(box.start_zyx, volume.start_zyx, strict=True)
    stops = zip(box.stop_zyx, volume.stop_zyx, strict=True)
    return [
        (max(first - start, 0), max(stop - last, 0))
        for (start, first), (stop, last) in zip(starts, stops, strict=True)
    ]
