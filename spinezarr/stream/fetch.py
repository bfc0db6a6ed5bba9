"""Fetching byte ranges: the only part of the engine that knows where a store lies."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["ByteRange", "Fetcher", "FsspecFetcher", "LocalFetcher", "fetcher_for"]


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes ``start <= i < stop`` of a file."""

    path: str
    start: int
    stop: int


class Fetcher(Protocol):
    """Fetches byte ranges; called from many threads at once."""

    def __call__(self, ranges: Sequence[ByteRange], /) -> list[bytes]:
        """Return the bytes of each range, in order.

        A range that the file ends inside comes back short; the caller checks what it gets.

        Raises
        ------
        FileNotFoundError
            If a file is absent.
        OSError
            If it cannot be read.
        """
        ...


class LocalFetcher:
    """Fetches from disk with one system call a range."""

    def __call__(self, ranges: Sequence[ByteRange], /) -> list[bytes]:
        """See :class:`Fetcher`."""
        files: dict[str, int] = {}
        try:
            for item in ranges:
                if item.path not in files:
                    files[item.path] = os.open(item.path, os.O_RDONLY)
            return [
                os.pread(files[item.path], item.stop - item.start, item.start) for item in ranges
            ]
        finally:
            for descriptor in files.values():
                os.close(descriptor)


class FsspecFetcher:
    """Fetches through any fsspec file system, ranges of one call side by side."""

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs

    def __call__(self, ranges: Sequence[ByteRange], /) -> list[bytes]:
        """See :class:`Fetcher`."""
        found: list[bytes | Exception] = self._fs.cat_ranges(
            [item.path for item in ranges],
            [item.start for item in ranges],
            [item.stop for item in ranges],
            on_error="return",
        )
        return [_content(item) for item in found]


def _content(found: bytes | Exception) -> bytes:
    """Return the bytes of one range; raise what kept them from coming."""
    if isinstance(found, Exception):
        if getattr(found, "status", None) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return b""  # the file ends before the range begins
        raise found
    return found


def fetcher_for(fs: fsspec.AbstractFileSystem) -> Fetcher:
    """Return the fastest fetcher for a file system."""
    return LocalFetcher() if isinstance(fs, LocalFileSystem) else FsspecFetcher(fs)
