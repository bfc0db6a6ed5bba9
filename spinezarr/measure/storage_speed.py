"""How fast does a disk or a link give bytes, one after the other and at random?

The bytes are those of real shards and chunks of a store, read as the patch engine reads them: by
``pread`` from a disk, and by many ranges at once over a network. Nothing is decoded and nothing is
kept. In a folder without a store, a file is written, read and removed.
"""

import math
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import islice
from tempfile import TemporaryFile
from typing import IO, Final, Literal, Protocol, Self

import numpy as np

from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import Box
from spinezarr.measure.page_cache import disk_bytes, drop_pages, share_from_disk
from spinezarr.remote.requests import RemoteObjects
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.chunk_locations import ChunkLocator
from spinezarr.stream.read.plan import plan_reads

__all__ = ["OnSeconds", "Order", "Speed", "measure_folder", "measure_store"]

Order = Literal["write", "sequential", "random"]
OnSeconds = Callable[[float], None]
"""Called with the seconds that a measurement has taken so far."""
_Span = tuple[str, int, int]
"""Path of a file, first byte, and one past the last byte."""
_MAX_BYTES: Final = 256_000_000
"""Largest number of bytes that are read in each order."""
_DISK_PIECE_BYTES, _LINK_PIECE_BYTES = 1 << 20, 1 << 18
"""Bytes of a request of a sequential read."""
_DISK_REQUESTS, _LINK_REQUESTS = 16, 64
"""Largest number of requests at once. A sequential read from a disk has only one."""
_SHORT: Final = 1 / 16
"""More requests are sent at once if the last ones took less than this part of the time."""
_SCANS: Final = 8
"""Largest number of scans whose files are read."""
_FILE_BYTES: Final = 128 << 20
"""Size of the file that is written in a folder without a store."""
_CHUNK_BYTES: Final = 1 << 16
"""Bytes of a random read of this file: about those of an encoded chunk."""
_CHUNKS_ALONG_AXIS: Final = 16
"""Largest number of chunks along each axis of a scan that random reads choose from."""
_PAGE_BYTES: Final = 4096
_MAX_OPEN_FILES: Final = 64


@dataclass(frozen=True, slots=True)
class Speed:
    """What was read or written in one order, and how long it took."""

    order: Order
    n_bytes: int
    n_requests: int
    seconds: float
    answer_s: float
    """Time of the fastest request, or of the fastest requests that were sent together."""
    share_from_disk: float | None
    """Share of the bytes that came from a disk; None for a link, or if the system does not say."""

    @property
    def bytes_per_s(self) -> float:
        """Bytes in a second."""
        return self.n_bytes / self.seconds if self.seconds else 0.0

    @property
    def requests_per_s(self) -> float:
        """Requests in a second."""
        return self.n_requests / self.seconds if self.seconds else 0.0


def measure_store(
    reader: StoreReader, scan_ids: Sequence[str], seconds: float, on_seconds: OnSeconds
) -> tuple[Speed, ...]:
    """Read shards of a store one after the other, then chunks at random.

    Parameters
    ----------
    reader
        The opened store.
    scan_ids
        Scans that may be read. A few are chosen at random.
    seconds
        Time for both orders together. The last requests may take longer.
    on_seconds
        Called after each request or group of requests.

    Returns
    -------
    tuple of Speed
        Sequential and random; empty if there are no scans.

    Raises
    ------
    CorruptStoreError
        If a shard is missing.
    OSError
        If a shard cannot be read.
    """
    draw = random.Random(0)  # noqa: S311  chooses what is read
    chosen = draw.sample(list(scan_ids), min(_SCANS, len(scan_ids)))
    arrays = [reader.scan(scan_id).image for scan_id in chosen]
    chunks = _chunks(arrays, reader)
    draw.shuffle(chunks)
    objects = reader.objects
    try:
        with ExitStack() as stack:
            if isinstance(objects, RemoteObjects):
                link, pieces = _Link(objects), _pieces(arrays, _LINK_PIECE_BYTES)
                runs: tuple[_Run, ...] = (
                    _Run("sequential", link, pieces, _LINK_REQUESTS),
                    _Run("random", link, iter(chunks), _LINK_REQUESTS),
                )
            else:
                pieces = _pieces(arrays, _DISK_PIECE_BYTES)
                runs = _disk_runs(stack, objects.folder.open, pieces, chunks)
            return _measure_all(runs, seconds, on_seconds) if arrays else ()
    except FileNotFoundError as problem:
        raise CorruptStoreError(
            f"{problem.filename}: is missing in the store. 'spinezarr verify' lists all that is."
        ) from problem


def measure_folder(folder: str, seconds: float, on_seconds: OnSeconds) -> tuple[Speed, ...]:
    """Write a file without a name in a folder, read it in both orders, and remove it.

    Parameters
    ----------
    folder
        Where the file lies.
    seconds
        Time for all together. The last requests may take longer.
    on_seconds
        Called after each request or group of requests.

    Returns
    -------
    tuple of Speed
        Write, sequential and random.

    Raises
    ------
    OSError
        If no file can be written there.
    """
    write_s = seconds / 3
    with TemporaryFile(dir=folder, buffering=0) as file, ExitStack() as stack:
        written = _write(file, write_s, on_seconds)
        pieces, chunks = (
            [("", start, start + size) for start in range(0, written.n_bytes, size)]
            for size in (_DISK_PIECE_BYTES, _CHUNK_BYTES)
        )
        random.Random(0).shuffle(chunks)  # noqa: S311  chooses what is read
        runs = _disk_runs(stack, lambda _: os.dup(file.fileno()), iter(pieces), chunks)
        read = _measure_all(runs, seconds - write_s, lambda so_far: on_seconds(write_s + so_far))
        return (written, *read)


class _Source(Protocol):
    """A place that spans of bytes are read from."""

    def prepare(self, spans: Sequence[_Span]) -> None:
        """Do what must not be counted in the time of a read."""
        ...

    def read(self, spans: Sequence[_Span]) -> int:
        """Read some spans at once, and return the number of bytes."""
        ...

    def disk_bytes(self) -> int | None:
        """Return the bytes that came from a disk so far; None if it is not known."""
        ...


class _Disk:
    """Reads with one system call for each span, and drops the pages of each span before.

    Parameters
    ----------
    open_file
        Returns a file descriptor for a path.
    at_random
        Whether the spans are in no order.
    """

    def __init__(self, open_file: Callable[[str], int], *, at_random: bool) -> None:
        self._open_file = open_file
        self._at_random = at_random
        self._descriptors: dict[str, int] = {}
        self._pool = ThreadPoolExecutor(_DISK_REQUESTS, "spinezarr-measure")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()
        self._close_files()

    def _close_files(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def prepare(self, spans: Sequence[_Span]) -> None:
        """See :class:`_Source`."""
        if len(self._descriptors) > _MAX_OPEN_FILES:
            self._close_files()
        for path, start, stop in spans:
            if path not in self._descriptors:
                self._descriptors[path] = self._open_file(path)
                if self._at_random and hasattr(os, "posix_fadvise"):
                    # As the engine does: otherwise the system reads ahead after each chunk.
                    os.posix_fadvise(self._descriptors[path], 0, 0, os.POSIX_FADV_RANDOM)
                elif not self._at_random:
                    drop_pages(self._descriptors[path])
            if self._at_random:
                first = max(0, start - _PAGE_BYTES)
                drop_pages(self._descriptors[path], first, stop + _PAGE_BYTES - first)

    def read(self, spans: Sequence[_Span]) -> int:
        """See :class:`_Source`."""
        if len(spans) == 1:
            return self._read_one(spans[0])
        return sum(self._pool.map(self._read_one, spans))

    def _read_one(self, span: _Span) -> int:
        path, start, stop = span
        return len(os.pread(self._descriptors[path], stop - start, start))

    def disk_bytes(self) -> int | None:
        """See :class:`_Source`."""
        return disk_bytes()


class _Link:
    """Reads with one request for each span, all at once.

    Parameters
    ----------
    objects
        The objects of a remote store.
    """

    def __init__(self, objects: RemoteObjects) -> None:
        self._objects = objects

    def prepare(self, spans: Sequence[_Span]) -> None:
        """See :class:`_Source`."""

    def read(self, spans: Sequence[_Span]) -> int:
        """See :class:`_Source`."""
        with self._objects.ranges(spans) as data:
            return sum(memoryview(part).nbytes for part in data)

    def disk_bytes(self) -> int | None:
        """See :class:`_Source`."""
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """What to read in one order."""

    order: Order
    source: _Source
    spans: Iterator[_Span]
    at_once: int
    """Largest number of requests at once."""


def _disk_runs(
    stack: ExitStack,
    open_file: Callable[[str], int],
    pieces: Iterator[_Span],
    chunks: Iterable[_Span],
) -> tuple[_Run, ...]:
    """Return what to read from a disk; the stack closes its files."""
    in_order = stack.enter_context(_Disk(open_file, at_random=False))
    at_random = stack.enter_context(_Disk(open_file, at_random=True))
    return (
        _Run("sequential", in_order, pieces, 1),
        _Run("random", at_random, iter(chunks), _DISK_REQUESTS),
    )


def _measure_all(runs: Sequence[_Run], seconds: float, on_seconds: OnSeconds) -> tuple[Speed, ...]:
    """Measure some runs, each for the same time."""
    run_s = seconds / len(runs)

    def report(number: int, so_far_s: float) -> None:
        on_seconds(number * run_s + so_far_s)

    speeds = [_measure(run, run_s, partial(report, number)) for number, run in enumerate(runs)]
    on_seconds(seconds)  # with enough bytes, runs end before their time is up
    return tuple(speeds)


def _measure(run: _Run, seconds: float, on_seconds: OnSeconds) -> Speed:
    """Read until the time is up, or enough bytes are read.

    The first request is alone, so that it is over soon on a slow link.
    """
    n_bytes = n_requests = 0
    took_s, answer_s, size, source = 0.0, math.inf, 1, run.source
    began_s, disk_before = time.perf_counter(), source.disk_bytes()
    while group := tuple(islice(run.spans, size)):
        source.prepare(group)
        before_s = time.perf_counter()
        n_bytes += source.read(group)
        now_s = time.perf_counter()
        took_s, answer_s = took_s + now_s - before_s, min(answer_s, now_s - before_s)
        n_requests += len(group)
        on_seconds(min(seconds, now_s - began_s))
        if now_s - began_s >= seconds or n_bytes >= _MAX_BYTES:
            break
        if now_s - before_s < _SHORT * seconds:
            size = min(2 * size, run.at_once)
    share = share_from_disk(disk_before, source.disk_bytes(), n_bytes)
    answer_s = answer_s if n_requests else 0.0
    return Speed(run.order, n_bytes, n_requests, took_s, answer_s, share)


def _write(file: IO[bytes], seconds: float, on_seconds: OnSeconds) -> Speed:
    """Write bytes that no file system can compress, and wait until they are on the disk."""
    # Writing waits now and then, so that not all of it waits at the end.
    noise = np.random.default_rng(0).bytes(16 * _DISK_PIECE_BYTES)
    n_bytes, answer_s, began_s = 0, 0.0, time.perf_counter()
    while n_bytes < _FILE_BYTES and time.perf_counter() - began_s < seconds:
        n_bytes += file.write(noise)
        os.fsync(file.fileno())
        answer_s = answer_s or time.perf_counter() - began_s
        on_seconds(min(seconds, time.perf_counter() - began_s))
    took_s = time.perf_counter() - began_s
    n_pieces = n_bytes // _DISK_PIECE_BYTES
    return Speed("write", n_pieces * _DISK_PIECE_BYTES, n_pieces, took_s, answer_s, None)


def _chunks(arrays: Sequence[ArraySpec], reader: StoreReader) -> list[_Span]:
    """Return where encoded chunks in the middle of some arrays lie, by the manifests of scans."""
    locator = ChunkLocator(reader.objects.name)
    spans: list[_Span] = []
    for array in arrays:
        locations = locator.locate(plan_reads([(array, _middle(array))]))
        stored = locations.ranges_of(np.flatnonzero(locations.size))
        spans += [(item.shard.path, item.start, item.stop) for item in stored]
    return spans


def _middle(array: ArraySpec) -> Box:
    """Return whole chunks in the middle of an array, at most a few along each axis."""
    sides = zip(array.shape_zyx, array.chunk_shape_zyx, strict=True)
    (z, depth), (y, height), (x, width) = (
        ((n - min(n, _CHUNKS_ALONG_AXIS * c)) // 2 // c * c, min(n, _CHUNKS_ALONG_AXIS * c))
        for n, c in sides
    )
    return Box.at((z, y, x), (depth, height, width))


def _pieces(arrays: Iterable[ArraySpec], size: int) -> Iterator[_Span]:
    """Yield where the bytes of the shards of some arrays lie, one piece after the other."""
    for array in arrays:
        for shard, n_bytes in array.shard_sizes.items():
            for start in range(0, n_bytes, size):
                yield array.shard_path(shard), start, min(start + size, n_bytes)
