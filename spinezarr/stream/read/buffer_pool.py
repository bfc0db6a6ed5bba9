"""Memory of batches, used again once nobody holds a batch any more.

Large arrays come fresh from the operating system, which clears each page when it is first touched:
with two threads that can take longer than to decode what goes in.
"""

import math
import weakref
from collections import deque
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["BufferPool"]

_FREE_BYTES: Final = 288 << 20
"""Kept of what nobody holds: a little more than the largest window that is chosen unasked."""
_SMALLEST_BYTES: Final = 1 << 18
"""Less is taken from the heap by C's ``malloc``, which keeps it too."""

_Block = npt.NDArray[np.uint8]


class _Lease:
    """What arrays in a block hold on to.

    NumPy lets a view of a view hold the first array alone; so that each of them holds the same
    thing, and nothing else holds it, it is no array itself.
    """

    def __init__(self, block: _Block) -> None:
        self.__array_interface__ = block.__array_interface__


class BufferPool:
    """Gives arrays, and takes their memory back when the last view of one is gone.

    There is no lock: memory comes back whenever Python collects garbage, also in a thread that is
    just taking some. Each step by itself is atomic.
    """

    def __init__(self) -> None:
        self._free: dict[int, deque[_Block]] = {}

    def __reduce__(self) -> tuple[type["BufferPool"], tuple[()]]:
        return BufferPool, ()

    def empty(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return an array whose elements are not set, as :func:`numpy.empty`."""
        n_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if n_bytes < _SMALLEST_BYTES:
            return np.empty(shape, dtype)
        try:
            block = self._free[n_bytes].pop()
        except (KeyError, IndexError):
            block = np.empty(n_bytes, np.uint8)
        lease = _Lease(block)
        weakref.finalize(lease, self._give, block).atexit = False
        array: npt.NDArray[Any] = np.asarray(lease).view(dtype).reshape(shape)
        return array

    @property
    def free_bytes(self) -> int:
        """Memory that nobody holds."""
        return sum(n_bytes * len(blocks) for n_bytes, blocks in list(self._free.items()))

    def _give(self, block: _Block) -> None:
        self._free.setdefault(block.nbytes, deque()).append(block)
        # Other sizes go first: they may be those of a stream that has ended.
        sizes = sorted(self._free, key=lambda n_bytes: n_bytes == block.nbytes)
        for n_bytes in sizes:
            while self.free_bytes > _FREE_BYTES:
                try:
                    self._free[n_bytes].popleft()
                except IndexError:
                    break
