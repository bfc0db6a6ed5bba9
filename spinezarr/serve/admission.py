"""Who reads patches now, who waits for that, and who is told to come again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["AdmissionQueue", "BusyError"]


class BusyError(Exception):
    """More waits already than may."""


class AdmissionQueue:
    """Lets so many work at once, and so many wait, first come, first served; of one event loop.

    Parameters
    ----------
    at_once
        That work.
    waiting, waiting_bytes
        That wait, and what their requests take.
    """

    def __init__(self, at_once: int, waiting: int, waiting_bytes: int) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._most_waiting = waiting
        self._most_bytes = waiting_bytes
        self._waiting = 0
        self._bytes = 0

    @asynccontextmanager
    async def taken(self, n_bytes: int) -> AsyncIterator[None]:
        """Wait for a turn, and hold it.

        Raises
        ------
        BusyError
            If too much waits.
        """
        if self._room.locked():
            is_full = self._waiting >= self._most_waiting
            if is_full or self._bytes + n_bytes > self._most_bytes:
                raise BusyError
        self._waiting += 1
        self._bytes += n_bytes
        try:
            await self._room.acquire()
        finally:
            self._waiting -= 1
            self._bytes -= n_bytes
        try:
            yield
        finally:
            self._room.release()
