"""How are batches read ahead of the training loop, and given in order?

Threads read groups of batches. The iterator holds the requested groups in order, waits for the
first one, and requests further ones as long as they fit into the bound on memory.
"""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Final

from pydantic import JsonValue

from spinezarr.forks import PerProcess, ProcessLock
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.checkpoint import Progress

__all__ = ["BatchIterator", "ReadAhead"]

_STOP_POLL_INTERVAL_S: Final = 0.05
ReadGroup = Callable[[int], list[Batch]]
AbandonThreads = Callable[[Iterable[int]], None]


@dataclass(frozen=True, slots=True)
class ReadAhead:
    """How far an iterator reads ahead of the batch that is used."""

    concurrent_groups: int
    """Number of groups that may be read at once."""
    first_groups: int
    """Number of groups to request before the first batch has come; 1 if they share a network."""
    max_bytes: int
    """Largest number of bytes of voxels to hold; one group is always read, whatever its size."""
    group_bytes: int
    """Bytes of the voxels of a group."""
    batch_bytes: int
    """Bytes of the voxels of a batch."""


class BatchIterator(Iterator[Batch]):
    """The batches of a stream, in order; threads read what comes next.

    Threads start with the first batch. They end with the last one, with :meth:`close`, with an
    error, and when the iterator is deleted, so a loop may be left at any time. Several threads may
    use one iterator: each batch goes to one of them.

    Parameters
    ----------
    read_group
        Reads the batches of a group, given its number.
    groups
        Numbers of the groups to give, in order.
    batches_done
        Number of batches of the first group to skip.
    read_ahead
        How far to read ahead.
    progress
        Counts the batches that are given.
    abandon
        Ends the requests that threads wait for, given the identifiers of the threads.
    """

    def __init__(
        self,
        read_group: ReadGroup,
        groups: Sequence[int],
        *,
        batches_done: int,
        read_ahead: ReadAhead,
        progress: Progress,
        abandon: AbandonThreads,
    ) -> None:
        self._read_group = read_group
        self._groups = groups
        self._batches_done = batches_done
        self._ahead = read_ahead
        self._progress = progress
        self._abandon = abandon
        self._taken_groups = 0
        self._pending: deque[Future[list[Batch]]] = deque()
        self._ready: deque[Batch] = deque()
        self._readers = PerProcess(lambda: _Readers(read_ahead.concurrent_groups, abandon))
        weakref.finalize(self, _stop, self._readers)
        self._closed = False
        self._lock = ProcessLock()
        """Held by the thread that takes a batch."""

    def __next__(self) -> Batch:
        """Return the next batch.

        Raises
        ------
        CorruptStoreError
            If stored bytes of this batch are missing or damaged. All batches before it were given.
        """
        with self._lock:
            try:
                return self._take_batch()
            except BaseException as problem:  # also an interrupt
                closed_meanwhile = self._closed and isinstance(problem, Exception)
                self.close()
                if closed_meanwhile:
                    raise StopIteration from None
                raise

    def state_dict(self) -> dict[str, JsonValue]:
        """Return a checkpoint for :meth:`spinezarr.stream.epoch.stream.PatchStream.resume`.

        Returns
        -------
        dict
            Small values, which can be written as JSON and read again without a change.
        """
        return self._progress.state_dict()

    def close(self) -> None:
        """End the iterator, and wait for the threads that are reading."""
        self._closed = True
        self._pending.clear()
        self._ready.clear()
        _stop(self._readers)

    def _take_batch(self) -> Batch:
        """Return the next batch, and request those after it."""
        if not self._closed and not self._ready:
            self._take_group()
        if not self._closed:
            batch = self._ready.popleft()
            self._request_groups()
        if self._closed:
            raise StopIteration
        self._progress.n_given += 1
        return batch

    def _take_group(self) -> None:
        """Wait for the batches of the next group that has any to give."""
        while not self._ready:
            if self._taken_groups == len(self._groups):
                raise StopIteration
            self._request_groups()
            batches = self._pending.popleft().result()
            done = 0 if self._taken_groups else self._batches_done
            self._taken_groups += 1
            self._ready.extend(batches[done:])

    def _request_groups(self) -> None:
        """Request as many further groups as may be held, and one if none is held."""
        ahead, readers = self._ahead, self._running_readers()
        while (position := self._taken_groups + len(self._pending)) < len(self._groups):
            held_bytes = (1 + len(self._pending)) * ahead.group_bytes
            held_bytes += len(self._ready) * ahead.batch_bytes
            # The caller waits for the first batch, so fewer groups are requested until it comes.
            most = 2 * ahead.concurrent_groups if self._progress.n_given else ahead.first_groups
            is_full = held_bytes > ahead.max_bytes or len(self._pending) >= most
            if is_full and (self._pending or self._ready):
                break
            self._pending.append(readers.submit(self._read_group, self._groups[position]))

    def _running_readers(self) -> "_Readers":
        if self._readers.peek() is None:
            # Groups that a parent process requested never finish in this process.
            self._pending.clear()
        return self._readers.get()


class _Readers:
    """The threads of one iterator in one process."""

    def __init__(self, n_threads: int, abandon: AbandonThreads) -> None:
        self.n_threads = n_threads
        self._abandon = abandon
        self._thread_ids: set[int] = set()
        self._futures: set[Future[list[Batch]]] = set()
        self._pool = ThreadPoolExecutor(
            n_threads, "spinezarr-read", lambda: self._thread_ids.add(threading.get_ident())
        )

    def submit(self, read_group: ReadGroup, number: int) -> Future[list[Batch]]:
        future = self._pool.submit(read_group, number)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return future

    def stop(self) -> None:
        """Cancel groups that have not begun, abandon requests, and wait for the threads to end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        # Python may collect garbage in one of these threads, which cannot wait for itself.
        if threading.get_ident() not in self._thread_ids:
            while any(future.running() for future in tuple(self._futures)):
                self._abandon(self._thread_ids)
                wait(tuple(self._futures), _STOP_POLL_INTERVAL_S)
            self._pool.shutdown(wait=True)


def _stop(readers: PerProcess[_Readers]) -> None:
    """End the threads of this process, if it has started some."""
    running = readers.peek()
    if running is not None:
        running.stop()
