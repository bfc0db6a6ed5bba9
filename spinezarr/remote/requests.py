"""Objects of a bucket or web server: many asked for at once, and again where an answer fails.

A :class:`~spinezarr.remote.transport.Transport` asks once. This module decides how many requests
are under way, when one is repeated, and when waiting is over.
"""

import asyncio
import errno
import math
import random
import statistics
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from operator import attrgetter
from typing import Any, Final, Generic, TypeVar

from fsspec.asyn import get_loop
from typing_extensions import Buffer

from spinezarr.forks import PerProcess
from spinezarr.redaction import redact_url
from spinezarr.remote.errors import StalledAnswerError
from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.remote.transport import NoRangesError, TransientError, Transport, open_transport
from spinezarr.remote.versions import ObjectVersion, Wanted

__all__ = ["IN_FLIGHT", "RemoteObjects"]

Span = tuple[int, int]
T = TypeVar("T")
R = TypeVar("R")

IN_FLIGHT: Final = 128
"""Requests that are under way at once, of a store in a process. Measured: see
``benchmarks/README.md``."""
_HELD_BYTES: Final = 256 << 20
"""Of ranges that are asked for, or wait to be decoded, of a store in a process."""
_PATIENCE_S: Final = 90.0
"""How long a request is repeated, once the server has given a range; a restart of a server, or a
minute without network, ends no training."""
_OPENING_PATIENCE_S: Final = 45.0
"""The same as long as only whole objects have been asked for: a user waits for a store to open."""
_FIRST_PATIENCE_S: Final = 20.0
"""And where the server has never answered."""
_ATTEMPTS: Final = 5
"""Of a request, at the least, or until the last answer stalled; and all that a server gets which
has never answered."""
_BACKOFF_S: Final = (0.1, 8.0)
"""Before the second attempt, and at most. It doubles each time, less a random part of up to half
of it, so that many clients do not come back at once [1]_.

References
----------
.. [1] M. Brooker, "Exponential Backoff And Jitter",
   https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
"""
_SHORT_ANSWERS: Final = 3
"""How often an answer may be shorter than asked for before the object is taken to be that short."""
_LATE: Final = 5.0
"""An answer is late at so many times the usual time, and is asked for a second time beside it [1]_.

References
----------
.. [1] Dean and Barroso, "The Tail at Scale", https://doi.org/10.1145/2408776.2408794
"""
_LATE_S: Final = (0.25, 10.0)
"""At the least, and as long as nothing is known of the server."""
_LATE_SHARE: Final = 4
"""One in so many of the requests under way may be a second one."""
_TIMED: Final = 256
"""Answers whose times tell what is usual."""
_OVERHEAD_BYTES: Final = 1 << 18
"""Bytes that take about as long as a request itself: times are compared by size plus this."""
_GAP_BYTES: Final = (1 << 18, 1 << 21)
"""Between two ranges, so many bytes are read and thrown away rather than asked around: at the
least, and at most. Measured: see ``benchmarks/README.md``."""
_NO_TIME_S: Final = 1e-9
_TOGETHER: Final = 8
"""Ranges of an object that are asked for with one call."""
_POSTS: Final = 16
"""Requests that a server computes answers to, under way at once; others wait here."""
_CALLERS: Final = 16
"""Threads that wait for metadata side by side."""
_REREADS: Final = 3
_SMALL_BYTES: Final = 1 << 15
"""What an object of unknown size is taken to have: metadata."""


class RemoteObjects:
    """Reads of one store that is far away. Safe to share between threads, processes and to pickle.

    Parameters
    ----------
    url
        Of the store.
    storage_options
        As for :func:`spinezarr.remote.filesystem.open_filesystem`.
    in_flight
        Requests that are under way at once, in each process.
    deadline_s
        After so many seconds a call gives up, whatever is still tried; None: as long as patience
        lasts, or an answer takes.

    Raises
    ------
    UsageError
        If nothing reads such URLs.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        in_flight: int = IN_FLIGHT,
        deadline_s: float | None = None,
    ) -> None:
        self.transport, self.path = open_transport(url, storage_options)
        self.in_flight = in_flight
        self.deadline_s = deadline_s
        self._opened = (url, storage_options)
        self._requests = PerProcess(partial(_Requests, self.transport, in_flight))
        self._thread = threading.local()
        self._waiting: dict[int, set[Future[Any]]] = {}

    def __reduce__(self) -> tuple[Callable[..., "RemoteObjects"], tuple[object, ...]]:
        return _objects, (*self._opened, self.in_flight, self.deadline_s)

    is_remote = True
    rereads = _REREADS
    """How often what proves damaged is worth reading again."""

    def name(self, path: str) -> str:
        """Return the URL of a path as messages give it: without user, password or signature."""
        scheme = self._opened[0].partition("://")[0]
        return redact_url(path if "://" in path else f"{scheme}://{path}")

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Call a function that reads for each item, side by side, as it mostly waits."""
        wanted = list(items)
        if len(wanted) == 1:
            return [function(wanted[0])]
        owner = self._owner()

        def call(item: T) -> R:
            self._thread.owner = owner
            return function(item)

        return list(self._requests.get().callers.map(call, wanted))

    def abandon(self, threads: Iterable[int]) -> None:
        """End what some threads wait for, by their identifiers: CancelledError is raised there."""
        for thread in threads:
            for future in tuple(self._waiting.get(thread, ())):
                future.cancel()

    def read(self, paths: Iterable[str], limit_bytes: int = METADATA_BYTES) -> dict[str, bytes]:
        """Read whole objects of at most so many bytes, side by side. Absent ones are left out.

        Raises
        ------
        CorruptStoreError
            If one has more bytes than that.
        OSError
            If one that is there cannot be read; names it, and no secret.
        """
        wanted = list(paths)
        found = self._run(self._requests.get().whole(wanted, limit_bytes))
        return {
            path: bytes(data) for path, data in zip(wanted, found, strict=True) if data is not None
        }

    def version(self, wanted: Wanted) -> ObjectVersion | None:
        """Read an object, or a range of it, and say of which version that is; None if absent.

        Raises
        ------
        ChangedObjectError
            If it is of another version than is wanted.
        CorruptStoreError
            If it has more bytes than may come.
        OSError
            If it cannot be read; names it, and no secret.
        """
        return self._run(self._requests.get().version(wanted))

    @contextmanager
    def ranges(
        self, wanted: Sequence[tuple[str, int, int]], *, bounded: bool = True
    ) -> Iterator[list[Buffer]]:
        """Read bytes ``start <= i < stop`` of objects, given as path, start, stop; side by side.

        Their memory counts against a bound as long as the context lasts. Whoever reads inside
        such a context must not wait for room, which others may have asked for before: it reads
        with ``bounded=False``.

        Yields
        ------
        list of Buffer
            One that is shorter than asked for, after being asked for again, is what the object has.

        Raises
        ------
        FileNotFoundError
            If an object is absent.
        OSError
            If it cannot be read; names it, and no secret.
        """
        n_bytes = sum(stop - start for _, start, stop in wanted) if bounded else 0
        found = self._run(self._requests.get().all_held(wanted, n_bytes))
        try:
            data: list[Buffer] = []
            for (path, *_), answer in zip(wanted, found.answers, strict=True):
                if answer is None:
                    raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
                data.append(answer)
            yield data
        finally:
            found.give_back()

    def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """Post JSON to the server, and return its answer of at most so many bytes.

        It is posted again as ranges are asked for again, so it must change nothing there.

        Raises
        ------
        NotServedError
            If there is no such way.
        FileNotFoundError
            If the server knows no such path.
        OSError
            If there is no answer; names the path, and no secret.
        """
        return self._run(self._requests.get().posted(path, body, limit_bytes))

    @property
    def link_bytes_per_s(self) -> float | None:
        """What the link carried lately; None as long as nothing is known of it."""
        return self.transport.link_bytes_per_s

    largest_gap_bytes = _GAP_BYTES[1]

    @property
    def gap_bytes(self) -> int:
        """Bytes between two ranges of an object that are cheaper to read than to ask around.

        What a place among the requests under way costs: a request holds it for the latency, and
        for as long as its bytes take at present; both are measured. So few bytes are read for
        nothing on a link that is full, and few requests made over a long one that is not.
        """
        return self._requests.get().times.gap_bytes

    def _owner(self) -> int:
        """Return the thread on whose behalf this one reads."""
        owner: int = getattr(self._thread, "owner", threading.get_ident())
        return owner

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for what runs on the thread that all remote reads share."""
        future = asyncio.run_coroutine_threadsafe(work, get_loop())
        waiting = self._waiting.setdefault(self._owner(), set())
        waiting.add(future)
        try:
            return future.result(self.deadline_s)
        except TimeoutError:
            future.cancel()
            text = f"it did not come within {self.deadline_s:g} s"
            raise ConnectionError(errno.ETIMEDOUT, text, self.name(self.path)) from None
        except BaseException:  # an interrupt too: nobody waits for the rest
            future.cancel()
            raise
        finally:
            waiting.discard(future)


def _objects(
    url: str,
    storage_options: Mapping[str, Any] | None,
    in_flight: int,
    deadline_s: float | None,
) -> RemoteObjects:
    return RemoteObjects(url, storage_options, in_flight=in_flight, deadline_s=deadline_s)


class _Requests:
    """The requests of one store in one process; all of it runs on one event loop."""

    def __init__(self, transport: Transport, in_flight: int) -> None:
        self._transport = transport
        self.times = _Times()
        self.extra = 0
        """Requests under way beside others for the same bytes."""
        self.most_extra = max(1, in_flight // _LATE_SHARE)
        self.callers = ThreadPoolExecutor(_CALLERS, "spinezarr-wait")
        self._gate = _Gate(in_flight)
        self._memory = _Gate(_HELD_BYTES)
        self._posts = _Gate(_POSTS)
        self._has_answered = False
        self._has_given_ranges = False
        """Whether an answer without a range is a fault, and not what this server always does."""

    async def all_held(self, wanted: Sequence[tuple[str, int, int]], n_bytes: int) -> "_Held":
        """Ask for all once there is room for so many bytes."""
        held = _Held(self._memory, n_bytes)
        if n_bytes:
            await self._memory.enter(n_bytes)
            held.is_inside = True
        try:
            groups = list(_by_object(wanted))
            found = await _gathered(self._together(path, spans) for path, spans in groups)
            held.answers = [answer for answers in found for answer in answers]
        except BaseException:
            held.give_back()
            raise
        return held

    async def whole(self, paths: Iterable[str], limit_bytes: int) -> list[Buffer | None]:
        """Ask for whole objects of at most so many bytes; None where one is absent."""
        return await _gathered(
            self._until_answered(path, None, None, limit_bytes) for path in paths
        )

    async def version(self, wanted: Wanted) -> ObjectVersion | None:
        """Ask for an object or a range of it; None if it is absent."""
        size = _SMALL_BYTES if wanted.stop is None else wanted.most_bytes
        ask = partial(self._transport.get_version, wanted)
        data_of = None if wanted.stop is None else attrgetter("data")
        return await self._until_whole(ask, size, data_of)

    async def posted(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """Post something until it is answered, or patience ends."""
        patience = _Patience(self)
        while True:
            try:
                await self._posts.enter(1)
                try:
                    data = await self._transport.post(path, body, limit_bytes)
                finally:
                    self._posts.leave(1)
            except TransientError as problem:
                await patience.wait(problem)
                continue
            self._has_answered = self._has_given_ranges = True
            return data

    async def _together(self, path: str, spans: Sequence[Span]) -> list[Buffer | None]:
        """Ask for some ranges of an object with one call, and again for those that fail."""
        if len(spans) == 1:
            return [await self._until_answered(path, *spans[0])]
        size = sum(stop - start for start, stop in spans)
        data: Sequence[Buffer] | None = None
        with suppress(TransientError):
            ask = partial(self._transport.get_together, path, spans)
            data = await self._asked(ask, len(spans), size)
        found: list[Buffer | None] = [None] * len(spans) if data is None else [*data]
        failed = [i for i, span in enumerate(spans) if not _is_whole(found[i], span)]
        self._has_given_ranges |= len(failed) < len(spans)
        again = await _gathered(self._until_answered(path, *spans[i]) for i in failed)
        for i, answer in zip(failed, again, strict=True):
            found[i] = answer
        return found

    async def _asked(
        self, ask: Callable[[], Coroutine[Any, Any, T]], n_requests: int, size: int
    ) -> T:
        await self._gate.enter(n_requests)
        try:
            return await _Question(self, ask, n_requests, size).answered()
        finally:
            self._gate.leave(n_requests)

    async def _until_answered(
        self, path: str, start: int | None, stop: int | None, limit_bytes: int = 0
    ) -> Buffer | None:
        """Ask for a range, or a whole object, until it comes."""
        size = _SMALL_BYTES if start is None or stop is None else stop - start
        ask = partial(self._transport.get, path, start, stop, limit_bytes)
        return await self._until_whole(ask, size, None if stop is None else _itself)

    async def _until_whole(
        self,
        ask: Callable[[], Coroutine[Any, Any, T]],
        size: int,
        data_of: Callable[[T], Buffer] | None,
    ) -> T | None:
        """Ask until all of a range comes, or patience ends; None if the object is absent.

        ``data_of`` gives the bytes of an answer; None for a whole object, of any length.
        """
        patience, short = _Patience(self), 0
        while True:
            try:
                data = await self._asked(ask, 1, size)
            except FileNotFoundError:
                self._has_answered = True
                return None
            except (TransientError, NoRangesError) as problem:
                if isinstance(problem, NoRangesError) and not self._has_given_ranges:
                    raise
                await patience.wait(problem)
                continue
            self._has_answered = True
            if data_of is None:
                return data
            n_bytes = memoryview(data_of(data)).nbytes
            self._has_given_ranges |= n_bytes == size
            # Nothing comes where the server says that the object ends before the range.
            if n_bytes in {0, size} or short == _SHORT_ANSWERS:
                return data
            short += 1

    def is_over(self, problem: OSError, attempts: int, waited_s: float) -> bool:
        """Whether a request that failed is not made again."""
        if not self._has_answered:
            return attempts >= _ATTEMPTS or waited_s >= _FIRST_PATIENCE_S
        patience_s = _PATIENCE_S if self._has_given_ranges else _OPENING_PATIENCE_S
        # What broke off may have come far on a slow link, and stalls take their time themselves.
        is_stalled = isinstance(problem, StalledAnswerError)
        return waited_s >= patience_s and (is_stalled or attempts >= _ATTEMPTS)


class _Patience:
    """Waits before something is asked for again, until it has been asked for long enough."""

    def __init__(self, requests: _Requests) -> None:
        self._requests = requests
        self._began_s = asyncio.get_running_loop().time()
        self._attempts = 0

    async def wait(self, problem: OSError) -> None:
        """Wait a while, or raise that it is over."""
        self._attempts += 1
        waited_s = asyncio.get_running_loop().time() - self._began_s
        if self._requests.is_over(problem, self._attempts, waited_s):
            text = f"{self._attempts} attempts in {waited_s:.0f} s: {problem.strerror or problem}"
            raise ConnectionError(problem.errno or errno.EIO, text, problem.filename) from None
        wished_s = getattr(problem, "retry_after_s", None) or 0.0
        await asyncio.sleep(max(min(wished_s, _PATIENCE_S), _backoff_s(self._attempts)))


def _by_object(wanted: Sequence[tuple[str, int, int]]) -> Iterator[tuple[str, list[Span]]]:
    """Group ranges of an object, a few at a time."""
    path, spans = "", list[Span]()
    for of, start, stop in wanted:
        if spans and (of != path or len(spans) == _TOGETHER):
            yield path, spans
            spans = []
        path = of
        spans.append((start, stop))
    if spans:
        yield path, spans


def _itself(data: Buffer) -> Buffer:
    return data


def _is_whole(answer: Buffer | None, span: Span) -> bool:
    return answer is not None and memoryview(answer).nbytes == span[1] - span[0]


async def _gathered(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Run all side by side; if one fails, none goes on."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


class _Question(Generic[T]):
    """Something that is asked for once, and again beside it while the answer is late."""

    def __init__(
        self,
        requests: "_Requests",
        ask: Callable[[], Coroutine[Any, Any, T]],
        n_requests: int,
        size: int,
    ) -> None:
        self._requests = requests
        self._ask_for_it = ask
        self._n_requests = n_requests
        self._size = size
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._answer: asyncio.Future[T] = self._loop.create_future()
        self._attempts: set[asyncio.Task[T]] = set()
        self._late_s = requests.times.late_s(size)
        self._timer = self._loop.call_later(self._late_s, self._ask_again)
        self._extra = 0

    async def answered(self) -> T:
        """Return the first good answer, or raise what the last bad one said."""
        self._ask()
        try:
            return await self._answer
        finally:
            self._timer.cancel()
            self._requests.extra -= self._extra
            for attempt in self._attempts:
                attempt.cancel()

    def _ask(self) -> None:
        attempt = self._loop.create_task(self._ask_for_it())
        self._attempts.add(attempt)
        attempt.add_done_callback(self._ended)

    def _ask_again(self) -> None:
        if self._requests.extra < self._requests.most_extra:
            self._requests.extra += 1
            self._extra += 1
            self._ask()
        self._timer = self._loop.call_later(self._late_s * 2**self._extra, self._ask_again)

    def _ended(self, attempt: asyncio.Task[T]) -> None:
        self._attempts.discard(attempt)
        problem = None if attempt.cancelled() else attempt.exception()
        if self._answer.done():
            return
        if attempt.cancelled():
            self._answer.cancel()
        elif problem is None:
            if attempt.result() is not None:
                seconds = self._loop.time() - self._began_s
                self._requests.times.add(seconds, self._n_requests, self._size)
            self._answer.set_result(attempt.result())
        elif not self._attempts or not isinstance(problem, TransientError):
            self._answer.set_exception(problem)
        elif isinstance(problem, StalledAnswerError):
            self._timer.cancel()  # those that were asked beside it are enough


def _backoff_s(attempts: int) -> float:
    first, most = _BACKOFF_S
    # Nobody's samples depend on it, and nobody's secrets.
    return min(most, first * 2.0 ** (attempts - 1)) * random.uniform(0.5, 1.0)  # noqa: S311


class _Times:
    """How long requests take at present, and what that says of the link."""

    def __init__(self) -> None:
        self.gap_bytes = _GAP_BYTES[0]
        self._answers: deque[tuple[float, int, int]] = deque(maxlen=_TIMED)
        self._latency_s = math.inf
        self._s_per_byte = 0.0
        self._since = 0

    def add(self, seconds: float, n_requests: int, size: int) -> None:
        """Note how long some requests at once took, and how many bytes they brought together."""
        # Of all time: while the link is full, each request waits for the others too.
        self._latency_s = min(self._latency_s, seconds)
        self._answers.append((seconds, n_requests, size))
        self._since += 1
        if self._since < len(self._answers) // 8:
            return
        self._since = 0
        self._s_per_byte = statistics.median(
            seconds / (size + _OVERHEAD_BYTES) for seconds, _, size in self._answers
        )
        brought = sum(size for _, _, size in self._answers)
        held_s = sum(n * (seconds - self._latency_s) for seconds, n, _ in self._answers)
        least, most = _GAP_BYTES
        worth = self._latency_s * brought / max(held_s, _NO_TIME_S)
        self.gap_bytes = int(min(most, max(least, worth)))

    def late_s(self, size: int) -> float:
        """Return the time after which a range of this size is late."""
        least, unknown = _LATE_S
        if not self._answers:
            return unknown
        return max(least, _LATE * self._s_per_byte * (size + _OVERHEAD_BYTES))


class _Held:
    """Answers, and the room that they take, until somebody gives it back or forgets them."""

    def __init__(self, memory: "_Gate", n_bytes: int) -> None:
        self.n_bytes = n_bytes
        self.answers: list[Buffer | None] = []
        self.is_inside = False
        self._memory = memory
        self._loop = asyncio.get_running_loop()

    def give_back(self) -> None:
        if self.is_inside:
            self.is_inside = False
            self._loop.call_soon_threadsafe(self._memory.leave, self.n_bytes)

    def __del__(self) -> None:
        self.give_back()


class _Gate:
    """Lets so much through at once; first come, first served. What is too much goes alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    async def enter(self, amount: int) -> None:
        """Wait for room, and take it."""
        if not self._waiting and self._fits(amount):
            self._inside += amount
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, amount))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave(amount)  # the turn had come
            else:
                with suppress(ValueError):  # passed over meanwhile
                    self._waiting.remove((turn, amount))
                self._admit()
            raise

    def leave(self, amount: int) -> None:
        """Give room back."""
        self._inside -= amount
        self._admit()

    def _fits(self, amount: int) -> bool:
        return not self._inside or self._inside + amount <= self._limit

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][1]):
            turn, amount = self._waiting.popleft()
            if not turn.cancelled():
                self._inside += amount
                turn.set_result(None)
