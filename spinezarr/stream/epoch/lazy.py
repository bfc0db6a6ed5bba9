"""Stored arrays and epochs as dask sees them, read by the engine and not by zarr-python."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import xarray as xr
from dask.base import tokenize
from dask.delayed import delayed

from spinezarr.geometry import Box
from spinezarr.store.reader import ArraySpec
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.executor import PickledStream
from spinezarr.stream.epoch.partition import require_whole_epoch
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.request import PatchRequest
from spinezarr.vertebrae import VALUE_OF_NAME

if TYPE_CHECKING:
    from spinezarr.stream.epoch.stream import PatchStream

__all__ = ["lazy_array", "lazy_epoch"]


def lazy_array(engine: Engine, spec: ArraySpec, url: str) -> da.Array:
    """Return a stored array as a dask array ``(z, y, x)`` with one chunk a shard.

    Parameters
    ----------
    engine
        Reads it when it is computed.
    spec
        The array.
    url
        Its store, so that equal arrays of two stores have two names.
    """
    shards = zip(spec.shard_shape_zyx, spec.shape_zyx, strict=True)
    scale = {} if spec.scaling is None else spec.scaling.attributes
    lazy: da.Array = da.from_array(
        _StoredArray(engine, spec),
        chunks=tuple(min(shard, n) for shard, n in shards),
        name=f"{spec.name}-{tokenize(url, spec.scan_id, dict(spec.shard_sizes), scale)}",
        meta=np.empty((0, 0, 0), spec.dtype),
    )
    return lazy


class _StoredArray:
    """A stored array as dask asks for it: by slices."""

    ndim = 3

    def __init__(self, engine: Engine, spec: ArraySpec) -> None:
        self._engine = engine
        self._spec = spec
        self.shape = spec.shape_zyx
        self.dtype = spec.dtype

    def __getitem__(self, index: tuple[slice | int, ...]) -> npt.NDArray[Any]:
        starts, stops, within = [], [], []
        for item, n in zip(index, self.shape, strict=True):
            whole = range(n)
            chosen = whole[item] if isinstance(item, slice) else whole[whole[item] :][:1]
            if not chosen:
                return np.empty(self.shape, self.dtype)[index]
            low, high = min(chosen), max(chosen) + 1
            starts.append(low)
            stops.append(high)
            first, last = chosen[0] - low, chosen[-1] - low + chosen.step
            stop = None if last < 0 else last
            within.append(slice(first, stop, chosen.step) if isinstance(item, slice) else 0)
        box = Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))
        voxels = np.empty(box.shape_zyx, self.dtype)
        self._engine.read_into(self._spec, box, voxels)
        return voxels[tuple(within)]


def lazy_epoch(stream: "PatchStream") -> xr.Dataset:
    """Return an epoch as a dataset that is drawn and read when it is computed.

    See :meth:`spinezarr.stream.epoch.stream.PatchStream.to_dask`.
    """
    require_whole_epoch(stream.partition, "to_dask", "Choose samples of the dataset with isel.")
    one = stream.read([stream.request(0)])
    voxels = {"image": one.image, "label": one.label}
    shipped = PickledStream(stream)
    token = tokenize(shipped)
    names = {
        "scan_id": f"<U{max(map(len, stream.sampler.scan_ids))}",
        "vertebra": f"<U{max(map(len, VALUE_OF_NAME))}",
    }
    parts: dict[str, list[da.Array]] = {}
    source = delayed(shipped, name=f"stream-{token}", traverse=False)
    for first in range(0, stream.n_samples, stream.batch_size):
        last = min(first + stream.batch_size, stream.n_samples)
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
    whole = {name: da.concatenate(arrays) for name, arrays in parts.items()}
    spatial = [axis for axis in one.dims if axis in "zyx"]
    dims = {"image": one.dims, "label": spatial, "start_zyx": ["axis"]}
    variables = {name: (["sample", *dims.get(name, [])], array) for name, array in whole.items()}
    return xr.Dataset(
        {name: variables.pop(name) for name in voxels if name in variables},
        variables | {"sample": np.arange(stream.n_samples), "axis": list("zyx")},
    )


def _draw(shipped: PickledStream, first: int, last: int) -> list[PatchRequest]:
    return [shipped.stream.request(index) for index in range(first, last)]


def _read(shipped: PickledStream, requests: Sequence[PatchRequest]) -> Batch:
    return shipped.stream.read(requests)


def _names(requests: Sequence[PatchRequest], field: str, dtype: str) -> npt.NDArray[np.str_]:
    return np.array([getattr(request, field) or "" for request in requests], dtype)


def _starts(requests: Sequence[PatchRequest]) -> npt.NDArray[np.int64]:
    return np.array([request.box.start_zyx for request in requests])
