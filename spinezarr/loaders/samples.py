"""What do the datasets for MONAI and TorchIO share? Both return single patches.

Their spatial axes are (x, y, z), which increase toward right, anterior and superior, as those of a
NIfTI file in RAS+. The voxels are views of the stored (z, y, x), and the affine is for (x, y, z).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from spinezarr.loaders.randomness import Randomness
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.grid import GridStream
from spinezarr.stream.epoch.partition import USE_A_SAMPLER, require_whole_epoch
from spinezarr.stream.epoch.stream import PatchStream

__all__ = ["Sample", "SampleDataset"]

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One patch, with its channels first."""

    image: torch.Tensor
    """``(1, x, y, z)``, HU, in the stored dtype."""
    label: torch.Tensor | None
    """``(1, x, y, z)`` uint8."""
    masks: dict[str, torch.Tensor]
    """Further masks by name, ``(1, x, y, z)`` uint8."""
    affine: npt.NDArray[np.float64]
    """4 x 4, maps a voxel ``(x, y, z, 1)`` of the patch to RAS+ in mm."""
    metadata: dict[str, Any]
    """``scan_id``, ``index``, ``start_zyx``, ``padding_zyx`` and ``vertebra`` (``""`` for none)."""


def _samples_of(batch: Batch) -> Iterator[Sample]:
    for i, scan_id in enumerate(batch.scan_id):
        yield Sample(
            _channel_first(batch.image[i], batch.dims),
            None if batch.label is None else _channel_first(batch.label[i], batch.dims),
            {name: _channel_first(mask[i], batch.dims) for name, mask in batch.masks.items()},
            batch.affine[i],
            {
                "scan_id": scan_id,
                "index": int(batch.index[i]),
                "start_zyx": torch.from_numpy(batch.start_zyx[i]),
                "padding_zyx": torch.from_numpy(batch.padding_zyx[i]),
                "vertebra": batch.vertebra[i] or "",
            },
        )


def _channel_first(voxels: npt.NDArray[Any], dims: Sequence[str]) -> torch.Tensor:
    """Return a view ``(c, x, y, z)`` of voxels. An axis that slices lack has one voxel.

    If ``voxels`` has one axis more than the spatial axes, the first one is that of the channels.
    """
    missing_axes = [1 + axis for axis, name in enumerate("zyx") if name not in dims]
    channels = voxels if voxels.ndim + len(missing_axes) > len("zyx") else voxels[None]
    return torch.from_numpy(np.expand_dims(channels, missing_axes).transpose(0, 3, 2, 1))


class SampleDataset(Dataset[Item], ABC, Generic[Item]):
    """An epoch of a stream as a map-style dataset.

    A data loader requests all samples of a batch at once, and a chunk that several of them need is
    read once. So the batch size is that of the loader, and not that of the stream. No shuffling is
    needed, because samples are drawn at random.

    The random numbers with which a sample is transformed are a pure function of the stream's seed,
    the epoch and the sample's number: the same for any loader and number of workers.

    Parameters
    ----------
    stream
        A stream of patches or slices, or a grid.

    Raises
    ------
    UsageError
        If it is a partition of a stream. Use a sampler of the data loader to divide it.
    """

    _random_classes: ClassVar[Sequence[type]] = ()
    """Classes of transforms that share a generator; see :class:`Randomness`."""

    def __init__(self, stream: PatchStream | GridStream) -> None:
        if isinstance(stream, PatchStream):
            require_whole_epoch(stream.partition, type(self).__name__, USE_A_SAMPLER)
        self.stream = stream
        self._randomness: Randomness | None = None
        # Persistent workers use the same memory, so they see when the epoch changes.
        self._epoch = torch.tensor(0).share_memory_()
        if isinstance(stream, PatchStream):
            self._epoch.fill_(stream.epoch)

    def __getstate__(self) -> dict[str, Any]:
        # A worker makes it again for its copy of the transform.
        return {**self.__dict__, "_randomness": None}

    def __len__(self) -> int:
        """Return the number of patches of an epoch."""
        return self.stream.n_samples

    def __getitem__(self, index: int) -> Item:
        """Read one patch.

        Raises
        ------
        IndexError
            If the epoch has no such patch.
        CorruptStoreError
            If stored bytes are missing or damaged. The message names scan, array, chunk and shard.
        """
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Read the patches of a batch together; see :meth:`__getitem__`."""
        epoch = int(self._epoch)
        stream = self._of_epoch(epoch)
        numbers = range(len(self))
        batch = stream.read([stream.request(numbers[index]) for index in indices])
        samples = _samples_of(batch)
        transform = self._active_transform()
        if transform is None:
            return [self._item(sample) for sample in samples]
        if self._randomness is None or not self._randomness.is_of(transform):
            self._randomness = Randomness(transform, self._random_classes)
        seed = 0 if isinstance(stream, GridStream) else stream.sampler.seed
        items = []
        for sample in samples:
            item = self._item(sample)
            with self._randomness.of_sample(seed, epoch, sample.metadata["index"]):
                items.append(transform(item))
        return items

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of another epoch, before iterating over a data loader again.

        A grid has the same patches in each epoch.
        """
        self._of_epoch(epoch)
        self._epoch.fill_(epoch)

    def _of_epoch(self, epoch: int) -> PatchStream | GridStream:
        stream = self.stream
        return stream if isinstance(stream, GridStream) else stream.at_epoch(epoch)

    @abstractmethod
    def _item(self, sample: Sample) -> Item:
        """Return a sample in the form that the library expects."""

    @abstractmethod
    def _active_transform(self) -> Callable[[Item], Item] | None:
        """Return the transform to apply to each sample; None if there is none."""
