"""What can be asked of a server: the one list that its pages are routed and described by."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel

from spinezarr.serve.http import TEXT
from spinezarr.serve.levels import LEVEL_HEADERS, LevelQuery
from spinezarr.serve.nifti import NiftiQuery
from spinezarr.serve.open_in import OpenInModel
from spinezarr.serve.patch_formats import BATCH_MEDIA_TYPES, NIFTI_GZ, PATCH_MEDIA_TYPES
from spinezarr.serve.patches import BatchModel, PatchQuery
from spinezarr.serve.query import QueryModel
from spinezarr.serve.slices import PNG, SliceQuery
from spinezarr.serve.statistics import StatisticsModel, StatisticsQuery
from spinezarr.serve.tables import OneStoreModel, ScanModel, ScansModel, ScansQuery, StoresModel
from spinezarr.view.scan_view import ViewModel

__all__ = ["FLAT", "OME", "OPERATIONS", "PARAMETERS", "ZARR", "Content", "Operation"]

_HTML: Final = "text/html"
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"
_CLIENT_FILES: Final = ("text/javascript", "text/css", "application/wasm")

PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "store": "Name of a store, as /v1/stores lists it.",
        "scan_id": "Of a scan, as the store's scans are listed.",
        "file": "Name of a file of the page.",
        "level": "Its number; 0 is the stored array, and each further one is coarser.",
        "key": "Of a file below the store, parts of it between slashes, e.g. "
        "scans/liver_0/zarr.json. A first part @<content_checksum> names the version of a scan.",
        "Range": "One range of bytes, with GET alone; several get the whole file.",
        "If-Range": "Tag of the version that the range is wanted of; another gets the whole.",
        "If-Match": "Tags; 412 if the version is none of them.",
        "If-None-Match": "Tags; 304 if the version is one of them.",
        "Accept-Encoding": "Masks come packed to who takes gzip.",
        "version": "Of neuroglancer's client.",
    }
)
"""What a part of a path, and a header, stands for."""


@dataclass(frozen=True, slots=True)
class Content:
    """What comes with a status.

    Attributes
    ----------
    text
        What it means.
    types
        Media types of the body; none: it has no body.
    model
        Of the body, if that is JSON.
    headers
        That are always there.
    """

    text: str
    types: tuple[str, ...] = (TEXT,)
    model: type[BaseModel] | None = None
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """What can be asked at one path.

    Attributes
    ----------
    name
        Of its own.
    method, path
        A GET may be a HEAD too. Parameters of the path stand in braces.
    group
        It is shown with.
    summary
        In a line.
    query, body
        What else is asked, if anything.
    headers
        Of a request, that count.
    answers
        By status.
    is_open
        Whether it needs no token.
    """

    name: str
    method: Literal["GET", "POST"]
    path: str
    group: str
    summary: str
    answers: Mapping[HTTPStatus, Content]
    query: type[QueryModel] | None = None
    body: type[QueryModel] | None = None
    headers: tuple[str, ...] = ()
    is_open: bool = field(default=False, kw_only=True)


_KNOWN: Final = {
    HTTPStatus.UNAUTHORIZED: Content(
        "No token, or one that is not in the file; a browser is asked to sign in.",
        (TEXT, _HTML),
        headers=("WWW-Authenticate",),
    ),
    HTTPStatus.MISDIRECTED_REQUEST: Content("The server does not know itself by that name."),
}
_UNREADABLE: Final = {
    HTTPStatus.SERVICE_UNAVAILABLE: Content(
        "A file is damaged, cannot be read, or is being replaced now.", headers=("Retry-After",)
    )
}
_FACTS: Final = {**_KNOWN, **_UNREADABLE, HTTPStatus.NOT_FOUND: Content("There is none such.")}
_KEPT: Final = {
    HTTPStatus.NOT_MODIFIED: Content(
        "That version is one of If-None-Match.", (), headers=("ETag",)
    ),
    HTTPStatus.PRECONDITION_FAILED: Content(
        "That version is none of If-Match.", (), headers=("ETag",)
    ),
}
_VERSION: Final = {
    **_KEPT,
    HTTPStatus.GONE: Content("It was replaced by another version, or is gone."),
}
_BYTES_ANSWERS: Final = {
    HTTPStatus.OK: Content("The file.", (_BYTES, _JSON), headers=("ETag", "Accept-Ranges")),
    HTTPStatus.PARTIAL_CONTENT: Content(
        "A part of it.", (_BYTES, _JSON), headers=("ETag", "Content-Range")
    ),
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: Content(
        "There is no such range.", (), headers=("Content-Range",)
    ),
    **_FACTS,
    **_VERSION,
    HTTPStatus.NOT_FOUND: Content(
        "There is no such key: where it would be a chunk, it holds background."
    ),
}
_CONDITIONS: Final = ("If-Match", "If-None-Match")
_RANGES: Final = ("Range", "If-Range", *_CONDITIONS)
_TOO_MUCH: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Content("It is too much together."),
    HTTPStatus.TOO_MANY_REQUESTS: Content(
        "As much is asked for at once as may be.", headers=("Retry-After",)
    ),
}
_READING: Final = {
    **_FACTS,
    HTTPStatus.BAD_REQUEST: Content("What is asked is no patch; says where."),
    HTTPStatus.NOT_ACCEPTABLE: Content("There is no such form; says which there are."),
    **_TOO_MUCH,
}

_PAGE_ANSWERS: Final = {
    HTTPStatus.OK: Content("The page.", (_HTML,), headers=("ETag",)),
    HTTPStatus.NOT_MODIFIED: Content("It is the one of If-None-Match.", (), headers=("ETag",)),
    **_KNOWN,
}
_PAGE_HEADERS: Final = ("If-None-Match",)

ZARR: Final = Operation(
    "zarr",
    "GET",
    "/zarr/{store}/{key}",
    "Bytes",
    "A file of a store as it lies, for every Zarr client",
    _BYTES_ANSWERS,
    headers=_RANGES,
)
FLAT: Final = Operation(
    "flat",
    "GET",
    "/flat/{store}/{key}",
    "Bytes",
    "The same arrays without shards: each chunk is one object",
    _BYTES_ANSWERS,
    headers=_RANGES,
)
OME: Final = Operation(
    "ome",
    "GET",
    "/ome/{store}/{key}",
    "Bytes",
    "Each scan as an OME-Zarr image, <scan_id>.ome.zarr, for viewers",
    _BYTES_ANSWERS,
    headers=_RANGES,
)
OPERATIONS: Final = (
    ZARR,
    FLAT,
    OME,
    Operation(
        "batch",
        "POST",
        "/v1/{store}/batch",
        "Patches",
        "Patches of several scans in one answer",
        {
            HTTPStatus.OK: Content(
                "Tensors of the items that could be read, in the order asked for; metadata say "
                "what became of each.",
                BATCH_MEDIA_TYPES,
            ),
            HTTPStatus.REQUEST_TIMEOUT: Content("The request did not come in time."),
            **_READING,
        },
        body=BatchModel,
    ),
    Operation(
        "patch",
        "GET",
        "/v1/{store}/scans/{scan_id}/patch",
        "Patches",
        "One patch of a scan",
        {
            HTTPStatus.OK: Content("The patch.", PATCH_MEDIA_TYPES, headers=("ETag",)),
            HTTPStatus.UNPROCESSABLE_ENTITY: Content("The scan has no such patch; says why."),
            **_READING,
            **_VERSION,
        },
        query=PatchQuery,
        headers=_CONDITIONS,
    ),
    Operation(
        "slice",
        "GET",
        "/v1/{store}/scans/{scan_id}/slice.png",
        "Pictures",
        "A slice of a scan with its vertebrae, as a page, a report or a terminal shows it",
        {
            HTTPStatus.OK: Content(
                "The picture: head up, the patient's right or anterior on the left, pixels square "
                "in mm; what is not a number is black.",
                (PNG,),
                headers=("ETag",),
            ),
            **_FACTS,
            **_VERSION,
            HTTPStatus.BAD_REQUEST: Content("What is asked is no slice; says what there is."),
            HTTPStatus.UNPROCESSABLE_ENTITY: Content("The scan has none there; says where."),
            **_TOO_MUCH,
        },
        query=SliceQuery,
        headers=_CONDITIONS,
    ),
    Operation(
        "level",
        "GET",
        "/v1/{store}/scans/{scan_id}/levels/{level}",
        "Pictures",
        "Voxels of a level of a scan: numbers in little-endian order, x fastest, then y",
        {
            HTTPStatus.OK: Content("The voxels.", (_BYTES,), headers=LEVEL_HEADERS),
            HTTPStatus.UNPROCESSABLE_ENTITY: Content(
                "The box is not inside the level, or the scan has no mask."
            ),
            **_FACTS,
            **_VERSION,
            HTTPStatus.BAD_REQUEST: Content("What is asked is no box; says where."),
            **_TOO_MUCH,
        },
        query=LevelQuery,
        headers=(*_CONDITIONS, "Accept-Encoding"),
    ),
    Operation(
        "view",
        "GET",
        "/v1/{store}/scans/{scan_id}/view",
        "Pictures",
        "All that a page needs to show a scan: its vertebrae with colors, notes, neighbors",
        {
            HTTPStatus.OK: Content("The scan.", (_JSON,), ViewModel, headers=("ETag",)),
            **_FACTS,
            **_KEPT,
        },
        headers=(*_CONDITIONS, "Accept-Encoding"),
    ),
    Operation(
        "stores",
        "GET",
        "/v1/stores",
        "Facts",
        "The stores, with titles, licenses, scans and bytes",
        {HTTPStatus.OK: Content("All stores.", (_JSON,), StoresModel), **_KNOWN, **_UNREADABLE},
    ),
    Operation(
        "store",
        "GET",
        "/v1/{store}",
        "Facts",
        "A store, and how its patches may be asked for",
        {HTTPStatus.OK: Content("The store.", (_JSON,), OneStoreModel), **_FACTS},
    ),
    Operation(
        "scans",
        "GET",
        "/v1/{store}/scans",
        "Facts",
        "The scans of a store, or those that fit",
        {
            HTTPStatus.OK: Content(
                "Rows of the scan table.", (_JSON,), ScansModel, headers=("ETag",)
            ),
            HTTPStatus.BAD_REQUEST: Content("What is asked is no filter; says which there are."),
            **_FACTS,
            **_KEPT,
        },
        query=ScansQuery,
        headers=(*_CONDITIONS, "Accept-Encoding"),
    ),
    Operation(
        "statistics",
        "GET",
        "/v1/{store}/statistics",
        "Facts",
        "What the scans of a store have in common: spacings, and the vertebrae that they show",
        {
            HTTPStatus.OK: Content("Figures.", (_JSON,), StatisticsModel, headers=("ETag",)),
            HTTPStatus.BAD_REQUEST: Content("What is asked is no filter; says which there are."),
            **_FACTS,
            **_KEPT,
        },
        query=StatisticsQuery,
        headers=(*_CONDITIONS, "Accept-Encoding"),
    ),
    Operation(
        "scan",
        "GET",
        "/v1/{store}/scans/{scan_id}",
        "Facts",
        "All that a store knows of a scan",
        {HTTPStatus.OK: Content("Its attributes.", (_JSON,), ScanModel), **_FACTS},
    ),
    Operation(
        "list_page",
        "GET",
        "/",
        "Pages",
        "The stores and their scans, in a browser",
        _PAGE_ANSWERS,
        headers=_PAGE_HEADERS,
    ),
    Operation(
        "scan_page",
        "GET",
        "/scan/{store}/{scan_id}",
        "Pages",
        "A scan and its vertebrae, in a browser",
        _PAGE_ANSWERS,
        headers=_PAGE_HEADERS,
    ),
    Operation(
        "page_file",
        "GET",
        "/page/{file}",
        "Pages",
        "A script, a style or a picture of these pages",
        {
            **_PAGE_ANSWERS,
            HTTPStatus.OK: Content(
                "The file.",
                ("text/javascript", "text/css", "image/svg+xml", TEXT, _HTML),
                headers=("ETag",),
            ),
            HTTPStatus.NOT_FOUND: Content("There is none such."),
        },
        headers=_PAGE_HEADERS,
    ),
    *(
        Operation(
            f"{array}_nifti",
            "GET",
            f"/v1/{{store}}/scans/{{scan_id}}/{array}.nii.gz",
            "Files",
            f"The whole {what} of a scan as NIfTI, as 'spinezarr export nifti' writes it",
            {
                HTTPStatus.OK: Content(
                    "The file; how long it will be is not known before its end.",
                    (NIFTI_GZ,),
                    headers=("ETag", "Content-Disposition"),
                ),
                **_FACTS,
                **_VERSION,
                HTTPStatus.BAD_REQUEST: Content("What is asked is no version; says where."),
                **missing,
                HTTPStatus.TOO_MANY_REQUESTS: Content(
                    "As many files are being sent as may be.", headers=("Retry-After",)
                ),
            },
            query=NiftiQuery,
            headers=_CONDITIONS,
        )
        for array, what, missing in (
            ("image", "image", {}),
            (
                "label",
                "mask",
                {HTTPStatus.UNPROCESSABLE_ENTITY: Content("The scan has no mask.")},
            ),
        )
    ),
    Operation(
        "open_in",
        "GET",
        "/v1/{store}/scans/{scan_id}/open-in",
        "Facts",
        "Where else a scan can be opened: links, and lines to paste",
        {
            HTTPStatus.OK: Content("The ways.", (_JSON,), OpenInModel),
            HTTPStatus.BAD_REQUEST: Content("The request names no host."),
            **_FACTS,
        },
    ),
    Operation(
        "neuroglancer",
        "GET",
        "/neuroglancer/{store}/{scan_id}",
        "Pages",
        "A scan in neuroglancer, at full resolution",
        {
            HTTPStatus.SEE_OTHER: Content(
                "To neuroglancer, with all that it is to show behind the #.",
                (),
                headers=("Location",),
            ),
            HTTPStatus.BAD_REQUEST: Content("The request names no host."),
            **_FACTS,
            HTTPStatus.UNPROCESSABLE_ENTITY: Content(
                "neuroglancer draws no image of this type.", (_HTML,)
            ),
            HTTPStatus.NOT_IMPLEMENTED: Content(
                "neuroglancer is not installed beside the server.", (_HTML,)
            ),
        },
    ),
    Operation(
        "neuroglancer_segments",
        "GET",
        "/neuroglancer/{store}/{scan_id}/segments/info",
        "Pages",
        "Names and volumes of what a mask shows, as neuroglancer reads them",
        {HTTPStatus.OK: Content("Segment properties.", (_JSON,)), **_FACTS},
    ),
    Operation(
        "neuroglancer_client",
        "GET",
        "/neuroglancer-client/v/{version}/{file}",
        "Pages",
        "The files of neuroglancer",
        {
            HTTPStatus.OK: Content("The file.", (_HTML, *_CLIENT_FILES)),
            HTTPStatus.SEE_OTHER: Content(
                "To the version that is installed.", (), headers=("Location",)
            ),
            **_KNOWN,
            HTTPStatus.NOT_FOUND: Content("The client has no such file, or is not installed."),
        },
    ),
    Operation(
        "openapi",
        "GET",
        "/v1/openapi.json",
        "The server",
        "This description, for programs (OpenAPI 3.1)",
        {HTTPStatus.OK: Content("OpenAPI.", (_JSON,)), **_KNOWN},
    ),
    Operation(
        "docs",
        "GET",
        "/docs",
        "The server",
        "This description, for people",
        {HTTPStatus.OK: Content("A page.", (_HTML,)), **_KNOWN},
    ),
    Operation(
        "metrics",
        "GET",
        "/metrics",
        "The server",
        "Requests, seconds, bytes and patches under way, for Prometheus",
        {HTTPStatus.OK: Content("Figures."), **_KNOWN},
    ),
    Operation(
        "healthz",
        "GET",
        "/healthz",
        "The server",
        "Whether the server runs",
        {HTTPStatus.OK: Content("It does.")},
        is_open=True,
    ),
    Operation(
        "readyz",
        "GET",
        "/readyz",
        "The server",
        "Whether all stores that are served can be opened",
        {HTTPStatus.OK: Content("They can."), **_UNREADABLE},
        is_open=True,
    ),
)
