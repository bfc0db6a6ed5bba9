"""Batches read by an executor: threads, other processes, or the workers of a cluster."""

import pickle
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from spinezarr.errors import UsageError
from spinezarr.stream.batch import Batch

if TYPE_CHECKING:
    from spinezarr.stream.epoch.stream import PatchStream

__all__ = ["PickledStream", "read_with_executor"]

_STREAMS_KEPT: Final = 4
"""Streams that a process keeps open."""


class PickledStream:
    """A stream that goes to other processes with every task, and is opened once in each.

    It is opened by the first task, and so not by a scheduler that passes it on. A store that cannot
    be opened is an error of that task.

    Parameters
    ----------
    stream
        The stream, where it is open.
    pickled
        It, elsewhere.
    """

    def __init__(self, stream: "PatchStream | None", pickled: bytes | None = None) -> None:
        self._stream = stream
        self._pickled = pickle.dumps(stream) if pickled is None else pickled

    def __reduce__(self) -> tuple[type["PickledStream"], tuple[None, bytes]]:
        return PickledStream, (None, self._pickled)

    def __dask_tokenize__(self) -> bytes:
        """Name equal streams alike."""
        return self._pickled

    @property
    def stream(self) -> "PatchStream":
        """The opened stream."""
        return _opened(self._pickled) if self._stream is None else self._stream


@lru_cache(_STREAMS_KEPT)
def _opened(pickled: bytes) -> "PatchStream":
    stream: PatchStream = pickle.loads(pickled)  # noqa: S301  inside of what was unpickled already
    return stream


def read_with_executor(stream: "PatchStream", executor: Executor, *, ahead: int) -> Iterator[Batch]:
    """Yield the batches of a stream in order, read by an executor.

    Parameters
    ----------
    stream
        What to read.
    executor
        Reads a batch a task; it stays open.
    ahead
        Batches, at most, that are being read or wait here, beside the one that is used.

    Raises
    ------
    UsageError
        If nothing may be read ahead.
    CorruptStoreError
        If stored bytes are missing or damaged.
    """
    if ahead < 1:
        raise UsageError(f"ahead {ahead}: must be at least 1.")
    return _read_elsewhere(stream, executor, ahead)


def _read_elsewhere(stream: "PatchStream", executor: Executor, ahead: int) -> Iterator[Batch]:
    shipped, numbers = PickledStream(stream), iter(range(len(stream)))
    waiting: deque[Future[Batch]] = deque()
    try:
        while True:
            for number in numbers:
                waiting.append(executor.submit(_read_batch, shipped, number))
                if len(waiting) == ahead:
                    break
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _read_batch(shipped: PickledStream, number: int) -> Batch:
    return shipped.stream[number]
