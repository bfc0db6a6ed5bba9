"""How many patches does a stream give in a second, how soon the first, and what do they cost?"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Timer
from typing import Final, Literal

import numpy as np

from spinezarr.measure.bound import Bound, find_bound
from spinezarr.measure.page_cache import disk_bytes, drop_pages, share_from_disk
from spinezarr.measure.resource_use import ResourceUse
from spinezarr.measure.storage_speed import OnSeconds
from spinezarr.store.objects import LocalObjects
from spinezarr.stream.epoch.batch_iterator import BatchIterator
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for

__all__ = ["FirstBatch", "PatchCost", "PatchRate", "measure_stream"]

_FIRST_BATCHES: Final = 3
"""Number of first batches; their median counts."""
_FIRST_SHARE: Final = 0.25
"""Largest part of the time for first batches."""
_EXPLAINED: Final = 8
"""Number of batches whose cost is counted."""
_COLD: Final = 0.9
"""A batch counts as cold if this share of its bytes came from the disk."""


@dataclass(frozen=True, slots=True)
class FirstBatch:
    """A batch that is read when none of its bytes is in this program."""

    seconds: float
    source: Literal["disk", "link", "memory", "unknown"]
    """Where its bytes came from: ``"memory"`` is the page cache, so the batch was not cold."""

    @property
    def is_cold(self) -> bool:
        """Whether its bytes came from the disk, or over the link."""
        return self.source in {"disk", "link"}


@dataclass(frozen=True, slots=True)
class PatchCost:
    """What reading a patch takes by its plan, on average; see ``PatchStream.explain``."""

    voxel_bytes: float
    """Bytes of its voxels inside the scan, image and mask."""
    fetched_bytes: float
    """Bytes of encoded chunks to fetch."""
    requests: float
    """Requests, or system calls on a disk."""
    amplification: float
    """Bytes of voxels in the fetched blocks for each byte of voxels of the patch."""
    transfer: str
    """How a spinezarr server sends the patches; empty if the store is on no such server."""


@dataclass(frozen=True, slots=True)
class PatchRate:
    """How fast patches of one kind come."""

    kind: str
    """Such as ``64^3`` or ``axial``."""
    size_zyx: tuple[int, int, int]
    batch_size: int
    scans: int
    padded_scans: int
    """Number of scans that are smaller than the patch along an axis."""
    patches: int
    """Number of patches that came in the time."""
    seconds: float
    """Time until the last of them came."""
    first_batch: FirstBatch | None
    """None if none came in the time."""
    cost: PatchCost | None
    """None if no batch came in the time."""
    bound: Bound

    @property
    def per_s(self) -> float:
        """Patches in a second."""
        return self.patches / self.seconds if self.patches else 0.0


def measure_stream(
    kind: str,
    stream: PatchStream,
    seconds: float,
    *,
    alone_bytes_per_s: float | None,
    on_seconds: OnSeconds,
) -> PatchRate:
    """Measure first batches, and then the rate of a stream.

    The stream reads without a cache.

    Parameters
    ----------
    kind
        Name of the kind of patch.
    stream
        An epoch that does not end.
    seconds
        Time for everything. Reads of a remote store are given up when it is over.
    alone_bytes_per_s
        Speed of the disk or link alone; None if it is not known.
    on_seconds
        Called after each batch.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged.
    OSError
        If the store cannot be read.
    """
    objects, began_s = stream.reader.objects, time.perf_counter()
    first_batch = _first_batch(stream, seconds * _FIRST_SHARE)
    on_seconds(min(seconds, time.perf_counter() - began_s))
    stream = _without_cache(stream)
    before = ResourceUse.now(objects)
    left_s = max(seconds / 2, seconds - (time.perf_counter() - began_s))
    n_batches = n_patches = 0
    took_s = 0.0
    with _batches(stream, left_s) as batches:
        for batch in batches:
            n_batches, n_patches = n_batches + 1, n_patches + len(batch)
            del batch  # the stream uses its memory again
            now_s = time.perf_counter()
            took_s = now_s - before.seconds
            on_seconds(min(seconds, now_s - began_s))
            if took_s >= left_s:
                break
        use = ResourceUse.now(objects).since(before)
    shapes = np.asarray(stream.reader.columns["shape_zyx"])
    ids = np.asarray(stream.reader.columns["scan"]).tolist()
    drawn = np.isin(ids, stream.scan_ids)
    size_zyx = stream.batch_reader.size_zyx
    return PatchRate(
        kind=kind,
        size_zyx=size_zyx,
        batch_size=stream.batch_size,
        scans=len(stream.scan_ids),
        padded_scans=int((shapes[drawn] < size_zyx).any(axis=1).sum()),
        patches=n_patches,
        seconds=took_s,
        first_batch=first_batch,
        cost=_cost(_without_cache(stream), min(n_batches, _EXPLAINED)),
        bound=find_bound(
            use,
            cores=stream.threads,
            is_remote=objects.is_remote,
            alone_bytes_per_s=alone_bytes_per_s,
        ),
    )


def _without_cache(stream: PatchStream) -> PatchStream:
    """Return the same stream with an engine that has read nothing yet, and keeps no chunks."""
    engine = Engine(fetcher_for(stream.reader.objects))
    return replace(stream, batch_reader=replace(stream.batch_reader, engine=engine))


@contextmanager
def _batches(stream: PatchStream, seconds: float) -> Iterator[BatchIterator]:
    """Yield an iterator over a stream. That of a remote store ends when the time is over.

    A batch from a disk is never given up, because it does not take long.
    """
    batches = iter(stream)
    timer = Timer(seconds, batches.close)
    timer.daemon = True
    if stream.reader.objects.is_remote:
        timer.start()
    try:
        yield batches
    finally:
        timer.cancel()
        batches.close()
        if timer.is_alive():
            timer.join()


def _first_batch(stream: PatchStream, seconds: float) -> FirstBatch | None:
    """Read a few batches, each as the first of a stream, without their pages in memory."""
    began_s = time.perf_counter()
    found: list[FirstBatch] = []
    for number in range(_FIRST_BATCHES):
        left_s = seconds - (time.perf_counter() - began_s)
        if found and left_s <= 0:
            break
        first = _read_first(stream.at_epoch(number), max(left_s, seconds / 2))
        if first is not None:
            found.append(first)
    if not found:
        return None
    found.sort(key=lambda first: first.seconds)
    warm = next((first for first in found if not first.is_cold), None)
    return warm or found[len(found) // 2]


def _read_first(stream: PatchStream, seconds: float) -> FirstBatch | None:
    # The first batch alone: nothing is read ahead of it.
    stream = _without_cache(replace(stream, n_samples=stream.batch_size))
    fetched = stream.explain().fetched_bytes  # reads the metadata of its scans
    objects = stream.reader.objects
    if isinstance(objects, LocalObjects):
        _drop_scans(stream)
    disk_before, began_s = disk_bytes(), time.perf_counter()
    with _batches(stream, seconds) as batches:
        if next(batches, None) is None:
            return None
        took_s = time.perf_counter() - began_s
    if objects.is_remote:
        return FirstBatch(took_s, "link")
    share = share_from_disk(disk_before, disk_bytes(), fetched)
    if share is None:
        return FirstBatch(took_s, "unknown")
    return FirstBatch(took_s, "disk" if share >= _COLD else "memory")


def _drop_scans(stream: PatchStream) -> None:
    """Drop the pages of the shards that the first batch may need."""
    reader = stream.reader
    objects = reader.objects
    if not isinstance(objects, LocalObjects):
        return
    for scan_id in {request.scan_id for request in stream.draw(range(stream.batch_size))}:
        for array in reader.scan(scan_id).arrays:
            for shard in array.shard_sizes:
                with objects.folder.opened(array.shard_path(shard)) as file:
                    drop_pages(file.fileno())


def _cost(stream: PatchStream, n_batches: int) -> PatchCost | None:
    """Return the mean cost of a patch of the first batches."""
    if not n_batches:
        return None
    summaries = [stream.explain(number) for number in range(n_batches)]
    n_patches = n_batches * stream.batch_size
    voxel_bytes = sum(summary.voxel_bytes for summary in summaries)
    decoded = sum(summary.decoded_bytes for summary in summaries)
    return PatchCost(
        voxel_bytes=voxel_bytes / n_patches,
        fetched_bytes=sum(summary.fetched_bytes for summary in summaries) / n_patches,
        requests=sum(summary.requests for summary in summaries) / n_patches,
        amplification=decoded / voxel_bytes if voxel_bytes else 0.0,
        transfer=summaries[-1].transfer,
    )
