"""Random patches and slices of a store, batch after batch."""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
from pydantic import JsonValue

from spinezarr.errors import UnknownScanError, UsageError
from spinezarr.geometry import ShapeZYX
from spinezarr.processors import cpu_count
from spinezarr.store.reader import StoreReader
from spinezarr.stream.batch import Batch
from spinezarr.stream.draw.sampler import PositionZYX, Sampler
from spinezarr.stream.draw.voxel_finder import StoredVoxelFinder
from spinezarr.stream.draw.window import WindowSampler
from spinezarr.stream.epoch.batch_iterator import BatchIterator
from spinezarr.stream.epoch.checkpoint import Checkpoint, describe_fields
from spinezarr.stream.epoch.executor import read_with_executor
from spinezarr.stream.epoch.partition import BatchGroups, Partition
from spinezarr.stream.read.batch_client import BatchClient
from spinezarr.stream.read.batch_reader import BatchReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.nonfinite import (
    Nonfinite,
    refuse_nonfinite,
)
from spinezarr.stream.read.summary import ReadSummary
from spinezarr.stream.request import PatchRequest
from spinezarr.text import count_noun

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["OnChange", "PatchStream", "image_dtype_of"]

OnChange = Literal["error", "follow"]
"""What a stream does when a scan was ingested anew since the store was opened."""
_READING: Final = ("prefetch_bytes", "threads", "on_change", "client")
_PREFETCH_BYTES: Final = 512 << 20
"""Read ahead unless told otherwise: a few batches of large patches, and no risk on a laptop."""
_NOT_THE_SEQUENCE: Final = (
    "reader",
    "engine",
    "sampler",
    "window",
    "epoch",
    "partition",
    *_READING,
)
"""Fields that are described by themselves, or that the sequence does not depend on."""
_WHOLE: Final = Partition()


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
    neighbors: int = 0
    """Further slices of the image on either side of each slice."""
    neighbor_step_mm: float | None = None
    """Distance between them; None for the scan's own slices, one after the other."""
    window: WindowSampler | None = None
    """Draws the samples close together; without it each is drawn by itself."""
    nonfinite: Nonfinite = "refuse"
    """What is given for voxels that are NaN or infinite."""
    partition: Partition = _WHOLE
    """The part of the epoch to give; see :meth:`shard` and :meth:`resume`."""
    prefetch_bytes: int = _PREFETCH_BYTES
    """Bytes of batches that may be read ahead of the one that is used; at least one is."""
    threads: int = field(default_factory=cpu_count)
    """Threads that decode what is read ahead."""
    on_change: OnChange = "error"
    """What iterating does when a scan was ingested anew since the store was opened."""
    client: BatchClient | None = None
    """What may read batches in place of :attr:`engine`: the server that the store lies on."""

    def __post_init__(self) -> None:
        if self.on_change not in get_args(OnChange):
            raise UsageError(
                f"on_change {self.on_change!r}: must be {' or '.join(get_args(OnChange))}."
            )
        for name, value in (
            ("batch_size", self.batch_size),
            ("n_samples", self.n_samples),
            ("prefetch_bytes", self.prefetch_bytes),
            ("threads", self.threads),
        ):
            if value < 1:
                raise UsageError(f"{name} {value}: must be at least 1.")
        if self.neighbors < 0:
            raise UsageError(f"neighbors {self.neighbors}: must not be negative.")
        step_mm = self.neighbor_step_mm
        if step_mm is not None and not (self.neighbors and 0 < step_mm < math.inf):
            raise UsageError(
                f"neighbor_step_mm {step_mm}: must be above 0, beside neighbors of 1 or more."
            )
        if not 0 <= self.epoch < 1 << 64:
            raise UsageError(f"epoch {self.epoch}: must not be negative, nor 2**64 or more.")

    def __len__(self) -> int:
        """Return the number of batches that iterating gives; the epoch's last may be smaller."""
        return self.partition.n_batches(self.batch_groups)

    @property
    def batches_per_group(self) -> int:
        """Batches in a row that are read together, about a window; the last may be fewer."""
        return 1 if self.window is None else max(1, self.window.n_samples // self.batch_size)

    @property
    def threads_per_group(self) -> int:
        """Threads that read one unit: all of them where it is large, else each has its own."""
        return self.threads if self.batches_per_group > 1 else 1

    @property
    def concurrent_groups(self) -> int:
        """Units that may be read at once: more than there are threads where reading is waiting."""
        return max(self.threads, self.engine.concurrent_calls)

    @property
    def batch_groups(self) -> BatchGroups:
        """How the batches of the whole epoch lie in units that are read together."""
        n_batches = math.ceil(self.n_samples / self.batch_size)
        return BatchGroups(n_batches, self.batches_per_group, self.partition.ranks)

    @property
    def batch_bytes(self) -> int:
        """Bytes of the voxels of a batch."""
        return min(self.batch_size, self.n_samples) * self.batches.patch_bytes

    @property
    def group_bytes(self) -> int:
        """Bytes of the voxels of a unit."""
        return self.batches_per_group * self.batch_bytes

    @property
    def batches(self) -> BatchReader:
        """What reads the samples that are drawn."""
        return BatchReader(
            reader=self.reader,
            engine=self.engine,
            size_zyx=self.sampler.size_zyx,
            spacing_zyx_mm=self.sampler.spacing_zyx_mm,
            with_label=self.with_label,
            image_dtype=self.image_dtype,
            flat_axis=self.flat_axis,
            neighbors=self.neighbors,
            neighbor_step_mm=self.neighbor_step_mm,
            nonfinite=self.nonfinite,
        )

    def at_epoch(self, epoch: int) -> "PatchStream":
        """Return the same stream with the draws of another epoch, from its start."""
        return replace(self, epoch=epoch, partition=replace(self.partition, done=0, skip=0))

    def shard(self, index: int, count: int, *, even: bool = False) -> "PatchStream":
        """Return one of ``count`` shares of this stream, e.g. that of a rank or a worker.

        Batches that are read together stay together, and units of them are dealt out: unit
        ``index``, then every ``count``-th. Each batch is in one share, and a share can be shared
        again. Where there are fewer units than shares, some shares are empty.

        Parameters
        ----------
        index, count
            Which share, and how many there are.
        even
            For ranks, which wait for each other and so must take equally many steps: all shares
            get equally many batches. Fewer than ``count`` batches are dropped at the end of the
            epoch, and none where their number is a multiple of ``count``.

        Raises
        ------
        UsageError
            If there is no such share; or if even ones are asked for and there are fewer batches
            than shares, or this stream is a share already, or goes on in the middle of an epoch.
        """
        stream = replace(self, partition=self.partition.split(index, count, even=even))
        n_batches = stream.batch_groups.n_batches
        if even and n_batches < count:
            raise UsageError(
                f"an epoch of {count_noun(self.n_samples, 'sample')} is "
                f"{count_noun(n_batches, 'batch', 'batches')} of {self.batch_size}, too few for "
                f"{count} ranks: each must get one at least. Give "
                f"n_samples={self.batch_size * count} or more, or a smaller batch_size."
            )
        return stream

    def reopened(self, changed: str) -> "PatchStream":
        """Return the same stream over the store as it is now.

        Parameters
        ----------
        changed
            A scan that was ingested anew: see
            :attr:`spinezarr.errors.ScanChangedError.scan_id`.

        Raises
        ------
        UnknownScanError
            If a scan of this stream is no longer in the store.
        UsageError
            If nothing can be drawn any more as this stream does.
        CorruptStoreError
            If what is read is missing or damaged.
        """
        reader, old = self.reader.reopened(changed), self.sampler
        gone = sorted(set(old.scan_ids) - set(reader.table.scan.to_numpy().tolist()))
        if gone:
            raise UnknownScanError(f"{reader.name}: has no scan {gone[0]!r} any more.")
        table = reader.table.sel(scan=list(old.scan_ids))
        refuse_nonfinite(table, self.nonfinite, reader.name)
        sampler = Sampler.of_table(
            table,
            size_zyx=old.size_zyx,
            seed=old.seed,
            foreground=old.foreground,
            weights=old.weights,
            centers=old.centers,
            spacing_zyx_mm=old.spacing_zyx_mm,
        )
        window = self.window
        if window is not None:
            window = WindowSampler(
                sampler,
                StoredVoxelFinder(reader, self.engine),
                window_scans=window.window_scans,
                samples_per_scan=window.samples_per_scan,
            )
        dtype = image_dtype_of(table)
        return replace(self, reader=reader, sampler=sampler, window=window, image_dtype=dtype)

    def resume(self, state: Mapping[str, Any]) -> "PatchStream":
        """Return the stream that goes on where an iterator over this one was.

        Parameters
        ----------
        state
            What ``state_dict`` of an iterator over this stream returned. Partitions among equally
            many can go on from one state if all of them were equally far, as ranks are.

        Raises
        ------
        UsageError
            If it is the state of another stream; names what differs.
        """
        found = Checkpoint.parse(state, self.describe())
        return replace(
            self,
            epoch=found.epoch,
            partition=replace(self.partition, done=found.done, skip=found.skip),
        )

    def describe(self) -> dict[str, JsonValue]:
        """Return all that the sequence depends on, but the place in it, as small values."""
        return {
            **describe_fields(self, _NOT_THE_SEQUENCE),
            **describe_fields(self.sampler),
            "window_scans": None if self.window is None else self.window.window_scans,
            "samples_per_scan": None if self.window is None else self.window.samples_per_scan,
            "partitions": self.partition.count,
            "ranks": self.partition.ranks,
        }

    def __iter__(self) -> BatchIterator:
        """Yield the batches of the epoch; a few are read ahead."""
        return BatchIterator(self)

    def __getitem__(self, number: int) -> Batch:
        """Read batch ``number`` of those that iterating gives.

        Raises
        ------
        IndexError
            If there is no such batch.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        unit, within = self._unit_of(number)
        return self.read(self._requests(self.batch_groups.batches(unit)[within]))

    def explain(self, number: int = 0) -> ReadSummary:
        """Say what batch ``number`` reads, and those that are read together with it.

        Returns
        -------
        ReadSummary
            Chunks, requests, bytes, amplification and what is in the cache; ``print`` it. Only
            what it takes to draw is read.

        Raises
        ------
        IndexError
            If there is no such batch.
        CorruptStoreError
            If what is read is missing or damaged.
        """
        groups = self._groups(self._unit_of(number)[0])
        if self.client is not None:
            return self.client.explain(self.batches, groups)
        return self.batches.explain(groups)

    def _unit_of(self, number: int) -> tuple[int, int]:
        """Return the unit of the epoch in which a batch of this stream lies, and its place."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of an epoch of {len(self)}")
        place, within = divmod(self.partition.skip + number, self.batches_per_group)
        return self.partition.units(self.batch_groups)[place], within

    def _groups(self, unit: int) -> list[list[PatchRequest]]:
        """Draw the batches of a unit of the epoch."""
        return [self._requests(batch) for batch in self.batch_groups.batches(unit)]

    def read_group(self, number: int) -> list[Batch]:
        """Read the batches of unit ``number`` of the epoch.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        return self.read_together(self._groups(number), threads=self.threads_per_group)

    def _requests(self, number: int) -> list[PatchRequest]:
        """Draw the samples of batch ``number`` of the epoch."""
        first = number * self.batch_size
        last = min(first + self.batch_size, self.n_samples)
        indices = range(first, last)
        if self.window is None and self.sampler.reads_voxels:
            return self.reader.objects.each(self.request, indices)
        return [self.request(index) for index in indices]

    def request(self, index: int) -> PatchRequest:
        """Draw sample ``index`` of the epoch, without reading it."""
        if self.window is not None:
            return self.window.draw(self.epoch, index)
        return self.sampler.draw(self.epoch, index, self._find_center)

    def read(self, requests: Sequence[PatchRequest]) -> Batch:
        """Read patches of the stream's size into one batch."""
        (batch,) = self.read_together([requests], threads=self.threads)
        return batch

    def read_together(
        self, groups: Sequence[Sequence[PatchRequest]], *, threads: int
    ) -> list[Batch]:
        """Read several batches; a chunk that several of them need is read once."""
        batches = self.batches
        by_ranges = partial(batches.read_together, groups, threads=threads)
        if self.client is None:
            return by_ranges()
        return self.client.read_together(batches, groups, by_ranges)

    def read_by(self, executor: Executor, *, ahead: int = 4) -> Iterator[Batch]:
        """Iterate as usual, but let an executor read: other processes, or a cluster.

        Parameters
        ----------
        executor
            A ``concurrent.futures`` executor, such as ``dask.distributed.Client.get_executor()``.
            Its processes open the store by the same path or URL, each once.
        ahead
            Batches, at most, that are being read or wait here, beside the one that is used.

        Yields
        ------
        Batch
            The same as iterating gives, in the same order.

        Raises
        ------
        UsageError
            If nothing may be read ahead.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        return read_with_executor(self, executor, ahead=ahead)

    def to_dask(self) -> "xr.Dataset":
        """Return the epoch as a dataset of dask arrays, one chunk a batch, read when computed.

        One patch is read at once, for shapes and types.

        Returns
        -------
        xarray.Dataset
            ``image`` and ``label`` over ``sample``, ``z``, ``y`` and ``x`` (slices have two of
            these); coordinates ``scan_id``, ``start_zyx`` and ``vertebra`` (``""`` for a uniform
            draw) of each sample, which need no voxels of the patches.

        Raises
        ------
        UsageError
            If this is a share of an epoch, or the rest of one.
        CorruptStoreError
            When computed, if stored bytes are missing or damaged.

        Examples
        --------
        >>> epoch = store.patches((16, 24, 24), batch_size=2, n_samples=5).to_dask()
        >>> epoch.image.chunks[0]
        (2, 2, 1)
        """
        # dask takes long to import, and those who train have no need of it.
        from spinezarr.stream.epoch.lazy import lazy_epoch  # noqa: PLC0415

        return lazy_epoch(self)

    def _find_center(self, scan_id: str, vertebra: str, k: int | None) -> PositionZYX:
        """Find the k-th voxel of a vertebra, or for None its centroid."""
        if k is None:
            return self._centroid(scan_id, vertebra)
        return self._find_voxel(scan_id, vertebra, k)

    def _centroid(self, scan_id: str, vertebra: str) -> PositionZYX:
        """Find a vertebra's annotated centroid, unless it is off its label; else the label's."""
        scan = self.reader.listed_scan(scan_id)
        annotated = scan.attributes.centroids.get(vertebra)
        labeled = scan.attributes.vertebrae.get(vertebra)
        if annotated is not None and (labeled is None or annotated.is_near_label):
            affine = scan.affine
            offset = np.array(annotated.position_zyx_mm[::-1]) - affine[:3, 3]
            x, y, z = np.linalg.solve(affine[:3, :3], offset).tolist()
            return (z, y, x)
        if labeled is None:
            raise UsageError(f"scan {scan_id!r} has no centroid of {vertebra}.")
        return labeled.centroid_zyx

    def _find_voxel(self, scan_id: str, vertebra: str, k: int) -> ShapeZYX:
        voxels, rank = StoredVoxelFinder(self.reader, self.engine).chunk_voxels(
            scan_id, vertebra, k
        )
        z, y, x = voxels[rank].tolist()
        return (z, y, x)


def image_dtype_of(table: "xr.Dataset") -> np.dtype[Any]:
    """Return the type that holds the image values of all rows of a scan table; int16 at least."""
    dtypes = {np.dtype(str(name)) for name in table.image_dtype.to_numpy()}
    return np.result_type(np.int16, *dtypes)
