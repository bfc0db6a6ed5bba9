"""What must a forked process not share with its parent?

A fork copies the memory of a process, but only the thread that forks. In the child, a lock that
another thread held is never released, a pool has no threads, and a connection also belongs to the
parent. PyTorch's workers fork on Linux. So objects with locks, pools or connections make new ones
in each process, with the classes of this module. Processes that are spawned start with empty
memory and need neither.
"""

import os
from collections.abc import Callable
from threading import Lock, RLock
from types import TracebackType
from typing import Final, Generic, TypeVar

__all__ = ["PerProcess", "ProcessLock", "at_fork", "process_number"]

T = TypeVar("T")


class _ForkCount:
    """Counts the forks between the first process and this one, which identifies the process.

    Process ids would not identify it, because they are reused.
    """

    def __init__(self) -> None:
        self.value = 0

    def increment(self) -> None:
        self.value += 1


_FORKS: Final = _ForkCount()
os.register_at_fork(after_in_child=_FORKS.increment)


def process_number() -> int:
    """Return a number that differs between a process, its parents and its children by forks."""
    return _FORKS.value


def at_fork(*, before: Callable[[], object], in_child: Callable[[], object]) -> None:
    """Call a function before each fork of this process, and another one in each forked child."""
    os.register_at_fork(before=before, after_in_child=in_child)


class PerProcess(Generic[T]):
    """A value that each process makes when it first uses it.

    A child keeps the values of its parents, but does not use them. Destroying a pool in the child
    would wait for threads that it does not have, and destroying a connection would end it for the
    parent.

    Parameters
    ----------
    make
        Makes the value; called once in each process.

    Examples
    --------
    >>> connections = PerProcess(list)
    >>> connections.get().append("a socket")
    >>> connections.get()
    ['a socket']
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._values: dict[int, T] = {}
        self._making = ProcessLock()

    def get(self) -> T:
        """Return the value of this process, and make it if there is none yet."""
        process_number = _FORKS.value
        if process_number not in self._values:
            with self._making:
                if process_number not in self._values:
                    self._values[process_number] = self._make()
        return self._values[process_number]

    def peek(self) -> T | None:
        """Return the value of this process, or None if there is none yet."""
        return self._values.get(_FORKS.value)


class ProcessLock:
    """A lock between the threads of one process. A forked process finds it released.

    Parameters
    ----------
    reentrant
        Whether the thread that holds it may acquire it again.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        self._make = RLock if reentrant else Lock
        self._locks = {_FORKS.value: self._make()}

    def __enter__(self) -> None:
        self._lock().acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # A child that was forked while the lock was held has nothing to release.
        lock = self._locks.get(_FORKS.value)
        if lock is not None:
            lock.release()

    def _lock(self) -> "Lock | RLock":
        process_number = _FORKS.value
        if process_number not in self._locks:
            # This is atomic: one of several threads wins.
            self._locks.setdefault(process_number, self._make())
        return self._locks[process_number]
