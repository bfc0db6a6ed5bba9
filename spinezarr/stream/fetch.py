"""Fetching byte ranges: the only part of the engine that knows where a store lies."""

import os
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from typing_extensions import Buffer

from spinezarr.store.objects import Objects
from spinezarr.store.remote import RemoteObjects
from spinezarr.stream.cache import BoundedCache
from spinezarr.stream.range_cache import DiskCache, RangeCache, shared_range_cache

__all__ = [
    "ByteRange",
    "Fetcher",
    "LocalFetcher",
    "RemoteFetcher",
    "StoredShard",
    "fetcher_for",
]


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


class Fetcher(ABC):
    """Fetches byte ranges; called from many threads at once."""

    rereads = 0
    """How often what proves damaged is worth fetching again."""
    calls_at_once = 1
    """Calls that are best under way at once, though most of them only wait."""

    @abstractmethod
    def __call__(self, ranges: Sequence[ByteRange], /) -> Sequence[Buffer]:
        """Return the bytes of each range, in order.

        A range that the file ends inside comes back short; the caller checks what it gets.

        Raises
        ------
        FileNotFoundError
            If a file is absent.
        OSError
            If it cannot be read.
        """

    def afresh(self, damaged: ByteRange, /) -> Buffer:
        """Return the bytes of a range that proved damaged, from where they were written."""
        return self([damaged])[0]

    def n_requests(self, ranges: Sequence[ByteRange], /) -> int:
        """Return how many times these ranges are asked for: requests, or system calls."""
        return len(ranges)

    def name(self, path: str) -> str:
        """Return a path as messages give it."""
        return path


class LocalFetcher(Fetcher):
    """Fetches from disk with one system call a range."""

    def __call__(self, ranges: Sequence[ByteRange], /) -> list[bytes]:
        """See :class:`Fetcher`."""
        paths = list(dict.fromkeys(item.shard.path for item in ranges))
        with self.opened(paths) as descriptors:
            files = dict(zip(paths, descriptors, strict=True))
            return [
                os.pread(files[item.shard.path], item.stop - item.start, item.start)
                for item in ranges
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
    calls_at_once = _CALLS

    def __init__(self, objects: RemoteObjects, cache: RangeCache | None = None) -> None:
        self._objects = objects
        self._cache = cache
        self._small: BoundedCache[StoredShard, _SmallShard] = BoundedCache(_KEPT_BYTES)

    def __reduce__(self) -> tuple[Callable[..., "RemoteFetcher"], tuple[object, ...]]:
        return RemoteFetcher, (self._objects, self._cache)

    def __call__(self, ranges: Sequence[ByteRange], /) -> list[memoryview]:
        """See :class:`Fetcher`."""
        wanted = [_whole_if_small(item) for item in ranges]
        held = self._held(wanted)
        runs = self._merged(item for item in wanted if item not in held)
        found = self._fetch([run for run, _ in runs])
        for (run, items), content in zip(runs, found, strict=True):
            held |= {item: _part(content, run, item) for item in items}
        return [_part(held[whole], whole, item) for item, whole in zip(ranges, wanted, strict=True)]

    def afresh(self, damaged: ByteRange, /) -> memoryview:
        """See :class:`Fetcher`."""
        shard = damaged.shard
        self._small.forget(shard)
        if self._cache is not None:
            whole = _whole_if_small(damaged)
            self._cache.forget(shard.content, shard.size_bytes, whole.start, whole.stop)
        return self([damaged])[0]

    def name(self, path: str) -> str:
        """See :class:`Fetcher`."""
        return self._objects.name(path)

    def n_requests(self, ranges: Sequence[ByteRange], /) -> int:
        """See :class:`Fetcher`."""
        wanted = [_whole_if_small(item) for item in ranges]
        held = self._held(wanted)
        return len(self._merged(item for item in wanted if item not in held))

    def _merged(self, ranges: Iterable[ByteRange]) -> list[tuple[ByteRange, list[ByteRange]]]:
        """Group ranges that are better asked for together: what to ask for, and what is in it."""
        gap_bytes = self._objects.gap_bytes
        runs: list[list[ByteRange]] = []
        for item in sorted(set(ranges), key=lambda item: (item.shard.path, item.start)):
            if runs and _is_near(runs[-1], item, gap_bytes):
                runs[-1].append(item)
            else:
                runs.append([item])
        return [(ByteRange(run[0].shard, run[0].start, run[-1].stop), run) for run in runs]

    def _held(self, wanted: Iterable[ByteRange]) -> dict[ByteRange, Buffer]:
        """Return what is in memory and on disk."""
        by_shard: dict[StoredShard, dict[ByteRange, None]] = defaultdict(dict)
        for item in wanted:
            by_shard[item.shard][item] = None
        held: dict[ByteRange, Buffer] = {}
        small = self._small.find(by_shard)
        for shard, items in by_shard.items():
            if shard in small:
                held |= dict.fromkeys(items, small[shard])
            elif self._cache is not None:
                places = [(item.start, item.stop) for item in items]
                found = self._cache.find(shard.content, shard.size_bytes, places)
                held |= {
                    item: data for item, data in zip(items, found, strict=True) if data is not None
                }
        return held

    def _fetch(self, runs: Sequence[ByteRange]) -> list[Buffer]:
        """Fetch runs, and keep them as far as they may be."""
        if not runs:
            return []
        asked = list(runs)
        if self._cache is not None:
            asked = [
                ByteRange(run.shard, *self._cache.widen(run.start, run.stop, run.shard.size_bytes))
                for run in runs
            ]
        found = self._objects.read_ranges([(run.shard.path, run.start, run.stop) for run in asked])
        for run, data in zip(asked, found, strict=True):
            if run == _whole_if_small(run) and _is_small(run.shard):
                self._small.keep({run.shard: _SmallShard(data)})
            if self._cache is not None and memoryview(data).nbytes == run.stop - run.start:
                self._cache.keep(run.shard.content, run.shard.size_bytes, run.start, data)
        return [_part(data, a, run) for data, a, run in zip(found, asked, runs, strict=True)]


def _is_small(shard: StoredShard) -> bool:
    return shard.size_bytes <= _SMALL_SHARD_BYTES


def _whole_if_small(item: ByteRange) -> ByteRange:
    return ByteRange(item.shard, 0, item.shard.size_bytes) if _is_small(item.shard) else item


def _part(content: Buffer, of: ByteRange, wanted: ByteRange) -> memoryview:
    """Cut a range out of a longer one; short where that came short."""
    return memoryview(content)[wanted.start - of.start : wanted.stop - of.start]


def _is_near(run: Sequence[ByteRange], item: ByteRange, gap_bytes: int) -> bool:
    first, last = run[0], run[-1]
    return (
        item.shard == last.shard
        and item.start - last.stop <= gap_bytes
        and item.stop - first.start <= _RUN_BYTES
    )


def fetcher_for(objects: Objects, cache: DiskCache | None = None) -> Fetcher:
    """Return the fetcher of a store's chunks; files on disk need no cache."""
    if isinstance(objects, RemoteObjects):
        return RemoteFetcher(objects, None if cache is None else shared_range_cache(cache))
    return LocalFetcher()
