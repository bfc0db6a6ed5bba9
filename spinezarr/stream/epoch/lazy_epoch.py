"""How does an epoch become an xarray dataset of dask arrays?

Each batch is one chunk of the arrays. It is drawn and read when dask computes it, in threads,
processes or a cluster.
"""

from collections.abc import Sequence
from typing import Protocol

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed

from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.executor import PickledOnce
from spinezarr.stream.request import PatchRequest
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["NumberedSamples", "lazy_epoch"]


class NumberedSamples(Protocol):
    """Samples of an epoch that can be drawn and read by their numbers."""

    @property
    def n_samples(self) -> int:
        """Number of samples in the epoch."""
        ...

    @property
    def batch_size(self) -> int:
        """Number of samples in a batch."""
        ...

    @property
    def scan_ids(self) -> tuple[str, ...]:
        """Scans that samples are drawn from."""
        ...

    def request(self, index: int) -> PatchRequest:
        """Draw a sample without reading it."""
        ...

    def read(self, requests: Sequence[PatchRequest]) -> Batch:
        """Read samples into one batch."""
        ...


Pickled = PickledOnce[NumberedSamples]


def lazy_epoch(samples: NumberedSamples) -> xr.Dataset:
    """Return an epoch as a dataset that is drawn and read when it is computed.

    Sample 0 is read at once, for shapes and dtypes. See
    :meth:`spinezarr.stream.epoch.stream.PatchStream.to_dask`.
    """
    first_sample = samples.read([samples.request(0)])
    voxels = {"image": first_sample.image, "label": first_sample.label}
    pickled = PickledOnce(samples)
    token = tokenize(pickled)
    names = {
        "scan_id": f"<U{max(map(len, samples.scan_ids))}",
        "vertebra": f"<U{max(map(len, VALUE_OF_NAME))}",
    }
    parts: dict[str, list[da.Array]] = {}
    source = delayed(pickled, name=f"stream-{token}", traverse=False)
    for first in range(0, samples.n_samples, samples.batch_size):
        last = min(first + samples.batch_size, samples.n_samples)
        requests = delayed(_draw)(source, first, last, dask_key_name=f"draw-{token}-{first}")
        batch = delayed(_read)(source, requests, dask_key_name=f"read-{token}-{first}")
        n = last - first
        for name, example in voxels.items():
            if example is not None:
                part = da.from_delayed(
                    getattr(batch, name), (n, *example.shape[1:]), meta=example[:0]
                )
                parts.setdefault(name, []).append(part)
        for name, dtype in names.items():
            part = da.from_delayed(delayed(_names)(requests, name, dtype), (n,), np.dtype(dtype))
            parts.setdefault(name, []).append(part)
        starts = da.from_delayed(delayed(_starts)(requests), (n, 3), np.dtype(np.int64))
        parts.setdefault("start_zyx", []).append(starts)
    arrays = {name: da.concatenate(chunks) for name, chunks in parts.items()}
    spatial = [axis for axis in first_sample.dims if axis in "zyx"]
    dims = {"image": first_sample.dims, "label": spatial, "start_zyx": ["axis"]}
    variables = {name: (["sample", *dims.get(name, [])], array) for name, array in arrays.items()}
    return xr.Dataset(
        {name: variables.pop(name) for name in voxels if name in variables},
        variables | {"sample": np.arange(samples.n_samples), "axis": list("zyx")},
    )


def _draw(pickled: Pickled, first: int, last: int) -> list[PatchRequest]:
    return [pickled.value.request(index) for index in range(first, last)]


def _read(pickled: Pickled, requests: Sequence[PatchRequest]) -> Batch:
    return pickled.value.read(requests)


def _names(requests: Sequence[PatchRequest], field: str, dtype: str) -> npt.NDArray[np.str_]:
    return np.array([getattr(request, field) or "" for request in requests], dtype)


def _starts(requests: Sequence[PatchRequest]) -> npt.NDArray[np.int64]:
    return np.array([request.box.start_zyx for request in requests])
