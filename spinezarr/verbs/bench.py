"""How fast is a store read on this machine, and what bounds that?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from spinezarr.errors import UsageError
from spinezarr.geometry import SLICE_AXIS
from spinezarr.measure.machine import free_memory_bytes
from spinezarr.measure.patch_rates import PatchRate, measure_stream
from spinezarr.measure.storage_speed import OnSeconds, Speed, measure_store
from spinezarr.processors import cpu_count
from spinezarr.progress import OnProgress, Progress
from spinezarr.redaction import redact_url
from spinezarr.store.layout import LABEL
from spinezarr.store.mask_columns import has_masks
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read.native import kernel
from spinezarr.verbs.sizes import arrow_bytes, uncompressed_bytes

__all__ = ["MIN_SECONDS", "Benchmark", "MakeStream", "StoreSizes", "bench_store"]

MIN_SECONDS: Final = 1.0
_SIDES: Final = (64, 96, 128)
"""Sides of the 3D patches, in voxels."""
_BATCH_SIZE: Final = 4
_ENDLESS: Final = 1_000_000_000
"""Number of samples of an epoch that does not end in the time."""
_RAW_SHARE: Final = 0.1
"""Part of the time for reads that decode nothing."""
_MAX_RAW_S: Final = 6.0
_BATCHES_IN_TIME: Final = 16
"""Batches have one patch if the disk or link is too slow for so many uncompressed batches."""
_PREFETCH_DIVISOR: Final = 8
"""Part of the free memory that may be read ahead."""


MakeStream = Callable[..., PatchStream]
"""Makes a stream: :meth:`spinezarr.Store.patches` or :meth:`spinezarr.Store.slices`."""


@dataclass(frozen=True, slots=True)
class StoreSizes:
    """Bytes of the chosen scans in several forms."""

    stored_bytes: int
    source_bytes: int | None
    """Bytes of the source files; None if the scan table does not know them."""
    arrow_bytes: int
    """Bytes of an Arrow dataset of float32 images and int32 masks, uncompressed."""
    uncompressed_bytes: int
    """Bytes of the voxels in their stored types."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """All figures of a store on this machine."""

    url: str
    scans: int
    scans_without_mask: int
    """Number of scans that were left out because they have no mask, as a training does."""
    with_masks: bool
    """Whether masks were read; no scan has one if not."""
    cores: int
    has_kernel: bool
    is_remote: bool
    sizes: StoreSizes
    speeds: tuple[Speed, ...]
    """What disk or link give alone."""
    rates: tuple[PatchRate, ...]

    def to_json(self) -> dict[str, Any]:
        """Return all figures as plain values."""
        values = asdict(self)
        for speed, row in zip(self.speeds, values["speeds"], strict=True):
            row |= {"bytes_per_s": speed.bytes_per_s, "requests_per_s": speed.requests_per_s}
        for rate, row in zip(self.rates, values["rates"], strict=True):
            row["per_s"] = rate.per_s
        return values


def bench_store(
    reader: StoreReader,
    selection: ScanSelection,
    seconds: float,
    *,
    patches: MakeStream,
    slices: MakeStream,
    on_progress: OnProgress,
) -> Benchmark:
    """Measure how fast a store is read; see :meth:`spinezarr.Store.bench`.

    ``patches`` and ``slices`` make the streams.
    """
    if not seconds >= MIN_SECONDS:
        raise UsageError(f"seconds {seconds:g}: must be at least {MIN_SECONDS:g}; try 10.")
    rows = selection.rows(reader.columns, reader.name)
    table = reader.columns.take(rows)
    if not len(table):
        raise UsageError(
            f"{reader.name}: there are no scans to read. 'spinezarr info' counts those of the "
            "store, and 'spinezarr ingest' adds some."
        )
    labeled = has_masks(table, (LABEL,))
    with_masks = bool(labeled.any())
    read = table.take(np.flatnonzero(labeled)) if with_masks else table
    scan_ids: list[str] = read["scan"].tolist()
    clock = _Clock(on_progress, seconds)
    raw_s = min(_RAW_SHARE * seconds, _MAX_RAW_S)
    speeds = measure_store(reader, scan_ids, raw_s, clock.of("reads alone"))
    clock.advance(raw_s)
    options = {
        "scans": scan_ids,
        "labels": with_masks,
        "nonfinite": "keep",
        "n_samples": _ENDLESS,
    }
    kinds: Sequence[tuple[str, MakeStream, Any]] = (
        *((f"{side}^3", patches, side) for side in _SIDES),
        *((plane, slices, plane) for plane in SLICE_AXIS),
    )
    alone = _alone_bytes_per_s(speeds, is_remote=reader.objects.is_remote)
    kind_s = (seconds - raw_s) / len(kinds)
    rates = []
    for kind, make, size in kinds:
        rates.append(
            measure_stream(
                kind,
                _stream(make, size, options, kind_s, alone),
                kind_s,
                alone_bytes_per_s=alone,
                on_seconds=clock.of(kind),
            )
        )
        clock.advance(kind_s)
    chosen = reader.table.isel(scan=rows)
    source_bytes = int(chosen.source_bytes.sum())
    return Benchmark(
        url=redact_url(reader.url),
        scans=len(table),
        scans_without_mask=len(table) - len(read),
        with_masks=with_masks,
        cores=cpu_count(),
        has_kernel=kernel() is not None,
        is_remote=reader.objects.is_remote,
        sizes=StoreSizes(
            stored_bytes=int(chosen.stored_bytes.sum()),
            source_bytes=source_bytes or None,
            arrow_bytes=arrow_bytes(chosen),
            uncompressed_bytes=uncompressed_bytes(chosen),
        ),
        speeds=speeds,
        rates=tuple(rates),
    )


def _alone_bytes_per_s(speeds: Sequence[Speed], *, is_remote: bool) -> float | None:
    """Return the speed of the disk or link; None if the bytes came from memory."""
    known = [
        speed.bytes_per_s
        for speed in speeds
        if is_remote or (speed.share_from_disk is not None and speed.share_from_disk > 0.5)  # noqa: PLR2004  most of them
    ]
    return max(known, default=None)


def _stream(
    make: MakeStream,
    size: Any,  # noqa: ANN401  a side or a plane
    options: Mapping[str, Any],
    seconds: float,
    alone_bytes_per_s: float | None,
) -> PatchStream:
    """Return a stream whose batches are small enough for the time and for the memory."""
    stream = make(size, batch_size=_BATCH_SIZE, **options)
    patch_bytes = stream.batch_reader.patch_bytes
    if alone_bytes_per_s is not None:
        bytes_in_time = alone_bytes_per_s * seconds
        if bytes_in_time < _BATCHES_IN_TIME * _BATCH_SIZE * patch_bytes:
            stream = make(size, batch_size=1, **options)
    prefetch = min(stream.prefetch_bytes, free_memory_bytes() // _PREFETCH_DIVISOR)
    return stream.with_reading(prefetch_bytes=max(1, prefetch))


class _Clock:
    """Reports the time of several measurements as one task."""

    def __init__(self, on_progress: OnProgress, total_s: float) -> None:
        self._on_progress = on_progress
        self._total_s = total_s
        self._done_s = 0.0

    def of(self, name: str) -> OnSeconds:
        """Return a function that takes the seconds of the measurement that runs now."""

        def report(seconds: float) -> None:
            done = min(self._total_s, self._done_s + seconds)
            total = round(self._total_s)
            self._on_progress(Progress("bench", done, total, "seconds", scan=name))

        return report

    def advance(self, seconds: float) -> None:
        """Count a measurement as done."""
        self._done_s += seconds
