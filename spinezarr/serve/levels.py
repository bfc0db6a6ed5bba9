"""How does a page get voxels of a coarse level of a scan?

``GET /v1/<store>/scans/<scan_id>/levels/<level>`` returns raw voxels. A page shows a coarse level
first, and requests boxes of finer levels when the user zooms in. The server computes levels on
request, see :mod:`spinezarr.view.levels`.
"""

import math
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Annotated, Final, Literal

from pydantic import Field

from spinezarr.errors import CorruptStoreError, ScanChangedError
from spinezarr.geometry import Box
from spinezarr.serve.compression import FAST, gzip_bytes
from spinezarr.serve.http import BYTES, GZIP, Answer, Request, accepts_gzip, text_answer
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.opened_scan import OpenedScan, mask_of
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.query import QueryModel, WrongQueryError, parse_query
from spinezarr.serve.version_headers import RefusedError, headers_of_version
from spinezarr.store.layout import ARRAY_NAME, IMAGE, LARGEST_AXIS, is_mask_name
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.read.retry import retry_if_rewritten
from spinezarr.view.levels import Level, LevelCache, LevelReader, levels_of, shown_dtype

__all__ = ["LEVEL_HEADERS", "LevelQuery", "LevelRequest", "answer_level"]

_NUMBER: Final = re.compile(r"0|[1-9][0-9]?", re.ASCII)
_DTYPE, _SHAPE = "x-spinezarr-dtype", "x-spinezarr-shape-zyx"
LEVEL_HEADERS: Final = ("ETag", _DTYPE, _SHAPE)
"""Headers of each answer with voxels."""

_Start = Annotated[int, Field(ge=0, le=LARGEST_AXIS)]
_Size = Annotated[int, Field(ge=1, le=LARGEST_AXIS)]


class LevelQuery(QueryModel):
    """Voxels of a level to send. Elements of a list are separated by commas."""

    array: Annotated[str, Field(pattern=ARRAY_NAME)] = IMAGE
    """``image``, ``label``, or the name of a further mask. An image is sent as int16, or as float32
    if its values do not fit, and a mask as uint8."""
    start_zyx: tuple[_Start, _Start, _Start] = (0, 0, 0)
    """First voxel of the box, in voxels of the level."""
    size_zyx: tuple[_Size, _Size, _Size] | None = None
    """Shape of the box, which must lie inside the level; null for the rest of the level."""
    pack: Literal["none", "gzip"] = "none"
    """``"gzip"`` sends a gzip file, whose CRC-32 programs can check."""
    content_checksum: Annotated[str, Field(max_length=64)] | None = None
    """The version of the scan; with it, the answer may be kept for ever."""
    mask_checksum: Annotated[str, Field(max_length=64)] | None = None
    """The version of a further mask, which ``content_checksum`` leaves out."""


@dataclass(frozen=True, slots=True)
class LevelRequest:
    """A level of a scan, and the cache to keep it in.

    Attributes
    ----------
    scan_id, level
        Scan and level that the path of the request names.
    cache
        Cache of pieces of levels, which all stores share.
    """

    scan_id: str
    level: str
    cache: LevelCache = field(repr=False)


def answer_level(
    source: PatchSource, request: Request, level_request: LevelRequest, *, threads: int
) -> Answer:
    """Answer a request for voxels of a level. Its query is a :class:`LevelQuery`.

    Parameters
    ----------
    source
        Reads the voxels of the store.
    request
        The request.
    level_request
        The level to send.
    threads
        Number of threads that read at once.
    """
    try:
        query = parse_query(LevelQuery, request.query)
    except WrongQueryError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    try:
        return _answer(source, request, level_request, query, threads)
    except RefusedError as refusal:
        return refusal.answer
    except ScanChangedError:
        is_named = (query.content_checksum, query.mask_checksum) != (None, None)
        return _CHANGED if is_named else _CHANGING
    except CorruptStoreError:
        return _DAMAGED


_CHANGED: Final = text_answer(HTTPStatus.GONE, "The scan was replaced by another version.")
_CHANGING: Final = text_answer(
    HTTPStatus.SERVICE_UNAVAILABLE, "The scan was replaced during the read.", retry_after="1"
)
_DAMAGED: Final = text_answer(
    HTTPStatus.SERVICE_UNAVAILABLE, "The scan is damaged, or was replaced.", retry_after="1"
)


def _answer(
    source: PatchSource,
    request: Request,
    level_request: LevelRequest,
    query: LevelQuery,
    threads: int,
) -> Answer:
    opened = OpenedScan.of(source, level_request.scan_id, query.content_checksum)
    scan = opened.scan
    array, level, box = _select(scan, level_request.level, query, source.limits)
    is_file = query.pack == "gzip"
    accepted = request.headers.get("accept-encoding", "")
    is_packed = not is_file and array.name != IMAGE and accepts_gzip(accepted)
    version = (array.content_checksum, array.name)
    version_parts = (*version, level.factor_zyx, box, is_packed, is_file)
    headers = headers_of_version(
        request,
        BYTES,
        *map(str, version_parts),
        is_named=query.content_checksum is not None
        and (not is_mask_name(array.name) or query.mask_checksum is not None),
        vary="Accept-Encoding",
    )
    levels = LevelReader(opened.engine, opened.reader.url, level_request.cache)
    dtype = shown_dtype(array).newbyteorder("<")

    def read() -> bytes:
        current: ScanHandle = opened.reader.scan(level_request.scan_id)
        current_array, _, _ = _select(current, level_request.level, query, source.limits)
        if (current_array.content_checksum, current_array.name) != version:
            raise ScanChangedError("the scan was replaced.", level_request.scan_id)
        return (
            levels.read(current_array, level, box, threads=threads)
            .astype(dtype, copy=False)
            .tobytes()
        )

    body = retry_if_rewritten(read)
    headers |= {
        "content-type": GZIP if is_file else BYTES,
        "x-content-type-options": "nosniff",
        _DTYPE: dtype.name,
        _SHAPE: ",".join(map(str, box.shape_zyx)),
    }
    if is_packed or is_file:
        body = gzip_bytes(body, FAST)
    if is_packed:
        headers["content-encoding"] = "gzip"
    return Answer(HTTPStatus.OK, headers, body)


def _select(
    scan: ScanHandle, number: str, query: LevelQuery, limits: ServeLimits
) -> tuple[ArraySpec, Level, Box]:
    """Find the requested array, level and box in a version of a scan.

    Raises
    ------
    RefusedError
        If there is no such array, level or box, if the mask has another version, or if the answer
        would be too large.
    """
    levels = levels_of(scan, limits.coarsest_level_voxels)
    if _NUMBER.fullmatch(number) is None or int(number) >= len(levels):
        raise _refused(
            HTTPStatus.NOT_FOUND, f"There is no such level; the last one is {len(levels) - 1}."
        )
    array = scan.image
    if query.array != IMAGE:
        array = mask_of(scan, query.array, query.mask_checksum)
    level = levels[int(number)]
    z, y, x = (max(1, n - a) for n, a in zip(level.shape_zyx, query.start_zyx, strict=True))
    box = Box.at(query.start_zyx, query.size_zyx or (z, y, x))
    if box.intersect(level.box) != box:
        shape = " x ".join(map(str, level.shape_zyx))
        raise _refused(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            f"The box is not inside the level, which has {shape} voxels (z, y, x).",
        )
    voxel_bytes = math.prod(box.shape_zyx) * shown_dtype(array).itemsize
    stored = level.stored_box(box, array.shape_zyx)
    source_bytes = math.prod(stored.shape_zyx) * array.stored_dtype.itemsize
    if voxel_bytes > limits.level_voxel_bytes or source_bytes > limits.level_source_bytes:
        raise _refused(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"The box has {voxel_bytes} bytes and is computed from {source_bytes}; at most "
            f"{limits.level_voxel_bytes} and {limits.level_source_bytes} are allowed. Request a "
            "smaller box.",
        )
    return array, level, box


def _refused(status: HTTPStatus, text: str) -> RefusedError:
    return RefusedError(text_answer(status, text))
