"""Iterating over a stream: units are read ahead by threads, and given in order."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cached_property
from typing import TYPE_CHECKING, Final

from pydantic import JsonValue

from spinezarr.errors import ScanChangedError
from spinezarr.forks import PerProcess, ProcessLock
from spinezarr.store.objects import Objects
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.checkpoint import Checkpoint

if TYPE_CHECKING:
    from spinezarr.stream.epoch.stream import PatchStream

__all__ = ["BatchIterator", "Progress"]

_MOMENT_S: Final = 0.05
_ReadUnit = Callable[[int], list[Batch]]


class Progress:
    """How many batches of a stream have been given.

    Parameters
    ----------
    stream
        Whose.
    """

    def __init__(self, stream: "PatchStream") -> None:
        self.given = 0
        self._stream = stream

    def state_dict(self) -> dict[str, JsonValue]:
        """Return a state for :meth:`spinezarr.stream.epoch.stream.PatchStream.resume`.

        Returns
        -------
        dict
            Small, and as it was after being written as JSON and read again.
        """
        rest = self._stream.partition.after(self.given, self._stream.batch_groups)
        return Checkpoint(
            epoch=self._stream.epoch, done=rest.done, skip=rest.skip, stream=self._described
        ).model_dump()

    @cached_property
    def _described(self) -> dict[str, JsonValue]:
        return self._stream.describe()


class BatchIterator(Iterator[Batch]):
    """The batches of a stream, in order; what comes next is read by threads of its own.

    Threads start with the first batch. They end with the last one, with :meth:`close`, with an
    error, and when the iterator is let go, so a loop may be left at any time. Several threads may
    use one iterator: each batch goes to one of them.

    Parameters
    ----------
    stream
        What to read.
    """

    def __init__(self, stream: "PatchStream") -> None:
        self._stream = stream
        self._source = _Source(stream)
        self._units = stream.partition.units(stream.batch_groups)
        self._progress = Progress(stream)
        self._taken_units = 0
        self._waiting: deque[Future[list[Batch]]] = deque()
        self._ready: deque[Batch] = deque()
        self._readers = PerProcess(
            lambda: _Readers(stream.concurrent_groups, stream.reader.objects)
        )
        weakref.finalize(self, _stop, self._readers)
        self._closed = False
        self._turn = ProcessLock()
        """Held by the thread that takes a batch."""

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises
        ------
        CorruptStoreError
            If stored bytes of it are missing or damaged; what came before it has been given.
        """
        with self._turn:
            try:
                return self._take_batch()
            except BaseException as problem:  # an interrupt too
                closed_meanwhile = self._closed and isinstance(problem, Exception)
                self.close()
                if closed_meanwhile:
                    raise StopIteration from None
                raise

    def state_dict(self) -> dict[str, JsonValue]:
        """Say where the iterator is, for :meth:`spinezarr.stream.epoch.stream.PatchStream.resume`.

        Returns
        -------
        dict
            Small, and as it was after being written as JSON and read again.
        """
        return self._progress.state_dict()

    def close(self) -> None:
        """Stop reading ahead: the iterator is at its end. Waits for what is being read just now."""
        self._closed = True
        self._waiting.clear()
        self._ready.clear()
        _stop(self._readers)

    def _take_batch(self) -> Batch:
        """Return the next batch, and ask for what comes after it."""
        if not self._closed and not self._ready:
            self._take_unit()
        if not self._closed:
            batch = self._ready.popleft()
            self._read_ahead()
        if self._closed:
            raise StopIteration
        self._progress.given += 1
        return batch

    def _take_unit(self) -> None:
        """Wait for the batches of the next unit that has some to give."""
        while not self._ready:
            if self._taken_units == len(self._units):
                raise StopIteration
            self._read_ahead()
            batches = self._waiting.popleft().result()
            skip = 0 if self._taken_units else self._stream.partition.skip
            self._taken_units += 1
            self._ready.extend(batches[skip:])

    def _read_ahead(self) -> None:
        """Ask for further units, one at least if none is held, and no more than may be held."""
        stream, readers = self._stream, self._running_readers()
        while (asked := self._taken_units + len(self._waiting)) < len(self._units):
            held = (1 + len(self._waiting)) * stream.group_bytes
            held += len(self._ready) * stream.batch_bytes
            # Before the first batch, which somebody waits for, no more than can be decoded.
            at_once = readers.threads if self._progress.given else stream.threads
            enough = held > stream.prefetch_bytes or len(self._waiting) >= 2 * at_once
            if enough and (self._waiting or self._ready):
                break
            self._waiting.append(readers.submit(self._source.read_group, self._units[asked]))

    def _running_readers(self) -> "_Readers":
        if self._readers.peek() is None:
            # The threads of a parent process do not finish anything here: ask again for the groups.
            self._waiting.clear()
        return self._readers.get()


class _Source:
    """Reads the units of a stream, of its present version where scans change and it follows."""

    def __init__(self, stream: "PatchStream") -> None:
        self._stream = stream
        self._renewing = ProcessLock()

    def read_group(self, number: int) -> list[Batch]:
        while True:
            stream = self._stream
            try:
                return stream.read_group(number)
            except ScanChangedError as problem:
                if stream.on_change == "error":
                    raise
                with self._renewing:
                    if self._stream is stream:
                        self._stream = stream.reopened(problem.scan_id)


class _Readers:
    """Threads of one iterator in one process."""

    def __init__(self, threads: int, objects: Objects) -> None:
        self.threads = threads
        self._objects = objects
        self._own: set[int] = set()
        self._asked: set[Future[list[Batch]]] = set()
        self._pool = ThreadPoolExecutor(
            threads, "spinezarr-read", lambda: self._own.add(threading.get_ident())
        )

    def submit(self, read_group: _ReadUnit, number: int) -> Future[list[Batch]]:
        future = self._pool.submit(read_group, number)
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def stop(self) -> None:
        """Cancel what waits, here and for answers from afar, and wait for the threads to end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        # Garbage may be collected in one of these threads, which cannot wait for itself.
        if threading.get_ident() not in self._own:
            while any(future.running() for future in tuple(self._asked)):
                self._objects.abandon(self._own)
                wait(tuple(self._asked), _MOMENT_S)
            self._pool.shutdown(wait=True)


def _stop(readers: PerProcess[_Readers]) -> None:
    """End the threads of this process, if it has started some."""
    running = readers.peek()
    if running is not None:
        running.stop()
