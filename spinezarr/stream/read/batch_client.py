"""When does a spinezarr server read the batches, and how does a client request them?

A store that lies on a spinezarr server can be read in two ways. The client can fetch byte ranges of
the chunks and decode them. Or it can ask the server for the patches: the server decodes the chunks
and sends the voxels of the patches only. That is less data, unless many patches of a batch share
chunks. The link, the patches and the load of the server decide which is faster.
:class:`BatchClient` estimates and then measures both, and takes the faster one. Batches that the
server does not send are read by ranges, which also raises the error if the store is damaged.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from spinezarr.errors import CorruptStoreError, SpinezarrError
from spinezarr.forks import ProcessLock
from spinezarr.geometry import Box
from spinezarr.redaction import redact_url
from spinezarr.remote.transport import UnsupportedRequestError
from spinezarr.store.layout import LABEL
from spinezarr.store.objects import Objects
from spinezarr.store.table_reader import TableRow
from spinezarr.stream.batch import Batch
from spinezarr.stream.read.batch_reader import BatchReader, padding_zyx
from spinezarr.stream.read.summary import ReadSummary
from spinezarr.stream.read.tensors import DamagedTensorsError, Pack, Tensors
from spinezarr.stream.read.transfer import MIN_READS, Transfer, TransferChoice
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import grid_shape_zyx, step_zyx
from spinezarr.text import megabytes

if TYPE_CHECKING:
    from spinezarr.stream.read.batch_limits import BatchLimits

__all__ = [
    "BatchClient",
    "Transfer",
    "api_url",
    "read_batches",
    "store_url",
]

_ZARR_PREFIX, _API_PREFIX = "/zarr/", "/v1/"
_LINK_BYTES_PER_S: Final = 100e6
"""Rate assumed for a link that was not measured yet: that of a laboratory, 1 Gbit/s."""
_DECODED_BYTES_PER_S: Final = 3e9
"""Voxels that a core decodes in a second."""
_PACKED_BYTES_PER_S: Final[dict[Pack, float]] = {"none": 2e9, "lz4": 1.3e9, "zstd": 550e6}
"""Voxels that a core packs in a second, by how they are packed."""
_RATIOS: Final[dict[Pack, float]] = {"none": 1.0, "lz4": 0.37, "zstd": 0.315}
"""Bytes sent for each byte of voxels, assumed until the first response; measured on a chest CT."""
_NEWEST_WEIGHT: Final = 0.2
"""Weight of the last response in the running mean of a ratio."""
_MIN_TIME_S: Final = 1e-9
_MAX_HEADER_BYTES: Final = 1 << 20
"""Largest size of a response without its items."""
_MAX_ITEM_BYTES: Final = 1 << 10
"""Largest size of an item without its voxels."""
_EXPANSION_DIVISOR: Final = 16
"""Packing may make a response larger by one 16th."""

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
    base, prefix, name = url.rstrip("/").rpartition(_ZARR_PREFIX)
    is_web = urlsplit(base).scheme in {"http", "https"}
    return f"{base}{_API_PREFIX}{name}" if is_web and prefix and name and "/" not in name else None


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
    return f"{base}{_ZARR_PREFIX}{name}" if is_web and name and api_url(url) is None else None


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
        Reads by ranges. Its options describe the patches.
    request_batches
        The requests of each batch.
    client
        Client of the server that the store lies on; None if it lies on no such server.
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
        self._refusal = ""
        """Why no batches are requested from the server; empty if they may be."""
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
            Its options describe the patches.
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
        limits = self._server_limits(objects)
        if limits is None or self._size_problem(batch_reader, request_batches, limits):
            return by_ranges()
        stats = self._stats_of(batch_reader, request_batches)
        self._estimate(batch_reader, request_batches, stats)
        transfer, pack = self._choose(stats, limits, objects.link_bytes_per_s)
        if transfer == "ranges":
            with _Timer(self._lock, stats.choice, transfer):
                return by_ranges()
        try:
            with _Timer(self._lock, stats.choice, transfer):
                return self._read_from_server(batch_reader, request_batches, pack, stats)
        except BatchRefusedError:
            stats.n_failures += 1
            return by_ranges()
        except (UnsupportedRequestError, FileNotFoundError, PermissionError) as problem:
            self._stop_requesting(problem)
            return by_ranges()
        except ConnectionError:
            raise
        except OSError:  # only this request failed, e.g. because it is too large
            stats.n_failures += 1
            return by_ranges()

    def explain(self, batch_reader: BatchReader, request_batches: RequestBatches) -> ReadSummary:
        """Count what reading batches by ranges would take, and describe how they are read."""
        summary = batch_reader.explain(request_batches)
        limits = self._server_limits(batch_reader.reader.objects)
        link = batch_reader.reader.objects.link_bytes_per_s
        server = redact_url(self.url)
        reason = self._refusal
        if limits is not None:
            reason = reason or self._size_problem(batch_reader, request_batches, limits)
        if limits is None or reason:
            return summary.with_transfer(f"by ranges, as {reason or 'the server is not used'}")
        stats = self._stats_of(batch_reader, request_batches)
        stats.costs = stats.costs or _Costs.of(summary)
        transfer, pack = self._choose(stats, limits, link)
        packed = "as they are" if pack == "none" else f"packed with {pack}"
        sent = stats.costs.voxel_bytes * stats.ratios[pack]
        text = (
            f"patches of {megabytes(sent)}, {packed}, "
            f"or ranges of {megabytes(summary.fetched_bytes)}; the link carries "
            f"{'an unknown rate' if link is None else f'{megabytes(link)}/s'}; "
            f"{_describe_rates(stats, limits, pack, link)}"
        )
        way = "by ranges" if transfer == "ranges" else f"by the server {server}"
        option = f" (transfer={self.transfer!r})" if self.transfer != "auto" else ""
        return summary.with_transfer(f"{way}{option}: {text}")

    def is_offered(self, objects: Objects) -> bool:
        """Whether a spinezarr server of this version answers at the URL, and may be used.

        Parameters
        ----------
        objects
            Reads the store.
        """
        return self._server_limits(objects) is not None

    def _size_problem(
        self, batch_reader: BatchReader, request_batches: RequestBatches, limits: "BatchLimits"
    ) -> str:
        """Return why some batches are too large for the server; empty if they are not."""
        n_items = sum(map(len, request_batches))
        n_bytes = n_items * batch_reader.patch_bytes
        if n_items > limits.items or n_bytes > limits.voxel_bytes:
            return (
                f"{n_items} patches of {megabytes(n_bytes)} are more than the server sends together"
            )
        return ""

    def _server_limits(self, objects: Objects) -> "BatchLimits | None":
        """Return the limits of the server; None if no batches may be requested from it."""
        # The import takes as long as reading many batches, and few programs read from a server.
        from spinezarr.stream.read.batch_limits import PROTOCOL, parse_limits  # noqa: PLC0415

        if self.transfer == "ranges" or self._refusal:
            self._refusal = self._refusal or "transfer='ranges' was given"
            return None
        with self._lock:
            if self._limits is None and not self._refusal:
                try:
                    data = objects.read([self.url]).get(self.url)
                    limits = parse_limits(data or b"")
                except (OSError, CorruptStoreError, ValidationError):
                    self._refusal = "no spinezarr server answers there"
                else:
                    self._limits = limits
                    if limits.protocol != PROTOCOL:
                        self._refusal = "the server is of another version"
            return None if self._refusal else self._limits

    def _stop_requesting(self, problem: Exception) -> None:
        with self._lock:
            reasons: dict[type[Exception], str] = {
                FileNotFoundError: "the server has no batches of this store",
                PermissionError: "the server refuses batches with this token",
            }
            self._refusal = reasons.get(type(problem), "a proxy answers in its place")

    def _stats_of(self, batch_reader: BatchReader, request_batches: RequestBatches) -> "_KindStats":
        key = (*batch_reader.kind, len(request_batches), sum(map(len, request_batches)))
        with self._lock:
            return self._stats.setdefault(key, _KindStats())

    def _estimate(
        self, batch_reader: BatchReader, request_batches: RequestBatches, stats: "_KindStats"
    ) -> None:
        """Count what some batches take by ranges, once. Other threads do not wait for it."""
        with self._lock:
            if stats.costs is not None or stats.is_estimated:
                return
            stats.is_estimated = True
        try:
            stats.costs = _Costs.of(batch_reader.explain(request_batches))
        except (SpinezarrError, OSError):  # reading will raise it again
            stats.is_estimated = False

    def _choose(
        self, stats: "_KindStats", limits: "BatchLimits", link: float | None
    ) -> tuple[Transfer, Pack]:
        """Choose how to read, and how voxels are packed."""
        with self._lock:
            pack = stats.best_pack(limits, link)
            if stats.n_failures >= MIN_READS:
                return "ranges", pack
            if self.transfer != "auto":
                return self.transfer, pack
            if stats.costs is not None:
                stats.choice.choose(*stats.groups_per_s(limits, pack, link))
            return stats.choice.transfer, pack

    def _read_from_server(
        self,
        batch_reader: BatchReader,
        request_batches: RequestBatches,
        pack: Pack,
        stats: "_KindStats",
    ) -> list[Batch]:
        requests = [request for batch in request_batches for request in batch]
        rows = [batch_reader.reader.row(request.scan_id) for request in requests]
        n_bytes = len(requests) * batch_reader.patch_bytes
        max_bytes = n_bytes + n_bytes // _EXPANSION_DIVISOR
        max_bytes += _MAX_HEADER_BYTES + len(requests) * _MAX_ITEM_BYTES
        body = _request_body(batch_reader, requests, rows, pack)
        objects = batch_reader.reader.objects
        for attempts_left in reversed(range(1 + objects.rereads)):
            response = objects.post(f"{self.url}/batch", body, max_bytes)
            try:
                tensors = Tensors.parse(response)
                statuses = _STATUSES.validate_json(tensors.metadata.get("status", ""))
                if statuses != ["ok"] * len(requests):
                    raise BatchRefusedError("the server cannot read some patches")
                combined = _to_batch(batch_reader, requests, tensors)
            except (DamagedTensorsError, ValidationError) as problem:
                if not attempts_left:
                    raise BatchRefusedError(str(problem)) from problem
                continue
            break
        if not _has_drawn_shapes(batch_reader, combined, rows):
            raise BatchRefusedError("the scans of the server differ from the scan table")
        self._update_ratio(stats, tensors, combined, pack)
        return _split(combined, request_batches)

    def _update_ratio(
        self, stats: "_KindStats", tensors: Tensors, batch: Batch, pack: Pack
    ) -> None:
        names = ("image",) if batch.label is None else ("image", "label")
        voxel_bytes = batch.image.nbytes + (0 if batch.label is None else batch.label.nbytes)
        if voxel_bytes:
            ratio = sum(map(tensors.size_bytes, names)) / voxel_bytes
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
    n_failures: int = 0
    """Number of times that the server did not send batches."""

    def best_pack(self, limits: "BatchLimits", link: float | None) -> Pack:
        """Return the packing that takes the least time of the link and of the server's cores.

        Both times count, although they overlap: while the cores are the limit, the link seems
        slower than it is, and more packing would slow down the cores further.
        """
        bytes_per_s = link or _LINK_BYTES_PER_S

        def duration_s(pack: Pack) -> float:
            packing_s = 1 / _PACKED_BYTES_PER_S[pack] / limits.cores
            return self.ratios[pack] / bytes_per_s + packing_s

        return min(_RATIOS, key=duration_s)

    def groups_per_s(
        self, limits: "BatchLimits", pack: Pack, link: float | None
    ) -> tuple[float, float]:
        """Return the number of groups of batches per second from the server and by ranges."""
        served = self.choice.measured("patches") or self._server_groups_per_s(limits, pack, link)
        return served, self.choice.measured("ranges") or self._range_groups_per_s(limits, link)

    def _server_groups_per_s(self, limits: "BatchLimits", pack: Pack, link: float | None) -> float:
        costs = self.costs or _Costs(0, 0, 1)
        transfer_s = costs.voxel_bytes * self.ratios[pack] / (link or _LINK_BYTES_PER_S)
        packing_s = costs.voxel_bytes / _PACKED_BYTES_PER_S[pack]
        server_s = (costs.decoded_bytes / _DECODED_BYTES_PER_S + packing_s) / limits.cores
        return 1 / max(transfer_s, server_s)

    def _range_groups_per_s(self, limits: "BatchLimits", link: float | None) -> float:
        costs = self.costs or _Costs(0, 0, 1)
        transfer_s = costs.range_bytes / (link or _LINK_BYTES_PER_S)
        decoding_s = costs.decoded_bytes / _DECODED_BYTES_PER_S / limits.cores
        return 1 / max(transfer_s, decoding_s, _MIN_TIME_S)


class _Timer:
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


def _describe_rates(
    stats: _KindStats, limits: "BatchLimits", pack: Pack, link: float | None
) -> str:
    """Return a text with the rates of both ways."""
    served, by_ranges = stats.groups_per_s(limits, pack, link)

    def source(transfer: Transfer) -> str:
        return "estimated" if stats.choice.measured(transfer) is None else "measured"

    return (
        f"{served:.1f} batches/s by the server ({source('patches')}), "
        f"{by_ranges:.1f} by ranges ({source('ranges')})"
    )


def _request_body(
    batch_reader: BatchReader,
    requests: Sequence[PatchRequest],
    rows: Sequence[TableRow | None],
    pack: Pack,
) -> bytes:
    """Return the body of a request; see :class:`spinezarr.serve.patches.BatchModel`."""
    items = []
    for request, row in zip(requests, rows, strict=True):
        item: dict[str, Any] = {"scan_id": request.scan_id, "start_zyx": request.box.start_zyx}
        if row is not None:
            checksums = dict(row.mask_checksums)
            item["content_checksum"] = row.content_checksum
            item["mask_checksums"] = [checksums.get(name) for name in batch_reader.masks]
        items.append(item)
    return json.dumps(
        {
            "items": items,
            "size_zyx": batch_reader.size_zyx,
            "spacing_zyx_mm": batch_reader.spacing_zyx_mm,
            "labels": batch_reader.mask_names,
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
    """Return all patches of a response as one batch.

    Raises
    ------
    DamagedTensorsError
        If the response does not match the requests.
    """
    n, empty = len(requests), batch_reader.empty
    starts = np.array([request.box.start_zyx for request in requests])
    if (tensors.get("start_zyx", (n, 3), np.int64) != starts).any():
        raise DamagedTensorsError("the patches are not the requested ones")
    masks = {
        name: tensors.get(name, (n, *batch_reader.shape), np.uint8, empty)
        for name in batch_reader.mask_names
    }
    return Batch(
        image=tensors.get(
            "image",
            (n, *batch_reader.channels, *batch_reader.shape),
            batch_reader.image_dtype,
            empty,
        ),
        label=masks.pop(LABEL, None),
        masks=masks,
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
    """Return whether the scans have the shapes for which the patches were drawn.

    It compares the padding of the patches.
    """
    for start, padding, row in zip(batch.start_zyx, batch.padding_zyx, rows, strict=True):
        if row is not None:
            step = step_zyx(row.spacing_zyx_mm, batch_reader.spacing_zyx_mm)
            volume = Box((0, 0, 0), grid_shape_zyx(row.shape_zyx, step))
            z, y, x = start.tolist()
            if (padding != padding_zyx(Box.at((z, y, x), batch_reader.size_zyx), volume)).any():
                return False
    return True


def _split(combined: Batch, request_batches: RequestBatches) -> list[Batch]:
    """Split patches that were read as one batch into batches."""
    batches, first = [], 0
    for requests in request_batches:
        last = first + len(requests)
        batches.append(combined.part(first, last))
        first = last
    return batches
