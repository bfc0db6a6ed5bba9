"""How are large files uploaded while the next ones are made?"""

import threading
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from typing import Final

import fsspec
from typing_extensions import Buffer

from spinezarr.store.files import ChangeContext, write_file, write_parts
from spinezarr.store.folder import StoreFileSystem

__all__ = ["Uploads"]

_MAX_IN_FLIGHT: Final = 2
"""Largest number of files in memory: one is sent while the next one is completed."""


class Uploads:
    """Writes files, a few at a time. It may be used from several threads.

    A file on disk is complete when :meth:`write` returns. A file in a bucket is sent in the
    background; a later :meth:`write` or :meth:`finish` raises the error if that fails.

    Parameters
    ----------
    fs
        File system of the store.
    changing
        Returns the context in which a file on disk may be replaced.
    """

    def __init__(
        self, fs: fsspec.AbstractFileSystem, changing: ChangeContext = nullcontext
    ) -> None:
        self._fs = fs
        self._changing = changing
        self._slots = threading.BoundedSemaphore(_MAX_IN_FLIGHT)
        self._pool: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self._futures: dict[str, Future[None]] = {}
        """Results of the uploads, by path."""

    def write(self, path: str, parts: Iterable[Buffer]) -> None:
        """Write a file from its parts; wait while too many files are in memory.

        When this returns, all parts have been consumed.

        Raises
        ------
        OSError
            If this file or an earlier one could not be written.
        """
        if isinstance(self._fs, StoreFileSystem):
            write_parts(self._fs, path, parts, self._changing)
            return
        previous = self._futures.get(path)
        if previous is not None:
            previous.result()  # two concurrent uploads of one file could end in any order
        self._slots.acquire()
        try:
            data = b"".join(parts)
        except BaseException:
            self._slots.release()
            raise
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_MAX_IN_FLIGHT, "spinezarr-upload")
            self._futures[path] = self._pool.submit(self._send, path, data)
            done = [future for future in self._futures.values() if future.done()]
        for future in done:
            future.result()

    def _send(self, path: str, data: bytes) -> None:
        try:
            write_file(self._fs, path, data)
        finally:
            self._slots.release()

    def finish(self) -> None:
        """Wait until all files are written.

        Raises
        ------
        OSError
            If a file could not be written.
        """
        self.stop()
        for future in self._futures.values():
            future.result()

    def stop(self) -> None:
        """Wait until all uploads have ended, with or without success."""
        wait(self._futures.values())
        if self._pool is not None:
            self._pool.shutdown()
