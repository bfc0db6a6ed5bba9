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
class Turn:
    """The way in which a reader is called."""

    callers: int = 1
    """Number of threads that read in parallel."""
    per_call: int = 1
    """Number of patches per call."""


@dataclass(frozen=True, slots=True)
class Located:
    """A patch that a stream has drawn."""

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
    kept_bytes: int = 0
    """Bound of its cache."""

    def rate(self, kind: str, seed: int, seconds: float, turn: Turn) -> tuple[int, float]:
        """Read for about ``seconds``; return patches and seconds."""
        wanted = draws(kind, self.data.shape_zyx, self.data.scans, seed, _DRAWN)
        tickets = itertools.count()
        done = [0] * turn.callers
        started = time.perf_counter()

        def work(caller: int) -> None:
            while True:
                first = next(tickets) * turn.per_call % _DRAWN
                self.read(wanted[first : first + turn.per_call])
                done[caller] += turn.per_call
                if time.perf_counter() - started >= seconds:
                    return

        _together(work, turn.callers)
        return sum(done), time.perf_counter() - started

    def check(self, kind: str) -> None:
        """Compare patches, including those at corners, with the uncompressed voxels."""
        shape = self.data.shape_zyx
        drawn = draws(kind, shape, self.data.scans, 7, 2)
        size = size_zyx(kind, shape)
        far = type(drawn[0].box).at(tuple(np.subtract(shape, size).tolist()), size)
        wanted = [Draw(self.data.scans - 1, far), *drawn, drawn[0]]
        expected = self.data.voxels()
        found = list(self.read(wanted))
        for draw, pair in zip(wanted, found, strict=True):
            for name, values, truth, dtype in zip(ARRAYS, pair, expected, self.dtypes, strict=True):
                _compare(f"{name} at {draw.box}", values, truth[draw.box.slices], dtype)
        if np.shares_memory(found[1][0], found[-1][0]):
            raise AssertionError("two reads share an array")

    def batch_bytes(self, kind: str, turn: Turn) -> int:
        """Return the bytes of the patches that the callers hold at once."""
        voxels = int(np.prod(size_zyx(kind, self.data.shape_zyx)))
        each = sum(np.dtype(dtype).itemsize for dtype in self.dtypes)
        return voxels * each * turn.callers * turn.per_call


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
    locate: Callable[[Any], Sequence[Located]]
    """Function that returns the positions of the patches of a batch, for the check."""
    files: Sequence[Path]
    ahead: int
    """Number of batches that may be ready when a turn begins."""
    least: int = 1
    """Fewest patches of a turn: those that are read together."""
    anew: bool = False
    """Whether each turn starts another stream."""
    held: int = 4
    """Number of batches in memory at once, to account for memory."""
    kept_bytes: int = 0
    """Bound of its cache."""
    running: dict[str, Iterator[Any]] = field(default_factory=dict)

    def rate(self, kind: str, seed: int, seconds: float, turn: Turn) -> tuple[int, float]:  # noqa: ARG002  it draws for itself
        """Read batches for about ``seconds``; return patches and seconds."""
        if self.anew:
            self.running.clear()
        started = time.perf_counter()
        stream = self._stream(kind)
        for _ in range(self.ahead):
            next(stream)
        done = 0
        if not self.anew:
            started = time.perf_counter()
        while done < self.least or time.perf_counter() - started < seconds:
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

    def batch_bytes(self, kind: str, turn: Turn) -> int:  # noqa: ARG002  it has callers of its own
        """Return the bytes of the batches that are in memory at once."""
        voxels = int(np.prod(size_zyx(kind, self.data.shape_zyx)))
        batch = self.count(next(self._stream(kind)))
        return voxels * sum(dtype.itemsize for dtype in DTYPES.values()) * batch * self.held

    def _stream(self, kind: str) -> Iterator[Any]:
        if kind not in self.running:
            self.running.clear()
            self.running[kind] = self.start(kind)
        return self.running[kind]


Reader = BoxReader | StreamReader


@dataclass(frozen=True, slots=True)
class Way:
    """One way to read: a reader with one setting, in a process of its own."""

    name: str
    peers: tuple[str, ...]
    """Peer whose settings compete, of which this is one."""
    open: Callable[[Data], Reader]
    kinds: tuple[str, ...]
    turns: tuple[Turn, ...] = (Turn(1), Turn(2))
    """Ways to call the reader, of which the fastest counts."""
    needs: tuple[str, ...] = ()
    """Module names of the required packages."""
    slow: bool = False
    """Whether its turns take seconds; it is then not tried before, and has at most two turns."""


def _compare(what: str, values: Voxels, truth: Voxels, dtype: Any, *, own: bool = True) -> None:  # noqa: ANN401  a dtype
    if values.dtype != dtype or not np.array_equal(values, truth):
        raise AssertionError(f"{what}: other voxels, or {values.dtype} instead of {dtype}")
    if own and not (values.flags.c_contiguous and values.flags.writeable):
        raise AssertionError(f"{what}: not contiguous and writable")


def _together(work: Callable[[int], None], callers: int) -> None:
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
