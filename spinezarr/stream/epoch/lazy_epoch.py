"""How does an epoch become an xarray dataset of dask arrays?

A chunk of the arrays holds a few batches. It is drawn and read when dask computes it, in threads,
processes or a cluster.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Protocol

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize

from spinezarr.stream.epoch.executor import PickledOnce
from spinezarr.stream.read.batch_reader import BatchReader
from spinezarr.stream.request import PatchRequest
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["LazySamples", "default_chunk", "lazy_epoch"]

_CHUNK_BYTES: Final = 64 << 20
"""Bytes of the voxels of a chunk: reading them takes far longer than dask's work for a chunk."""
_CHUNK_SAMPLES: Final = 256
"""Largest number of samples in a chunk. Drawing and planning take the time of small ones."""
_MIN_CHUNKS: Final = 16
"""Number of chunks of an epoch that has so many batches, for that many threads or processes."""


class LazySamples(Protocol):
    """Samples of an epoch that can be drawn and read by their numbers."""

    @property
    def n_samples(self) -> int:
        """Number of samples in the epoch."""
        ...

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """Scans that samples are drawn from."""
        ...

    @property
    def batch_reader(self) -> BatchReader:
        """Describes the patches."""
        ...

    def draw(self, indices: Iterable[int]) -> list[PatchRequest]:
        """Draw samples without reading their voxels."""
        ...

    def read_images(self, requests: Sequence[PatchRequest]) -> npt.NDArray[Any]:
        """Read the images of some samples."""
        ...

    def read_labels(self, requests: Sequence[PatchRequest], mask: str) -> npt.NDArray[np.uint8]:
        """Read the masks of some samples."""
        ...


Pickled = PickledOnce[LazySamples]
Requests = npt.NDArray[np.object_]
"""Requests for patches."""


def default_chunk(n_samples: int, batch_size: int, patch_bytes: int) -> int:
    """Return how many batches of an epoch make a chunk.

    Examples
    --------
    >>> default_chunk(8000, 8, 1 << 20), default_chunk(256, 8, 1 << 20), default_chunk(8000, 8, 60)
    (8, 2, 32)
    """
    largest = min(_CHUNK_BYTES // patch_bytes, _CHUNK_SAMPLES, n_samples // _MIN_CHUNKS)
    return max(1, largest // batch_size)


def lazy_epoch(samples: LazySamples, chunk: int) -> xr.Dataset:
    """Return an epoch as a dataset that is drawn and read when it is computed.

    See :meth:`spinezarr.stream.epoch.stream.PatchStream.to_dask`.

    Parameters
    ----------
    samples
        The samples.
    chunk
        Number of samples in a chunk; the last one may have fewer.
    """
    n, patches = samples.n_samples, samples.batch_reader
    pickled = PickledOnce(samples)
    token = tokenize(pickled, chunk)
    of_chunks = tuple(min(chunk, n - first) for first in range(0, n, chunk))
    requests = da.map_blocks(
        _draw, pickled, chunk, chunks=(of_chunks,), meta=np.empty(0, object), name=f"draw-{token}"
    )

    def lazy(
        name: str,
        compute: Callable[..., npt.NDArray[Any]],
        *arguments: object,
        dtype: npt.DTypeLike,
        shape: tuple[int, ...] = (),
    ) -> da.Array:
        array: da.Array = da.map_blocks(
            compute,
            requests,
            *arguments,
            chunks=(of_chunks, *((length,) for length in shape)),
            new_axis=list(range(1, 1 + len(shape))),
            meta=np.empty((0,) * (1 + len(shape)), dtype),
            name=f"{name}-{token}",
        )
        return array

    image_shape = (*patches.channels, *patches.shape)
    image = lazy("image", _read_images, pickled, dtype=patches.image_dtype, shape=image_shape)
    voxels = {"image": (("sample", *patches.dims), image)}
    spatial = [axis for axis in patches.dims if axis in "zyx"]
    for mask in patches.mask_names:
        voxel_values = lazy(mask, _read_labels, pickled, mask, dtype=np.uint8, shape=patches.shape)
        voxels[mask] = (("sample", *spatial), voxel_values)
    starts = lazy("start_zyx", _starts, dtype=np.int64, shape=(3,))
    coordinates: dict[str, tuple[tuple[str, ...], da.Array]]
    coordinates = {"start_zyx": (("sample", "axis"), starts)}
    for name, names in (("scan_id", samples.scan_ids), ("vertebra", VALUE_OF_NAME)):
        dtype = np.dtype(f"<U{max(map(len, names))}")
        coordinates[name] = (("sample",), lazy(name, _names, name, dtype, dtype=dtype))
    axes = {"sample": np.arange(n), "axis": list("zyx")}
    return xr.Dataset(voxels, coordinates | axes)


def _draw(pickled: Pickled, chunk: int, block_id: tuple[int]) -> Requests:
    """Draw the samples of a chunk."""
    samples = pickled.value
    first = block_id[0] * chunk
    last = min(first + chunk, samples.n_samples)
    requests = np.empty(last - first, object)
    requests[:] = samples.draw(range(first, last))
    return requests


def _read_images(requests: Requests, pickled: Pickled) -> npt.NDArray[Any]:
    return pickled.value.read_images(requests.tolist())


def _read_labels(requests: Requests, pickled: Pickled, mask: str) -> npt.NDArray[np.uint8]:
    return pickled.value.read_labels(requests.tolist(), mask)


def _names(requests: Requests, field: str, dtype: np.dtype[np.str_]) -> npt.NDArray[np.str_]:
    return np.array([getattr(request, field) or "" for request in requests], dtype)


def _starts(requests: Requests) -> npt.NDArray[np.int64]:
    return np.array([request.box.start_zyx for request in requests], np.int64).reshape(-1, 3)
