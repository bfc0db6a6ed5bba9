"""Patches: read beside the data, and sent as they are wanted: ``POST /v1/<store>/batch``.

An answer is a file of safetensors (https://github.com/huggingface/safetensors#format): tensors
``image`` and ``label`` of the items that could be read, in the order asked for, and what else a
batch knows of them. Its metadata say of each item what became of it. A tensor that is packed for
the link is one of bytes, a frame of Blosc, and the metadata say of what.
"""

import math
import os
from collections.abc import Iterable, Sequence
from http import HTTPStatus
from threading import Lock
from typing import Annotated, Any, Final, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from spinezarr.errors import CorruptStoreError, SpinezarrError, UnknownScanError, UsageError
from spinezarr.geometry import Box
from spinezarr.serve.http import Answer, explained
from spinezarr.serve.objects import ServedFolder
from spinezarr.serve.storage import UnavailableError
from spinezarr.store.attributes import is_scan_id
from spinezarr.store.reader import StoreReader
from spinezarr.stream.batch import Batch
from spinezarr.stream.batch_reader import BatchReader
from spinezarr.stream.draw import PatchRequest
from spinezarr.stream.engine import Engine
from spinezarr.stream.fetch import fetcher_for
from spinezarr.stream.nonfinite import Nonfinite
from spinezarr.stream.service import PROTOCOL, BatchLimits
from spinezarr.stream.spacing import step_zyx
from spinezarr.stream.tensors import Pack, write_tensors
from spinezarr.strict_yaml import reason_of

__all__ = ["BODY_BYTES", "LIMITS", "BatchModel", "PatchSource", "answer_batch"]

BODY_BYTES: Final = 4 << 20
"""Of a request; an item takes some hundred bytes."""
_ITEMS: Final = 8192
_VOXEL_BYTES: Final = 256 << 20
"""Of the voxels of an answer."""
LIMITS: Final = BatchLimits(
    protocol=PROTOCOL, items=_ITEMS, voxel_bytes=_VOXEL_BYTES, cores=os.cpu_count() or 1
)
"""What clients are told."""
_SOURCE_BYTES: Final = 1 << 30
"""Of the scans' own voxels that an answer is made from."""
_SAFETENSORS: Final = "application/x-safetensors"

_NO_SCAN: Final = "there is no such scan"

_Size = Annotated[int, Field(ge=1, le=4096)]
_Start = Annotated[int, Field(ge=-(1 << 20), le=1 << 20)]
_Millimeters = Annotated[float, Field(gt=0, le=1000)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ItemModel(_Model):
    """One patch.

    Attributes
    ----------
    start_zyx
        Voxel at which it starts; what lies outside the volume is air and background.
    content_checksum
        The version of the scan that is wanted; None for whatever is there.
    """

    scan_id: Annotated[str, Field(max_length=255)]
    start_zyx: tuple[_Start, _Start, _Start]
    content_checksum: Annotated[str, Field(max_length=64)] | None = None


class BatchModel(_Model):
    """Patches of one shape; the fields are those of ``BatchReader``."""

    items: Annotated[tuple[ItemModel, ...], Field(max_length=_ITEMS)]
    size_zyx: tuple[_Size, _Size, _Size]
    spacing_zyx_mm: tuple[_Millimeters | None, _Millimeters | None, _Millimeters | None] = (
        None,
        None,
        None,
    )
    with_label: bool = True
    image_dtype: Literal["int16", "uint16", "int32", "uint32", "int64", "float32", "float64"] = (
        "int16"
    )
    flat_axis: Literal[0, 1, 2] | None = None
    neighbours: Annotated[int, Field(ge=0, le=64)] = 0
    neighbour_step_mm: _Millimeters | None = None
    nonfinite: Nonfinite = "refuse"
    pack: Pack = "none"

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if self.flat_axis is not None and self.size_zyx[self.flat_axis] != 1:
            raise ValueError("a slice has one voxel along its flat axis")
        if self.neighbours and self.flat_axis is None:
            raise ValueError("only slices have neighbours, give their flat_axis")
        if self.neighbour_step_mm is not None and not self.neighbours:
            raise ValueError("a neighbour_step_mm is one of neighbours")
        return self

    @property
    def voxel_bytes(self) -> int:
        """Bytes of the voxels of the answer before they are packed."""
        z, y, x = self.size_zyx
        images = (2 * self.neighbours + 1) * np.dtype(self.image_dtype).itemsize
        return len(self.items) * z * y * x * (images + int(self.with_label))


class PatchSource:
    """The patches of one store, as it is now; safe to share between threads.

    Parameters
    ----------
    files
        Of the store.
    """

    def __init__(self, files: ServedFolder) -> None:
        self._files = files
        self._lock = Lock()
        self._opened: tuple[StoreReader, Engine] | None = None

    def opened(self, scan_ids: Iterable[str]) -> tuple[StoreReader, Engine]:
        """Return what reads the store, anew if it knows an older version of a scan.

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
                    self._opened = reader, Engine(fetcher_for(reader.objects))
                opened = self._opened
        return opened

    def may_have(self, scan_id: str) -> bool:
        """Whether a scan of that name can be asked for."""
        return is_scan_id(scan_id) and self._files.may_have(scan_id)

    def _is_current(self, reader: StoreReader, scan_ids: Iterable[str]) -> bool:
        def is_current(scan_id: str) -> bool:
            try:
                now, known = self._files.scan(scan_id), reader.scan(scan_id)
            except UnavailableError:
                raise
            except SpinezarrError:
                return True  # whoever reads it says so
            return now is not None and now.content_checksum == known.content_checksum

        return all(reader.objects.each(is_current, scan_ids))


def answer_batch(source: PatchSource, body: bytes, *, threads: int) -> Answer:
    """Answer a request for patches.

    Parameters
    ----------
    source
        Of the patches.
    body
        JSON of a :class:`BatchModel`.
    threads
        How many decode at once.
    """
    try:
        asked = BatchModel.model_validate_json(body)
    except ValidationError as problem:
        first = problem.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        return explained(HTTPStatus.BAD_REQUEST, f"{where}: {reason_of(first)}.")
    if asked.voxel_bytes > _VOXEL_BYTES:
        return explained(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"{asked.voxel_bytes} bytes of voxels; at most {_VOXEL_BYTES} are sent together. Ask "
            "for fewer items.",
        )
    reader, engine = source.opened(
        {item.scan_id for item in asked.items if source.may_have(item.scan_id)}
    )
    batches = BatchReader(
        reader=reader,
        engine=engine,
        size_zyx=asked.size_zyx,
        spacing_zyx_mm=asked.spacing_zyx_mm,
        with_label=asked.with_label,
        image_dtype=np.dtype(asked.image_dtype),
        flat_axis=asked.flat_axis,
        neighbours=asked.neighbours,
        neighbour_step_mm=asked.neighbour_step_mm,
        nonfinite=asked.nonfinite,
    )
    statuses = [
        _status(reader, item, batches) if source.may_have(item.scan_id) else _NO_SCAN
        for item in asked.items
    ]
    requests = [
        PatchRequest(at, item.scan_id, Box.at(item.start_zyx, asked.size_zyx), None)
        for at, item in enumerate(asked.items)
    ]
    if _source_bytes(batches, requests, statuses) > _SOURCE_BYTES:
        return explained(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"More than {_SOURCE_BYTES} bytes of the scans' voxels would be read together. Ask for "
            "fewer items.",
        )
    batch = _read(batches, requests, statuses, threads)
    return Answer(
        HTTPStatus.OK,
        {"content-type": _SAFETENSORS, "cache-control": "no-store"},
        _written(batch, statuses, asked.pack),
    )


def _status(reader: StoreReader, item: ItemModel, batches: BatchReader) -> str:
    """Say whether an item can be read: ``ok``, or why not."""
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
    """Return the bytes of the boxes that are read at most; those of coarse patches are large."""
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
        if batches.neighbours and batches.flat_axis is not None:
            extents[batches.flat_axis] = scan.image.shape_zyx[batches.flat_axis]
        total += math.prod(extents) * (scan.image.dtype.itemsize + int(batches.with_label))
    return total


def _read(
    batches: BatchReader, requests: Sequence[PatchRequest], statuses: list[str], threads: int
) -> Batch:
    """Read what can be read; where something cannot, say so of that item alone."""
    wanted = [request for request in requests if statuses[request.index] == "ok"]
    try:
        return batches.read_together([wanted], threads=threads)[0]
    except (UsageError, ConnectionError, PermissionError):  # what lies far away, and not a scan
        raise
    except (SpinezarrError, OSError):
        for request in wanted:
            try:
                batches.read_together([[request]], threads=threads)
            except (ConnectionError, PermissionError):
                raise
            except (SpinezarrError, OSError):
                statuses[request.index] = "the scan is damaged, or has changed"
    left = [request for request in wanted if statuses[request.index] == "ok"]
    return batches.read_together([left], threads=threads)[0]


def _written(batch: Batch, statuses: Sequence[str], pack: Pack) -> bytes:
    tensors: dict[str, npt.NDArray[Any]] = {"image": batch.image}
    if batch.label is not None:
        tensors["label"] = batch.label
    packs: dict[str, Pack] = dict.fromkeys(tensors, pack)
    tensors |= {
        "index": batch.index,
        "start_zyx": batch.start_zyx,
        "padding_zyx": batch.padding_zyx,
        "affine": batch.affine,
        "spacing_zyx_mm": batch.spacing_zyx_mm,
    }
    return write_tensors(tensors, {"status": list(statuses), "dims": batch.dims}, packs)
