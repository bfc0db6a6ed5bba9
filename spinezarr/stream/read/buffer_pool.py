"""How is the memory of a batch reused after the batch is deleted?

The operating system gives large arrays fresh pages, and clears each page when it is first touched.
With two threads, that can take longer than decoding the voxels.
"""

import math
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["MIN_BYTES", "BufferPool", "leased"]

_MAX_FREE_BYTES: Final = 288 << 20
"""Bytes of free memory to keep: a little more than the largest default window."""
MIN_BYTES: Final = 1 << 18
"""Smaller arrays come from the heap of C's ``malloc``, which keeps free memory itself."""

_Block = npt.NDArray[np.uint8]


class _Lease:
    """Object to which all views of a block refer. It is deleted together with the last view.

    In NumPy, a view of a view refers to the first array. So this is not an array itself, and all
    views refer to it and to nothing else.
    """

    def __init__(self, block: _Block) -> None:
        self.__array_interface__ = block.__array_interface__


def leased(block: _Block, release: Callable[[_Block], None]) -> _Block:
    """Return a view of a block. When the last view of that is gone, ``release`` gets the block."""
    lease = _Lease(block)
    weakref.finalize(lease, release, block).atexit = False
    return np.asarray(lease)


class BufferPool:
    """Gives arrays, and takes back the memory of an array when its last view is gone.

    There is no lock: memory comes back whenever Python collects garbage, even in a thread that
    allocates an array at that moment. Each step is atomic.

    Parameters
    ----------
    max_free_bytes
        Bytes of free memory to keep.
    """

    def __init__(self, max_free_bytes: int = _MAX_FREE_BYTES) -> None:
        self._max_free_bytes = max_free_bytes
        self._free: dict[int, deque[_Block]] = {}

    def __reduce__(self) -> tuple[type["BufferPool"], tuple[int]]:
        return BufferPool, (self._max_free_bytes,)

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array whose elements are not set, as :func:`numpy.empty` does."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if n_bytes < MIN_BYTES:
            return np.empty(shape, dtype)
        try:
            block = self._free[n_bytes].pop()
        except (KeyError, IndexError):
            block = np.empty(n_bytes, np.uint8)
        return leased(block, self._release).view(dtype).reshape(shape)

    def empty_alike(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array as :meth:`empty` does, out of memory that arrays of about its size share.

        Its memory is up to an eighth larger. Pages that nobody touches take no memory.
        """
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        step = 1 << max(0, n_bytes.bit_length() - 4)
        block = self.empty((-(-n_bytes // step) * step,), np.uint8)
        return block[:n_bytes].view(dtype).reshape(shape)

    @property
    def free_bytes(self) -> int:
        """Bytes of free memory."""
        return sum(n_bytes * len(blocks) for n_bytes, blocks in list(self._free.items()))

    def _release(self, block: _Block) -> None:
        self._free.setdefault(block.nbytes, deque()).append(block)
        if self.free_bytes <= self._max_free_bytes:
            return
        # Blocks of other sizes go first: they may be those of a stream that has ended.
        sizes = sorted(self._free, key=lambda n_bytes: n_bytes == block.nbytes)
        for n_bytes in sizes:
            while self.free_bytes > self._max_free_bytes:
                try:
                    self._free[n_bytes].popleft()
                except IndexError:
                    break
