"""How slowly an answer may come, so that a server that is silent or drips is an error soon.

The slowest link that is meant to work carries 20 kB/s for all requests of a store together. Among k
requests each has a k-th of it in the mean, and much less at times; a quarter of it, over a window
that grows with k, is what is asked for. A silent server is an error after 20 s where one request is
under way, and after 84 s where 128 are.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Self, TypeVar

__all__ = ["Pace", "Progress", "RateMeter", "StalledError"]

T = TypeVar("T")

_LINK_BYTES_PER_S: Final = 20_000
_SHARE: Final = 4
"""A request may have so many times less than its part of the slowest link."""
_WINDOW_S: Final = 20.0
_WINDOW_S_PER_REQUEST: Final = 0.5
"""A packet of 1,460 bytes for each of 128 requests takes 9 s at 20 kB/s: seven of them in a
window."""
_LONGEST_S: Final = 3600.0
"""Of one answer. At 20 kB/s, 128 requests for half a megabyte each take 3,200 s."""
_LOOK_S: Final = 0.25
_REMEMBERED_S: Final = 2.0
"""Of a rate: what was before counts half, and half again."""


class StalledError(Exception):
    """An answer of which too little came for too long."""


class RateMeter:
    """How much is done in a second, while at least one thing is under way; of one thread."""

    def __init__(self) -> None:
        self.ended = 0
        """Things that have ended."""
        self._under_way = 0
        self._since_s = 0.0
        self._amount = self._seconds = 0.0

    @property
    def per_s(self) -> float | None:
        """What was done lately in a second; None as long as nothing was."""
        return self._amount / self._seconds if self._seconds > 0 else None

    def begin(self) -> None:
        """Say that something has begun."""
        if not self._under_way:
            self._since_s = time.monotonic()
        self._under_way += 1

    def end(self, amount: float) -> None:
        """Say that something has ended, and how much of it was done."""
        now_s = time.monotonic()
        self._amount += amount
        self._seconds += now_s - self._since_s
        self._since_s = now_s
        self._under_way -= 1
        self.ended += 1
        if self._seconds > _REMEMBERED_S:
            self._amount, self._seconds = self._amount / 2, self._seconds / 2


class Pace:
    """Requests of a store that are under way; all run on one event loop."""

    def __init__(self) -> None:
        self.under_way: set[Progress] = set()
        self._is_looking = False

    @property
    def window_s(self) -> float:
        """Seconds in which at least :attr:`least_bytes` must come."""
        return _WINDOW_S + _WINDOW_S_PER_REQUEST * len(self.under_way)

    @property
    def least_bytes(self) -> float:
        """What each request is to bring in a window."""
        n = max(1, len(self.under_way))
        return self.window_s * _LINK_BYTES_PER_S / (_SHARE * n)

    def watch(self) -> None:
        """Look at requests from time to time as long as there are any."""
        if not self._is_looking:
            self._is_looking = True
            asyncio.get_running_loop().call_later(_LOOK_S, self._look)

    def _look(self) -> None:
        self._is_looking = bool(self.under_way)
        if not self._is_looking:
            return
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for progress in tuple(self.under_way):
            progress.look(now_s)
        loop.call_later(_LOOK_S, self._look)


class Progress:
    """How far one request has got, until it ends; also a context that ends it.

    Parameters
    ----------
    pace
        Of all requests.
    on_stall
        Called with an error when too little comes, if nobody waits in :meth:`step`.

    Attributes
    ----------
    came
        Bytes of the answer so far; whoever reads it counts.
    """

    __slots__ = ("_counted", "_end_s", "_on_stall", "_pace", "_window_end_s", "came")

    def __init__(
        self, pace: Pace, on_stall: Callable[["StalledError"], None] | None = None
    ) -> None:
        self.came = self._counted = 0
        self._on_stall = on_stall
        self._pace = pace
        pace.under_way.add(self)
        now_s = asyncio.get_running_loop().time()
        self._end_s = now_s + _LONGEST_S
        self._window_end_s = now_s + pace.window_s
        if on_stall is not None:
            pace.watch()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Watch no longer."""
        self._pace.under_way.discard(self)

    async def step(self, work: Awaitable[T], longest_s: float = 0.0) -> T:
        """Wait for something that brings the request on, for a window or longer.

        Raises
        ------
        StalledError
            If that takes too long.
        """
        longest_at_s = asyncio.get_running_loop().time() + longest_s
        return await _within(work, min(max(self._window_end_s, longest_at_s), self._end_s))

    async def whole(self, work: Awaitable[T]) -> T:
        """Wait for a whole answer that does not tell how far it has got.

        Raises
        ------
        StalledError
            If that takes too long.
        """
        return await _within(work, self._end_s)

    def renew(self) -> None:
        """Begin a new window: the answer has begun."""
        self._counted = self.came
        self._window_end_s = asyncio.get_running_loop().time() + self._pace.window_s

    def add(self, n_bytes: int) -> None:
        """Count bytes that came."""
        self.came += n_bytes
        self.look(asyncio.get_running_loop().time())

    def look(self, now_s: float) -> None:
        """See whether enough has come lately."""
        if self.came - self._counted >= self._pace.least_bytes:
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
