"""How does the server read patches for its clients?

``POST /v1/<store>/batch`` reads several patches and returns a status for each. ``GET
/v1/<store>/scans/<scan_id>/patch`` reads one. Caches may keep that one, because its entity tag
names the version of the scan.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from threading import Lock
from typing import Annotated, Final, Literal, Self
from urllib.parse import quote

import numpy as np
from pydantic import Field, ValidationError, model_validator

from spinezarr.errors import CorruptStoreError, SpinezarrError, UnknownScanError, UsageError
from spinezarr.geometry import Box
from spinezarr.processors import cpu_count
from spinezarr.serve.http import Answer, Request, negotiate_media_type, text_answer
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.patch_formats import (
    BATCH_MEDIA_TYPES,
    NIFTI,
    NIFTI_GZ,
    PATCH_MEDIA_TYPES,
    FormatOptions,
    encode_batch,
    is_available,
)
from spinezarr.serve.query import QueryModel, WrongQueryError, parse_query, wrong_of
from spinezarr.serve.served_files import ServedFolder
from spinezarr.serve.storage import UnavailableError
from spinezarr.serve.version_headers import RefusedError, headers_of_version
from spinezarr.store.attributes import is_scan_id
from spinezarr.store.reader import StoreReader
from spinezarr.stream.batch import Batch
from spinezarr.stream.read.batch_limits import PROTOCOL, BatchLimits
from spinezarr.stream.read.batch_reader import BatchReader
from spinezarr.stream.read.engine import ChunkCache, Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.stream.read.nonfinite import Nonfinite
from spinezarr.stream.read.tensors import Pack
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import step_zyx

__all__ = [
    "BODY_BYTES",
    "BatchModel",
    "PatchQuery",
    "PatchSource",
    "answer_batch",
    "answer_patch",
    "batch_limits",
]

BODY_BYTES: Final = 4 << 20
"""Largest body of a request; an item takes about a hundred bytes."""
_ITEMS: Final = 8192

_Size = Annotated[int, Field(ge=1, le=4096)]
_Start = Annotated[int, Field(ge=-(1 << 20), le=1 << 20)]
_Millimeters = Annotated[float, Field(gt=0, le=1000)]
_Checksum = Annotated[str, Field(max_length=64)]


def batch_limits(limits: ServeLimits) -> BatchLimits:
    """Return what clients are told about the largest batch and the speed of this server."""
    return BatchLimits(
        protocol=PROTOCOL,
        items=_ITEMS,
        voxel_bytes=limits.batch_voxel_bytes,
        cores=cpu_count(),
    )


class _PatchModel(QueryModel):
    size_zyx: tuple[_Size, _Size, _Size]
    """Shape of a patch in voxels."""
    spacing_zyx_mm: tuple[_Millimeters | None, _Millimeters | None, _Millimeters | None] = (
        None,
        None,
        None,
    )
    """Spacing to resample to; null along an axis keeps the spacing of the scan."""
    with_label: bool = True
    """Whether masks are read too."""
    image_dtype: Literal["int16", "uint16", "int32", "uint32", "int64", "float32", "float64"] = (
        "int16"
    )
    """Type of the image; scans with values outside of it are refused."""
    flat_axis: Literal[0, 1, 2] | None = None
    """Axis that slices do not have (0, 1, 2 for z, y, x), along which ``size_zyx`` is 1."""
    neighbors: Annotated[int, Field(ge=0, le=64)] = 0
    """Further slices of the image on either side of each slice."""
    neighbor_step_mm: _Millimeters | None = None
    """Distance between these slices; null for adjacent slices of the scan."""
    nonfinite: Nonfinite = "refuse"
    """Whether voxels that are NaN or infinite are refused, kept, or replaced by a number."""
    pack: Pack = "none"
    """Compression of the voxels. In safetensors, ``image`` and ``label`` become Blosc frames of
    bytes, and ``packed`` in the metadata holds their types and shapes. An Arrow stream compresses
    its buffers."""

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.flat_axis is not None and self.size_zyx[self.flat_axis] != 1:
            raise ValueError("a slice must have one voxel along its flat_axis")
        if self.neighbors and self.flat_axis is None:
            raise ValueError("neighbors need a flat_axis: only slices have them")
        if self.neighbor_step_mm is not None and not self.neighbors:
            raise ValueError("neighbor_step_mm needs neighbors")
        return self

    def voxel_bytes(self, count: int) -> int:
        """Return the size of a number of patches in bytes, without compression."""
        z, y, x = self.size_zyx
        images = (2 * self.neighbors + 1) * np.dtype(self.image_dtype).itemsize
        return count * z * y * x * (images + int(self.with_label))


class ItemModel(QueryModel):
    """One patch."""

    scan_id: Annotated[str, Field(max_length=255)]
    start_zyx: tuple[_Start, _Start, _Start]
    """First voxel of the patch; outside of the volume is air and background."""
    content_checksum: _Checksum | None = None
    """Version of the scan; null for the present one."""


class BatchModel(_PatchModel):
    """Patches of one shape."""

    items: Annotated[tuple[ItemModel, ...], Field(max_length=_ITEMS)]


class PatchQuery(_PatchModel):
    """One patch of a scan; elements of a list are separated by commas."""

    start_zyx: tuple[_Start, _Start, _Start]
    """First voxel of the patch; outside of the volume is air and background."""
    content_checksum: _Checksum | None = None
    """The version of the scan that is wanted; the answer may be kept for ever."""
    array: Literal["image", "label"] = "image"
    """Array to send, in formats that hold one array."""


_NO_SCAN: Final = "there is no such scan"
_FAILURES: Final[Mapping[str, HTTPStatus]] = {
    _NO_SCAN: HTTPStatus.NOT_FOUND,
    "the scan has changed": HTTPStatus.GONE,
    "the scan is damaged": HTTPStatus.SERVICE_UNAVAILABLE,
    "the scan is damaged, or has changed": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""HTTP status for each status of a patch; others are faults of the request, and 422."""


class PatchSource:
    """The patches of one store, as it is now; safe to share between threads.

    Parameters
    ----------
    files
        Files of the store.
    chunks
        Cache of decoded chunks; None for no cache.
    limits
        Bounds on the work for a request.
    """

    def __init__(self, files: ServedFolder, chunks: ChunkCache | None, limits: ServeLimits) -> None:
        self.limits = limits
        self._chunks = chunks
        self._files = files
        self._lock = Lock()
        self._opened: tuple[StoreReader, Engine] | None = None

    def opened(self, scan_ids: Iterable[str]) -> tuple[StoreReader, Engine]:
        """Return reader and engine of the store; reopen it if it has older versions of the scans.

        Raises
        ------
        SpinezarrError
            If the store cannot be opened.
        """
        opened = self._opened
        if opened is None or not self._is_current(opened[0], scan_ids):
            with self._lock:
                if self._opened is opened or self._opened is None:
                    reader = self._files.reader(with_table=False)
                    self._opened = reader, Engine(fetcher_for(reader.objects), cache=self._chunks)
                opened = self._opened
        return opened

    def may_have(self, scan_id: str) -> bool:
        """Whether a scan of that name can exist in this store."""
        return is_scan_id(scan_id) and self._files.may_have(scan_id)

    def _is_current(self, reader: StoreReader, scan_ids: Iterable[str]) -> bool:
        def is_current(scan_id: str) -> bool:
            try:
                now, known = self._files.scan(scan_id), reader.scan(scan_id)
            except UnavailableError:
                raise
            except SpinezarrError:
                return True  # the read of the scan reports it
            return now is not None and now.content_checksum == known.content_checksum

        return all(reader.objects.each(is_current, scan_ids))


def answer_batch(source: PatchSource, request: Request, body: bytes, *, threads: int) -> Answer:
    """Answer a request for patches.

    Parameters
    ----------
    source
        Reads the voxels of the store.
    request
        The request.
    body
        JSON of a :class:`BatchModel`.
    threads
        Threads that decode at once.
    """
    try:
        form = _form(request, BATCH_MEDIA_TYPES)
        asked = BatchModel.model_validate_json(body)
        read = _Reading.of(source, asked, asked.items)
        batch = read.run(threads)
        data = encode_batch(form, batch, read.statuses, FormatOptions(pack=asked.pack))
    except ValidationError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, wrong_of(problem))
    except UsageError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    except RefusedError as problem:
        return problem.answer
    return Answer(
        HTTPStatus.OK,
        {"content-type": form, "cache-control": "no-store", "vary": "Accept"},
        data,
    )


def answer_patch(source: PatchSource, request: Request, scan_id: str, *, threads: int) -> Answer:
    """Answer a request for one patch, which is a :class:`PatchQuery`.

    Parameters
    ----------
    source, request, threads
        As in :func:`answer_batch`.
    scan_id
        Id of the scan.
    """
    try:
        form = _form(request, PATCH_MEDIA_TYPES)
        asked = parse_query(PatchQuery, request.query)
        item = ItemModel.model_construct(
            scan_id=scan_id, start_zyx=asked.start_zyx, content_checksum=asked.content_checksum
        )
        read = _Reading.of(source, asked, [item])
        read.check()
        checksum = read.batches.reader.scan(scan_id).content_checksum
        headers = headers_of_version(
            request,
            *(form, checksum, asked.model_dump_json(exclude={"content_checksum"})),
            is_named=asked.content_checksum is not None,
            vary="Accept",
        )
        batch = read.run(threads)
        read.check()
        if read.batches.reader.scan(scan_id).content_checksum != checksum:
            read.statuses[0] = "the scan has changed"
            read.check()
        options = FormatOptions(asked.pack, asked.array, asked.flat_axis)
        data = encode_batch(form, batch, read.statuses, options)
    except (WrongQueryError, UsageError) as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    except RefusedError as problem:
        return problem.answer
    if form in {NIFTI, NIFTI_GZ}:
        ending = "nii" if form == NIFTI else "nii.gz"
        name = quote(f"{scan_id}_{asked.array}.{ending}", safe="")
        headers["content-disposition"] = f"attachment; filename*=UTF-8''{name}"
    return Answer(HTTPStatus.OK, {**headers, "content-type": form}, data)


def _form(request: Request, offers: Sequence[str]) -> str:
    """Return the media type to answer with, by the Accept header."""
    accept = request.headers.get("accept")
    form = negotiate_media_type(accept, [offer for offer in offers if is_available(offer)])
    if form is not None:
        return form
    absent = negotiate_media_type(accept, offers)
    why = "" if absent is None else f" {absent} needs a package that this server lacks (pyarrow)."
    raise RefusedError(
        text_answer(HTTPStatus.NOT_ACCEPTABLE, f"Patches come as {', '.join(offers)}.{why}")
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Reading:
    """Patches to read, and the status of each so far."""

    batches: BatchReader
    requests: Sequence[PatchRequest]
    statuses: list[str]
    versions: Sequence[str | None]
    """The ``content_checksum`` that each item names."""
    limits: ServeLimits

    @classmethod
    def of(cls, source: PatchSource, asked: _PatchModel, items: Sequence[ItemModel]) -> "_Reading":
        """Check the requested patches against the store and the limits.

        Raises
        ------
        RefusedError
            If the request is not valid, or it is too large.
        """
        voxel_bytes = asked.voxel_bytes(len(items))
        limits = source.limits
        if voxel_bytes > limits.batch_voxel_bytes:
            raise RefusedError(
                text_answer(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The patches have {voxel_bytes} bytes of voxels; at most "
                    f"{limits.batch_voxel_bytes} are sent together. Request fewer items.",
                )
            )
        reader, engine = source.opened({i.scan_id for i in items if source.may_have(i.scan_id)})
        batches = BatchReader(
            reader=reader,
            engine=engine,
            size_zyx=asked.size_zyx,
            spacing_zyx_mm=asked.spacing_zyx_mm,
            with_label=asked.with_label,
            image_dtype=np.dtype(asked.image_dtype),
            flat_axis=asked.flat_axis,
            neighbors=asked.neighbors,
            neighbor_step_mm=asked.neighbor_step_mm,
            nonfinite=asked.nonfinite,
        )
        requests = [
            PatchRequest(at, item.scan_id, Box.at(item.start_zyx, asked.size_zyx), None)
            for at, item in enumerate(items)
        ]
        statuses = [
            _status(reader, item, batches) if source.may_have(item.scan_id) else _NO_SCAN
            for item in items
        ]
        versions = [item.content_checksum for item in items]
        return cls(batches, requests, statuses, versions, limits)

    def check(self) -> None:
        """Raise RefusedError if an item cannot be read."""
        status = next((status for status in self.statuses if status != "ok"), None)
        if status is not None:
            code = _FAILURES.get(status, HTTPStatus.UNPROCESSABLE_ENTITY)
            raise RefusedError(text_answer(code, f"{status[0].upper()}{status[1:]}."))

    def run(self, threads: int) -> Batch:
        """Read the items that can be read."""
        source_bytes = _source_bytes(self.batches, self.requests, self.statuses)
        if source_bytes > self.limits.batch_source_bytes:
            raise RefusedError(
                text_answer(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The patches need {source_bytes} bytes of stored voxels; at most "
                    f"{self.limits.batch_source_bytes} are read together. Request fewer items.",
                )
            )
        return self._read(threads)

    def _read(self, threads: int) -> Batch:
        """Read the items that can be read, and set the status of those that fail."""
        batches, statuses = self.batches, self.statuses
        wanted = [request for request in self.requests if statuses[request.index] == "ok"]
        try:
            return batches.read_together([wanted], threads=threads)[0]
        except (UsageError, ConnectionError, PermissionError):
            raise  # no fault of a scan
        except (SpinezarrError, OSError):
            for request in wanted:
                try:
                    batches.read_together([[request]], threads=threads)
                    found = batches.reader.scan(request.scan_id).content_checksum
                except (ConnectionError, PermissionError):
                    raise
                except (SpinezarrError, OSError):
                    statuses[request.index] = "the scan is damaged, or has changed"
                else:  # the scan may have been replaced since it was checked
                    if self.versions[request.index] not in {None, found}:
                        statuses[request.index] = "the scan has changed"
        left = [request for request in wanted if statuses[request.index] == "ok"]
        return batches.read_together([left], threads=threads)[0]


def _status(reader: StoreReader, item: ItemModel, batches: BatchReader) -> str:
    """Return ``ok`` if an item can be read, else the reason."""
    try:
        scan = reader.scan(item.scan_id)
    except UnknownScanError:
        return _NO_SCAN
    except CorruptStoreError:
        return "the scan is damaged"
    attributes = scan.attributes
    holes = attributes.image_nan_voxels or attributes.image_infinite_voxels
    reasons = {
        "the scan has changed": item.content_checksum not in {None, scan.content_checksum},
        "the scan has no mask": batches.with_label and scan.label is None,
        "the scan has voxels that are NaN or infinite": holes and batches.nonfinite == "refuse",
        f"the image is {scan.image.dtype}": not np.can_cast(scan.image.dtype, batches.image_dtype),
    }
    return next((reason for reason, holds in reasons.items() if holds), "ok")


def _source_bytes(
    batches: BatchReader, requests: Sequence[PatchRequest], statuses: Sequence[str]
) -> int:
    """Return the most bytes of stored voxels that are read; coarse patches need many."""
    total = 0
    for request, status in zip(requests, statuses, strict=True):
        if status != "ok":
            continue
        scan = batches.reader.scan(request.scan_id)
        steps = step_zyx(scan.attributes.spacing_zyx_mm, batches.spacing_zyx_mm)
        extents = [
            min(n, math.ceil(size * step) + 2)
            for n, size, step in zip(scan.image.shape_zyx, batches.size_zyx, steps, strict=True)
        ]
        if batches.neighbors and batches.flat_axis is not None:
            extents[batches.flat_axis] = scan.image.shape_zyx[batches.flat_axis]
        total += math.prod(extents) * (scan.image.dtype.itemsize + int(batches.with_label))
    return total
