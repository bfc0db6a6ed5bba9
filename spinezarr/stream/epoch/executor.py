"""How do other processes, or the workers of a cluster, read the batches of a stream?"""

import pickle
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from functools import lru_cache
from typing import Any, Final, Generic, Protocol, TypeVar

from spinezarr.errors import UsageError
from spinezarr.forks import ProcessLock
from spinezarr.stream.batch import Batch

__all__ = ["NumberedBatches", "PickledOnce", "read_with_executor"]

T = TypeVar("T")
_COMPRESSION_LEVEL: Final = 1
"""Makes the rows of a scan table an eighth as long, in a few milliseconds for 1,000 scans."""
_UNPICKLING: Final = ProcessLock(reentrant=True)
_CACHED_OBJECTS: Final = 4
"""Number of unpickled objects that a process holds."""


class PickledOnce(Generic[T]):
    """An object that travels with every task, and is unpickled only once in each process.

    The first task in a process unpickles it. A scheduler that only passes it on does not unpickle
    it, so the task, not the scheduler, fails if a store cannot be opened.

    Parameters
    ----------
    value
        The object, in the process where it was made; None elsewhere.
    pickled
        The pickled object, compressed; None to pickle ``value``.

    Examples
    --------
    >>> copy = pickle.loads(pickle.dumps(PickledOnce([1, 2])))
    >>> copy.value
    [1, 2]
    """

    def __init__(self, value: T | None, pickled: bytes | None = None) -> None:
        self._value = value
        if pickled is None:
            pickled = zlib.compress(pickle.dumps(value), _COMPRESSION_LEVEL)
        self._pickled = pickled

    def __reduce__(self) -> tuple[type["PickledOnce[T]"], tuple[None, bytes]]:
        return PickledOnce, (None, self._pickled)

    def __dask_tokenize__(self) -> bytes:
        """Give equal objects equal names in dask's graphs."""
        return self._pickled

    @property
    def value(self) -> T:
        """The object."""
        if self._value is not None:
            return self._value
        with _UNPICKLING:  # otherwise two threads could open one store twice
            value: T = _unpickled(self._pickled)
        return value


@lru_cache(_CACHED_OBJECTS)
def _unpickled(pickled: bytes) -> Any:  # noqa: ANN401  whatever was pickled
    # These bytes were inside a trusted pickle.
    return pickle.loads(zlib.decompress(pickled))  # noqa: S301


class NumberedBatches(Protocol):
    """Batches that can be read by their numbers, such as those of a stream."""

    def __len__(self) -> int:
        """Return the number of batches."""
        ...

    def __getitem__(self, number: int, /) -> Batch:
        """Read one batch."""
        ...


def read_with_executor(
    batches: NumberedBatches, executor: Executor, *, ahead: int
) -> Iterator[Batch]:
    """Yield batches in order; an executor reads them.

    Parameters
    ----------
    batches
        The batches to read. They are pickled if the executor uses other processes.
    executor
        Reads one batch in each task. It stays open.
    ahead
        Largest number of batches that are being read or wait here, not counting the one in use.

    Raises
    ------
    UsageError
        If ``ahead`` is less than 1.
    CorruptStoreError
        If stored bytes are missing or damaged.
    """
    if ahead < 1:
        raise UsageError(f"ahead {ahead}: must be at least 1.")
    return _read_with_executor(batches, executor, ahead)


def _read_with_executor(
    batches: NumberedBatches, executor: Executor, ahead: int
) -> Iterator[Batch]:
    pickled, numbers = PickledOnce(batches), iter(range(len(batches)))
    pending: deque[Future[Batch]] = deque()
    try:
        while True:
            for number in numbers:
                pending.append(executor.submit(_read_batch, pickled, number))
                if len(pending) == ahead:
                    break
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _read_batch(pickled: PickledOnce[NumberedBatches], number: int) -> Batch:
    return pickled.value[number]
