"""How does the server read patches for its clients?

``POST /v1/<store>/batch`` reads several patches and returns a status for each. ``GET
/v1/<store>/scans/<scan_id>/patch`` reads one. Caches may keep the answer, because its entity
tag names the version of the scan.
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
from spinezarr.serve.query import QueryModel, WrongQueryError, describe_first_fault, parse_query
from spinezarr.serve.served_files import ServedFolder, ServedScan
from spinezarr.serve.storage import UnavailableError
from spinezarr.serve.version_headers import RefusedError, headers_of_version
from spinezarr.store.attributes import is_scan_id
from spinezarr.store.layout import ARRAY_NAME, IMAGE, LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.stream.batch import Batch
from spinezarr.stream.read.batch_limits import PROTOCOL, BatchLimits
from spinezarr.stream.read.batch_reader import BatchReader
from spinezarr.stream.read.engine import ChunkCache, Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.stream.read.nonfinite import Nonfinite
from spinezarr.stream.read.tensors import Pack
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import MIN_MM, step_zyx

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
_Millimeters = Annotated[float, Field(ge=MIN_MM, le=1000)]
_Checksum = Annotated[str, Field(max_length=64)]
_MaskName = Annotated[str, Field(pattern=ARRAY_NAME)]
_MASKS: Final = 64
"""Most masks of a request."""


def batch_limits(limits: ServeLimits) -> BatchLimits:
    """Return the limits of a batch, and the number of processors, for clients."""
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
    labels: Annotated[tuple[_MaskName, ...], Field(max_length=_MASKS)] = (LABEL,)
    """Names of the masks to read: ``label`` and further ones; empty for images alone."""
    image_dtype: Literal["int16", "uint16", "int32", "uint32", "int64", "float32", "float64"] = (
        "int16"
    )
    """Type of the image. Scans whose values it cannot hold are refused."""
    flat_axis: Literal[0, 1, 2] | None = None
    """Axis that slices lack (0, 1, 2 for z, y, x). Along it, ``size_zyx`` is 1."""
    neighbors: Annotated[int, Field(ge=0, le=64)] = 0
    """Number of further slices of the image on either side of each slice."""
    neighbor_step_mm: _Millimeters | None = None
    """Distance between these slices; null for adjacent slices of the scan."""
    nonfinite: Nonfinite = "refuse"
    """Whether voxels that are NaN or infinite are refused, kept, or replaced by a number."""
    pack: Pack = "none"
    """Compression of the voxels. In safetensors, image and masks become Blosc frames of bytes,
    and ``packed`` in the metadata holds their types and shapes. An Arrow stream compresses
    its buffers."""

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels must name each mask once")
        return self

    @model_validator(mode="after")
    def _check_slice_fields(self) -> Self:
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
        return count * z * y * x * (images + len(self.labels))

    @property
    def further_masks(self) -> tuple[str, ...]:
        """Names of the masks to read besides ``label``."""
        return tuple(name for name in self.labels if name != LABEL)


class ItemModel(QueryModel):
    """One patch."""

    scan_id: Annotated[str, Field(max_length=255)]
    start_zyx: tuple[_Start, _Start, _Start]
    """First voxel of the patch. Outside the volume, a patch holds air and background."""
    content_checksum: _Checksum | None = None
    """Version of the scan; null for the current one."""
    mask_checksums: Annotated[tuple[_Checksum | None, ...], Field(max_length=_MASKS)] = ()
    """Versions of the further masks among ``labels``, in their order, which ``content_checksum``
    leaves out; null for the current ones."""


class BatchModel(_PatchModel):
    """Patches of one shape."""

    items: Annotated[tuple[ItemModel, ...], Field(max_length=_ITEMS)]


class PatchQuery(_PatchModel):
    """One patch of a scan. Elements of a list are separated by commas."""

    start_zyx: tuple[_Start, _Start, _Start]
    """First voxel of the patch. Outside the volume, a patch holds air and background."""
    content_checksum: _Checksum | None = None
    """The version of the scan; with it, the answer may be kept for ever."""
    mask_checksums: Annotated[tuple[_Checksum, ...], Field(max_length=_MASKS)] = ()
    """Versions of the further masks among ``labels``, in their order, which ``content_checksum``
    leaves out."""
    array: _MaskName = IMAGE
    """Array to send, in formats that hold one array: ``image`` or one of ``labels``."""


_CHECKSUMS: Final = {"content_checksum", "mask_checksums"}
_NO_SCAN: Final = "there is no such scan"
_CHANGED: Final = "the scan has changed"
_MASK_CHANGED: Final = "a mask of the scan has changed"
_FAILURES: Final[Mapping[str, HTTPStatus]] = {
    _NO_SCAN: HTTPStatus.NOT_FOUND,
    _CHANGED: HTTPStatus.GONE,
    _MASK_CHANGED: HTTPStatus.GONE,
    "the scan is damaged": HTTPStatus.SERVICE_UNAVAILABLE,
    "the scan is damaged, or has changed": HTTPStatus.SERVICE_UNAVAILABLE,
}
"""HTTP status for each status of a patch. It is 422 for all others, which are faults of the
request."""


class PatchSource:
    """Reads patches of the current version of a store; safe to share between threads.

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

    def reader_and_engine(self, scan_ids: Iterable[str]) -> tuple[StoreReader, Engine]:
        """Return reader and engine of the store; open it again if a scan or mask has changed.

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
                current, known = self._files.scan(scan_id), reader.scan(scan_id)
            except UnavailableError:
                raise
            except SpinezarrError:
                return True  # reading the scan raises the error
            return (
                current is not None
                and current.content_checksum == known.content_checksum
                and _has_same_masks(current, known)
            )

        return all(reader.objects.each(is_current, scan_ids))


def _has_same_masks(current: ServedScan, known: ScanHandle) -> bool:
    """Whether the further masks of a scan are the known ones, with the same names of labels."""
    volumes = current.group.arrays.volumes
    return (
        current.mask_checksums == known.mask_checksums
        and current.group.attributes.masks == known.attributes.masks
        and all(volumes[mask.name].separator == mask.separator for mask in known.masks.values())
    )


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
        Number of threads that decode at once.
    """
    try:
        media_type = _choose_media_type(request, BATCH_MEDIA_TYPES)
        model = BatchModel.model_validate_json(body)
        patch_read = _PatchRead.of(source, model, model.items)
        batch = patch_read.run(threads)
        data = encode_batch(media_type, batch, patch_read.statuses, FormatOptions(pack=model.pack))
    except ValidationError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, describe_first_fault(problem))
    except UsageError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    except RefusedError as problem:
        return problem.answer
    return Answer(
        HTTPStatus.OK,
        {"content-type": media_type, "cache-control": "no-store", "vary": "Accept"},
        data,
    )


def answer_patch(source: PatchSource, request: Request, scan_id: str, *, threads: int) -> Answer:
    """Answer a request for one patch. Its query is a :class:`PatchQuery`.

    Parameters
    ----------
    source, request, threads
        As in :func:`answer_batch`.
    scan_id
        Id of the scan.
    """
    try:
        media_type = _choose_media_type(request, PATCH_MEDIA_TYPES)
        query = parse_query(PatchQuery, request.query)
        item = ItemModel.model_construct(
            scan_id=scan_id,
            start_zyx=query.start_zyx,
            content_checksum=query.content_checksum,
            mask_checksums=query.mask_checksums,
        )
        patch_read = _PatchRead.of(source, query, [item])
        patch_read.check()
        version = patch_read.version_of(scan_id)
        is_named = query.content_checksum is not None
        is_named &= len(query.mask_checksums) == len(query.further_masks)
        headers = headers_of_version(
            request,
            *(media_type, *version, query.model_dump_json(exclude=_CHECKSUMS)),
            is_named=is_named,
            vary="Accept",
        )
        batch = patch_read.run(threads)
        patch_read.check()
        if patch_read.version_of(scan_id) != version:
            patch_read.statuses[0] = _CHANGED
            patch_read.check()
        options = FormatOptions(query.pack, query.array, query.flat_axis)
        data = encode_batch(media_type, batch, patch_read.statuses, options)
    except (WrongQueryError, UsageError) as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    except RefusedError as problem:
        return problem.answer
    if media_type in {NIFTI, NIFTI_GZ}:
        suffix = "nii" if media_type == NIFTI else "nii.gz"
        name = quote(f"{scan_id}_{query.array}.{suffix}", safe="")
        headers["content-disposition"] = f"attachment; filename*=UTF-8''{name}"
    return Answer(HTTPStatus.OK, {**headers, "content-type": media_type}, data)


def _choose_media_type(request: Request, offers: Sequence[str]) -> str:
    """Return the media type of the answer, by the Accept header.

    Raises
    ------
    RefusedError
        If the server has none of the accepted types.
    """
    accept = request.headers.get("accept")
    media_type = negotiate_media_type(accept, [offer for offer in offers if is_available(offer)])
    if media_type is not None:
        return media_type
    missing = negotiate_media_type(accept, offers)
    reason = "" if missing is None else f" For {missing}, the server lacks the package pyarrow."
    raise RefusedError(
        text_answer(
            HTTPStatus.NOT_ACCEPTABLE, f"The formats of patches are {', '.join(offers)}.{reason}"
        )
    )


@dataclass(frozen=True, slots=True, eq=False)
class _PatchRead:
    """Patches to read, and the current status of each."""

    batches: BatchReader
    requests: Sequence[PatchRequest]
    statuses: list[str]
    items: Sequence[ItemModel]
    """The items, which may name versions."""
    limits: ServeLimits

    @classmethod
    def of(
        cls, source: PatchSource, model: _PatchModel, items: Sequence[ItemModel]
    ) -> "_PatchRead":
        """Check the requested patches against the store and the limits.

        Raises
        ------
        RefusedError
            If the request is not valid, or it is too large.
        """
        n_masks = len(model.further_masks)
        if any(item.mask_checksums and len(item.mask_checksums) != n_masks for item in items):
            raise RefusedError(
                text_answer(
                    HTTPStatus.BAD_REQUEST,
                    f"mask_checksums: must have as many elements as further masks are read, "
                    f"{n_masks}.",
                )
            )
        voxel_bytes = model.voxel_bytes(len(items))
        limits = source.limits
        if voxel_bytes > limits.batch_voxel_bytes:
            raise RefusedError(
                text_answer(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"The patches have {voxel_bytes} bytes of voxels; at most "
                    f"{limits.batch_voxel_bytes} are sent together. Request fewer items.",
                )
            )
        reader, engine = source.reader_and_engine(
            {i.scan_id for i in items if source.may_have(i.scan_id)}
        )
        batches = BatchReader(
            reader=reader,
            engine=engine,
            size_zyx=model.size_zyx,
            spacing_zyx_mm=model.spacing_zyx_mm,
            with_label=LABEL in model.labels,
            masks=model.further_masks,
            image_dtype=np.dtype(model.image_dtype),
            flat_axis=model.flat_axis,
            neighbors=model.neighbors,
            neighbor_step_mm=model.neighbor_step_mm,
            nonfinite=model.nonfinite,
        )
        requests = [
            PatchRequest(number, item.scan_id, Box.at(item.start_zyx, model.size_zyx), None)
            for number, item in enumerate(items)
        ]
        statuses = [
            _status(reader, item, batches) if source.may_have(item.scan_id) else _NO_SCAN
            for item in items
        ]
        return cls(batches, requests, statuses, items, limits)

    def version_of(self, scan_id: str) -> tuple[str, ...]:
        """Return the checksums of the current version of a scan and of its further masks."""
        scan: ScanHandle = self.batches.reader.scan(scan_id)
        masks = [scan.masks[name] for name in self.batches.masks if name in scan.masks]
        return (scan.content_checksum, *(mask.content_checksum for mask in masks))

    def check(self) -> None:
        """Raise RefusedError if an item cannot be read."""
        status = next((status for status in self.statuses if status != "ok"), None)
        if status is not None:
            code = _FAILURES.get(status, HTTPStatus.UNPROCESSABLE_ENTITY)
            raise RefusedError(text_answer(code, f"{status[0].upper()}{status[1:]}."))

    def run(self, threads: int) -> Batch:
        """Read the items that can be read.

        Raises
        ------
        RefusedError
            If they need too many stored voxels.
        """
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
        readable = [request for request in self.requests if statuses[request.index] == "ok"]
        try:
            return batches.read_together([readable], threads=threads)[0]
        except (UsageError, ConnectionError, PermissionError):
            raise  # the fault is not one of a scan
        except (SpinezarrError, OSError):
            for request in readable:
                try:
                    batches.read_together([[request]], threads=threads)
                    scan = batches.reader.scan(request.scan_id)
                except (ConnectionError, PermissionError):
                    raise
                except (SpinezarrError, OSError):
                    statuses[request.index] = "the scan is damaged, or has changed"
                else:  # the scan may have been replaced since it was checked
                    change = _change(scan, self.items[request.index], batches)
                    statuses[request.index] = change or "ok"
        remaining = [request for request in readable if statuses[request.index] == "ok"]
        return batches.read_together([remaining], threads=threads)[0]


def _status(reader: StoreReader, item: ItemModel, batches: BatchReader) -> str:
    """Return ``ok`` if an item can be read, else the reason."""
    try:
        scan = reader.scan(item.scan_id)
    except UnknownScanError:
        return _NO_SCAN
    except CorruptStoreError:
        return "the scan is damaged"
    change = _change(scan, item, batches)
    if change:
        return change
    attributes = scan.attributes
    has_nonfinite = attributes.image_nan_voxels or attributes.image_infinite_voxels
    reasons = {
        "the scan has no mask": batches.with_label and scan.label is None,
        **{f"the scan has no mask {name}": name not in scan.masks for name in batches.masks},
        "the scan has voxels that are NaN or infinite": has_nonfinite
        and batches.nonfinite == "refuse",
        f"the image is {scan.image.dtype}": not np.can_cast(scan.image.dtype, batches.image_dtype),
    }
    return next((reason for reason, applies in reasons.items() if applies), "ok")


def _change(scan: ScanHandle, item: ItemModel, batches: BatchReader) -> str:
    """Return why a scan is not the version that an item names; empty if it is."""
    if item.content_checksum not in {None, scan.content_checksum}:
        return _CHANGED
    for name, checksum in zip(batches.masks, item.mask_checksums, strict=False):
        stored = scan.masks[name].content_checksum if name in scan.masks else ""
        if checksum not in {None, stored}:
            return _MASK_CHANGED
    return ""


def _source_bytes(
    batches: BatchReader, requests: Sequence[PatchRequest], statuses: Sequence[str]
) -> int:
    """Return the largest number of bytes of stored voxels to read. Coarse patches need many."""
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
        total += math.prod(extents) * (scan.image.dtype.itemsize + len(batches.mask_names))
    return total
