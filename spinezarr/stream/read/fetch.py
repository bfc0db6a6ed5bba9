"""Fetching byte ranges: the only part of the engine that knows where a store lies."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

from spinezarr.remote.requests import RemoteObjects
from spinezarr.store.folder import StoreFolder
from spinezarr.store.objects import Objects
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.stream.read.native import address
from spinezarr.stream.read.range_cache import DiskCache, RangeCache, shared_range_cache

__all__ = [
    "ByteRange",
    "ByteRanges",
    "FetchedRanges",
    "Fetcher",
    "LocalFetcher",
    "RemoteFetcher",
    "StoredShard",
    "fetcher_for",
]


Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A shard as the manifest describes it."""

    path: str
    """Where it lies, for the fetcher."""
    size_bytes: int
    content: str
    """Stands for all its bytes: another version of it has another."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes ``start <= i < stop`` of a shard."""

    shard: StoredShard
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class ByteRanges:
    """Several of them, one row each."""

    shards: tuple[StoredShard, ...]
    shard: Rows
    """Which of the shards, by its number."""
    start: Rows
    stop: Rows

    @classmethod
    def of(cls, ranges: Iterable[ByteRange]) -> "ByteRanges":
        """Write ranges as rows."""
        items = list(ranges)
        shards = tuple(dict.fromkeys(item.shard for item in items))
        number = {shard: i for i, shard in enumerate(shards)}
        return cls(
            shards,
            np.array([number[item.shard] for item in items], np.int64),
            np.array([item.start for item in items], np.int64),
            np.array([item.stop for item in items], np.int64),
        )

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.shard)

    def __iter__(self) -> Iterator[ByteRange]:
        """Yield one after the other."""
        rows = zip(self.shard.tolist(), self.start.tolist(), self.stop.tolist(), strict=True)
        return (ByteRange(self.shards[shard], start, stop) for shard, start, stop in rows)

    def rows_of(self, shard: int) -> Rows:
        """Return which rows are of a shard, by their starts."""
        rows = np.flatnonzero(self.shard == shard)
        return rows[np.argsort(self.start[rows], kind="stable")]


class FetchedRanges:
    """The bytes of ranges, each in one of a few buffers.

    Parameters
    ----------
    ranges
        That were asked for.
    """

    def __init__(self, ranges: ByteRanges) -> None:
        self._ranges = ranges
        self._buffers: list[memoryview] = []
        self._buffer = np.zeros(len(ranges), np.int64)
        self._origin = np.zeros(len(ranges), np.int64)

    def put(self, rows: Rows, buffer: Buffer, origin: int) -> None:
        """Say that ranges lie in a buffer, which begins at byte ``origin`` of their shard."""
        self._buffer[rows] = len(self._buffers)
        self._origin[rows] = origin
        self._buffers.append(memoryview(buffer).cast("B"))

    def __len__(self) -> int:
        """Return how many ranges there are."""
        return len(self._ranges)

    def __getitem__(self, row: int) -> memoryview:
        """Return the bytes of a range; short where they came short."""
        if not 0 <= row < len(self):
            raise IndexError(f"range {row} of {len(self)}")
        origin = self._origin[row]
        start, stop = self._ranges.start[row] - origin, self._ranges.stop[row] - origin
        buffer: memoryview = self._buffers[self._buffer[row]]
        return buffer[start:stop]

    @property
    def is_whole(self) -> npt.NDArray[np.bool_]:
        """Whether all bytes of a range came."""
        sizes = np.array([len(buffer) for buffer in self._buffers], np.int64)
        whole: npt.NDArray[np.bool_] = self._ranges.stop - self._origin <= sizes[self._buffer]
        return whole

    @property
    def addresses(self) -> npt.NDArray[np.uintp]:
        """Where the first byte of each range is, as long as this object is there."""
        starts = [address(np.frombuffer(buffer, np.uint8)) for buffer in self._buffers]
        offsets = (self._ranges.start - self._origin).astype(np.uintp)
        found: npt.NDArray[np.uintp] = np.array(starts, np.uintp)[self._buffer] + offsets
        return found


class Fetcher(ABC):
    """Fetches byte ranges; called from many threads at once."""

    rereads = 0
    """How often what proves damaged is worth fetching again."""
    concurrent_calls = 1
    """Calls that are best under way at once, though most of them only wait."""

    @abstractmethod
    def __call__(self, ranges: ByteRanges, /) -> AbstractContextManager[FetchedRanges]:
        """Fetch the bytes of ranges, and hold their memory as long as the context lasts.

        A range that the file ends inside comes back short; the caller checks what it gets.

        Raises
        ------
        FileNotFoundError
            If a file is absent.
        OSError
            If it cannot be read.
        """

    def refetch(self, damaged: ByteRange, /) -> AbstractContextManager[FetchedRanges]:
        """Fetch a range that proved damaged from where it was written."""
        return self(ByteRanges.of([damaged]))

    def n_requests(self, ranges: ByteRanges, /) -> int:
        """Return how many times these ranges are asked for: requests, or system calls."""
        return len(ranges)

    def name(self, path: str) -> str:
        """Return a path as messages give it."""
        return path


class LocalFetcher(Fetcher):
    """Fetches from disk with one system call a range.

    Parameters
    ----------
    folder
        Of the store.
    """

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder

    @contextmanager
    def __call__(self, ranges: ByteRanges, /) -> Iterator[FetchedRanges]:
        """See :class:`Fetcher`."""
        found = FetchedRanges(ranges)
        with self.opened([shard.path for shard in ranges.shards]) as descriptors:
            for row, item in enumerate(zip(ranges.shard, ranges.start, ranges.stop, strict=True)):
                shard, start, stop = map(int, item)
                data = os.pread(descriptors[shard], stop - start, start)
                found.put(np.array([row]), data, start)
        yield found

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
                descriptors.append(self._folder.open(path))
                if hasattr(os, "posix_fadvise"):
                    # Or the system reads on behind each chunk: four times what is wanted.
                    os.posix_fadvise(descriptors[-1], 0, 0, os.POSIX_FADV_RANDOM)
            yield descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


_RUN_BYTES: Final = 8 << 20
"""Longest answer; more is asked for side by side."""
_SMALL_SHARD_BYTES: Final = 1 << 19
"""A shard up to this size is fetched whole, and kept: that of a mask, as a rule."""
_KEPT_BYTES: Final = 128 << 20
"""Of such shards; the masks of a thousand ordinary scans."""
_CALLS: Final = 32
"""Batches of one patch need as many to keep the requests under way that there may be."""


class _SmallShard(bytes):
    """All bytes of a small shard."""

    @property
    def nbytes(self) -> int:
        return len(self)


class RemoteFetcher(Fetcher):
    """Fetches from a bucket or web server.

    Ranges that lie close together are asked for as one, and all of them side by side. Small shards
    are kept in memory, and all that comes, on request, in a cache on disk.

    Parameters
    ----------
    objects
        Where they come from.
    cache
        Where to keep what came.
    """

    rereads = RemoteObjects.rereads
    concurrent_calls = _CALLS

    def __init__(self, objects: RemoteObjects, cache: RangeCache | None = None) -> None:
        self._objects = objects
        self._cache = cache
        self._has_begun = False
        self._small: BoundedCache[StoredShard, _SmallShard] = BoundedCache(_KEPT_BYTES)

    def __reduce__(self) -> tuple[Callable[..., "RemoteFetcher"], tuple[object, ...]]:
        return RemoteFetcher, (self._objects, self._cache)

    @contextmanager
    def __call__(self, ranges: ByteRanges, /) -> Iterator[FetchedRanges]:
        """See :class:`Fetcher`."""
        # Nothing is known of the link yet, and somebody waits for the first batch.
        gap_bytes = None if self._has_begun else self._objects.largest_gap_bytes
        self._has_begun = True
        with self._fetched(ranges, gap_bytes, bounded=True) as found:
            yield found

    @contextmanager
    def _fetched(
        self, ranges: ByteRanges, gap_bytes: int | None, *, bounded: bool
    ) -> Iterator[FetchedRanges]:
        found, runs = self._find(ranges, gap_bytes)
        if not runs:
            yield found
            return
        spans = [self._widened(run.asked) for run in runs]
        wanted = [(run.asked.shard.path, *span) for run, span in zip(runs, spans, strict=True)]
        with self._objects.ranges(wanted, bounded=bounded) as data:
            for run, (start, stop), content in zip(runs, spans, data, strict=True):
                view = memoryview(content)
                if view.nbytes == stop - start:
                    self._keep(run.asked.shard, start, view)
                found.put(run.rows, view, start)
            yield found

    def refetch(self, damaged: ByteRange, /) -> AbstractContextManager[FetchedRanges]:
        """See :class:`Fetcher`."""
        shard = damaged.shard
        self._small.forget(shard)
        if self._cache is not None:
            span = (0, shard.size_bytes) if _is_small(shard) else (damaged.start, damaged.stop)
            self._cache.forget(shard.content, shard.size_bytes, *span)
        # The caller holds what it fetched before.
        return self._fetched(ByteRanges.of([damaged]), None, bounded=False)

    def name(self, path: str) -> str:
        """See :class:`Fetcher`."""
        return self._objects.name(path)

    def n_requests(self, ranges: ByteRanges, /) -> int:
        """See :class:`Fetcher`."""
        return len(self._find(ranges)[1])

    def _find(
        self, ranges: ByteRanges, gap_bytes: int | None = None
    ) -> tuple[FetchedRanges, list["_Run"]]:
        """Return what is in memory and on disk, and what else to ask for."""
        found = FetchedRanges(ranges)
        runs: list[_Run] = []
        gap_bytes = gap_bytes or self._objects.gap_bytes
        in_memory = self._small.find(ranges.shards)
        for number, shard in enumerate(ranges.shards):
            rows = ranges.rows_of(number)
            if shard in in_memory:
                found.put(rows, in_memory[shard], 0)
            elif len(rows) and _is_small(shard):
                (whole,) = self._on_disk(shard, [(0, shard.size_bytes)])
                if whole is None:
                    runs.append(_Run(ByteRange(shard, 0, shard.size_bytes), rows))
                else:
                    found.put(rows, whole, 0)
            elif len(rows):
                missing = self._put_from_disk(found, shard, rows, ranges)
                runs += _merged(shard, missing, ranges, gap_bytes)
        return found, runs

    def _put_from_disk(
        self, found: FetchedRanges, shard: StoredShard, rows: Rows, ranges: ByteRanges
    ) -> Rows:
        """Put what the cache has of some rows, and return the others."""
        if self._cache is None:
            return rows
        spans = zip(ranges.start[rows].tolist(), ranges.stop[rows].tolist(), strict=True)
        there = self._on_disk(shard, list(spans))
        for row, data in zip(rows, there, strict=True):
            if data is not None:
                found.put(np.array([row]), data, int(ranges.start[row]))
        return rows[[data is None for data in there]]

    def _on_disk(self, shard: StoredShard, spans: list[tuple[int, int]]) -> list[bytes | None]:
        if self._cache is None:
            return [None] * len(spans)
        return self._cache.find(shard.content, shard.size_bytes, spans)

    def _widened(self, run: ByteRange) -> tuple[int, int]:
        """Return what to ask for, so that it can be kept whole."""
        if self._cache is None:
            return run.start, run.stop
        return self._cache.widen(run.start, run.stop, run.shard.size_bytes)

    def _keep(self, shard: StoredShard, start: int, data: memoryview) -> None:
        if data.nbytes == shard.size_bytes and _is_small(shard):
            self._small.keep({shard: _SmallShard(data)})
        if self._cache is not None:
            self._cache.keep(shard.content, shard.size_bytes, start, data)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What is asked for at once, and whose ranges lie in it."""

    asked: ByteRange
    rows: Rows


def _is_small(shard: StoredShard) -> bool:
    return shard.size_bytes <= _SMALL_SHARD_BYTES


def _merged(shard: StoredShard, rows: Rows, ranges: ByteRanges, gap_bytes: int) -> Iterator[_Run]:
    """Group rows of a shard, which are in order, that are better asked for together."""
    if not len(rows):
        return
    start, stop = ranges.start[rows], np.maximum.accumulate(ranges.stop[rows])
    borders = [0, *(np.flatnonzero(start[1:] - stop[:-1] > gap_bytes) + 1).tolist(), len(rows)]
    for first, last in pairwise(borders):
        begin = first
        while begin < last:
            # Of a run that is too long, as much as fits; one range at the least.
            fits = np.searchsorted(stop[begin:last], start[begin] + _RUN_BYTES, side="right")
            end = begin + max(1, int(fits))
            asked = ByteRange(shard, int(start[begin]), int(stop[end - 1]))
            yield _Run(asked, rows[begin:end])
            begin = end


def fetcher_for(objects: Objects, cache: DiskCache | None = None) -> Fetcher:
    """Return the fetcher of a store's chunks; files on disk need no cache."""
    if isinstance(objects, RemoteObjects):
        return RemoteFetcher(objects, None if cache is None else shared_range_cache(cache))
    return LocalFetcher(objects.folder)
