"""Batches read by a spinezarr server beside its data, where that is faster than byte ranges.

A server reads the patches that are asked for, and sends their voxels. What travels is less than the
chunks that they lie in, unless many patches of a batch share chunks, and the server's processors
decode. So it depends on the link, the patches and the load of the server which way is faster:
:class:`BatchClient` estimates both, measures what they give, and takes the faster one. Whatever it
cannot get in this way is read by ranges, which also say what is wrong.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from spinezarr.errors import CorruptStoreError, SpinezarrError
from spinezarr.forks import ProcessLock
from spinezarr.geometry import Box
from spinezarr.redaction import redact_url
from spinezarr.remote.transport import NotServedError
from spinezarr.store.objects import Objects
from spinezarr.store.reader import TableRow
from spinezarr.stream.batch import Batch
from spinezarr.stream.read.batch_reader import BatchReader, padding_zyx
from spinezarr.stream.read.summary import ReadSummary, megabytes
from spinezarr.stream.read.tensors import DamagedTensorsError, Pack, Tensors
from spinezarr.stream.read.transfer import ENOUGH, Transfer, TransferChoice
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import grid_shape_zyx, step_zyx

__all__ = ["PROTOCOL", "BatchClient", "BatchLimits", "Transfer", "api_url", "store_url"]

PROTOCOL: Final = 1
"""Of requests for batches and their answers; both sides must have the same."""
_ZARR, _ABOUT = "/zarr/", "/v1/"
_LINK_BYTES_PER_S: Final = 100e6
"""As long as nothing is known of a link: that of a laboratory, 1 Gbit/s."""
_DECODED_BYTES_PER_S: Final = 3e9
"""Of voxels that a core decodes."""
_PACKED_BYTES_PER_S: Final[dict[Pack, float]] = {"none": 2e9, "lz4": 1.3e9, "zstd": 550e6}
"""Of voxels that a core makes an answer of."""
_RATIOS: Final[dict[Pack, float]] = {"none": 1.0, "lz4": 0.37, "zstd": 0.315}
"""Of voxels of image and mask, as long as none have come. All measured on a chest CT."""
_NEWEST: Final = 0.2
"""What the last answer counts in the mean of a ratio."""
_NO_TIME_S: Final = 1e-9
_HEAD_BYTES: Final = 1 << 20
_ITEM_BYTES: Final = 1 << 10
"""Beside its voxels, of an item of an answer, at most."""
_SLACK: Final = 16
"""Of bytes that cannot be packed, a part of them."""

ReadGroups = Callable[[], list[Batch]]
Groups = Sequence[Sequence[PatchRequest]]


class BatchLimits(BaseModel):
    """What a server says of its batches."""

    model_config = ConfigDict(strict=True, frozen=True, use_attribute_docstrings=True)

    protocol: int
    """Which way of asking it understands."""
    items: Annotated[int, Field(ge=1)]
    """Of a request, at most."""
    voxel_bytes: Annotated[int, Field(ge=1)]
    """Of an answer, at most, before they are packed."""
    cores: Annotated[int, Field(ge=1, le=4096)]
    """That read and pack."""


class _AboutModel(BaseModel):
    batch: BatchLimits


_STATUSES: Final = TypeAdapter(list[str])


class BatchRefusedError(Exception):
    """A batch that the server does not give; the text says why."""


def api_url(url: str) -> str | None:
    """Return where a server is asked about the store that it serves at a URL; None if nowhere.

    Examples
    --------
    >>> api_url("http://lab:8765/zarr/ctspine1k")
    'http://lab:8765/v1/ctspine1k'
    """
    base, found, name = url.rstrip("/").rpartition(_ZARR)
    is_web = urlsplit(base).scheme in {"http", "https"}
    return f"{base}{_ABOUT}{name}" if is_web and found and name and "/" not in name else None


def store_url(url: str) -> str | None:
    """Return where a server of spinezarr would have the store that a short URL means.

    Examples
    --------
    >>> store_url("http://lab:8765/ctspine1k")
    'http://lab:8765/zarr/ctspine1k'
    """
    base, _, name = url.rstrip("/").rpartition("/")
    is_web = urlsplit(base).scheme in {"http", "https"} and bool(urlsplit(base).netloc)
    return f"{base}{_ZARR}{name}" if is_web and name and api_url(url) is None else None


class BatchClient:
    """Gets batches of one store from the server that it lies on. Shared between threads.

    Parameters
    ----------
    url
        Where the server is asked about the store.
    transfer
        ``"patches"`` and ``"ranges"`` take that way whichever is faster.
    """

    def __init__(self, url: str, transfer: Transfer = "auto") -> None:
        self.url = url
        self.transfer = transfer
        self._lock = ProcessLock()
        self._limits: BatchLimits | None = None
        self._refused = ""
        """Why the server is not asked; empty as long as it may be."""
        self._streams: dict[tuple[Any, ...], _Stream] = {}

    def __reduce__(self) -> tuple[type["BatchClient"], tuple[str, Transfer]]:
        return BatchClient, (self.url, self.transfer)

    def read_together(
        self, batches: BatchReader, groups: Groups, by_ranges: ReadGroups
    ) -> list[Batch]:
        """Read batches in the faster way.

        Parameters
        ----------
        batches
            Says what is read.
        groups
            The requests of each batch.
        by_ranges
            Reads them by ranges.

        Raises
        ------
        CorruptStoreError
            If stored bytes are missing or damaged.
        OSError
            If the server does not answer.
        """
        objects = batches.reader.objects
        limits = self._asked_limits(objects)
        if limits is None or self._reason(batches, groups, limits):
            return by_ranges()
        stream = self._stream_of(batches, groups)
        self._estimate(batches, groups, stream)
        way, pack = self._way(stream, limits, objects.link_bytes_per_s)
        if way == "ranges":
            with _Timed(self._lock, stream.choice, way):
                return by_ranges()
        try:
            with _Timed(self._lock, stream.choice, way):
                return self._served(batches, groups, pack, stream)
        except BatchRefusedError:
            stream.unserved += 1
            return by_ranges()
        except (NotServedError, FileNotFoundError, PermissionError) as problem:
            self._refuse(problem)
            return by_ranges()
        except ConnectionError:
            raise
        except OSError:  # of this request alone: it is too much, say
            stream.unserved += 1
            return by_ranges()

    def explain(self, batches: BatchReader, groups: Groups) -> ReadSummary:
        """Say what reading batches takes by ranges, and in which way they are read, and why."""
        summary = batches.explain(groups)
        limits = self._asked_limits(batches.reader.objects)
        link = batches.reader.objects.link_bytes_per_s
        where = redact_url(self.url)
        reason = self._refused or (limits and self._reason(batches, groups, limits))
        if limits is None or reason:
            return summary.read_as(f"by ranges, as {reason or 'the server is not asked'}")
        stream = self._stream_of(batches, groups)
        stream.costs = stream.costs or _Costs.of(summary)
        way, pack = self._way(stream, limits, link)
        packed = "as they are" if pack == "none" else f"packed with {pack}"
        sent = stream.costs.voxel_bytes * stream.ratios[pack]
        text = (
            f"patches of {megabytes(sent)}, {packed}, "
            f"or ranges of {megabytes(summary.fetched_bytes)}; the link carries "
            f"{'an unknown rate' if link is None else f'{megabytes(link)}/s'}; "
            f"{_rates(stream, limits, pack, link)}"
        )
        how = "by ranges" if way == "ranges" else f"by the server {where}"
        chosen = f" (transfer={self.transfer!r})" if self.transfer != "auto" else ""
        return summary.read_as(f"{how}{chosen}: {text}")

    def _reason(self, batches: BatchReader, groups: Groups, limits: BatchLimits) -> str:
        """Return why a unit cannot be asked for; empty if it can."""
        n_items = sum(map(len, groups))
        n_bytes = n_items * batches.patch_bytes
        if n_items > limits.items or n_bytes > limits.voxel_bytes:
            return (
                f"{n_items} patches of {megabytes(n_bytes)} are more than the server sends together"
            )
        return ""

    def _asked_limits(self, objects: Objects) -> BatchLimits | None:
        """Return what the server says of itself; None if it is not asked for batches."""
        if self.transfer == "ranges" or self._refused:
            self._refused = self._refused or "transfer='ranges' says so"
            return None
        with self._lock:
            if self._limits is None and not self._refused:
                try:
                    data = objects.read([self.url]).get(self.url)
                    limits = _AboutModel.model_validate_json(data or b"").batch
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
            self._refused = reasons.get(type(problem), "a proxy or its answers stand between")

    def _stream_of(self, batches: BatchReader, groups: Groups) -> "_Stream":
        key = (*batches.kind, len(groups), sum(map(len, groups)))
        with self._lock:
            return self._streams.setdefault(key, _Stream())

    def _estimate(self, batches: BatchReader, groups: Groups, stream: "_Stream") -> None:
        """Count once what a unit takes by ranges; others need not wait for that."""
        with self._lock:
            if stream.costs is not None or stream.is_estimated:
                return
            stream.is_estimated = True
        try:
            stream.costs = _Costs.of(batches.explain(groups))
        except (SpinezarrError, OSError):  # whoever reads says so
            stream.is_estimated = False

    def _way(
        self, stream: "_Stream", limits: BatchLimits, link: float | None
    ) -> tuple[Transfer, Pack]:
        """Choose for one unit."""
        with self._lock:
            pack = stream.best_pack(limits, link)
            if stream.unserved >= ENOUGH:
                return "ranges", pack
            if self.transfer != "auto":
                return self.transfer, pack
            if stream.costs is not None:
                stream.choice.choose(*stream.units_per_s(limits, pack, link))
            return stream.choice.way, pack

    def _served(
        self, batches: BatchReader, groups: Groups, pack: Pack, stream: "_Stream"
    ) -> list[Batch]:
        requests = [request for group in groups for request in group]
        rows = [batches.reader.row(request.scan_id) for request in requests]
        n_bytes = len(requests) * batches.patch_bytes
        most = n_bytes + n_bytes // _SLACK + _HEAD_BYTES + len(requests) * _ITEM_BYTES
        body = _question(batches, requests, rows, pack)
        objects = batches.reader.objects
        for attempts_left in reversed(range(1 + objects.rereads)):
            answer = objects.post(f"{self.url}/batch", body, most)
            try:
                tensors = Tensors.parse(answer)
                statuses = _STATUSES.validate_json(tensors.about.get("status", ""))
                if statuses != ["ok"] * len(requests):
                    raise BatchRefusedError("the server cannot read some of them")
                whole = _batch(batches, requests, tensors)
            except (DamagedTensorsError, ValidationError) as problem:
                if not attempts_left:
                    raise BatchRefusedError(str(problem)) from problem
                continue
            break
        if not _is_as_planned(batches, whole, rows):
            raise BatchRefusedError("the server has other scans than the table says")
        self._learn(stream, tensors, whole, pack)
        return _split(whole, groups)

    def _learn(self, stream: "_Stream", tensors: Tensors, whole: Batch, pack: Pack) -> None:
        names = ("image",) if whole.label is None else ("image", "label")
        voxels = whole.image.nbytes + (0 if whole.label is None else whole.label.nbytes)
        if voxels:
            ratio = sum(map(tensors.size_bytes, names)) / voxels
            with self._lock:
                stream.ratios[pack] += _NEWEST * (ratio - stream.ratios[pack])


@dataclass(frozen=True, slots=True)
class _Costs:
    """What a unit takes."""

    range_bytes: int
    decoded_bytes: int
    voxel_bytes: int

    @classmethod
    def of(cls, summary: ReadSummary) -> "_Costs":
        return cls(summary.fetched_bytes, summary.decoded_bytes, max(1, summary.voxel_bytes))


@dataclass(slots=True, eq=False)
class _Stream:
    """What is known of units of one kind; the lock of the service guards it."""

    choice: TransferChoice = field(default_factory=TransferChoice)
    costs: _Costs | None = None
    is_estimated: bool = False
    ratios: dict[Pack, float] = field(default_factory=lambda: dict(_RATIOS))
    unserved: int = 0
    """Units that the server did not give."""

    def best_pack(self, limits: BatchLimits, link: float | None) -> Pack:
        """Return how voxels are best packed: to few bytes, unless packing is slower than they."""
        per_s = link or _LINK_BYTES_PER_S

        def longest(pack: Pack) -> tuple[float, float]:
            packing = 1 / _PACKED_BYTES_PER_S[pack] / limits.cores
            return max(self.ratios[pack] / per_s, packing), self.ratios[pack]

        return min(_RATIOS, key=longest)

    def units_per_s(
        self, limits: BatchLimits, pack: Pack, link: float | None
    ) -> tuple[float, float]:
        """Return how many units come in a second by patches and by ranges."""
        served = self.choice.measured("patches") or self._served_per_s(limits, pack, link)
        return served, self.choice.measured("ranges") or self._ranges_per_s(limits, link)

    def _served_per_s(self, limits: BatchLimits, pack: Pack, link: float | None) -> float:
        costs = self.costs or _Costs(0, 0, 1)
        on_the_way = costs.voxel_bytes * self.ratios[pack] / (link or _LINK_BYTES_PER_S)
        packing = costs.voxel_bytes / _PACKED_BYTES_PER_S[pack]
        there = (costs.decoded_bytes / _DECODED_BYTES_PER_S + packing) / limits.cores
        return 1 / max(on_the_way, there)

    def _ranges_per_s(self, limits: BatchLimits, link: float | None) -> float:
        costs = self.costs or _Costs(0, 0, 1)
        on_the_way = costs.range_bytes / (link or _LINK_BYTES_PER_S)
        here = costs.decoded_bytes / _DECODED_BYTES_PER_S / limits.cores
        return 1 / max(on_the_way, here, _NO_TIME_S)


class _Timed:
    """Counts a unit that is read in one way."""

    def __init__(self, lock: ProcessLock, choice: TransferChoice, way: Transfer) -> None:
        self._lock = lock
        self._choice = choice
        self._way = way

    def __enter__(self) -> None:
        with self._lock:
            self._began_s = self._choice.begin()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._lock:
            self._choice.end(self._way, self._began_s, 0 if kind else 1)


def _rates(stream: _Stream, limits: BatchLimits, pack: Pack, link: float | None) -> str:
    """Say how fast both ways are."""
    served, by_ranges = stream.units_per_s(limits, pack, link)

    def how(way: Transfer) -> str:
        return "estimated" if stream.choice.measured(way) is None else "measured"

    return (
        f"{served:.1f} batches/s by the server ({how('patches')}), "
        f"{by_ranges:.1f} by ranges ({how('ranges')})"
    )


def _question(
    batches: BatchReader,
    requests: Sequence[PatchRequest],
    rows: Sequence[TableRow | None],
    pack: Pack,
) -> bytes:
    """Return what is posted; see :class:`spinezarr.serve.patches.BatchModel`."""
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
            "size_zyx": batches.size_zyx,
            "spacing_zyx_mm": batches.spacing_zyx_mm,
            "with_label": batches.with_label,
            "image_dtype": batches.image_dtype.name,
            "flat_axis": batches.flat_axis,
            "neighbors": batches.neighbors,
            "neighbor_step_mm": batches.neighbor_step_mm,
            "nonfinite": batches.nonfinite,
            "pack": pack,
        }
    ).encode()


def _batch(batches: BatchReader, requests: Sequence[PatchRequest], tensors: Tensors) -> Batch:
    """Return all that came as one batch.

    Raises
    ------
    DamagedTensorsError
        If it is not what was asked for.
    """
    n, empty = len(requests), batches.engine.buffers.empty
    starts = np.array([request.box.start_zyx for request in requests])
    if (tensors.get("start_zyx", (n, 3), np.int64) != starts).any():
        raise DamagedTensorsError("the patches are others than were asked for")
    label: npt.NDArray[Any] | None = None
    if batches.with_label:
        label = tensors.get("label", (n, *batches.shape), np.uint8, empty)
    return Batch(
        image=tensors.get(
            "image", (n, *batches.channels, *batches.shape), batches.image_dtype, empty
        ),
        label=label,
        dims=batches.dims,
        scan_id=tuple(request.scan_id for request in requests),
        start_zyx=starts,
        padding_zyx=tensors.get("padding_zyx", (n, 3, 2), np.int64),
        affine=tensors.get("affine", (n, 4, 4), np.float64),
        spacing_zyx_mm=tensors.get("spacing_zyx_mm", (n, 3), np.float64),
        vertebra=tuple(request.vertebra for request in requests),
        index=np.array([request.index for request in requests]),
    )


def _is_as_planned(batches: BatchReader, batch: Batch, rows: Sequence[TableRow | None]) -> bool:
    """Whether scans have the shapes by which the patches were drawn, as their padding tells."""
    for start, padding, row in zip(batch.start_zyx, batch.padding_zyx, rows, strict=True):
        if row is not None:
            step = step_zyx(row.spacing_zyx_mm, batches.spacing_zyx_mm)
            volume = Box((0, 0, 0), grid_shape_zyx(row.shape_zyx, step))
            z, y, x = start.tolist()
            if (padding != padding_zyx(Box.at((z, y, x), batches.size_zyx), volume)).any():
                return False
    return True


def _split(whole: Batch, groups: Groups) -> list[Batch]:
    """Return the batches that were read as one."""
    found, first = [], 0
    for group in groups:
        last = first + len(group)
        found.append(whole.part(first, last))
        first = last
    return found
