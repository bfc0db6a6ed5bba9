"""When does a spinezarr server read the batches, and how does a client ask for them?

A store that lies on a spinezarr server can be read in two ways. The client can fetch byte ranges of
the chunks and decode them. Or it can ask the server for the patches: the server decodes the chunks
and sends the voxels of the patches only. That is less data, unless many patches of a batch share
chunks. The link, the patches and the load of the server decide which is faster.
:class:`BatchClient` estimates and then measures both, and takes the faster one. Batches that the
server does not give are read by ranges, which also tell what is wrong.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, TypeAdapter, ValidationError

from spinezarr.errors import CorruptStoreError, SpinezarrError
from spinezarr.forks import ProcessLock
from spinezarr.geometry import Box
from spinezarr.redaction import redact_url
from spinezarr.remote.transport import UnsupportedRequestError
from spinezarr.store.objects import Objects
from spinezarr.store.table_reader import TableRow
from spinezarr.stream.batch import Batch
from spinezarr.stream.read.batch_reader import BatchReader, padding_zyx
from spinezarr.stream.read.summary import ReadSummary, megabytes
from spinezarr.stream.read.tensors import DamagedTensorsError, Pack, Tensors
from spinezarr.stream.read.transfer import MIN_READS, Transfer, TransferChoice
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import grid_shape_zyx, step_zyx

if TYPE_CHECKING:
    from spinezarr.stream.read.batch_limits import BatchLimits

__all__ = [
    "BatchClient",
    "Transfer",
    "api_url",
    "read_batches",
    "store_url",
]

_ZARR, _ABOUT = "/zarr/", "/v1/"
_LINK_BYTES_PER_S: Final = 100e6
"""Rate assumed for a link that was not measured yet: that of a laboratory, 1 Gbit/s."""
_DECODED_BYTES_PER_S: Final = 3e9
"""Voxels that a core decodes in a second."""
_PACKED_BYTES_PER_S: Final[dict[Pack, float]] = {"none": 2e9, "lz4": 1.3e9, "zstd": 550e6}
"""Voxels that a core packs in a second, by how they are packed."""
_RATIOS: Final[dict[Pack, float]] = {"none": 1.0, "lz4": 0.37, "zstd": 0.315}
"""Bytes sent for each byte of voxels, assumed until an answer came; measured on a chest CT."""
_NEWEST_WEIGHT: Final = 0.2
"""Weight of the last answer in the running mean of a ratio."""
_NO_TIME_S: Final = 1e-9
_HEAD_BYTES: Final = 1 << 20
"""Largest size of an answer without its items."""
_ITEM_BYTES: Final = 1 << 10
"""Largest size of an item without its voxels."""
_SLACK: Final = 16
"""Packing may make an answer larger by this fraction: one 16th."""

ReadByRanges = Callable[[], list[Batch]]
RequestBatches = Sequence[Sequence[PatchRequest]]
"""The requests of each of some batches."""


_STATUSES: Final = TypeAdapter(list[str], config=ConfigDict(defer_build=True))


class BatchRefusedError(Exception):
    """Raised if the server does not send a batch; the text says why."""


def api_url(url: str) -> str | None:
    """Return the URL of the API for a store, given the store's URL on a spinezarr server.

    Returns
    -------
    str or None
        None if the URL is not that of a store on such a server.

    Examples
    --------
    >>> api_url("http://lab:8765/zarr/ctspine1k")
    'http://lab:8765/v1/ctspine1k'
    """
    base, found, name = url.rstrip("/").rpartition(_ZARR)
    is_web = urlsplit(base).scheme in {"http", "https"}
    return f"{base}{_ABOUT}{name}" if is_web and found and name and "/" not in name else None


def store_url(url: str) -> str | None:
    """Return the URL of a store, given the short form of it that users may write.

    Returns
    -------
    str or None
        None if the URL is no short form.

    Examples
    --------
    >>> store_url("http://lab:8765/ctspine1k")
    'http://lab:8765/zarr/ctspine1k'
    """
    base, _, name = url.rstrip("/").rpartition("/")
    is_web = urlsplit(base).scheme in {"http", "https"} and bool(urlsplit(base).netloc)
    return f"{base}{_ZARR}{name}" if is_web and name and api_url(url) is None else None


def read_batches(
    batch_reader: BatchReader,
    request_batches: RequestBatches,
    *,
    client: "BatchClient | None",
    threads: int,
) -> list[Batch]:
    """Read several batches from the server or by ranges, whichever is faster.

    Parameters
    ----------
    batch_reader
        Reads by ranges, and says what is read.
    request_batches
        The requests of each batch.
    client
        Asks the server that the store lies on; None if it lies on no such server.
    threads
        Number of threads that decode what is read by ranges.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged.
    """
    by_ranges = partial(batch_reader.read_together, request_batches, threads=threads)
    if client is None:
        return by_ranges()
    return client.read_together(batch_reader, request_batches, by_ranges)


class BatchClient:
    """Gets batches of one store from the server that it lies on. It is shared between threads.

    Parameters
    ----------
    url
        URL of the server's API for the store; see :func:`api_url`.
    transfer
        ``"auto"`` takes the faster way; ``"patches"`` and ``"ranges"`` always take that one.
    """

    def __init__(self, url: str, transfer: Transfer = "auto") -> None:
        self.url = url
        self.transfer = transfer
        self._lock = ProcessLock()
        self._limits: BatchLimits | None = None
        self._refused = ""
        """Why the server is not asked; empty if it may be asked."""
        self._stats: dict[tuple[Any, ...], _KindStats] = {}

    def __reduce__(self) -> tuple[type["BatchClient"], tuple[str, Transfer]]:
        return BatchClient, (self.url, self.transfer)

    def read_together(
        self, batch_reader: BatchReader, request_batches: RequestBatches, by_ranges: ReadByRanges
    ) -> list[Batch]:
        """Read batches from the server or by ranges, whichever is faster.

        Parameters
        ----------
        batch_reader
            Says what is read of each patch.
        request_batches
            The requests of each batch.
        by_ranges
            Reads the batches by ranges.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        OSError
            If the server does not answer.
        """
        objects = batch_reader.reader.objects
        limits = self._asked_limits(objects)
        if limits is None or self._reason(batch_reader, request_batches, limits):
            return by_ranges()
        stats = self._stats_of(batch_reader, request_batches)
        self._estimate(batch_reader, request_batches, stats)
        transfer, pack = self._choose(stats, limits, objects.link_bytes_per_s)
        if transfer == "ranges":
            with _Timed(self._lock, stats.choice, transfer):
                return by_ranges()
        try:
            with _Timed(self._lock, stats.choice, transfer):
                return self._served(batch_reader, request_batches, pack, stats)
        except BatchRefusedError:
            stats.unserved += 1
            return by_ranges()
        except (UnsupportedRequestError, FileNotFoundError, PermissionError) as problem:
            self._refuse(problem)
            return by_ranges()
        except ConnectionError:
            raise
        except OSError:  # of this request alone, e.g. if it is too large
            stats.unserved += 1
            return by_ranges()

    def explain(self, batch_reader: BatchReader, request_batches: RequestBatches) -> ReadSummary:
        """Count what reading batches by ranges would take, and say how they are read, and why."""
        summary = batch_reader.explain(request_batches)
        limits = self._asked_limits(batch_reader.reader.objects)
        link = batch_reader.reader.objects.link_bytes_per_s
        where = redact_url(self.url)
        reason = self._refused or (limits and self._reason(batch_reader, request_batches, limits))
        if limits is None or reason:
            return summary.with_transfer(f"by ranges, as {reason or 'the server is not asked'}")
        stats = self._stats_of(batch_reader, request_batches)
        stats.costs = stats.costs or _Costs.of(summary)
        transfer, pack = self._choose(stats, limits, link)
        packed = "as they are" if pack == "none" else f"packed with {pack}"
        sent = stats.costs.voxel_bytes * stats.ratios[pack]
        text = (
            f"patches of {megabytes(sent)}, {packed}, "
            f"or ranges of {megabytes(summary.fetched_bytes)}; the link carries "
            f"{'an unknown rate' if link is None else f'{megabytes(link)}/s'}; "
            f"{_rates(stats, limits, pack, link)}"
        )
        how = "by ranges" if transfer == "ranges" else f"by the server {where}"
        chosen = f" (transfer={self.transfer!r})" if self.transfer != "auto" else ""
        return summary.with_transfer(f"{how}{chosen}: {text}")

    def is_offered(self, objects: Objects) -> bool:
        """Whether a spinezarr server of this version answers there, and may be asked.

        Parameters
        ----------
        objects
            Reads the store.
        """
        return self._asked_limits(objects) is not None

    def _reason(
        self, batch_reader: BatchReader, request_batches: RequestBatches, limits: "BatchLimits"
    ) -> str:
        """Return why the server cannot be asked for some batches; empty if it can."""
        n_items = sum(map(len, request_batches))
        n_bytes = n_items * batch_reader.patch_bytes
        if n_items > limits.items or n_bytes > limits.voxel_bytes:
            return (
                f"{n_items} patches of {megabytes(n_bytes)} are more than the server sends together"
            )
        return ""

    def _asked_limits(self, objects: Objects) -> "BatchLimits | None":
        """Return the limits of the server; None if it is not to be asked."""
        # Its model takes as long to import as many batches, and few read from a server.
        from spinezarr.stream.read.batch_limits import PROTOCOL, parse_limits  # noqa: PLC0415

        if self.transfer == "ranges" or self._refused:
            self._refused = self._refused or "transfer='ranges' says so"
            return None
        with self._lock:
            if self._limits is None and not self._refused:
                try:
                    data = objects.read([self.url]).get(self.url)
                    limits = parse_limits(data or b"")
                except (OSError, CorruptStoreError, ValidationError):
                    self._refused = "no spinezarr server answers there"
                else:
                    self._limits = limits
                    if limits.protocol != PROTOCOL:
                        self._refused = "the server is of another version"
            return None if self._refused else self._limits

    def _refuse(self, problem: Exception) -> None:
        with self._lock:
            reasons: dict[type[Exception], str] = {
                FileNotFoundError: "the server has no batches of this store",
                PermissionError: "the server refuses batches with this token",
            }
            self._refused = reasons.get(type(problem), "a proxy answers in its place")

    def _stats_of(self, batch_reader: BatchReader, request_batches: RequestBatches) -> "_KindStats":
        key = (*batch_reader.kind, len(request_batches), sum(map(len, request_batches)))
        with self._lock:
            return self._stats.setdefault(key, _KindStats())

    def _estimate(
        self, batch_reader: BatchReader, request_batches: RequestBatches, stats: "_KindStats"
    ) -> None:
        """Count what some batches take by ranges, once; other threads need not wait for that."""
        with self._lock:
            if stats.costs is not None or stats.is_estimated:
                return
            stats.is_estimated = True
        try:
            stats.costs = _Costs.of(batch_reader.explain(request_batches))
        except (SpinezarrError, OSError):  # reading raises it again
            stats.is_estimated = False

    def _choose(
        self, stats: "_KindStats", limits: "BatchLimits", link: float | None
    ) -> tuple[Transfer, Pack]:
        """Choose how to read, and how voxels are packed."""
        with self._lock:
            pack = stats.best_pack(limits, link)
            if stats.unserved >= MIN_READS:
                return "ranges", pack
            if self.transfer != "auto":
                return self.transfer, pack
            if stats.costs is not None:
                stats.choice.choose(*stats.groups_per_s(limits, pack, link))
            return stats.choice.transfer, pack

    def _served(
        self,
        batch_reader: BatchReader,
        request_batches: RequestBatches,
        pack: Pack,
        stats: "_KindStats",
    ) -> list[Batch]:
        requests = [request for requested in request_batches for request in requested]
        rows = [batch_reader.reader.row(request.scan_id) for request in requests]
        n_bytes = len(requests) * batch_reader.patch_bytes
        most = n_bytes + n_bytes // _SLACK + _HEAD_BYTES + len(requests) * _ITEM_BYTES
        body = _request_body(batch_reader, requests, rows, pack)
        objects = batch_reader.reader.objects
        for attempts_left in reversed(range(1 + objects.rereads)):
            answer = objects.post(f"{self.url}/batch", body, most)
            try:
                tensors = Tensors.parse(answer)
                statuses = _STATUSES.validate_json(tensors.metadata.get("status", ""))
                if statuses != ["ok"] * len(requests):
                    raise BatchRefusedError("the server cannot read some of them")
                whole = _to_batch(batch_reader, requests, tensors)
            except (DamagedTensorsError, ValidationError) as problem:
                if not attempts_left:
                    raise BatchRefusedError(str(problem)) from problem
                continue
            break
        if not _has_drawn_shapes(batch_reader, whole, rows):
            raise BatchRefusedError("the server has other scans than the table says")
        self._learn(stats, tensors, whole, pack)
        return _split(whole, request_batches)

    def _learn(self, stats: "_KindStats", tensors: Tensors, whole: Batch, pack: Pack) -> None:
        names = ("image",) if whole.label is None else ("image", "label")
        voxels = whole.image.nbytes + (0 if whole.label is None else whole.label.nbytes)
        if voxels:
            ratio = sum(map(tensors.size_bytes, names)) / voxels
            with self._lock:
                stats.ratios[pack] += _NEWEST_WEIGHT * (ratio - stats.ratios[pack])


@dataclass(frozen=True, slots=True)
class _Costs:
    """Number of bytes to send or decode for batches that are read together."""

    range_bytes: int
    """Bytes to fetch by ranges."""
    decoded_bytes: int
    """Bytes of the voxels of all chunks."""
    voxel_bytes: int
    """Bytes of the voxels of the patches."""

    @classmethod
    def of(cls, summary: ReadSummary) -> "_Costs":
        return cls(summary.fetched_bytes, summary.decoded_bytes, max(1, summary.voxel_bytes))


@dataclass(slots=True, eq=False)
class _KindStats:
    """Measurements of batches of one kind. The lock of the client guards them."""

    choice: TransferChoice = field(default_factory=TransferChoice)
    costs: _Costs | None = None
    is_estimated: bool = False
    ratios: dict[Pack, float] = field(default_factory=lambda: dict(_RATIOS))
    unserved: int = 0
    """How many times the server did not send batches."""

    def best_pack(self, limits: "BatchLimits", link: float | None) -> Pack:
        """Return the fastest packing: few bytes, unless packing takes longer than sending."""
        per_s = link or _LINK_BYTES_PER_S

        def longest(pack: Pack) -> tuple[float, float]:
            packing = 1 / _PACKED_BYTES_PER_S[pack] / limits.cores
            return max(self.ratios[pack] / per_s, packing), self.ratios[pack]

        return min(_RATIOS, key=longest)

    def groups_per_s(
        self, limits: "BatchLimits", pack: Pack, link: float | None
    ) -> tuple[float, float]:
        """Return how often batches come in a second from the server and by ranges."""
        served = self.choice.measured("patches") or self._served_per_s(limits, pack, link)
        return served, self.choice.measured("ranges") or self._ranges_per_s(limits, link)

    def _served_per_s(self, limits: "BatchLimits", pack: Pack, link: float | None) -> float:
        costs = self.costs or _Costs(0, 0, 1)
        on_the_way = costs.voxel_bytes * self.ratios[pack] / (link or _LINK_BYTES_PER_S)
        packing = costs.voxel_bytes / _PACKED_BYTES_PER_S[pack]
        there = (costs.decoded_bytes / _DECODED_BYTES_PER_S + packing) / limits.cores
        return 1 / max(on_the_way, there)

    def _ranges_per_s(self, limits: "BatchLimits", link: float | None) -> float:
        costs = self.costs or _Costs(0, 0, 1)
        on_the_way = costs.range_bytes / (link or _LINK_BYTES_PER_S)
        here = costs.decoded_bytes / _DECODED_BYTES_PER_S / limits.cores
        return 1 / max(on_the_way, here, _NO_TIME_S)


class _Timed:
    """Measures how long it takes to read some batches."""

    def __init__(self, lock: ProcessLock, choice: TransferChoice, transfer: Transfer) -> None:
        self._lock = lock
        self._choice = choice
        self._transfer = transfer

    def __enter__(self) -> None:
        with self._lock:
            self._began_s = self._choice.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._choice.end(self._transfer, self._began_s, 0 if kind else 1)


def _rates(stats: _KindStats, limits: "BatchLimits", pack: Pack, link: float | None) -> str:
    """Return a text that says how fast both ways are."""
    served, by_ranges = stats.groups_per_s(limits, pack, link)

    def how(transfer: Transfer) -> str:
        return "estimated" if stats.choice.measured(transfer) is None else "measured"

    return (
        f"{served:.1f} batches/s by the server ({how('patches')}), "
        f"{by_ranges:.1f} by ranges ({how('ranges')})"
    )


def _request_body(
    batch_reader: BatchReader,
    requests: Sequence[PatchRequest],
    rows: Sequence[TableRow | None],
    pack: Pack,
) -> bytes:
    """Return the body of a request; see :class:`spinezarr.serve.patches.BatchModel`."""
    items = [
        {
            "scan_id": request.scan_id,
            "start_zyx": request.box.start_zyx,
            "content_checksum": None if row is None else row.content_checksum,
        }
        for request, row in zip(requests, rows, strict=True)
    ]
    return json.dumps(
        {
            "items": items,
            "size_zyx": batch_reader.size_zyx,
            "spacing_zyx_mm": batch_reader.spacing_zyx_mm,
            "with_label": batch_reader.with_label,
            "image_dtype": batch_reader.image_dtype.name,
            "flat_axis": batch_reader.flat_axis,
            "neighbors": batch_reader.neighbors,
            "neighbor_step_mm": batch_reader.neighbor_step_mm,
            "nonfinite": batch_reader.nonfinite,
            "pack": pack,
        }
    ).encode()


def _to_batch(
    batch_reader: BatchReader, requests: Sequence[PatchRequest], tensors: Tensors
) -> Batch:
    """Return all patches of an answer as one batch.

    Raises
    ------
    DamagedTensorsError
        If the answer is not what was asked for.
    """
    n, empty = len(requests), batch_reader.engine.buffers.empty
    starts = np.array([request.box.start_zyx for request in requests])
    if (tensors.get("start_zyx", (n, 3), np.int64) != starts).any():
        raise DamagedTensorsError("the patches are not those that were asked for")
    label: npt.NDArray[Any] | None = None
    if batch_reader.with_label:
        label = tensors.get("label", (n, *batch_reader.shape), np.uint8, empty)
    return Batch(
        image=tensors.get(
            "image",
            (n, *batch_reader.channels, *batch_reader.shape),
            batch_reader.image_dtype,
            empty,
        ),
        label=label,
        dims=batch_reader.dims,
        scan_id=tuple(request.scan_id for request in requests),
        start_zyx=starts,
        padding_zyx=tensors.get("padding_zyx", (n, 3, 2), np.int64),
        affine=tensors.get("affine", (n, 4, 4), np.float64),
        spacing_zyx_mm=tensors.get("spacing_zyx_mm", (n, 3), np.float64),
        vertebra=tuple(request.vertebra for request in requests),
        index=np.array([request.index for request in requests]),
    )


def _has_drawn_shapes(
    batch_reader: BatchReader, batch: Batch, rows: Sequence[TableRow | None]
) -> bool:
    """Return whether the scans have the shapes by which the patches were drawn.

    The padding of the patches tells it.
    """
    for start, padding, row in zip(batch.start_zyx, batch.padding_zyx, rows, strict=True):
        if row is not None:
            step = step_zyx(row.spacing_zyx_mm, batch_reader.spacing_zyx_mm)
            volume = Box((0, 0, 0), grid_shape_zyx(row.shape_zyx, step))
            z, y, x = start.tolist()
            if (padding != padding_zyx(Box.at((z, y, x), batch_reader.size_zyx), volume)).any():
                return False
    return True


def _split(whole: Batch, request_batches: RequestBatches) -> list[Batch]:
    """Split patches that were read as one batch into batches."""
    found, first = [], 0
    for requested in request_batches:
        last = first + len(requested)
        found.append(whole.part(first, last))
        first = last
    return found
