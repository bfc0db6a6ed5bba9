"""How many requests work at once, how many wait, and when is one sent away to retry later?"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["AdmissionQueue", "BusyError"]


class BusyError(Exception):
    """The queue is full; the client should retry later."""


class AdmissionQueue:
    """Limits the requests that work at once and those that wait, first come, first served.

    A queue belongs to one event loop.

    Parameters
    ----------
    at_once
        Number of requests that may work at once.
    waiting
        Number of requests that may wait.
    waiting_bytes
        Memory that the waiting requests may take together, in bytes.
    """

    def __init__(self, at_once: int, waiting: int, waiting_bytes: int) -> None:
        self._room = asyncio.Semaphore(at_once)
        self._most_waiting = waiting
        self._most_bytes = waiting_bytes
        self._waiting = 0
        self._bytes = 0

    @asynccontextmanager
    async def slot(self, n_bytes: int) -> AsyncIterator[None]:
        """Wait for a slot, and hold it inside of the ``with`` block.

        Raises
        ------
        BusyError
            If too many requests, or too many bytes, wait already.
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
