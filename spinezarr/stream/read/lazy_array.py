"""How does dask read a stored array?

The engine reads it, and not zarr-python. So it is read in threads, with the kernel, and with the
engine's checks.
"""

from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.base import tokenize

from spinezarr.geometry import Box
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.box_reader import BoxRead, BoxReader

__all__ = ["lazy_array"]


def lazy_array(engine: BoxReader, spec: ArraySpec, url: str) -> da.Array:
    """Return a stored array as a dask array ``(z, y, x)`` with one chunk for each shard.

    Parameters
    ----------
    engine
        Reads the voxels when dask computes them.
    spec
        The stored array.
    url
        Path or URL of its store. It is a part of the name in dask's graph, so that equal arrays of
        two stores have two names.
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
    """A stored array with the interface that dask needs: shape, dtype, and slicing."""

    ndim = 3

    def __init__(self, engine: BoxReader, spec: ArraySpec) -> None:
        self._engine = engine
        self._spec = spec
        self.shape = spec.shape_zyx
        self.dtype = spec.dtype

    def __getitem__(self, index: tuple[slice | int, ...]) -> npt.NDArray[Any]:
        starts, stops, within = [], [], []
        for item, n in zip(index, self.shape, strict=True):
            axis = range(n)
            voxels_along = axis[item] if isinstance(item, slice) else axis[axis[item] :][:1]
            if not voxels_along:
                return np.empty(self.shape, self.dtype)[index]
            low, high = min(voxels_along), max(voxels_along) + 1
            starts.append(low)
            stops.append(high)
            step = voxels_along.step
            first, last = voxels_along[0] - low, voxels_along[-1] - low + step
            stop = None if last < 0 else last
            within.append(slice(first, stop, step) if isinstance(item, slice) else 0)
        box = Box((starts[0], starts[1], starts[2]), (stops[0], stops[1], stops[2]))
        voxels = np.empty(box.shape_zyx, self.dtype)
        self._engine.read([BoxRead(self._spec, box, voxels)])
        return voxels[tuple(within)]
