"""How many requests run at once, when is one repeated, and when is it given up?

A :class:`~spinezarr.remote.transport.Transport` makes one attempt for one object. This module runs
many of them for a store, within the bounds of :class:`~spinezarr.remote.settings.RemoteSettings`.
"""

import asyncio
import errno
import math
import random
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from threading import Lock
from typing import Any, Final, Generic, Protocol, TypeVar

from fsspec.asyn import get_loop
from typing_extensions import Buffer

from spinezarr.forks import PerProcess
from spinezarr.redaction import redact_url
from spinezarr.remote.errors import StalledResponseError
from spinezarr.remote.object_request import ObjectRequest, ObjectResponse
from spinezarr.remote.range_client import RangeCall
from spinezarr.remote.settings import (
    DEFAULT_REMOTE_SETTINGS,
    METADATA_BYTES,
    RemoteSettings,
    max_connections,
)
from spinezarr.remote.transport import (
    NoRangesError,
    RangeRequests,
    TransientError,
    Transport,
    open_transport,
)

__all__ = ["RemoteObjects"]

Span = tuple[int, int]
T = TypeVar("T")
R = TypeVar("R")

_MAX_SHORT_RESPONSES: Final = 3
"""Number of repetitions of a request with too short a response. Then the object is assumed to end
there."""
_REQUESTS_PER_EXTRA: Final = 4
"""At most one in so many requests in flight may be a second one for the same bytes."""
_N_DURATIONS: Final = 256
"""Number of responses whose durations are remembered."""
_OVERHEAD_BYTES: Final = 1 << 18
"""Number of bytes that take about as long as a request without data. Durations are divided by the
sum of the size and this number."""
_N_WAITS: Final = 64
"""Number of recent waits for a place in flight that are remembered."""
_AHEAD_S: Final = 1.0
"""So many seconds of the link may be requested at once. More would delay the first batches of a
slow link, because all responses share it (decision 070)."""
_LEAST_HELD_BYTES: Final = 32 << 20
"""At least so many bytes are requested at once. It is the bound before the link is measured."""
_CORE_S_EACH: Final = 250e-6
"""Core time that a request takes of client and server, in seconds (decision 039)."""
_MIN_TIME_S: Final = 1e-9
_RANGES_PER_CALL: Final = 8
"""Largest number of ranges of an object that are passed to the transport with one call."""
_MAX_POSTS: Final = 16
"""Largest number of concurrent POST requests. The server computes their responses, so they are few.
"""
_CALLER_THREADS: Final = 16
"""Number of threads that wait for metadata."""
_REREADS: Final = 3
_SMALL_BYTES: Final = 1 << 15
"""Assumed size of an object whose size is unknown; such objects are metadata."""


class _Cancellable(Protocol):
    """Work that another thread may cancel."""

    def cancel(self) -> bool:
        """Cancel the work; its thread then raises CancelledError."""
        ...


class _Work:
    """Work of a thread that may be cancelled before its future exists."""

    def __init__(self) -> None:
        self._future: Future[Any] | None = None
        self._is_cancelled = False

    def begin(self, future: Future[Any]) -> None:
        """Set the future, and cancel it if the work was cancelled before."""
        self._future = future
        if self._is_cancelled:
            future.cancel()

    def cancel(self) -> bool:
        """See :class:`_Cancellable`."""
        self._is_cancelled = True
        return self._future is None or self._future.cancel()


class RemoteObjects:
    """Reads the objects of one remote store. It can be shared between threads and pickled.

    Parameters
    ----------
    url
        URL of the store.
    storage_options
        Options of the file system; see :func:`spinezarr.remote.filesystem.open_filesystem`.
    settings
        Bounds on the requests.

    Raises
    ------
    UsageError
        If no installed package reads such URLs, or the options do not fit.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        settings: RemoteSettings = DEFAULT_REMOTE_SETTINGS,
    ) -> None:
        self.transport, self.path = open_transport(url, storage_options, settings)
        self.settings = settings
        self._store = (url, storage_options)
        self._requests = PerProcess(partial(_Requests, self.transport, settings))
        self._thread = threading.local()
        self._pending: dict[int, set[_Cancellable]] = {}

    def __reduce__(self) -> tuple[Callable[..., "RemoteObjects"], tuple[object, ...]]:
        return RemoteObjects, (*self._store, self.settings)

    is_remote = True
    rereads = _REREADS
    """Number of times that a damaged chunk is read again before it is an error."""

    def name(self, path: str) -> str:
        """Return the URL of a path for messages, without user, password or signature."""
        scheme = self._store[0].partition("://")[0]
        return redact_url(path if "://" in path else f"{scheme}://{path}")

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Call a function that reads for each item, in threads, and return the results."""
        items = list(items)
        if len(items) == 1:
            return [function(items[0])]
        owner = self._owner()

        def call(item: T) -> R:
            self._thread.owner = owner
            return function(item)

        return list(self._requests.get().callers.map(call, items))

    def abandon(self, threads: Iterable[int]) -> None:
        """Cancel the reads of some threads, given by their identifiers.

        The reads raise CancelledError in these threads.
        """
        for thread in threads:
            for work in tuple(self._pending.get(thread, ())):
                work.cancel()

    def read(self, paths: Iterable[str], limit_bytes: int = METADATA_BYTES) -> dict[str, bytes]:
        """Read whole objects at the same time.

        Parameters
        ----------
        paths
            Paths of the objects.
        limit_bytes
            Largest size of each object.

        Returns
        -------
        dict
            Bytes by path. Objects that do not exist are left out.

        Raises
        ------
        CorruptStoreError
            If an object is larger than ``limit_bytes``.
        OSError
            If an object exists but cannot be read. The message has its URL without secrets.
        """
        paths = list(paths)
        contents = self._run(self._requests.get().get_whole(paths, limit_bytes))
        pairs = zip(paths, contents, strict=True)
        return {path: bytes(data) for path, data in pairs if data is not None}

    def get_response(self, request: ObjectRequest) -> ObjectResponse | None:
        """Return the response to a request; None if the object does not exist.

        Raises
        ------
        ChangedObjectError
            If the object has another version than ``if_match``.
        CorruptStoreError
            If the object is larger than ``limit_bytes``.
        OSError
            If the object cannot be read. The message has its URL without secrets.
        """
        return self._run(self._requests.get().get_response(request))

    @contextmanager
    def ranges(
        self, ranges: Sequence[tuple[str, int, int]], *, bounded: bool = True
    ) -> Iterator[list[Buffer]]:
        """Read ranges of objects at the same time.

        Parameters
        ----------
        ranges
            ``(path, start, stop)`` for the bytes ``start <= i < stop`` of an object.
        bounded
            Whether the bytes count against ``RemoteSettings.held_bytes`` as long as the context
            lasts. A read inside such a context must not wait for memory that the context itself
            holds, so it passes False.

        Yields
        ------
        list of Buffer
            The bytes of each range. They are fewer than requested if the object ends there.

        Raises
        ------
        FileNotFoundError
            If an object does not exist.
        OSError
            If an object cannot be read. The message has its URL without secrets.
        """
        n_bytes = sum(stop - start for _, start, stop in ranges) if bounded else 0
        memory = self._requests.get().memory
        if n_bytes:
            self._enter(memory, n_bytes)
        try:
            data: list[Buffer] = []
            for (path, *_), response in zip(ranges, self._read_ranges(ranges), strict=True):
                if response is None:
                    raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
                data.append(response)
            yield data
        finally:
            memory.release(n_bytes)

    def _read_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[Buffer | None]:
        """Read ranges in this thread, and those that did not come by the event loop."""
        if any(stop <= start for _, start, stop in ranges):  # no request can ask for no bytes
            filled = [item for item in ranges if item[2] > item[1]]
            read_bytes = iter(self._read_ranges(filled) if filled else [])
            return [next(read_bytes) if stop > start else b"" for _, start, stop in ranges]
        requests = self._requests.get()
        direct = self.transport.range_requests(ranges)
        if direct is None:
            return self._run(requests.get_ranges(ranges))
        at_once = min(len(ranges), requests.places)
        began_s = time.monotonic()
        self._enter(requests.gate, at_once)
        requests.times.add_wait(time.monotonic() - began_s)
        read = _DirectRead(requests, ranges, self.settings.deadline_s)
        try:
            with self._cancellable(read):
                responses = read.responses(direct, at_once)
        finally:
            requests.gate.release(at_once)
        if missing := [i for i, response in enumerate(responses) if response is None]:
            repeated = self._run(requests.get_ranges([ranges[i] for i in missing]))
            for i, response in zip(missing, repeated, strict=True):
                responses[i] = response
        return responses

    def _enter(self, semaphore: "_FairSemaphore", amount: int) -> None:
        """Wait until a semaphore admits this thread."""
        work = _Work()
        with self._cancellable(work):
            waiter = semaphore.enter(amount)
            if waiter is None:
                return
            work.begin(waiter)
            try:
                waiter.result(self.settings.deadline_s)
            except TimeoutError:
                semaphore.leave(waiter, amount)
                raise self._deadline_error() from None
            except BaseException:
                semaphore.leave(waiter, amount)
                raise

    @contextmanager
    def _cancellable(self, work: "_Cancellable") -> Iterator[None]:
        """Let :meth:`abandon` cancel some work of this thread."""
        pending = self._pending.setdefault(self._owner(), set())
        pending.add(work)
        try:
            yield
        finally:
            pending.discard(work)

    def _deadline_error(self) -> ConnectionError:
        text = f"it was not read within {self.settings.deadline_s:g} s"
        return ConnectionError(errno.ETIMEDOUT, text, self.name(self.path))

    def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """Send JSON with POST, and return the response.

        The request is repeated as reads are, so it must change nothing on the server.

        Parameters
        ----------
        path
            URL of the resource.
        body
            The JSON.
        limit_bytes
            Largest size of the response.

        Raises
        ------
        UnsupportedRequestError
            If this package's own client cannot send the request; see :class:`~spinezarr.remote.
            transport.Transport`.
        FileNotFoundError
            If the server has no such resource.
        OSError
            If no response comes. The message has the URL without secrets.
        """
        return self._run(self._requests.get().post(path, body, limit_bytes))

    def read_once(self, path: str, limit_bytes: int) -> bytes:
        """Read an object that the server computes, of at most ``limit_bytes``, with one request.

        The request is not repeated, and no second one runs at the same time, as the server would
        compute each of them.

        Raises
        ------
        CorruptStoreError
            If the object is larger than ``limit_bytes``.
        OSError
            If it cannot be read. The message has its URL without secrets.
        """
        return bytes(self._run(self._requests.get().get_once(path, limit_bytes)))

    @property
    def link_bytes_per_s(self) -> float | None:
        """Rate of the link in the last seconds, in bytes per second; None until it is measured."""
        return self.transport.link_bytes_per_s

    @property
    def received_bytes(self) -> int:
        """Bytes of all responses that have ended in this process."""
        return self.transport.received_bytes

    @property
    def gap_bytes(self) -> int:
        """Largest gap between two ranges of an object that is read with them.

        A gap costs the time of its bytes; a second request costs some core time, and the latency if
        requests wait for a place in flight. All this is measured, so the gap is small on a full
        link, and large where more requests are wanted than may be in flight. For example, it is
        30 kB on a full link of 100 MB/s.
        """
        return self._requests.get().times.gap_bytes

    def _owner(self) -> int:
        """Return the identifier of the thread for which this thread reads."""
        owner: int = getattr(self._thread, "owner", threading.get_ident())
        return owner

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on fsspec's event loop, and wait for its result."""
        cancellable = _Work()
        with self._cancellable(cancellable):
            future = asyncio.run_coroutine_threadsafe(work, get_loop())
            cancellable.begin(future)
            try:
                return future.result(self.settings.deadline_s)
            except TimeoutError:
                future.cancel()
                raise self._deadline_error() from None
            except BaseException:  # also after KeyboardInterrupt the result is not needed
                future.cancel()
                raise


class _Requests:
    """Requests for one store in one process. Its coroutines run on fsspec's event loop."""

    def __init__(self, transport: Transport, settings: RemoteSettings) -> None:
        self._transport = transport
        self.settings = settings
        self.times = _DurationEstimate(settings)
        self._lock = Lock()
        self._extra = 0
        """Number of requests in flight that are the second one for the same bytes."""
        self.places = min(settings.requests_in_flight, max_connections())
        """Number of requests that may run at once."""
        self._max_extra = max(1, self.places // _REQUESTS_PER_EXTRA)
        self.callers = ThreadPoolExecutor(_CALLER_THREADS, "spinezarr-wait")
        self.gate = _FairSemaphore(lambda: self.places)
        self.memory = _FairSemaphore(self._bytes_to_hold)
        self._posts = _FairSemaphore(lambda: _MAX_POSTS)
        self._has_responded = False
        self._has_sent_ranges = False
        """Whether the server has sent a range. A later response without one is then transient."""

    async def get_ranges(self, ranges: Sequence[tuple[str, int, int]]) -> list[Buffer | None]:
        """Read ranges; None for each of an object that does not exist."""
        results = await _gather_or_cancel(
            self._get_ranges_of_object(path, spans) for path, spans in _group_by_object(ranges)
        )
        return [response for responses in results for response in responses]

    def note_ranges(self) -> None:
        """Record that the server has sent a range."""
        self._has_responded = self._has_sent_ranges = True

    async def get_whole(self, paths: Iterable[str], limit_bytes: int) -> list[Buffer | None]:
        """Read whole objects of at most ``limit_bytes``; None for each that does not exist."""
        return await _gather_or_cancel(
            self._get_with_retries(path, None, None, limit_bytes) for path in paths
        )

    async def get_response(self, request: ObjectRequest) -> ObjectResponse | None:
        """Return the response to a request; None if the object does not exist."""
        size = _SMALL_BYTES if request.stop is None else request.max_bytes
        send = partial(self._transport.get_response, request)
        data_of = None if request.stop is None else attrgetter("data")
        return await self._retry_until_complete(send, size, data_of)

    async def get_once(self, path: str, limit_bytes: int) -> Buffer:
        """Request a whole object that the server computes, without repetition."""
        await self._posts.acquire(1)
        try:
            return await self._transport.get(path, None, None, limit_bytes)
        finally:
            self._posts.release(1)

    async def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """Send a POST request until it succeeds or is given up."""
        retries = _Retries(self)
        while True:
            try:
                await self._posts.acquire(1)
                try:
                    data = await self._transport.post(path, body, limit_bytes)
                finally:
                    self._posts.release(1)
            except TransientError as problem:
                await retries.wait(problem)
                continue
            self._has_responded = self._has_sent_ranges = True
            return data

    async def _get_ranges_of_object(self, path: str, spans: Sequence[Span]) -> list[Buffer | None]:
        """Read some ranges of an object with one call, then those that failed one by one."""
        if len(spans) == 1:
            return [await self._get_with_retries(path, *spans[0])]
        size = sum(stop - start for start, stop in spans)
        data: Sequence[Buffer] | None = None
        with suppress(TransientError):
            send = partial(self._transport.get_ranges, path, spans)
            data = await self._send(send, len(spans), size)
        responses: list[Buffer | None] = [None] * len(spans) if data is None else [*data]
        failed = [i for i, span in enumerate(spans) if not _is_complete(responses[i], span)]
        self._has_sent_ranges |= len(failed) < len(spans)
        repeated = await _gather_or_cancel(self._get_with_retries(path, *spans[i]) for i in failed)
        for i, response in zip(failed, repeated, strict=True):
            responses[i] = response
        return responses

    async def _send(
        self, send: Callable[[], Coroutine[Any, Any, T]], n_requests: int, size: int
    ) -> T:
        began_s = time.monotonic()
        await self.gate.acquire(n_requests)
        self.times.add_wait(time.monotonic() - began_s)
        try:
            return await _HedgedRequest(self, send, n_requests, size).response()
        finally:
            self.gate.release(n_requests)

    async def _get_with_retries(
        self, path: str, start: int | None, stop: int | None, limit_bytes: int = 0
    ) -> Buffer | None:
        """Read a range, or a whole object, until it succeeds or is given up."""
        size = _SMALL_BYTES if start is None or stop is None else stop - start
        send = partial(self._transport.get, path, start, stop, limit_bytes)
        return await self._retry_until_complete(send, size, None if stop is None else _identity)

    async def _retry_until_complete(
        self,
        send: Callable[[], Coroutine[Any, Any, T]],
        size: int,
        data_of: Callable[[T], Buffer] | None,
    ) -> T | None:
        """Repeat a request until its response is complete, or it is given up.

        Parameters
        ----------
        send
            Sends the request.
        size
            Expected size of the response in bytes.
        data_of
            Returns the bytes of a response; None if the request is for a whole object of any size.

        Returns
        -------
        T or None
            The response; None if the object does not exist.
        """
        retries, n_short = _Retries(self), 0
        while True:
            try:
                data = await self._send(send, 1, size)
            except FileNotFoundError:
                self._has_responded = True
                return None
            except (TransientError, NoRangesError) as problem:
                if isinstance(problem, NoRangesError) and not self._has_sent_ranges:
                    raise
                await retries.wait(problem)
                continue
            self._has_responded = True
            if data_of is None:
                return data
            n_bytes = memoryview(data_of(data)).nbytes
            self._has_sent_ranges |= n_bytes == size
            # An empty response means that the object ends before the range.
            if n_bytes in {0, size} or n_short == _MAX_SHORT_RESPONSES:
                return data
            n_short += 1

    def _bytes_to_hold(self) -> int:
        """Return the number of bytes that may be requested or wait to be decoded."""
        ahead_bytes = int(_AHEAD_S * (self._transport.link_bytes_per_s or 0.0))
        return min(self.settings.held_bytes, max(_LEAST_HELD_BYTES, ahead_bytes))

    def add_extra(self, n: int) -> bool:
        """Count second requests for the same bytes in flight; False if there are too many."""
        with self._lock:
            if n > 0 and self._extra + n > self._max_extra:
                return False
            self._extra += n
            return True

    def gives_up(self, problem: OSError, attempts: int, waited_s: float) -> bool:
        """Whether a request that failed is not repeated."""
        settings = self.settings
        if not self._has_responded:
            return attempts >= settings.attempts or waited_s >= settings.first_patience_s
        patience_s = settings.patience_s if self._has_sent_ranges else settings.opening_patience_s
        # A slow link may have carried most of a response that was cut off, so the request gets all
        # its attempts. A stall takes long by itself, so only the time counts.
        is_stalled = isinstance(problem, StalledResponseError)
        return waited_s >= patience_s and (is_stalled or attempts >= settings.attempts)


class _Retries:
    """Counts the attempts of one request, and waits between them."""

    def __init__(self, requests: _Requests) -> None:
        self._requests = requests
        self._began_s = asyncio.get_running_loop().time()
        self._attempts = 0

    async def wait(self, problem: OSError) -> None:
        """Wait before the next attempt.

        Raises
        ------
        ConnectionError
            If the request is given up.
        """
        self._attempts += 1
        waited_s = asyncio.get_running_loop().time() - self._began_s
        if self._requests.gives_up(problem, self._attempts, waited_s):
            text = f"{self._attempts} attempts in {waited_s:.0f} s: {problem.strerror or problem}"
            raise ConnectionError(problem.errno or errno.EIO, text, problem.filename) from None
        settings = self._requests.settings
        retry_after_s = getattr(problem, "retry_after_s", None) or 0.0
        await asyncio.sleep(max(min(retry_after_s, settings.patience_s), self._backoff_s()))

    def _backoff_s(self) -> float:
        settings = self._requests.settings
        wait_s = settings.first_backoff_s * 2.0 ** (self._attempts - 1)
        # No sample and no secret depends on this random number.
        return min(settings.longest_backoff_s, wait_s) * random.uniform(0.5, 1.0)  # noqa: S311


def _group_by_object(ranges: Sequence[tuple[str, int, int]]) -> Iterator[tuple[str, list[Span]]]:
    """Group neighboring ranges of the same object, a few at a time."""
    previous, spans = "", list[Span]()
    for path, start, stop in ranges:
        if spans and (path != previous or len(spans) == _RANGES_PER_CALL):
            yield previous, spans
            spans = []
        previous = path
        spans.append((start, stop))
    if spans:
        yield previous, spans


def _identity(data: Buffer) -> Buffer:
    return data


def _is_complete(response: Buffer | None, span: Span) -> bool:
    return response is not None and memoryview(response).nbytes == span[1] - span[0]


async def _gather_or_cancel(coroutines: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run coroutines at the same time; if one fails, cancel the others."""
    tasks = [asyncio.ensure_future(coroutine) for coroutine in coroutines]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class _HedgedRequest(Generic[T]):
    """A request that is sent again while its response is late; the first response counts."""

    def __init__(
        self,
        requests: "_Requests",
        send: Callable[[], Coroutine[Any, Any, T]],
        n_requests: int,
        size: int,
    ) -> None:
        self._requests = requests
        self._send = send
        self._n_requests = n_requests
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._response: asyncio.Future[T] = self._loop.create_future()
        self._attempts: set[asyncio.Task[T]] = set()
        self._late_s = requests.times.late_s(size)
        self._timer = self._loop.call_later(self._late_s, self._start_extra_attempt)
        self._extra = 0

    async def response(self) -> T:
        """Return the first response, or raise the error of the last attempt."""
        self._start_attempt()
        try:
            return await self._response
        finally:
            self._timer.cancel()
            self._requests.add_extra(-self._extra)
            for attempt in self._attempts:
                attempt.cancel()

    def _start_attempt(self) -> None:
        attempt = self._loop.create_task(self._send())
        self._attempts.add(attempt)
        attempt.add_done_callback(self._end_attempt)

    def _start_extra_attempt(self) -> None:
        if self._requests.add_extra(1):
            self._extra += 1
            self._start_attempt()
        delay_s = self._late_s * 2**self._extra
        self._timer = self._loop.call_later(delay_s, self._start_extra_attempt)

    def _end_attempt(self, attempt: asyncio.Task[T]) -> None:
        self._attempts.discard(attempt)
        problem = None if attempt.cancelled() else attempt.exception()
        if self._response.done():
            return
        if attempt.cancelled():
            self._response.cancel()
        elif problem is None:
            if attempt.result() is not None:
                now_s = self._loop.time()
                self._requests.times.add(now_s - self._began_s, self._n_requests, self._size, now_s)
            self._response.set_result(attempt.result())
        elif not self._attempts or not isinstance(problem, TransientError):
            self._response.set_exception(problem)
        elif isinstance(problem, StalledResponseError):
            self._timer.cancel()  # a further attempt would stall too


class _DurationEstimate:
    """Estimates from recent requests how long one takes, and how large a gap is worth reading."""

    def __init__(self, settings: RemoteSettings) -> None:
        self._settings = settings
        self.gap_bytes = settings.least_gap_bytes
        self._durations: deque[tuple[float, int, int]] = deque(maxlen=_N_DURATIONS)
        self._ends_s: deque[float] = deque(maxlen=_N_DURATIONS)
        self._waits_s: deque[float] = deque(maxlen=_N_WAITS)
        self._lock = Lock()
        self._latency_s = math.inf
        self._s_per_byte = 0.0
        self._n_new = 0

    def add_wait(self, seconds: float) -> None:
        """Add how long requests waited for a place in flight."""
        with self._lock:
            self._waits_s.append(seconds)

    def add_each(self, responses: Iterable[tuple[float, int, float]]) -> None:
        """Add the duration, bytes, and time of the end of some requests."""
        for seconds, size, end_s in responses:
            self.add(seconds, 1, size, end_s)

    def add(self, seconds: float, n_requests: int, size: int, end_s: float) -> None:
        """Add the duration, bytes, and time of the end of requests that were sent together."""
        with self._lock:
            self._add(seconds, n_requests, size, end_s)

    def _add(self, seconds: float, n_requests: int, size: int, end_s: float) -> None:
        # The latency is the minimum since the start, as on a full link each request also waits for
        # the others.
        self._latency_s = min(self._latency_s, seconds)
        self._durations.append((seconds, n_requests, size))
        self._ends_s.append(end_s)
        self._n_new += 1
        if self._n_new < len(self._durations) // 8:
            return
        self._n_new = 0
        self._s_per_byte = statistics.median(
            seconds / (size + _OVERHEAD_BYTES) for seconds, _, size in self._durations
        )
        n_bytes = sum(size for _, _, size in self._durations)
        transfer_s = sum(n * (seconds - self._latency_s) for seconds, n, _ in self._durations)
        # Places in flight are scarce as far as requests wait for them, instead of for the server.
        waited_s = statistics.fmean(self._waits_s) if self._waits_s else 0.0
        usual_s = statistics.fmean(seconds for seconds, _, _ in self._durations)
        scarcity = waited_s / (waited_s + usual_s + _MIN_TIME_S)
        gap_bytes = scarcity * self._latency_s * n_bytes / max(transfer_s, _MIN_TIME_S)
        # Processors take some time for each request, also where the latency is hidden.
        if elapsed_s := self._ends_s[-1] - self._ends_s[0]:
            gap_bytes += _CORE_S_EACH * n_bytes / elapsed_s
        self.gap_bytes = int(
            min(self._settings.most_gap_bytes, max(self._settings.least_gap_bytes, gap_bytes))
        )

    def late_s(self, size: int) -> float:
        """Return the seconds after which a response of this size is late."""
        settings = self._settings
        if not self._durations:
            return settings.first_late_s
        usual_s = self._s_per_byte * (size + _OVERHEAD_BYTES)
        return max(settings.least_late_s, settings.late_factor * usual_s)


class _DirectRead:
    """Reads ranges in one thread, and asks again by the event loop for those that are late.

    Parameters
    ----------
    requests
        The requests of the store.
    ranges
        ``(path, start, stop)`` of each range.
    deadline_s
        Seconds after which the read ends; None for no end.
    """

    def __init__(
        self,
        requests: _Requests,
        ranges: Sequence[tuple[str, int, int]],
        deadline_s: float | None,
    ) -> None:
        self._requests = requests
        self._ranges = ranges
        self._until_s = math.inf if deadline_s is None else time.monotonic() + deadline_s
        self._call = RangeCall(self._on_slice)
        self._extra: dict[int, Future[list[Buffer | None]]] = {}

    def cancel(self) -> bool:
        """End the read soon, from any thread."""
        return self._call.cancel()

    def responses(self, direct: RangeRequests, at_once: int) -> list[Buffer | None]:
        """Return the response to each request; None for each that did not come.

        Raises
        ------
        CancelledError
            If the read was cancelled.
        """
        spans = [(start, stop) for _, start, stop in self._ranges]
        try:
            results = direct.read(spans, self._call, at_once)
            if self._call.is_cancelled:
                raise CancelledError
            responses: list[Buffer | None] = [None if r is None else r.data for r in results]
            for number, future in self._extra.items():
                if responses[number] is None and _has_result(future):
                    (responses[number],) = future.result()
        finally:
            for future in self._extra.values():
                future.cancel()
            self._requests.add_extra(-len(self._extra))
        came = [(r, span) for r, span in zip(results, spans, strict=True) if r is not None]
        if came:
            self._requests.note_ranges()
            self._requests.times.add_each(
                [(r.ended_s - r.began_s, stop - start, r.ended_s) for r, (start, stop) in came]
            )
        return responses

    def _on_slice(self, call: RangeCall) -> None:
        """Send requests again whose responses are late; the first response counts."""
        now_s = time.monotonic()
        if now_s >= self._until_s:
            for number in range(len(self._ranges)):
                call.give_up(number)
        for number, began_s in call.running():
            _, start, stop = self._ranges[number]
            future = self._extra.get(number)
            if future is not None:
                if _has_result(future):
                    call.give_up(number)
            elif now_s - began_s > self._requests.times.late_s(stop - start):
                if not self._requests.add_extra(1):
                    return
                work = self._requests.get_ranges([self._ranges[number]])
                self._extra[number] = asyncio.run_coroutine_threadsafe(work, get_loop())


def _has_result(future: "Future[list[Buffer | None]]") -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


class _FairSemaphore:
    """A semaphore with amounts, in order of arrival, for threads and coroutines.

    An amount above the limit is admitted alone. The limit may change between two calls.
    """

    def __init__(self, limit: Callable[[], int]) -> None:
        self._limit = limit
        self._in_use = 0
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._lock = Lock()

    async def acquire(self, amount: int) -> None:
        """Wait until the amount fits, and take it."""
        waiter = self.enter(amount)
        if waiter is None:
            return
        try:
            await asyncio.wrap_future(waiter)
        except asyncio.CancelledError:
            self.leave(waiter, amount)
            raise

    def enter(self, amount: int) -> Future[None] | None:
        """Take the amount if it fits, or return a future that ends when it is taken."""
        with self._lock:
            if not self._waiting and self._fits(amount):
                self._in_use += amount
                return None
            waiter: Future[None] = Future()
            self._waiting.append((waiter, amount))
            return waiter

    def leave(self, waiter: Future[None], amount: int) -> None:
        """Wait no longer, or give the amount back if it was taken just before."""
        self.release(0 if waiter.cancel() else amount)

    def release(self, amount: int) -> None:
        """Give an amount back."""
        with self._lock:
            self._in_use -= amount
            admitted = [*self._admit()]
        for waiter in admitted:
            waiter.set_result(None)

    def _fits(self, amount: int) -> bool:
        return not self._in_use or self._in_use + amount <= self._limit()

    def _admit(self) -> Iterator[Future[None]]:
        while self._waiting:
            waiter, amount = self._waiting[0]
            if not waiter.cancelled():
                if not self._fits(amount):
                    return
                if waiter.set_running_or_notify_cancel():
                    self._in_use += amount
                    yield waiter
            self._waiting.popleft()
