"""How does a child process answer its parent about one reader of a remote store?

All readers read the boxes that spinezarr draws. Outside of timed turns, all voxels are compared.
"""

import itertools
import os
import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from draws import Draw

import spinezarr
from peers.child import serve
from peers.data import DTYPES, Data
from peers.reader import Pair
from peers.remote import OUR_NAME, CONFIGS, Peer, Place
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.remote.settings import RemoteSettings
from spinezarr.stream.batch import Batch
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read.batch_client import Transfer

SIZES: dict[str, ShapeZYX] = {
    "128^3": (128, 128, 128),
    "96^3": (96, 96, 96),
    "64^3": (64, 64, 64),
}
AXIAL = "axial"
KINDS = (*SIZES, AXIAL)
BATCH = 4
_DRAWN = 4096
"""Number of patches drawn for a turn; further ones repeat them."""
_SHARD_PLANES = 128
"""Planes of a shard in our store; in those of the peers a shard is a whole array."""
_TOLD = 3
"""Number of problems whose text is kept."""


def stream_of(
    store: spinezarr.Store,
    kind: str,
    shape_zyx: ShapeZYX,
    n: int,
    **options: Any,  # noqa: ANN401
) -> PatchStream:
    """Return the stream of a kind, with patches that are not larger than the volume."""
    if kind == AXIAL:
        return store.slices(kind, batch_size=BATCH, n_samples=n, **options)
    z, y, x = map(min, SIZES[kind], shape_zyx)
    return store.patches((z, y, x), batch_size=BATCH, n_samples=n, **options)


class Truth:
    """The true voxels."""

    def __init__(self, data: Data) -> None:
        self._arrays = data.voxels()

    def has(self, box: Box, pair: Pair) -> bool:
        """Return whether a patch is right, including its type and shape."""
        return all(
            values.dtype == dtype and np.array_equal(values, truth[box.slices])
            for values, truth, dtype in zip(pair, self._arrays, DTYPES.values(), strict=True)
        )


class Tally:
    """Counts the results of a run in which reads may fail."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._counts = {"read": 0, "wrong": 0, "failed": 0}
        self._problems: list[str] = []

    def add(self, right: bool) -> None:  # noqa: FBT001  what was found
        """Count a patch that was read."""
        self._counts["read"] += 1
        self._counts["wrong"] += not right

    def fail(self, problem: Exception, n: int = 1) -> None:
        """Count patches that failed."""
        self._counts["failed"] += n
        if len(self._problems) < _TOLD:
            self._problems.append(f"{type(problem).__name__}: {problem}"[:300])

    def result(self) -> dict[str, Any]:
        """Return all counts, with the seconds so far."""
        seconds = time.perf_counter() - self._started
        return {**self._counts, "seconds": seconds, "problems": self._problems}


def in_flow(
    peer: Peer, draws: Iterable[Draw], in_flight: int, patience_s: float
) -> Iterator[tuple[Draw, Pair | Exception]]:
    """Keep reads in flight, and yield each at its end; one that takes too long is an error."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    running: dict[int, tuple[Draw, float, Any]] = {}
    waiting = enumerate(draws)
    while True:
        for number, draw in itertools.islice(waiting, in_flight - len(running)):
            started = time.perf_counter()
            take = peer.start(draw, lambda number=number: ended.put(number))
            running[number] = draw, started, take
        if not running:
            return
        oldest = next(iter(running))
        left = running[oldest][1] + patience_s - time.perf_counter()
        try:
            number = ended.get(timeout=max(left, 0))
        except queue.Empty:
            yield running.pop(oldest)[0], TimeoutError(f"no answer in {patience_s:.0f} s")
            continue
        if number not in running:
            continue  # the read was given up
        draw, _, take = running.pop(number)
        try:
            found: Pair | Exception = take()
        except Exception as problem:  # noqa: BLE001  of any peer
            found = problem
        yield draw, found


class PeerServer:
    """Lets a peer read the boxes of our exact draws."""

    def __init__(self, peer: Peer, data: Data, *, has_indices: bool) -> None:
        self._peer = peer
        self._data = data
        self._has_indices = has_indices
        self._truth = Truth(data)
        self._store = spinezarr.open(data.folder / OUR_NAME)

    def warm(self) -> dict[str, Any]:
        """Read a voxel of every shard, to load metadata and shard indices."""
        planes = range(0, self._data.shape_zyx[0], _SHARD_PLANES) if self._has_indices else ()
        for scan, z in itertools.product(range(self._data.scans), planes):
            self._peer.start(Draw(scan, Box.at((z, 0, 0), (1, 1, 1))), lambda: None)()
        return {}

    def rate(
        self,
        *,
        kind: str,
        epoch: int,
        seconds: float,
        in_flight: int,
        guess: float,
        patience_s: float,
    ) -> dict[str, Any]:
        """Read for about ``seconds``; ``guess`` is not needed."""
        del guess
        draws = list(self._draws(kind, epoch, _DRAWN))
        started = time.perf_counter()
        until = started + seconds
        first = itertools.count()
        timed = itertools.takewhile(
            lambda _: next(first) < in_flight or time.perf_counter() < until,
            itertools.cycle(draws),
        )
        patches = 0
        for _, found in in_flow(self._peer, timed, in_flight, patience_s):
            if isinstance(found, Exception):
                raise found
            patches += 1
        return {"patches": patches, "seconds": time.perf_counter() - started}

    def compare(
        self, kind: str, epoch: int, n: int, in_flight: int, patience_s: float
    ) -> dict[str, Any]:
        """Read ``n`` patches; return how many are wrong and how many failed."""
        tally = Tally()
        draws = self._draws(kind, epoch, n)
        for draw, found in in_flow(self._peer, draws, in_flight, patience_s):
            if isinstance(found, Exception):
                tally.fail(found)
            else:
                tally.add(self._truth.has(draw.box, found))
        return tally.result()

    def _draws(self, kind: str, epoch: int, n: int) -> Iterator[Draw]:
        stream = stream_of(self._store, kind, self._data.shape_zyx, n).at_epoch(epoch)
        for request in map(stream.request, range(n)):
            yield Draw(int(request.scan_id.removeprefix("scan")), request.box)


LIMITS = {
    "gap": ("least_gap_bytes", "most_gap_bytes"),
    "in_flight": ("requests_in_flight",),
    "run": ("longest_range_bytes",),
    "small": ("whole_shard_bytes",),
}
"""Fields of :class:`spinezarr.RemoteSettings` for each limit."""


class OurServer:
    """Iterates over the streams of a store, like a user."""

    def __init__(
        self, place: Place, data: Data, shuffle: str, limits: dict[str, int],
        transfer: Transfer = "auto",
    ) -> None:  # fmt: skip
        settings = {field: value for name, value in limits.items() for field in LIMITS[name]}
        url = f"{place.url}/{OUR_NAME}"
        self._store = spinezarr.open(
            url, storage_options=place.options, remote=RemoteSettings(**settings), transfer=transfer
        )
        self._data = data
        self._shuffle = shuffle
        self._truth = Truth(data)

    def warm(self) -> dict[str, Any]:
        """Read a plane across all shards of every scan."""

        def see(scan: int) -> None:
            for _ in self._store.slices("sagittal", n_samples=1, scans=[f"scan{scan}"]):
                pass

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(see, range(self._data.scans)))
        return {}

    def rate(
        self,
        *,
        kind: str,
        epoch: int,
        seconds: float,
        in_flight: int,
        guess: float,
        patience_s: float,
    ) -> dict[str, Any]:
        """Read as many batches as take about ``seconds``, in whole windows."""
        del in_flight  # our reader limits itself
        stream = self._stream(kind, epoch, 1 << 20)
        unit = stream.batches_per_group * BATCH
        n = max(1, round(seconds * guess / unit)) * unit
        started = time.perf_counter()
        patches = 0
        for found in _given(replace(stream, n_samples=n), patience_s):
            if isinstance(found, Exception):
                raise found
            patches += len(found)
        return {"patches": patches, "seconds": time.perf_counter() - started}

    def compare(
        self, kind: str, epoch: int, n: int, in_flight: int, patience_s: float
    ) -> dict[str, Any]:
        """Read ``n`` patches; return how many are wrong and how many failed."""
        del in_flight  # our reader limits itself
        tally = Tally()
        stream = self._stream(kind, epoch, n)
        given = 0
        while given < len(stream):
            share = stream.partition.after(given, stream.batch_groups)
            for found in _given(replace(stream, partition=share), patience_s):
                if isinstance(found, TimeoutError):
                    tally.fail(found, n - given * BATCH)
                    return tally.result()
                if isinstance(found, Exception):
                    lost = stream.batches_per_group - given % stream.batches_per_group
                    lost = min(lost, len(stream) - given)
                    tally.fail(found, min(lost * BATCH, n - given * BATCH))
                    given += lost
                    break
                self._compare(kind, found, tally)
                given += 1
        return tally.result()

    def rank(self, kind: str, index: int, count: int, n: int) -> dict[str, Any]:
        """Read the partition of a rank; return its samples and their times."""
        indices: list[int] = []
        started = time.time()
        for batch in self._stream(kind, 0, n).shard(index, count):
            indices += batch.index.tolist()
        return {"indices": indices, "started": started, "ended": time.time()}

    def compare_rank(self, kind: str, index: int, count: int, n: int) -> dict[str, Any]:
        """Read the partition of a rank again, and compare it."""
        tally = Tally()
        for batch in self._stream(kind, 0, n).shard(index, count):
            self._compare(kind, batch, tally)
        return tally.result()

    def _stream(self, kind: str, epoch: int, n: int) -> PatchStream:
        stream = stream_of(self._store, kind, self._data.shape_zyx, n, shuffle=self._shuffle)
        return stream.at_epoch(epoch)

    def _compare(self, kind: str, batch: Batch, tally: Tally) -> None:
        if batch.label is None:
            raise AssertionError("a batch without masks")
        for image, label, start in zip(batch.image, batch.label, batch.start_zyx, strict=True):
            pair = (image, label)
            if kind == AXIAL:
                pair = (image[None], label[None])
            z, y, x = start.tolist()
            tally.add(self._truth.has(Box.at((z, y, x), pair[0].shape), pair))


def _given(stream: PatchStream, patience_s: float) -> Iterator[Batch | Exception]:
    """Iterate in a thread; yield also the error that ends it, or one if a batch takes too long."""
    found: queue.SimpleQueue[Batch | Exception | None] = queue.SimpleQueue()
    room = threading.Semaphore(1)

    def iterate() -> None:
        try:
            for batch in stream:
                found.put(batch)
                room.acquire()  # unread batches must not pile up
        except Exception as problem:  # noqa: BLE001  the caller counts it
            found.put(problem)
        else:
            found.put(None)

    threading.Thread(target=iterate, daemon=True).start()
    while True:
        try:
            item = found.get(timeout=patience_s)
        except queue.Empty:
            yield TimeoutError(f"no batch in {patience_s:.0f} s")
            return
        if item is None:
            return
        yield item
        if isinstance(item, Exception):
            return
        room.release()


def start() -> PeerServer | OurServer:
    """Open the reader that the parent names."""
    data = Data.open(Path(sys.argv[1]))
    account = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    place = Place(os.environ["REMOTE_URL"], *(os.environ.get(name, "") for name in account))
    name, *rest = sys.argv[2:]
    if name == "spinezarr":
        shuffle, *options = rest
        named = dict(option.split("=") for option in options)
        transfer = cast("Transfer", named.pop("transfer", "auto"))
        limits = {key: int(value) for key, value in named.items()}
        return OurServer(place, data, shuffle, limits, transfer)
    (store,) = rest
    config = next(config for config in CONFIGS if config.name == name)
    peer = config.open(place, data, store)
    return PeerServer(peer, data, has_indices=config.has_layouts)


if __name__ == "__main__":
    serve(start)
