"""When does a response come too slowly, so that waiting for it is an error?

The slowest link that must work carries 20 kB/s for all requests of a store together
(``RemoteSettings.slowest_link_bytes_per_s``). Of k requests in flight, each gets one k-th of this
rate on average, and much less at times. A response stalls when it brings less than a quarter of one
k-th over a window that grows with k. A silent server is an error after 20 s with one request in
flight, and after 135 s with 384.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import Final, Self, TypeVar

from spinezarr.remote.settings import RemoteSettings

__all__ = ["RateMeter", "RequestProgress", "StallDetector", "StalledError"]

T = TypeVar("T")

_FAIR_RATE_DIVISOR: Final = 4
"""A response may be so many times slower than its part of the slowest link."""
_CHECK_INTERVAL_S: Final = 0.25
"""Largest time between two checks of all requests."""
_N_TRANSFERS: Final = 256
"""Number of transfers whose rate is measured."""


class StalledError(Exception):
    """A response that brought too few bytes for too long."""


class RateMeter:
    """Measures a rate over the time in which at least one transfer runs, from any threads."""

    def __init__(self) -> None:
        self._transfers: deque[tuple[float, float, float]] = deque(maxlen=_N_TRANSFERS)

    def add(self, began_s: float, ended_s: float, amount: float) -> None:
        """Record a transfer that has ended, its times by the monotonic clock, and its amount."""
        self._transfers.append((began_s, ended_s, amount))

    @property
    def per_s(self) -> float | None:
        """Recent rate in amounts per second; None until it is measured."""
        transfers = sorted(self._transfers.copy())
        seconds = until_s = 0.0
        for began_s, ended_s, _ in transfers:
            seconds += max(0.0, ended_s - max(began_s, until_s))
            until_s = max(until_s, ended_s)
        return sum(amount for _, _, amount in transfers) / seconds if seconds > 0 else None


class StallDetector:
    """Checks the responses of a store's requests in flight."""

    def __init__(self, settings: RemoteSettings) -> None:
        self.in_flight: set[RequestProgress] = set()
        self.received_bytes = 0
        """Bytes of all responses that have ended."""
        self._lock = Lock()
        self.longest_answer_s = settings.longest_answer_s
        self._settings = settings
        self._check_s = min(_CHECK_INTERVAL_S, settings.stall_window_s / 5)
        self._is_checking = False

    @property
    def window_s(self) -> float:
        """Length in seconds of the window in which each response must bring :attr:`least_bytes`."""
        settings = self._settings
        return settings.stall_window_s + settings.stall_window_per_request_s * len(self.in_flight)

    @property
    def least_bytes(self) -> float:
        """Number of bytes that each response must bring in a window."""
        n = max(1, len(self.in_flight))
        fair_bytes_per_s = self._settings.slowest_link_bytes_per_s / n
        return self.window_s * fair_bytes_per_s / _FAIR_RATE_DIVISOR

    def add_received(self, n_bytes: int) -> None:
        """Count the bytes of responses that have ended."""
        with self._lock:
            self.received_bytes += n_bytes

    def watch(self) -> None:
        """Check requests from time to time while there are any."""
        if not self._is_checking:
            self._is_checking = True
            asyncio.get_running_loop().call_later(self._check_s, self._check)

    def _check(self) -> None:
        self._is_checking = bool(self.in_flight)
        if not self._is_checking:
            return
        now_s = time.monotonic()
        for progress in tuple(self.in_flight):
            progress.check(now_s)
        asyncio.get_running_loop().call_later(self._check_s, self._check)


class RequestProgress:
    """Counts the bytes of one response. It is a context manager that ends the watch.

    Parameters
    ----------
    detector
        The detector of all requests of the store.
    on_stall
        Function that is called with an error when the response stalls. None if the caller waits in
        :meth:`step`, which raises the error.
    is_checked
        Whether the detector checks the response from time to time, on the running event loop.

    Attributes
    ----------
    received_bytes
        Bytes received so far; the reader of the response counts them.
    """

    __slots__ = ("_counted", "_detector", "_end_s", "_on_stall", "_window_end_s", "received_bytes")

    def __init__(
        self,
        detector: StallDetector,
        on_stall: Callable[["StalledError"], None] | None = None,
        *,
        is_checked: bool = True,
    ) -> None:
        self.received_bytes = self._counted = 0
        self._on_stall = on_stall
        self._detector = detector
        detector.in_flight.add(self)
        now_s = time.monotonic()
        self._end_s = now_s + detector.longest_answer_s
        self._window_end_s = now_s + detector.window_s
        if on_stall is not None and is_checked:
            detector.watch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the watch."""
        if self in self._detector.in_flight:
            self._detector.in_flight.discard(self)
            self._detector.add_received(self.received_bytes)

    async def step(self, work: Awaitable[T], longest_s: float = 0.0) -> T:
        """Await a part of the response, for one window or ``longest_s``, whichever is longer.

        Raises
        ------
        StalledError
            If the part takes longer.
        """
        longest_at_s = time.monotonic() + longest_s
        return await _within(work, min(max(self._window_end_s, longest_at_s), self._end_s))

    async def until_end(self, work: Awaitable[T]) -> T:
        """Await a whole response that does not show its progress.

        Raises
        ------
        StalledError
            If it takes longer than ``RemoteSettings.longest_answer_s``.
        """
        return await _within(work, self._end_s)

    def renew(self) -> None:
        """Begin a new window."""
        self._counted = self.received_bytes
        self._window_end_s = time.monotonic() + self._detector.window_s

    def add(self, n_bytes: int) -> None:
        """Count received bytes."""
        self.received_bytes += n_bytes
        self.check(time.monotonic())

    def check(self, now_s: float) -> None:
        """Check whether the response brought enough bytes in its window."""
        if self.received_bytes - self._counted >= self._detector.least_bytes:
            self.renew()
        if self._on_stall is not None and now_s >= min(self._window_end_s, self._end_s):
            self._on_stall(StalledError())


async def _within(work: Awaitable[T], until_s: float) -> T:
    try:
        async with asyncio.timeout_at(until_s) as limit:
            return await work
    except TimeoutError:
        if limit.expired():
            raise StalledError from None
        raise
