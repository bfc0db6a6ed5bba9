"""How many requests work at once, how many wait, and when must a client retry later?"""

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
        self._slots = asyncio.Semaphore(at_once)
        self._max_waiting = waiting
        self._max_waiting_bytes = waiting_bytes
        self._waiting = 0
        self._waiting_bytes = 0

    @asynccontextmanager
    async def slot(self, n_bytes: int) -> AsyncIterator[None]:
        """Wait for a slot, and hold it inside the ``with`` block.

        Parameters
        ----------
        n_bytes
            Memory that the request takes while it waits, in bytes.

        Raises
        ------
        BusyError
            If too many requests or bytes are waiting already.
        """
        if self._slots.locked():
            is_full = self._waiting >= self._max_waiting
            if is_full or self._waiting_bytes + n_bytes > self._max_waiting_bytes:
                raise BusyError
        self._waiting += 1
        self._waiting_bytes += n_bytes
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
            self._waiting_bytes -= n_bytes
        try:
            yield
        finally:
            self._slots.release()
