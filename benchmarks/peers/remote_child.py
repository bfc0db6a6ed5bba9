"""Child process that reads a remote store with one reader, and answers its parent.

All readers read the boxes that spinezarr draws. Voxels are compared outside of timed turns.
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
from peers.remote import CONFIGS, OUR_NAME, Peer, Place
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
_N_DRAWS = 4096
"""Number of patches drawn for a turn; a longer turn repeats them."""
_SHARD_PLANES = 128
"""Planes of a shard in our store; in those of the peers a shard is a whole array."""
_N_PROBLEMS = 3
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

    def matches(self, box: Box, pair: Pair) -> bool:
        """Return whether a patch has the true voxels, dtypes and shape."""
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

    def add(self, *, is_correct: bool) -> None:
        """Count a patch that was read."""
        self._counts["read"] += 1
        self._counts["wrong"] += not is_correct

    def fail(self, problem: Exception, n: int = 1) -> None:
        """Count patches that failed."""
        self._counts["failed"] += n
        if len(self._problems) < _N_PROBLEMS:
            self._problems.append(f"{type(problem).__name__}: {problem}"[:300])

    def result(self) -> dict[str, Any]:
        """Return all counts, with the seconds so far."""
        seconds = time.perf_counter() - self._started
        return {**self._counts, "seconds": seconds, "problems": self._problems}


def read_all(
    peer: Peer, draws: Iterable[Draw], in_flight: int, timeout_s: float
) -> Iterator[tuple[Draw, Pair | Exception]]:
    """Keep reads in flight, and yield each at its end; one that takes too long is an error."""
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()
    running: dict[int, tuple[Draw, float, Any]] = {}
    pending = enumerate(draws)
    while True:
        for number, draw in itertools.islice(pending, in_flight - len(running)):
            started = time.perf_counter()
            get_result = peer.start(draw, lambda number=number: ended.put(number))
            running[number] = draw, started, get_result
        if not running:
            return
        oldest = next(iter(running))
        remaining_s = running[oldest][1] + timeout_s - time.perf_counter()
        try:
            number = ended.get(timeout=max(remaining_s, 0))
        except queue.Empty:
            yield running.pop(oldest)[0], TimeoutError(f"no answer in {timeout_s:.0f} s")
            continue
        if number not in running:
            continue  # the read was given up
        draw, _, get_result = running.pop(number)
        try:
            result: Pair | Exception = get_result()
        except Exception as problem:  # noqa: BLE001  of any peer
            result = problem
        yield draw, result


class PeerServer:
    """Lets a peer read the boxes that spinezarr draws with exact shuffling."""

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
        estimated_rate: float,
        timeout_s: float,
    ) -> dict[str, Any]:
        """Read for about ``seconds``; ``estimated_rate`` is not needed."""
        del estimated_rate
        draws = list(self._draws(kind, epoch, _N_DRAWS))
        started, cores_started = time.perf_counter(), time.process_time()
        deadline = started + seconds
        n_started = itertools.count()
        timed_draws = itertools.takewhile(
            lambda _: next(n_started) < in_flight or time.perf_counter() < deadline,
            itertools.cycle(draws),
        )
        patches = 0
        for _, result in read_all(self._peer, timed_draws, in_flight, timeout_s):
            if isinstance(result, Exception):
                raise result
            patches += 1
        return _rate_of(patches, started, cores_started)

    def compare(
        self, kind: str, epoch: int, n: int, in_flight: int, timeout_s: float
    ) -> dict[str, Any]:
        """Read ``n`` patches; return how many are wrong and how many failed."""
        tally = Tally()
        draws = self._draws(kind, epoch, n)
        for draw, result in read_all(self._peer, draws, in_flight, timeout_s):
            if isinstance(result, Exception):
                tally.fail(result)
            else:
                tally.add(is_correct=self._truth.matches(draw.box, result))
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

        def read_plane(scan: int) -> None:
            for _ in self._store.slices("sagittal", n_samples=1, scans=[f"scan{scan}"]):
                pass

        with ThreadPoolExecutor(16) as threads:
            list(threads.map(read_plane, range(self._data.scans)))
        return {}

    def rate(
        self,
        *,
        kind: str,
        epoch: int,
        seconds: float,
        in_flight: int,
        estimated_rate: float,
        timeout_s: float,
    ) -> dict[str, Any]:
        """Read whole windows for about ``seconds``, at the estimated rate."""
        del in_flight  # our reader limits itself
        stream = self._stream(kind, epoch, 1 << 20)
        group_size = stream.batches_per_group * BATCH
        n = max(1, round(seconds * estimated_rate / group_size)) * group_size
        started, cores_started = time.perf_counter(), time.process_time()
        patches = 0
        for result in _iterate(replace(stream, n_samples=n), timeout_s):
            if isinstance(result, Exception):
                raise result
            patches += len(result)
        return _rate_of(patches, started, cores_started)

    def compare(
        self, kind: str, epoch: int, n: int, in_flight: int, timeout_s: float
    ) -> dict[str, Any]:
        """Read ``n`` patches; return how many are wrong and how many failed."""
        del in_flight  # our reader limits itself
        tally = Tally()
        stream = self._stream(kind, epoch, n)
        n_done = 0
        while n_done < len(stream):
            remaining = stream.partition.after(n_done, stream.batch_groups)
            for result in _iterate(replace(stream, partition=remaining), timeout_s):
                if isinstance(result, TimeoutError):
                    tally.fail(result, n - n_done * BATCH)
                    return tally.result()
                if isinstance(result, Exception):
                    lost = stream.batches_per_group - n_done % stream.batches_per_group
                    lost = min(lost, len(stream) - n_done)
                    tally.fail(result, min(lost * BATCH, n - n_done * BATCH))
                    n_done += lost
                    break
                self._compare(kind, result, tally)
                n_done += 1
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
            box = Box.at((z, y, x), pair[0].shape)
            tally.add(is_correct=self._truth.matches(box, pair))


def _rate_of(patches: int, started: float, cores_started: float) -> dict[str, Any]:
    """Return the patches of a turn, its seconds, and the core time of this process in seconds."""
    seconds = time.perf_counter() - started
    return {"patches": patches, "seconds": seconds, "core_s": time.process_time() - cores_started}


def _iterate(stream: PatchStream, timeout_s: float) -> Iterator[Batch | Exception]:
    """Iterate in a thread; yield also the error that ends it, or one if a batch takes too long."""
    results: queue.SimpleQueue[Batch | Exception | None] = queue.SimpleQueue()
    room = threading.Semaphore(1)

    def put_batches() -> None:
        try:
            for batch in stream:
                results.put(batch)
                room.acquire()  # unread batches must not pile up
        except Exception as problem:  # noqa: BLE001  the caller counts it
            results.put(problem)
        else:
            results.put(None)

    threading.Thread(target=put_batches, daemon=True).start()
    while True:
        try:
            item = results.get(timeout=timeout_s)
        except queue.Empty:
            yield TimeoutError(f"no batch in {timeout_s:.0f} s")
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
    credentials = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    place = Place(os.environ["REMOTE_URL"], *(os.environ.get(name, "") for name in credentials))
    name, *rest = sys.argv[2:]
    if name == "spinezarr":
        shuffle, *options = rest
        values = dict(option.split("=") for option in options)
        transfer = cast("Transfer", values.pop("transfer", "auto"))
        limits = {key: int(value) for key, value in values.items()}
        return OurServer(place, data, shuffle, limits, transfer)
    (store,) = rest
    config = next(config for config in CONFIGS if config.name == name)
    peer = config.open(place, data, store)
    return PeerServer(peer, data, has_indices=config.has_layouts)


if __name__ == "__main__":
    serve(start)
