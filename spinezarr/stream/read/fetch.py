"""How do byte ranges of shards get into memory, from a disk or over a network?

Only this part of the engine depends on the place of a store.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
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
from spinezarr.stream.read.range_cache import (
    NO_CACHE,
    CacheSettings,
    RangeCache,
    shared_range_cache,
)

__all__ = [
    "ByteRange",
    "ByteRanges",
    "FetchedRanges",
    "Fetcher",
    "LocalFetcher",
    "MissingShardError",
    "RemoteFetcher",
    "StoredShard",
    "fetcher_for",
]


Rows = npt.NDArray[np.int64]


class MissingShardError(FileNotFoundError):
    """A shard that the manifest lists, but that is not in the store.

    Attributes
    ----------
    path
        Path of the shard in the store.
    """

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: there is no such shard")
        self.path = path

    def __reduce__(self) -> tuple[type["MissingShardError"], tuple[str]]:
        return MissingShardError, (self.path,)


@dataclass(frozen=True, slots=True)
class StoredShard:
    """A shard as the manifest describes it."""

    path: str
    """Path of the shard in the store."""
    size_bytes: int
    content: str
    """Hash of the manifest's entry. Two versions of a shard have two hashes."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes ``start <= i < stop`` of a shard."""

    shard: StoredShard
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class ByteRanges:
    """Several byte ranges as arrays, one row for each range."""

    shards: tuple[StoredShard, ...]
    shard: Rows
    """Shape ``(n,)``: number of the shard in :attr:`shards`."""
    start: Rows
    """Shape ``(n,)``: first byte."""
    stop: Rows
    """Shape ``(n,)``: one past the last byte."""

    @classmethod
    def of(cls, ranges: Iterable[ByteRange]) -> "ByteRanges":
        """Return the arrays for some ranges."""
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
        """Return the number of ranges."""
        return len(self.shard)

    def __iter__(self) -> Iterator[ByteRange]:
        """Yield the ranges in order."""
        rows = zip(self.shard.tolist(), self.start.tolist(), self.stop.tolist(), strict=True)
        return (ByteRange(self.shards[shard], start, stop) for shard, start, stop in rows)

    def rows_of(self, shard: int) -> Rows:
        """Return the rows of a shard, sorted by their starts."""
        rows = np.flatnonzero(self.shard == shard)
        return rows[np.argsort(self.start[rows], kind="stable")]


class FetchedRanges:
    """The bytes of some ranges, each in one of a few buffers.

    Parameters
    ----------
    ranges
        The requested ranges.
    """

    def __init__(self, ranges: ByteRanges) -> None:
        self._ranges = ranges
        self._buffers: list[memoryview] = []
        self._buffer = np.zeros(len(ranges), np.int64)
        self._origin = np.zeros(len(ranges), np.int64)

    def put(self, rows: Rows, buffer: Buffer, origin: int) -> None:
        """Record that some ranges lie in a buffer that begins at byte ``origin`` of their shard."""
        self._buffer[rows] = len(self._buffers)
        self._origin[rows] = origin
        self._buffers.append(memoryview(buffer).cast("B"))

    def __len__(self) -> int:
        """Return the number of ranges."""
        return len(self._ranges)

    def __getitem__(self, row: int) -> memoryview:
        """Return the bytes of a range; they are fewer if the file ended inside it."""
        if not 0 <= row < len(self):
            raise IndexError(f"range {row} of {len(self)}")
        origin = self._origin[row]
        start, stop = self._ranges.start[row] - origin, self._ranges.stop[row] - origin
        buffer: memoryview = self._buffers[self._buffer[row]]
        return buffer[start:stop]

    @property
    def is_whole(self) -> npt.NDArray[np.bool_]:
        """Shape ``(n,)``: whether all bytes of the range were fetched."""
        sizes = np.array([len(buffer) for buffer in self._buffers], np.int64)
        whole: npt.NDArray[np.bool_] = self._ranges.stop - self._origin <= sizes[self._buffer]
        return whole

    @property
    def addresses(self) -> npt.NDArray[np.uintp]:
        """Shape ``(n,)``: address of the first byte; valid as long as this object lives."""
        starts = [address(np.frombuffer(buffer, np.uint8)) for buffer in self._buffers]
        offsets = (self._ranges.start - self._origin).astype(np.uintp)
        addresses: npt.NDArray[np.uintp] = np.array(starts, np.uintp)[self._buffer] + offsets
        return addresses


class Fetcher(ABC):
    """Fetches byte ranges; called from many threads at once."""

    max_refetches = 0
    """Number of times that a damaged chunk is fetched again."""
    concurrent_calls = 1
    """Number of calls that should run at once, though most of them only wait."""

    @abstractmethod
    def __call__(self, ranges: ByteRanges, /) -> AbstractContextManager[FetchedRanges]:
        """Fetch the bytes of ranges, and hold their memory as long as the context lasts.

        If a file ends inside a range, the range has fewer bytes. The caller checks that.

        Raises
        ------
        MissingShardError
            If a shard is missing.
        OSError
            If a shard cannot be read.
        """

    def refetch(self, damaged: ByteRange, /) -> AbstractContextManager[FetchedRanges]:
        """Fetch a damaged range again, from the store and not from a cache."""
        return self(ByteRanges.of([damaged]))

    def n_requests(self, ranges: ByteRanges, /) -> int:
        """Return the number of requests, or system calls, that these ranges take."""
        return len(ranges)

    def name(self, path: str) -> str:
        """Return the name of a path for messages."""
        return path


class LocalFetcher(Fetcher):
    """Fetches from disk, with one system call for each range.

    Parameters
    ----------
    folder
        Folder of the store.
    """

    def __init__(self, folder: StoreFolder) -> None:
        self._folder = folder

    @contextmanager
    def __call__(self, ranges: ByteRanges, /) -> Iterator[FetchedRanges]:
        """See :class:`Fetcher`."""
        fetched = FetchedRanges(ranges)
        with self.opened([shard.path for shard in ranges.shards]) as descriptors:
            for row, item in enumerate(zip(ranges.shard, ranges.start, ranges.stop, strict=True)):
                shard, start, stop = map(int, item)
                data = os.pread(descriptors[shard], stop - start, start)
                fetched.put(np.array([row]), data, start)
        yield fetched

    @contextmanager
    def opened(self, paths: Iterable[str]) -> Iterator[list[int]]:
        """Open shards as long as the context lasts, for a caller that reads them itself.

        Yields
        ------
        list of int
            File descriptors of the shards.

        Raises
        ------
        MissingShardError
            If a shard is missing.
        OSError
            If a shard cannot be opened.
        """
        descriptors: list[int] = []
        try:
            for path in paths:
                try:
                    descriptors.append(self._folder.open(path))
                except FileNotFoundError as problem:
                    raise MissingShardError(path) from problem
                if hasattr(os, "posix_fadvise"):
                    # Otherwise the system reads ahead after each chunk, four times as many bytes.
                    os.posix_fadvise(descriptors[-1], 0, 0, os.POSIX_FADV_RANDOM)
            yield descriptors
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


_CACHE_BYTES: Final = 128 << 20
"""Bytes of small shards to keep in memory: the masks of a thousand ordinary scans."""
_CONCURRENT_CALLS: Final = 32
"""Number of concurrent calls. Batches of one patch need so many to use all allowed requests."""


class _SmallShard(bytes):
    """All bytes of a small shard, with the attribute that :class:`BoundedCache` needs."""

    @property
    def nbytes(self) -> int:
        return len(self)


class RemoteFetcher(Fetcher):
    """Fetches from a bucket or web server.

    Ranges that lie close together are merged into one request, and all requests are in flight at
    once. Small shards are kept in memory. With a cache, all bytes are kept on disk too.

    Parameters
    ----------
    objects
        The store's objects.
    cache
        Keeps the bytes on disk; None keeps none.
    """

    max_refetches = RemoteObjects.rereads
    concurrent_calls = _CONCURRENT_CALLS

    def __init__(self, objects: RemoteObjects, cache: RangeCache | None = None) -> None:
        self._objects = objects
        self._settings = objects.settings
        self._cache = cache
        self._has_begun = False
        self._small: BoundedCache[StoredShard, _SmallShard] = BoundedCache(_CACHE_BYTES)

    def __reduce__(self) -> tuple[Callable[..., "RemoteFetcher"], tuple[object, ...]]:
        return RemoteFetcher, (self._objects, self._cache)

    @contextmanager
    def __call__(self, ranges: ByteRanges, /) -> Iterator[FetchedRanges]:
        """See :class:`Fetcher`."""
        # The caller waits for the first batch, and the link has not been measured yet. So this
        # call merges ranges into few requests.
        gap_bytes = None if self._has_begun else self._settings.most_gap_bytes
        self._has_begun = True
        with self._fetch_missing(ranges, gap_bytes, bounded=True) as fetched:
            yield fetched

    def _is_small(self, shard: StoredShard) -> bool:
        return shard.size_bytes <= self._settings.whole_shard_bytes

    @contextmanager
    def _fetch_missing(
        self, ranges: ByteRanges, gap_bytes: int | None, *, bounded: bool
    ) -> Iterator[FetchedRanges]:
        fetched, merged = self._find_cached(ranges, gap_bytes)
        if not merged:
            yield fetched
            return
        spans = [self._widen(item.byte_range) for item in merged]
        paths = [item.byte_range.shard.path for item in merged]
        requests = [(path, *span) for path, span in zip(paths, spans, strict=True)]
        with self._read_objects(requests, bounded=bounded) as data:
            for item, (start, stop), content in zip(merged, spans, data, strict=True):
                view = memoryview(content)
                if view.nbytes == stop - start:
                    self._keep(item.byte_range.shard, start, view)
                fetched.put(item.rows, view, start)
            yield fetched

    @contextmanager
    def _read_objects(
        self, requests: Sequence[tuple[str, int, int]], *, bounded: bool
    ) -> Iterator[list[Buffer]]:
        with ExitStack() as stack:
            try:
                data = stack.enter_context(self._objects.ranges(requests, bounded=bounded))
            except FileNotFoundError as problem:
                raise MissingShardError(problem.filename) from problem
            yield data

    def refetch(self, damaged: ByteRange, /) -> AbstractContextManager[FetchedRanges]:
        """See :class:`Fetcher`."""
        shard = damaged.shard
        self._small.forget(shard)
        if self._cache is not None:
            span = (0, shard.size_bytes) if self._is_small(shard) else (damaged.start, damaged.stop)
            self._cache.forget(shard.content, shard.size_bytes, *span)
        # It is not bounded, as the caller still holds the bytes that it fetched before.
        return self._fetch_missing(ByteRanges.of([damaged]), None, bounded=False)

    def name(self, path: str) -> str:
        """See :class:`Fetcher`."""
        return self._objects.name(path)

    def n_requests(self, ranges: ByteRanges, /) -> int:
        """See :class:`Fetcher`."""
        return len(self._find_cached(ranges)[1])

    def _find_cached(
        self, ranges: ByteRanges, gap_bytes: int | None = None
    ) -> tuple[FetchedRanges, list["_MergedRange"]]:
        """Return the ranges that are in memory or on disk, and the requests for the others."""
        fetched = FetchedRanges(ranges)
        requests: list[_MergedRange] = []
        gap_bytes = gap_bytes or self._objects.gap_bytes
        in_memory = self._small.find(ranges.shards)
        for number, shard in enumerate(ranges.shards):
            rows = ranges.rows_of(number)
            if shard in in_memory:
                fetched.put(rows, in_memory[shard], 0)
            elif len(rows) and self._is_small(shard):
                (data,) = self._read_cache(shard, [(0, shard.size_bytes)])
                if data is None:
                    requests.append(_MergedRange(ByteRange(shard, 0, shard.size_bytes), rows))
                else:
                    fetched.put(rows, data, 0)
            elif len(rows):
                missing = self._put_from_disk(fetched, shard, rows, ranges)
                requests += _merge(
                    shard, missing, ranges, (gap_bytes, self._settings.longest_range_bytes)
                )
        return fetched, requests

    def _put_from_disk(
        self, fetched: FetchedRanges, shard: StoredShard, rows: Rows, ranges: ByteRanges
    ) -> Rows:
        """Put the rows that the cache has, and return the others."""
        if self._cache is None:
            return rows
        spans = zip(ranges.start[rows].tolist(), ranges.stop[rows].tolist(), strict=True)
        cached = self._read_cache(shard, list(spans))
        for row, data in zip(rows, cached, strict=True):
            if data is not None:
                fetched.put(np.array([row]), data, int(ranges.start[row]))
        return rows[[data is None for data in cached]]

    def _read_cache(self, shard: StoredShard, spans: list[tuple[int, int]]) -> list[bytes | None]:
        if self._cache is None:
            return [None] * len(spans)
        return self._cache.find(shard.content, shard.size_bytes, spans)

    def _widen(self, item: ByteRange) -> tuple[int, int]:
        """Return the range to request so that the cache can keep whole pages."""
        if self._cache is None:
            return item.start, item.stop
        return self._cache.widen(item.start, item.stop, item.shard.size_bytes)

    def _keep(self, shard: StoredShard, start: int, data: memoryview) -> None:
        if data.nbytes == shard.size_bytes and self._is_small(shard):
            self._small.keep({shard: _SmallShard(data)})
        if self._cache is not None:
            self._cache.keep(shard.content, shard.size_bytes, start, data)


@dataclass(frozen=True, slots=True, eq=False)
class _MergedRange:
    """One request, and the rows whose ranges lie in it."""

    byte_range: ByteRange
    rows: Rows


def _merge(
    shard: StoredShard, rows: Rows, ranges: ByteRanges, bounds: tuple[int, int]
) -> Iterator[_MergedRange]:
    """Merge neighboring ranges of a shard, whose rows are in order.

    The bounds are the largest gap between two ranges, and the largest size of a merged range.
    """
    if not len(rows):
        return
    gap_bytes, longest_bytes = bounds
    start, stop = ranges.start[rows], np.maximum.accumulate(ranges.stop[rows])
    borders = [0, *(np.flatnonzero(start[1:] - stop[:-1] > gap_bytes) + 1).tolist(), len(rows)]
    for first, last in pairwise(borders):
        begin = first
        while begin < last:
            # A request takes as many ranges as fit into its limit, and at least one.
            fits = np.searchsorted(stop[begin:last], start[begin] + longest_bytes, side="right")
            end = begin + max(1, int(fits))
            merged = ByteRange(shard, int(start[begin]), int(stop[end - 1]))
            yield _MergedRange(merged, rows[begin:end])
            begin = end


def fetcher_for(objects: Objects, cache: CacheSettings = NO_CACHE) -> Fetcher:
    """Return the fetcher for the chunks of a store.

    Parameters
    ----------
    objects
        The store.
    cache
        Cache of a remote store. A store on disk has no cache in a folder.
    """
    if isinstance(objects, RemoteObjects):
        return RemoteFetcher(objects, None if cache.folder is None else shared_range_cache(cache))
    return LocalFetcher(objects.folder)
