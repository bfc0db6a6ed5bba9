"""The readers that a child measures: readers of given boxes, and streams with their own draws."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from draws import Draw, draws, size_zyx

from peers.data import ARRAYS, DTYPES, Data, Voxels

Pair = tuple[Voxels, Voxels]
_DRAWN = 4096
"""Number of patches drawn for a turn; further ones repeat them."""


@dataclass(frozen=True, slots=True)
class CallPattern:
    """How a reader is called."""

    callers: int = 1
    """Number of threads that read in parallel."""
    per_call: int = 1
    """Number of patches per call."""


@dataclass(frozen=True, slots=True)
class LocatedPatch:
    """A patch that a stream has drawn, with its position."""

    start_zyx: tuple[int, ...]
    image: Voxels
    label: Voxels


@dataclass(frozen=True, slots=True)
class BoxReader:
    """A reader of given boxes."""

    data: Data
    read: Callable[[Sequence[Draw]], Sequence[Pair]]
    """Function that reads boxes into new, contiguous, writable arrays that the caller owns."""
    files: Sequence[Path]
    """Files that are read; their size is that of the stored scan."""
    dtypes: tuple[Any, Any] = (DTYPES["image"], DTYPES["label"])
    cache_bytes: int = 0
    """Limit of its cache."""

    def rate(self, kind: str, seed: int, seconds: float, calls: CallPattern) -> tuple[int, float]:
        """Read for about ``seconds``; return patches and seconds."""
        drawn = draws(kind, self.data.shape_zyx, self.data.scans, seed, _DRAWN)
        call_numbers = itertools.count()
        done = [0] * calls.callers
        started = time.perf_counter()

        def work(caller: int) -> None:
            while True:
                first = next(call_numbers) * calls.per_call % _DRAWN
                self.read(drawn[first : first + calls.per_call])
                done[caller] += calls.per_call
                if time.perf_counter() - started >= seconds:
                    return

        _run_in_threads(work, calls.callers)
        return sum(done), time.perf_counter() - started

    def check(self, kind: str) -> None:
        """Compare patches, including those at corners, with the uncompressed voxels."""
        shape = self.data.shape_zyx
        drawn = draws(kind, shape, self.data.scans, 7, 2)
        size = size_zyx(kind, shape)
        last_corner = type(drawn[0].box).at(tuple(np.subtract(shape, size).tolist()), size)
        checked = [Draw(self.data.scans - 1, last_corner), *drawn, drawn[0]]
        expected = self.data.voxels()
        pairs = list(self.read(checked))
        for draw, pair in zip(checked, pairs, strict=True):
            for name, values, truth, dtype in zip(ARRAYS, pair, expected, self.dtypes, strict=True):
                _compare(f"{name} at {draw.box}", values, truth[draw.box.slices], dtype)
        if np.shares_memory(pairs[1][0], pairs[-1][0]):
            raise AssertionError("two reads share an array")

    def batch_bytes(self, kind: str, calls: CallPattern) -> int:
        """Return the bytes of the patches that the callers hold at once."""
        voxels = int(np.prod(size_zyx(kind, self.data.shape_zyx)))
        each = sum(np.dtype(dtype).itemsize for dtype in self.dtypes)
        return voxels * each * calls.callers * calls.per_call


@dataclass(frozen=True, slots=True)
class StreamReader:
    """A stream that draws uniformly itself, and yields batches.

    A stream continues between turns; batches read ahead while it waited are not counted. A stream
    that reads whole volumes ahead is started again for each turn, and its start counts.
    """

    data: Data
    start: Callable[[str], Iterator[Any]]
    """Function that starts an endless stream of batches of a kind."""
    count: Callable[[Any], int]
    """Function that returns the number of patches in a batch."""
    locate: Callable[[Any], Sequence[LocatedPatch]]
    """Function that returns the positions of the patches of a batch, for the check."""
    files: Sequence[Path]
    ahead: int
    """Number of batches that may be ready when a turn begins."""
    min_patches: int = 1
    """Fewest patches of a turn: those that are read together."""
    restarts: bool = False
    """Whether each turn starts another stream."""
    n_batches_held: int = 4
    """Number of batches in memory at once, to account for memory."""
    cache_bytes: int = 0
    """Limit of its cache."""
    running: dict[str, Iterator[Any]] = field(default_factory=dict)

    def rate(self, kind: str, seed: int, seconds: float, calls: CallPattern) -> tuple[int, float]:  # noqa: ARG002  it draws for itself
        """Read batches for about ``seconds``; return patches and seconds."""
        if self.restarts:
            self.running.clear()
        started = time.perf_counter()
        stream = self._stream(kind)
        for _ in range(self.ahead):
            next(stream)
        done = 0
        if not self.restarts:
            started = time.perf_counter()
        while done < self.min_patches or time.perf_counter() - started < seconds:
            done += self.count(next(stream))
        return done, time.perf_counter() - started

    def check(self, kind: str) -> None:
        """Compare the patches of a batch with the uncompressed voxels."""
        expected = self.data.voxels()
        size = size_zyx(kind, self.data.shape_zyx)
        for patch in self.locate(next(self._stream(kind))):
            at = tuple(slice(a, a + n) for a, n in zip(patch.start_zyx, size, strict=True))
            for name, values, truth in zip(
                ARRAYS, (patch.image, patch.label), expected, strict=True
            ):
                _compare(f"{name} at {patch.start_zyx}", values, truth[at], values.dtype, own=False)

    def batch_bytes(self, kind: str, calls: CallPattern) -> int:  # noqa: ARG002  it has callers of its own
        """Return the bytes of the batches that are in memory at once."""
        voxels = int(np.prod(size_zyx(kind, self.data.shape_zyx)))
        batch = self.count(next(self._stream(kind)))
        voxel_bytes = sum(dtype.itemsize for dtype in DTYPES.values())
        return voxels * voxel_bytes * batch * self.n_batches_held

    def _stream(self, kind: str) -> Iterator[Any]:
        if kind not in self.running:
            self.running.clear()
            self.running[kind] = self.start(kind)
        return self.running[kind]


Reader = BoxReader | StreamReader


@dataclass(frozen=True, slots=True)
class ReaderConfig:
    """A reader with one setting, which runs in a process of its own."""

    name: str
    peers: tuple[str, ...]
    """Peers of which this is a setting; the settings of a peer compete."""
    open: Callable[[Data], Reader]
    kinds: tuple[str, ...]
    call_patterns: tuple[CallPattern, ...] = (CallPattern(1), CallPattern(2))
    """Call patterns to try; the fastest counts."""
    packages: tuple[str, ...] = ()
    """Module names of the required packages."""
    slow: bool = False
    """Whether its turns take seconds; it is then not tried before, and has at most two turns."""


def _compare(what: str, values: Voxels, truth: Voxels, dtype: Any, *, own: bool = True) -> None:  # noqa: ANN401  a dtype
    if values.dtype != dtype or not np.array_equal(values, truth):
        raise AssertionError(f"{what}: other voxels, or {values.dtype} instead of {dtype}")
    if own and not (values.flags.c_contiguous and values.flags.writeable):
        raise AssertionError(f"{what}: not contiguous and writable")


def _run_in_threads(work: Callable[[int], None], callers: int) -> None:
    """Run ``work`` in several threads, of which the first is this one."""
    problems: list[BaseException] = []

    def guarded(caller: int) -> None:
        try:
            work(caller)
        except BaseException as problem:  # noqa: BLE001  raised again below
            problems.append(problem)

    threads = [threading.Thread(target=guarded, args=(i,)) for i in range(1, callers)]
    for thread in threads:
        thread.start()
    guarded(0)
    for thread in threads:
        thread.join()
    if problems:
        raise problems[0]
