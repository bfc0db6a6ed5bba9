"""Fetching byte ranges: the only part of the engine that knows where a store lies."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["ByteRange", "Fetcher", "FsspecFetcher", "LocalFetcher", "fetcher_for", "n_requests"]


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
        paths = list(dict.fromkeys(item.path for item in ranges))
        with self.opened(paths) as descriptors:
            files = dict(zip(paths, descriptors, strict=True))
            return [
                os.pread(files[item.path], item.stop - item.start, item.start) for item in ranges
            ]

    @contextmanager
    def opened(self, paths: Iterable[str]) -> Iterator[list[int]]:
        """Open files for a while, for code that reads them by itself.

        Yields
        ------
        list of int
            Their descriptors.

        Raises
        ------
        OSError
            If one cannot be opened.
        """
        descriptors: list[int] = []
        try:
            for path in paths:
                descriptors.append(os.open(path, os.O_RDONLY))
                if hasattr(os, "posix_fadvise"):
                    # Or the system reads on behind each chunk: four times what is wanted.
                    os.posix_fadvise(descriptors[-1], 0, 0, os.POSIX_FADV_RANDOM)
            yield descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


_GAP_BYTES: Final = 1 << 18
"""What is read and thrown away, rather than ask once more; the time of a request to a near bucket.
A whole row of image chunks that a patch does not need is larger."""
_RUN_BYTES: Final = 4 << 20
"""Longest answer; more is asked for side by side."""


class FsspecFetcher:
    """Fetches through any fsspec file system.

    Ranges of one call that lie close together are asked for as one, and all of them side by side.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem) -> None:
        self._fs = fs

    def __call__(self, ranges: Sequence[ByteRange], /) -> list[bytes]:
        """See :class:`Fetcher`."""
        runs = _runs(ranges)
        found: list[bytes | Exception] = self._fs.cat_ranges(
            [ranges[run[0]].path for run in runs],
            [ranges[run[0]].start for run in runs],
            [max(ranges[i].stop for i in run) for run in runs],
            on_error="return",
        )
        data = [b""] * len(ranges)
        for run, item in zip(runs, found, strict=True):
            content, start = _content(item), ranges[run[0]].start
            for i in run:
                data[i] = content[ranges[i].start - start : ranges[i].stop - start]
        return data


def n_requests(fetch: Fetcher, ranges: Sequence[ByteRange]) -> int:
    """Return how many times a fetcher asks for these ranges: requests, or system calls."""
    return len(_runs(ranges)) if isinstance(fetch, FsspecFetcher) else len(ranges)


def _runs(ranges: Sequence[ByteRange]) -> list[list[int]]:
    """Group ranges, by their places in the sequence, that are better asked for together."""
    runs: list[list[int]] = []
    path, start, stop = "", 0, 0
    ordered = sorted((item.path, item.start, item.stop, i) for i, item in enumerate(ranges))
    for *_, i in ordered:
        item = ranges[i]
        near = item.path == path and item.start - stop <= _GAP_BYTES
        if runs and near and max(stop, item.stop) - start <= _RUN_BYTES:
            runs[-1].append(i)
            stop = max(stop, item.stop)
        else:
            runs.append([i])
            path, start, stop = item.path, item.start, item.stop
    return runs


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
