"""How is the memory of a cache bounded?"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from spinezarr.forks import ProcessLock

__all__ = ["BoundedCache"]


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


K = TypeVar("K", bound=Hashable)
V = TypeVar("V", bound=_Sized)


class BoundedCache(Generic[K, V]):
    """Keeps items up to a number of bytes, and drops the least recently used first.

    It is shared between threads.

    Parameters
    ----------
    limit_bytes
        Largest sum of the items' ``nbytes``. An item that is larger than that is not kept.

    Examples
    --------
    >>> import numpy as np
    >>> cache = BoundedCache(limit_bytes=16)
    >>> cache.keep({"a": np.zeros(8, "u1"), "b": np.zeros(8, "u1"), "c": np.zeros(8, "u1")})
    >>> sorted(cache.find(["a", "b", "c"]))
    ['b', 'c']
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._items: OrderedDict[K, V] = OrderedDict()
        self._size_bytes = 0
        self._lock = ProcessLock()

    def find(self, keys: Iterable[K]) -> dict[K, V]:
        """Return the items that are kept for some keys; they count as used now."""
        items = {}
        with self._lock:
            for key in keys:
                if key in self._items:
                    self._items.move_to_end(key)
                    items[key] = self._items[key]
        return items

    def keep(self, items: Mapping[K, V]) -> None:
        """Keep more items, and drop the least recently used ones above the limit."""
        with self._lock:
            for key, value in items.items():
                if key not in self._items:
                    self._items[key] = value
                    self._size_bytes += value.nbytes
            while self._size_bytes > self.limit_bytes:
                self._size_bytes -= self._items.popitem(last=False)[1].nbytes

    def forget(self, key: K) -> None:
        """Drop the item of a key, if there is one."""
        with self._lock:
            if key in self._items:
                self._size_bytes -= self._items.pop(key).nbytes
