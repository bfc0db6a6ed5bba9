"""How does a program get random patches and slices of a store, batch after batch?

A :class:`PatchStream` draws samples, lets a
:class:`~spinezarr.stream.read.batch_reader.BatchReader` read them, and is iterated over. It is a
value: its methods return other streams, and never change it.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from spinezarr.errors import ScanChangedError, UnknownScanError, UsageError
from spinezarr.forks import ProcessLock
from spinezarr.geometry import ShapeZYX
from spinezarr.processors import cpu_count
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_table import TableColumns
from spinezarr.stream.batch import Batch
from spinezarr.stream.draw.sampler import PositionZYX, Sampler
from spinezarr.stream.draw.voxel_finder import StoredVoxelFinder
from spinezarr.stream.draw.window import WindowSampler
from spinezarr.stream.epoch.batch_iterator import BatchIterator, ReadAhead
from spinezarr.stream.epoch.checkpoint import Checkpoint, Progress, describe_fields
from spinezarr.stream.epoch.executor import read_with_executor
from spinezarr.stream.epoch.partition import BatchGroups, Partition, require_whole_epoch
from spinezarr.stream.read.batch_client import BatchClient, read_batches
from spinezarr.stream.read.batch_reader import BatchReader
from spinezarr.stream.read.box_reader import BoxReader
from spinezarr.stream.read.nonfinite import refuse_nonfinite
from spinezarr.stream.read.summary import ReadSummary
from spinezarr.stream.request import PatchRequest
from spinezarr.text import count_noun

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["OnChange", "PatchStream", "image_dtype_of"]

OnChange = Literal["error", "follow"]
"""How iteration handles a scan that was ingested again since the store was opened.

``"error"`` raises :class:`~spinezarr.errors.ScanChangedError`; ``"follow"`` reads the new voxels.
"""
_PREFETCH_BYTES: Final = 512 << 20
"""Default number of bytes to read ahead: a few batches of large patches, little enough for a
laptop."""
_NOT_DESCRIBED: Final = (
    "batch_reader",
    "sampler",
    "window",
    "epoch",
    "partition",
    "prefetch_bytes",
    "threads",
    "on_change",
    "client",
)
"""Fields that :meth:`PatchStream.describe` adds separately, or that do not change the sequence."""
_WHOLE_EPOCH: Final = Partition()


@dataclass(frozen=True, slots=True, eq=False)
class PatchStream:
    """An epoch of random patches; iterate over it for batches.

    :meth:`spinezarr.Store.patches` and :meth:`spinezarr.Store.slices` make it. The same seed, epoch
    and index always give the same patch, whatever the batch size or number of threads. Iterating
    again gives the same batches; :meth:`at_epoch` gives others.

    Batches that are read together form a *group*: one batch, or the batches of about a window.
    """

    batch_reader: BatchReader
    """Reads the samples that are drawn."""
    sampler: Sampler
    """Draws samples, each by itself."""
    batch_size: int
    """Number of samples in a batch."""
    n_samples: int
    """Number of samples in one epoch."""
    epoch: int
    """Number of the epoch, which chooses its draws."""
    window: WindowSampler | None = None
    """Draws samples close together; None if each is drawn by itself."""
    partition: Partition = _WHOLE_EPOCH
    """The part of the epoch to give; see :meth:`shard` and :meth:`resume`."""
    prefetch_bytes: int = _PREFETCH_BYTES
    """Bytes of voxels to read ahead of the batch in use; one group is always read ahead."""
    threads: int = field(default_factory=cpu_count)
    """Number of threads that decode what is read ahead."""
    on_change: OnChange = "error"
    """How iterating handles a scan that was ingested again since the store was opened."""
    client: BatchClient | None = None
    """Gets batches from the server of the store where that is faster; None if it has no server."""

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
        if not 0 <= self.epoch < 1 << 64:
            raise UsageError(f"epoch {self.epoch}: must be at least 0, and less than 2**64.")

    def __len__(self) -> int:
        """Return the number of batches that iterating gives; the epoch's last may be smaller."""
        return self.partition.n_batches(self.batch_groups)

    @property
    def reader(self) -> StoreReader:
        """The opened store."""
        return self.batch_reader.reader

    @property
    def engine(self) -> BoxReader:
        """Reads boxes of voxels of the store."""
        return self.batch_reader.engine

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """Scans that samples are drawn from."""
        return self.sampler.scan_ids

    @property
    def batches_per_group(self) -> int:
        """Number of batches in a row that are read together; the last group may have fewer."""
        return 1 if self.window is None else max(1, self.window.n_samples // self.batch_size)

    @property
    def batch_groups(self) -> BatchGroups:
        """How the batches of the whole epoch lie in groups."""
        n_batches = math.ceil(self.n_samples / self.batch_size)
        return BatchGroups(n_batches, self.batches_per_group, self.partition.ranks)

    @property
    def read_ahead(self) -> ReadAhead:
        """How far iterating reads ahead."""
        batch_bytes = min(self.batch_size, self.n_samples) * self.batch_reader.patch_bytes
        return ReadAhead(
            concurrent_groups=max(self.threads, self.engine.concurrent_calls),
            first_groups=1 if self.engine.concurrent_calls > 1 else 2 * self.threads,
            max_bytes=self.prefetch_bytes,
            group_bytes=self.batches_per_group * batch_bytes,
            batch_bytes=batch_bytes,
        )

    def with_reading(
        self, *, threads: int | None = None, prefetch_bytes: int | None = None
    ) -> "PatchStream":
        """Return the same stream, read with other limits. Its batches stay the same.

        Parameters
        ----------
        threads
            Number of threads that decode what is read ahead; None leaves it as it is.
        prefetch_bytes
            Bytes of voxels that may be read ahead of the batch in use; None leaves it as it is.
            One batch (or window) is always read ahead.

        Raises
        ------
        UsageError
            If a number is less than 1.

        Examples
        --------
        >>> stream = store.patches((16, 24, 24)).with_reading(threads=2, prefetch_bytes=64 << 20)
        >>> stream.threads
        2
        """
        return replace(
            self,
            threads=self.threads if threads is None else threads,
            prefetch_bytes=self.prefetch_bytes if prefetch_bytes is None else prefetch_bytes,
        )

    def at_epoch(self, epoch: int) -> "PatchStream":
        """Return the same stream with the draws of another epoch, from its start."""
        partition = replace(self.partition, groups_done=0, batches_done=0)
        return replace(self, epoch=epoch, partition=partition)

    def shard(self, index: int, count: int, *, even: bool = False) -> "PatchStream":
        """Return one of ``count`` partitions of this stream, for a rank or a worker.

        A partition gives group ``index`` and then every ``count``-th group, so batches that are
        read together stay together. Each batch is in exactly one partition, and a partition can be
        divided again. Some partitions are empty if there are fewer groups than partitions.

        Parameters
        ----------
        index, count
            Number of the partition, from 0, and the number of partitions.
        even
            Whether all partitions get equally many batches. Ranks need that, as they wait for each
            other. Fewer than ``count`` batches are dropped at the end of the epoch, and none if
            their number is a multiple of ``count``.

        Raises
        ------
        UsageError
            If there is no such partition. If ``even``, also if there are fewer batches than
            partitions, or if this stream is a partition already or goes on in the middle of an
            epoch.
        """
        stream = replace(self, partition=self.partition.split(index, count, even=even))
        n_batches = stream.batch_groups.n_batches
        if even and n_batches < count:
            raise UsageError(
                f"an epoch of {count_noun(self.n_samples, 'sample')} is "
                f"{count_noun(n_batches, 'batch', 'batches')} of {self.batch_size}, too few for "
                f"{count} ranks: each must get at least one. Give "
                f"n_samples={self.batch_size * count} or more, or a smaller batch_size."
            )
        return stream

    def reopened(self, changed: str) -> "PatchStream":
        """Return the same stream over the store as it is now.

        Parameters
        ----------
        changed
            A scan that was ingested again: see
            :attr:`spinezarr.errors.ScanChangedError.scan_id`.

        Raises
        ------
        UnknownScanError
            If a scan of this stream is no longer in the store.
        UsageError
            If the options of this stream do not fit the scans any more.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        reader, old = self.reader.reopened(changed), self.sampler
        row_of = {scan_id: row for row, scan_id in enumerate(reader.columns["scan"].tolist())}
        missing = sorted(set(old.scan_ids) - row_of.keys())
        if missing:
            raise UnknownScanError(f"{reader.name}: has no scan {missing[0]!r} any more.")
        table = reader.columns.take(np.array([row_of[scan_id] for scan_id in old.scan_ids]))
        refuse_nonfinite(table, self.batch_reader.nonfinite, reader.name)
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
        batch_reader = replace(self.batch_reader, reader=reader, image_dtype=image_dtype_of(table))
        return replace(self, batch_reader=batch_reader, sampler=sampler, window=window)

    def resume(self, state: Mapping[str, Any]) -> "PatchStream":
        """Return the stream that goes on where an iterator over this one was.

        Parameters
        ----------
        state
            The result of :meth:`~spinezarr.stream.epoch.batch_iterator.BatchIterator.state_dict`.
            All ranks can continue from the state of one of them, as all are equally far.

        Raises
        ------
        UsageError
            If it is the state of another stream. The message names what differs.
        """
        checkpoint = Checkpoint.parse(state, self.describe())
        partition = replace(
            self.partition, groups_done=checkpoint.groups_done, batches_done=checkpoint.batches_done
        )
        return replace(self, epoch=checkpoint.epoch, partition=partition)

    def describe(self) -> dict[str, JsonValue]:
        """Return everything that the sequence of batches depends on, as small JSON values.

        The epoch and the position in it are left out.
        """
        return {
            **describe_fields(self, _NOT_DESCRIBED),
            **describe_fields(self.batch_reader, ("reader", "engine", "allocate")),
            **describe_fields(self.sampler),
            "window_scans": None if self.window is None else self.window.window_scans,
            "samples_per_scan": None if self.window is None else self.window.samples_per_scan,
            "partitions": self.partition.count,
            "ranks": self.partition.ranks,
        }

    def progress(self) -> Progress:
        """Return a counter of batches that makes checkpoints of this stream."""
        return Progress(self.epoch, self.partition, self.batch_groups, self.describe)

    def __iter__(self) -> BatchIterator:
        """Yield the batches of the epoch; a few are read ahead."""
        return BatchIterator(
            _CurrentStream(self).read_group,
            self.partition.groups(self.batch_groups),
            batches_done=self.partition.batches_done,
            read_ahead=self.read_ahead,
            progress=self.progress(),
            abandon=self.reader.objects.abandon,
        )

    def __getitem__(self, number: int) -> Batch:
        """Read batch ``number`` of those that iterating gives.

        Raises
        ------
        IndexError
            If there is no such batch.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        group, within = self._group_of(number)
        return self.read(self._draw_batch(self.batch_groups.batches(group)[within]))

    def explain(self, number: int = 0) -> ReadSummary:
        """Count what it takes to read batch ``number`` and those that are read together with it.

        Returns
        -------
        ReadSummary
            Chunks, requests, bytes, amplification and cached chunks; ``print`` it. No chunks are
            read except those that drawing needs.

        Raises
        ------
        IndexError
            If there is no such batch.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        batches = self._draw_group(self._group_of(number)[0])
        if self.client is not None:
            return self.client.explain(self.batch_reader, batches)
        return self.batch_reader.explain(batches)

    def _group_of(self, number: int) -> tuple[int, int]:
        """Return the group that holds a batch of this stream, and its position in the group."""
        if not 0 <= number < len(self):
            raise IndexError(f"batch {number} of an epoch of {len(self)}")
        position, within = divmod(self.partition.batches_done + number, self.batches_per_group)
        return self.partition.groups(self.batch_groups)[position], within

    def read_group(self, number: int) -> list[Batch]:
        """Read the batches of group ``number`` of the epoch.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        # All threads read a large group together. Each thread reads a small group alone.
        threads = self.threads if self.batches_per_group > 1 else 1
        return self._read_together(self._draw_group(number), threads=threads)

    def _draw_group(self, group: int) -> list[list[PatchRequest]]:
        """Draw the batches of a group of the epoch."""
        return [self._draw_batch(batch) for batch in self.batch_groups.batches(group)]

    def _draw_batch(self, number: int) -> list[PatchRequest]:
        """Draw the samples of batch ``number`` of the epoch."""
        first = number * self.batch_size
        return self.draw(range(first, min(first + self.batch_size, self.n_samples)))

    def draw(self, indices: Iterable[int]) -> list[PatchRequest]:
        """Draw samples without reading their voxels, at once where draws wait for a network."""
        if self.window is None and self.sampler.reads_voxels:
            return self.reader.objects.each(self.request, indices)
        return [self.request(index) for index in indices]

    def request(self, index: int) -> PatchRequest:
        """Draw sample ``index`` of the epoch, without reading its voxels."""
        if self.window is not None:
            return self.window.draw(self.epoch, index)
        return self.sampler.draw(self.epoch, index, self._find_center)

    def read(self, requests: Sequence[PatchRequest]) -> Batch:
        """Read patches of the stream's size into one batch.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        (batch,) = self._read_together([requests], threads=self.threads)
        return batch

    def read_images(self, requests: Sequence[PatchRequest]) -> npt.NDArray[Any]:
        """Read the images of some patches without masks; errors are as in :meth:`read`."""
        reader = replace(self.batch_reader, with_label=False, masks=())
        (batch,) = read_batches(reader, [requests], client=self.client, threads=self.threads)
        return batch.image

    def read_labels(self, requests: Sequence[PatchRequest], mask: str) -> npt.NDArray[np.uint8]:
        """Read the masks of some patches by ranges; errors are as in :meth:`read`."""
        return self.batch_reader.read_labels(requests, mask, threads=self.threads)

    def _read_together(
        self, batches: Sequence[Sequence[PatchRequest]], *, threads: int
    ) -> list[Batch]:
        """Read several batches; a chunk that several of them need is read once."""
        return read_batches(self.batch_reader, batches, client=self.client, threads=threads)

    def read_by(self, executor: Executor, *, ahead: int = 4) -> Iterator[Batch]:
        """Yield the batches in order, read by an executor: other processes, or a cluster.

        Parameters
        ----------
        executor
            A ``concurrent.futures`` executor, such as ``dask.distributed.Client.get_executor()``.
            Its processes open the store by the same path or URL, each once.
        ahead
            Largest number of batches that are being read or wait here, not counting the one in use.

        Yields
        ------
        Batch
            The batches that iterating gives, in the same order.

        Raises
        ------
        UsageError
            If ``ahead`` is less than 1.
        CorruptStoreError
            If stored bytes are missing or damaged.
        """
        return read_with_executor(self, executor, ahead=ahead)

    def to_dask(self, *, batches_per_chunk: int | None = None) -> "xr.Dataset":
        """Return the epoch as a dataset of dask arrays, which read their batches when computed.

        A chunk holds the samples of a few batches, and is read by one task. Image and label are
        read apart, so a computation reads only what it uses. Nothing is read at once.

        Parameters
        ----------
        batches_per_chunk
            Number of batches in a chunk. By default, a chunk holds a window, or up to 256 samples
            of 64 MiB together, and an epoch of 16 batches or more has at least 16 chunks. Smaller
            chunks take less memory, and are better if few samples are used; dask spends about a
            millisecond on each array of a chunk.

        Returns
        -------
        xarray.Dataset
            ``image`` and ``label`` over ``sample``, ``z``, ``y`` and ``x`` (slices have two of
            these); coordinates ``scan_id``, ``start_zyx`` and ``vertebra`` (``""`` for a uniform
            draw) of each sample, which need no voxels of the patches.

        Raises
        ------
        UsageError
            If this is a partition of an epoch, or the rest of one, or if ``batches_per_chunk`` is
            less than 1.
        CorruptStoreError
            If stored bytes are missing or damaged. It is raised when the dataset is computed.

        Examples
        --------
        >>> epoch = store.patches((16, 24, 24), batch_size=2, n_samples=5).to_dask()
        >>> epoch.image.chunks[0]
        (2, 2, 1)
        """
        require_whole_epoch(self.partition, "to_dask", "Choose samples of the dataset with isel.")
        # dask takes long to import, and training does not need it.
        from spinezarr.stream.epoch.lazy_epoch import default_chunk, lazy_epoch  # noqa: PLC0415

        if batches_per_chunk is None:
            least = default_chunk(self.n_samples, self.batch_size, self.batch_reader.patch_bytes)
            batches_per_chunk = max(self.batches_per_group, least)
        if batches_per_chunk < 1:
            raise UsageError(f"batches_per_chunk {batches_per_chunk}: must be at least 1.")
        # Dask computes several chunks at once, so each is read by one thread.
        samples = self.with_reading(threads=1)
        return lazy_epoch(samples, batches_per_chunk * self.batch_size)

    def _find_center(self, scan_id: str, vertebra: str, k: int | None) -> PositionZYX:
        """Return the k-th voxel of a vertebra, or its centroid if ``k`` is None."""
        if k is None:
            return self._centroid(scan_id, vertebra)
        return self._find_voxel(scan_id, vertebra, k)

    def _centroid(self, scan_id: str, vertebra: str) -> PositionZYX:
        """Return the annotated centroid of a vertebra.

        The centroid of its label is returned if there is none, or if it lies off the label.
        """
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


class _CurrentStream:
    """Reads the groups of a stream; reopens the store if scans change and the stream follows."""

    def __init__(self, stream: PatchStream) -> None:
        self._stream = stream
        self._reopening = ProcessLock()

    def read_group(self, number: int) -> list[Batch]:
        while True:
            stream = self._stream
            try:
                return stream.read_group(number)
            except ScanChangedError as problem:
                if stream.on_change == "error":
                    raise
                with self._reopening:
                    if self._stream is stream:
                        self._stream = stream.reopened(problem.scan_id)


def image_dtype_of(table: TableColumns) -> np.dtype[Any]:
    """Return a dtype that holds the image values of all rows of a scan table: int16 or wider."""
    dtypes = {np.dtype(str(name)) for name in np.asarray(table["image_dtype"])}
    return np.result_type(np.int16, *dtypes)
