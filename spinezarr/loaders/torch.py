"""How does a PyTorch program get the batches or samples of a stream?

Batches come as dicts of tensors, which use the memory that the voxels were read into:

========================= ==================================================================
``image``                 ``(n, 1, z, y, x)`` HU, int16 unless a scan needs a wider type; of
                          slices ``(n, 1, y, x)`` and the like. Axis 1 is that of channels;
                          neighboring slices are channels
``label``                 ``(n, 1, ...)`` uint8; missing if labels were not requested
``scan_id``, ``vertebra`` lists of ``n`` names; a vertebra is ``""`` for a uniform draw
others                    as in :class:`spinezarr.stream.batch.Batch`, as tensors
========================= ==================================================================
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import islice
from typing import Any, Final, NoReturn

import numpy as np
from pydantic import JsonValue

from spinezarr.errors import UsageError
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.batch_iterator import BatchIterator
from spinezarr.stream.epoch.checkpoint import Progress, partition_count
from spinezarr.stream.epoch.partition import USE_A_SAMPLER, require_whole_epoch
from spinezarr.stream.epoch.stream import PatchStream

try:
    import torch
    from torch import distributed
    from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info
    from torch.utils.data._utils.collate import default_collate_fn_map
except ImportError as problem:  # pragma: no cover  tests need torch
    raise ImportError(f"{problem}: pip install 'spinezarr[torch]'") from problem

from spinezarr.loaders.shared_buffers import send_in_segments, shared_allocator

__all__ = ["PatchDataset", "PatchLoader", "PatchMapDataset", "TensorBatch", "as_tensors"]

TensorBatch = dict[str, Any]
"""Tensors and lists of one batch or sample, by name."""

_STREAM_OPTIONS: Final[dict[str, str]] = {
    "batch_size": "Give batch_size to store.patches or store.slices",
    "shuffle": "The stream draws its samples at random; set_epoch chooses other draws",
    "sampler": "The stream chooses its samples; PatchMapDataset has samples by number",
    "batch_sampler": "The stream chooses its batches; PatchMapDataset has samples by number",
    "drop_last": "Choose n_samples as a multiple of batch_size, so that no batch is smaller",
    "collate_fn": "The stream gives whole batches; a loader can collate samples of PatchMapDataset",
    "dataset": "The loader reads the stream",
    "in_order": "Batches come in the order of the stream, which checkpoints need",
}
"""Advice for each option of ``DataLoader`` that the stream decides."""


class _WholeBatch(TensorBatch):
    """A batch that a loader must not collate into a batch of batches."""


def _refuse_to_collate(_: object, **__: object) -> NoReturn:
    raise UsageError(
        "PatchDataset gives whole batches, of the stream's batch_size. Give DataLoader "
        "batch_size=None, or use spinezarr.loaders.torch.PatchLoader."
    )


default_collate_fn_map[_WholeBatch] = _refuse_to_collate
send_in_segments(_WholeBatch)


def as_tensors(batch: Batch) -> TensorBatch:
    """Return a batch as tensors, without a copy."""
    tensors: TensorBatch = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if field.name == "masks":
            continue
        if isinstance(value, np.ndarray):
            tensors[field.name] = torch.from_numpy(value)
        elif value is not None and field.name != "dims":
            tensors[field.name] = ["" if item is None else item for item in value]
    if "slice" not in batch.dims:
        tensors["image"] = tensors["image"].unsqueeze(1)
    if "label" in tensors:
        tensors["label"] = tensors["label"].unsqueeze(1)
    for name, mask in batch.masks.items():
        if name in tensors:
            raise UsageError(f"mask {name!r}: has the name of another entry of a batch of tensors.")
        tensors[name] = torch.from_numpy(mask).unsqueeze(1)
    return tensors


class PatchDataset(IterableDataset[TensorBatch]):
    """The batches of a stream, for ``DataLoader(dataset, batch_size=None)``.

    Each worker of a loader reads its partition with one thread. The loader gives the batches in the
    order of the stream, for any number of workers. Without workers, threads read ahead. All
    ranks get equally many batches; see
    :meth:`spinezarr.stream.epoch.stream.PatchStream.shard`.

    Parameters
    ----------
    stream
        The stream to read.
    rank, ranks
        Rank of this process, and the number of processes that train together. If they are not
        given, they come from ``torch.distributed``; there is one rank if it is not initialized.

    Raises
    ------
    UsageError
        If several workers iterate over it, and the stream reads several batches together, because
        their order would change. :class:`PatchLoader` keeps it. Also if a loader collates batches
        into a batch, as ``DataLoader`` does without ``batch_size=None``.
    """

    def __init__(
        self, stream: PatchStream, *, rank: int | None = None, ranks: int | None = None
    ) -> None:
        if (rank is None) != (ranks is None):
            raise UsageError("rank and ranks: give both or none.")
        self._stream = stream
        self._fixed_ranks = None if rank is None or ranks is None else (rank, ranks)
        self._epoch = _shared_number(stream.epoch)
        self._state: Mapping[str, Any] | None = None
        self._iterator: BatchIterator | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Threads cannot be pickled, and torch.distributed is not initialized in a spawned worker.
        return {**self.__dict__, "_iterator": None, "_fixed_ranks": self._ranks()}

    def __len__(self) -> int:
        """Return the number of batches of an epoch of this rank."""
        return len(self.rank_stream())

    def __iter__(self) -> Iterator[TensorBatch]:
        """Yield the batches of this rank and worker."""
        stream = self.worker_stream()
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1 and stream.batches_per_group > 1:
            raise UsageError(
                "several batches of this stream are read together, so workers would change their "
                "order. Use spinezarr.loaders.torch.PatchLoader, or num_workers=0, which reads "
                "with threads."
            )
        return self.iterate_tensors(stream)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of later iterations. By default, it is that of the stream."""
        self._epoch.fill_(self._stream.at_epoch(epoch).epoch)
        if self._state is not None and self._state["epoch"] != epoch:
            self.discard_state()

    def state_dict(self) -> dict[str, JsonValue]:
        """Return a checkpoint of the last iteration in this process."""
        if self._iterator is not None:
            return self._iterator.state_dict()
        return self.worker_stream().progress().state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the next iteration from a checkpoint. Later ones start at the beginning.

        Raises
        ------
        UsageError
            If it is the state of another stream. The message names the differences.
        """
        previous, self._state = self._state, state
        try:
            self.worker_stream()
        except UsageError:
            self._state = previous
            raise
        self._iterator = None

    def discard_state(self) -> None:
        """Discard a checkpoint that was loaded."""
        self._state = None

    def rank_stream(self) -> PatchStream:
        """Return the partition of this rank, in the chosen epoch."""
        stream = self._stream.at_epoch(int(self._epoch))
        rank, ranks = self._ranks()
        return stream.shard(rank, ranks, even=True) if ranks > 1 else stream

    def worker_stream(self) -> PatchStream:
        """Return the stream that this worker reads next."""
        stream, state = self.rank_stream(), self._state
        if state is not None and partition_count(state) == stream.partition.count:
            stream, state = stream.resume(state), None
        if worker := get_worker_info():
            stream = stream.shard(worker.id, worker.num_workers).with_reading(threads=1)
            allocate = shared_allocator(stream.engine.buffers.empty)
            stream = replace(stream, batch_reader=replace(stream.batch_reader, allocate=allocate))
        # A remaining state was saved by a worker for its own partition.
        return stream if state is None else stream.resume(state)

    def iterate_tensors(self, stream: PatchStream) -> Iterator[TensorBatch]:
        """Yield the batches of a stream as tensors. :meth:`state_dict` returns the progress."""
        self._state = None
        self._iterator = iterator = iter(stream)
        return _tensor_batches(iterator)

    def _ranks(self) -> tuple[int, int]:
        if self._fixed_ranks is not None:
            return self._fixed_ranks
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank(), distributed.get_world_size()
        return 0, 1


def _shared_number(epoch: int) -> torch.Tensor:
    """Return a number in shared memory, so that persistent workers see its changes."""
    storage = torch.tensor([epoch])
    storage.untyped_storage().share_memory_()
    return storage


def _whole_batch(batch: Batch) -> _WholeBatch:
    return _WholeBatch(as_tensors(batch))


def _tensor_batches(iterator: BatchIterator) -> Iterator[TensorBatch]:
    try:
        # No variable keeps the memory of a batch while the next one is read.
        yield from map(_whole_batch, iterator)
    finally:
        iterator.close()


class PatchMapDataset(Dataset[TensorBatch]):
    """The samples of an epoch by number, for samplers and ``DataLoader(dataset, batch_size=8)``.

    A sample is a dict like that of a batch, without the first axis. This is slower than
    :class:`PatchDataset`, because the loader copies samples into batches and reads each batch
    separately.

    Parameters
    ----------
    stream
        The stream to read. Its batch size has no effect. The loader decides it.

    Raises
    ------
    UsageError
        If it is a partition of a stream. Use a sampler of the data loader to divide it.
    """

    def __init__(self, stream: PatchStream) -> None:
        require_whole_epoch(stream.partition, type(self).__name__, USE_A_SAMPLER)
        self._stream = stream
        self._epoch = _shared_number(stream.epoch)

    def __len__(self) -> int:
        """Return the number of samples of an epoch."""
        return self._stream.n_samples

    def __getitem__(self, index: int) -> TensorBatch:
        """Read one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TensorBatch]:
        """Read several samples together.

        Raises
        ------
        IndexError
            If an epoch has no such sample.
        """
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of an epoch of {len(self)}")
        stream = self._stream.at_epoch(int(self._epoch))
        batch = as_tensors(stream.read([stream.request(int(index)) for index in indices]))
        return [{name: value[i] for name, value in batch.items()} for i in range(len(indices))]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch. By default, it is that of the stream."""
        self._epoch.fill_(self._stream.at_epoch(epoch).epoch)


class PatchLoader:
    """A loader of batches as tensors, in the order of the stream for any number of workers.

    Its checkpoints do not depend on the number of workers either: a checkpoint of a loader without
    workers can be loaded by one with two. All ranks can continue from the checkpoint of one of
    them, because all have the same progress.

    Parameters
    ----------
    stream
        The stream to read.
    num_workers
        Number of processes that read. Usually 0 is best, because reading releases the GIL, and
        threads pass batches on without copying them.
    rank, ranks
        As in :class:`PatchDataset`.
    **options
        Further options of :class:`torch.utils.data.DataLoader`: ``pin_memory``,
        ``multiprocessing_context``, ``persistent_workers``, ``prefetch_factor``, ``timeout``.

    Raises
    ------
    UsageError
        If the stream decides an option, such as ``batch_size`` or ``shuffle``. The message says
        what to do instead.
    """

    def __init__(
        self,
        stream: PatchStream,
        *,
        num_workers: int = 0,
        rank: int | None = None,
        ranks: int | None = None,
        **options: Any,  # noqa: ANN401  options of torch
    ) -> None:
        for name in options:
            if name in _STREAM_OPTIONS:
                raise UsageError(f"PatchLoader takes no {name}. {_STREAM_OPTIONS[name]}.")
        self._dataset = PatchDataset(stream, rank=rank, ranks=ranks)
        self._reads_groups = num_workers > 1 and stream.batches_per_group > 1
        self._options = {**options, "num_workers": num_workers, "batch_size": None}
        if self._reads_groups:
            self._options.setdefault("prefetch_factor", 1)  # a group is many batches
        self._loader = self._make_loader()
        self._progress: Progress | None = None
        self._state: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        """Return the number of batches of an epoch of this rank."""
        return len(self._dataset)

    def __iter__(self) -> Iterator[TensorBatch]:
        """Yield the batches of this rank."""
        self._progress = progress = self._next_stream().progress()
        if self._state is not None:
            self._dataset.load_state_dict(self._state)
            self._loader = self._make_loader()  # persistent workers do not know the state
            self._state = None
        items = iter(self._loader)
        self._dataset.discard_state()  # the workers have it now
        for item in items:
            for batch in item if self._reads_groups else [item]:
                progress.n_given += 1
                yield batch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of later iterations. By default, it is that of the stream.

        If it is not the epoch of a checkpoint that was loaded, the checkpoint is discarded.
        """
        self._dataset.set_epoch(epoch)
        if self._state is not None and self._state["epoch"] != epoch:
            self._state = None

    def state_dict(self) -> dict[str, JsonValue]:
        """Return a checkpoint, which states the batches that the last iteration has given."""
        if self._progress is None:
            return self._next_stream().progress().state_dict()
        return self._progress.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue the next iteration from a checkpoint. Later ones start at the beginning.

        Raises
        ------
        UsageError
            If it is the state of another stream. The message names the differences.
        """
        self._dataset.set_epoch(self._dataset.rank_stream().resume(state).epoch)
        self._state = state
        self._progress = None

    def _next_stream(self) -> PatchStream:
        stream = self._dataset.rank_stream()
        return stream if self._state is None else stream.resume(self._state)

    def _make_loader(self) -> "DataLoader[Any]":
        dataset = _Groups(self._dataset) if self._reads_groups else self._dataset
        return DataLoader(dataset, **self._options)


class _Groups(IterableDataset[list[TensorBatch]]):
    """The groups of a dataset, each as a list of batches.

    A loader then takes one whole group from each worker in turn.
    """

    def __init__(self, dataset: PatchDataset) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[list[TensorBatch]]:
        stream = self._dataset.worker_stream()
        partition, epoch = stream.partition, stream.batch_groups
        batches = self._dataset.iterate_tensors(stream)
        done = partition.batches_done
        for group in partition.groups(epoch):
            yield list(islice(batches, len(epoch.batches(group)) - done))
            done = 0
