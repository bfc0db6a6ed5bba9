"""How does a grid of patches read each chunk of a volume only once?

The patches of a grid move through the volume plane by plane and never back. So the volume is read
in layers, each one chunk thick. A layer stays in memory from its first patch to its last, and one
more layer is read ahead.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import numpy.typing as npt

from spinezarr.geometry import Box
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.box_reader import BoxRead, BoxReader
from spinezarr.stream.read.buffer_pool import BufferPool
from spinezarr.stream.read.summary import ReadSummary

__all__ = ["LayeredReader"]


class LayeredReader:
    """Reads boxes of one scan in order of z, from layers that it keeps in memory.

    It is a :class:`~spinezarr.stream.read.box_reader.BoxReader`, and a context manager that ends
    its own thread. Use it from one thread.

    Parameters
    ----------
    source
        Reads the layers.
    """

    def __init__(self, source: BoxReader) -> None:
        self._source = source
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="spinezarr-grid")
        self._layers: dict[tuple[str, int], Future[npt.NDArray[Any]]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    @property
    def buffers(self) -> BufferPool:
        """Pool of memory for voxels."""
        return self._source.buffers

    @property
    def concurrent_calls(self) -> int:
        """Number of calls that should run at once: one, as boxes come in order."""
        return 1

    def explain(self, boxes: Sequence[tuple[ArraySpec, Box]]) -> ReadSummary:
        """Count what reading some boxes would take without layers."""
        return self._source.explain(boxes)

    def read(self, reads: Iterable[BoxRead], *, threads: int = 1) -> None:
        """Fill the outputs of some boxes, and drop the layers above them.

        See :meth:`spinezarr.stream.read.box_reader.BoxReader.read`. No later call may need a layer
        above the lowest one that this call needs.
        """
        reads = list(reads)
        lowest = min(read.box.start_zyx[0] // read.array.chunk_shape_zyx[0] for read in reads)
        for name, number in list(self._layers):
            if number < lowest:
                del self._layers[name, number]
        for read in reads:
            self._copy(read, threads)

    def _copy(self, read: BoxRead, threads: int) -> None:
        """Copy a box out of its layers; read those that are missing, and the next one."""
        (low, *_), (high, *_) = read.box.start_zyx, read.box.stop_zyx
        _, rows, columns = read.box.slices
        thickness = read.array.chunk_shape_zyx[0]
        needed = range(low // thickness, -(-high // thickness))
        for number in (*needed, needed.stop):
            if (read.array.name, number) not in self._layers:
                layer = self._executor.submit(self._read_layer, read.array, number, threads)
                self._layers[read.array.name, number] = layer
        for number in needed:
            top = number * thickness
            first, last = max(low, top), min(high, top + thickness)
            planes = self._layers[read.array.name, number].result()[first - top : last - top]
            read.out[first - low : last - low] = planes[:, rows, columns]

    def _read_layer(self, array: ArraySpec, number: int, threads: int) -> npt.NDArray[Any]:
        """Read the planes of a layer; there are none beyond the last plane of the volume."""
        depth, height, width = array.shape_zyx
        low = number * array.chunk_shape_zyx[0]
        high = min(low + array.chunk_shape_zyx[0], depth)
        layer = self.buffers.empty((max(0, high - low), height, width), array.dtype)
        if len(layer):
            box = Box((low, 0, 0), (high, height, width))
            self._source.read([BoxRead(array, box, layer)], threads=threads)
        return layer
