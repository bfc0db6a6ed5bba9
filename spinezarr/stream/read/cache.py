"""Decoded chunks in memory, for those who read the same places again and again."""

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
    """Keeps arrays up to so many bytes; what was not used for longest goes first.

    Shared between threads.

    Parameters
    ----------
    limit_bytes
        Of all arrays together. One that is larger by itself is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._kept_bytes = 0
        self._lock = ProcessLock()

    def find(self, keys: Iterable[K]) -> dict[K, V]:
        """Return what is kept of ``keys``."""
        found = {}
        with self._lock:
            for key in keys:
                if key in self._kept:
                    self._kept.move_to_end(key)
                    found[key] = self._kept[key]
        return found

    def keep(self, items: Mapping[K, V]) -> None:
        """Keep some more."""
        with self._lock:
            for key, value in items.items():
                if key not in self._kept:
                    self._kept[key] = value
                    self._kept_bytes += value.nbytes
            while self._kept_bytes > self.limit_bytes:
                self._kept_bytes -= self._kept.popitem(last=False)[1].nbytes

    def forget(self, key: K) -> None:
        """Keep something no longer."""
        with self._lock:
            if key in self._kept:
                self._kept_bytes -= self._kept.pop(key).nbytes
