"""Which operations does a server have?

Routes, the OpenAPI document and the documentation page are all made from this list.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from types import MappingProxyType
from typing import Final, Literal

from pydantic import BaseModel

from spinezarr.serve.http import BYTES, GZIP, JSON, TEXT
from spinezarr.serve.levels import LEVEL_HEADERS, LevelQuery
from spinezarr.serve.nifti import MaskNiftiQuery, NiftiQuery
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
_CLIENT_FILES: Final = ("text/javascript", "text/css", "application/wasm")

PARAMETERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "store": "Name of a store, as /v1/stores lists it.",
        "scan_id": "Id of a scan, as /v1/<store>/scans lists it.",
        "file": "Name of a file of the page.",
        "mask": "Name of a mask of the scan.",
        "level": "Number of the level; 0 is the stored array, and higher numbers are coarser.",
        "key": "Key of a file below the store, e.g. scans/liver_0/zarr.json. If it starts with "
        "@<content_checksum>/, it names a version of the scan.",
        "Range": "One range of bytes, with GET only. For several ranges, the whole file is sent.",
        "If-Range": "Entity tag of the version of the range. Of another version, the whole file is "
        "sent.",
        "If-Match": "Entity tags. The status is 412 if the version has none of them.",
        "If-None-Match": "Entity tags. The status is 304 if the version has one of them.",
        "Accept-Encoding": "Encodings that the client accepts. With gzip, large answers are "
        "compressed.",
        "version": "Version of neuroglancer.",
    }
)
"""Meaning of each path parameter and header."""


@dataclass(frozen=True, slots=True)
class Content:
    """Content of an answer with a certain status.

    Attributes
    ----------
    text
        Meaning of the answer.
    types
        Media types of the body; empty if there is no body.
    model
        Model of a JSON body.
    headers
        Headers that the answer always has.
    """

    text: str
    types: tuple[str, ...] = (TEXT,)
    model: type[BaseModel] | None = None
    headers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of the server.

    Attributes
    ----------
    name
        Unique name of the operation.
    method, path
        HTTP method and path. Parameters of the path are in braces. HEAD is allowed where GET is.
    group
        Heading of the operation in the documentation.
    summary
        The operation in one line.
    query, body
        Models of the query and of the body; None if there is none.
    headers
        Request headers that the operation uses.
    answers
        Contents of the answers by status.
    is_open
        Whether the operation needs no token.
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


_ACCESS: Final = {
    HTTPStatus.UNAUTHORIZED: Content(
        "The token is missing or unknown; browsers get the page to sign in.",
        (TEXT, _HTML),
        headers=("WWW-Authenticate",),
    ),
    HTTPStatus.MISDIRECTED_REQUEST: Content("The request names another host."),
}
_UNREADABLE: Final = {
    HTTPStatus.SERVICE_UNAVAILABLE: Content(
        "A file is damaged, cannot be read, or is being replaced.", headers=("Retry-After",)
    )
}
_FACTS: Final = {
    **_ACCESS,
    **_UNREADABLE,
    HTTPStatus.NOT_FOUND: Content("There is no such store or scan."),
}
_BAD_QUERY: Final = {
    HTTPStatus.BAD_REQUEST: Content("The query is not valid; the text names the parameter.")
}
_CONDITIONAL: Final = {
    HTTPStatus.NOT_MODIFIED: Content("The version matches If-None-Match.", (), headers=("ETag",)),
    HTTPStatus.PRECONDITION_FAILED: Content(
        "The version does not match If-Match.", (), headers=("ETag",)
    ),
}
_VERSION: Final = {
    **_CONDITIONAL,
    HTTPStatus.GONE: Content("The scan or mask was replaced by another version, or removed."),
}
_BYTES_ANSWERS: Final = {
    HTTPStatus.OK: Content("The file.", (BYTES, JSON), headers=("ETag", "Accept-Ranges")),
    HTTPStatus.PARTIAL_CONTENT: Content(
        "A range of the file.", (BYTES, JSON), headers=("ETag", "Content-Range")
    ),
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: Content(
        "There is no such range.", (), headers=("Content-Range",)
    ),
    **_FACTS,
    **_VERSION,
    HTTPStatus.NOT_FOUND: Content("There is no such key. A chunk without a key is background."),
}
_CONDITIONS: Final = ("If-Match", "If-None-Match")
_RANGES: Final = ("Range", "If-Range", *_CONDITIONS)
_TOO_MUCH: Final = {
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: Content("The answer would be too large."),
    HTTPStatus.TOO_MANY_REQUESTS: Content(
        "There are too many requests at once.", headers=("Retry-After",)
    ),
}
_READING: Final = {
    **_FACTS,
    HTTPStatus.BAD_REQUEST: Content("The request is not valid; the text names the field."),
    HTTPStatus.NOT_ACCEPTABLE: Content("There is no such format; the text lists them."),
    **_TOO_MUCH,
}

_PAGE_ANSWERS: Final = {
    HTTPStatus.OK: Content("The page.", (_HTML,), headers=("ETag",)),
    HTTPStatus.NOT_MODIFIED: Content("The version matches If-None-Match.", (), headers=("ETag",)),
    **_ACCESS,
}
_PAGE_HEADERS: Final = ("If-None-Match",)

ZARR: Final = Operation(
    "zarr",
    "GET",
    "/zarr/{store}/{key}",
    "Bytes",
    "A stored file, for every Zarr client",
    _BYTES_ANSWERS,
    headers=_RANGES,
)
FLAT: Final = Operation(
    "flat",
    "GET",
    "/flat/{store}/{key}",
    "Bytes",
    "The arrays without shards, where each chunk is an object",
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
_NO_MASK: Final = {HTTPStatus.UNPROCESSABLE_ENTITY: Content("The scan has no such mask.")}

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
                "Tensors of the items that could be read, in the requested order; the metadata "
                "hold the status of each item.",
                BATCH_MEDIA_TYPES,
            ),
            HTTPStatus.REQUEST_TIMEOUT: Content("The body of the request did not arrive in time."),
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
            HTTPStatus.UNPROCESSABLE_ENTITY: Content(
                "The scan has no such patch; the text gives the reason."
            ),
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
        "A slice of a scan with its vertebrae, as a picture",
        {
            HTTPStatus.OK: Content(
                "The picture. The head is up, and the patient's right or anterior is on the left. "
                "Pixels are square in mm, and NaN is black.",
                (PNG,),
                headers=("ETag",),
            ),
            **_FACTS,
            **_VERSION,
            **_BAD_QUERY,
            HTTPStatus.UNPROCESSABLE_ENTITY: Content(
                "The scan has no slice at this position; the text gives the range of positions."
            ),
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
            HTTPStatus.OK: Content("The voxels.", (BYTES, GZIP), headers=LEVEL_HEADERS),
            HTTPStatus.UNPROCESSABLE_ENTITY: Content(
                "The box is not inside the level, or the scan has no mask."
            ),
            **_FACTS,
            **_VERSION,
            **_BAD_QUERY,
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
        "What a page shows of a scan: vertebrae with colors, findings, previous and next scan",
        {
            HTTPStatus.OK: Content("The scan.", (JSON,), ViewModel, headers=("ETag",)),
            **_FACTS,
            **_CONDITIONAL,
        },
        headers=(*_CONDITIONS, "Accept-Encoding"),
    ),
    Operation(
        "stores",
        "GET",
        "/v1/stores",
        "Facts",
        "The stores, with titles, licenses, scans and bytes",
        {HTTPStatus.OK: Content("The stores.", (JSON,), StoresModel), **_ACCESS, **_UNREADABLE},
    ),
    Operation(
        "store",
        "GET",
        "/v1/{store}",
        "Facts",
        "A store, with the limits of requests for its patches",
        {HTTPStatus.OK: Content("The store.", (JSON,), OneStoreModel), **_FACTS},
    ),
    Operation(
        "scans",
        "GET",
        "/v1/{store}/scans",
        "Facts",
        "The scans of a store, filtered",
        {
            HTTPStatus.OK: Content(
                "Rows of the scan table.", (JSON,), ScansModel, headers=("ETag",)
            ),
            **_BAD_QUERY,
            **_FACTS,
            **_CONDITIONAL,
        },
        query=ScansQuery,
        headers=(*_CONDITIONS, "Accept-Encoding"),
    ),
    Operation(
        "statistics",
        "GET",
        "/v1/{store}/statistics",
        "Facts",
        "Histograms of the spacings of scans, and how many show each vertebra",
        {
            HTTPStatus.OK: Content("The statistics.", (JSON,), StatisticsModel, headers=("ETag",)),
            **_BAD_QUERY,
            **_FACTS,
            **_CONDITIONAL,
        },
        query=StatisticsQuery,
        headers=(*_CONDITIONS, "Accept-Encoding"),
    ),
    Operation(
        "scan",
        "GET",
        "/v1/{store}/scans/{scan_id}",
        "Facts",
        "All attributes of a scan",
        {HTTPStatus.OK: Content("The attributes.", (JSON,), ScanModel), **_FACTS},
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
        "A script, style or picture of these pages",
        {
            **_PAGE_ANSWERS,
            HTTPStatus.OK: Content(
                "The file.",
                ("text/javascript", "text/css", "image/svg+xml", TEXT, _HTML),
                headers=("ETag",),
            ),
            HTTPStatus.NOT_FOUND: Content("There is no such file."),
        },
        headers=_PAGE_HEADERS,
    ),
    *(
        Operation(
            f"{array}_nifti",
            "GET",
            f"/v1/{{store}}/scans/{{scan_id}}/{file}.nii.gz",
            "Files",
            f"The whole {noun} of a scan as NIfTI, as 'spinezarr export nifti' writes it",
            {
                HTTPStatus.OK: Content(
                    "The file. Its size is not known before its end.",
                    (NIFTI_GZ,),
                    headers=("ETag", "Content-Disposition"),
                ),
                **_FACTS,
                **_VERSION,
                **_BAD_QUERY,
                **missing,
                HTTPStatus.TOO_MANY_REQUESTS: Content(
                    "Too many files are being sent.", headers=("Retry-After",)
                ),
            },
            query=query,
            headers=_CONDITIONS,
        )
        for array, file, noun, query, missing in (
            ("image", "image", "image", NiftiQuery, {}),
            ("label", "label", "mask", NiftiQuery, _NO_MASK),
            ("mask", "masks/{mask}", "further mask", MaskNiftiQuery, _NO_MASK),
        )
    ),
    Operation(
        "open_in",
        "GET",
        "/v1/{store}/scans/{scan_id}/open-in",
        "Facts",
        "Other programs that can open a scan: links, and text to paste",
        {
            HTTPStatus.OK: Content("The programs.", (JSON,), OpenInModel),
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
                "A redirect to neuroglancer, with the state in the fragment.",
                (),
                headers=("Location",),
            ),
            HTTPStatus.BAD_REQUEST: Content("The request names no host."),
            **_FACTS,
            HTTPStatus.UNPROCESSABLE_ENTITY: Content(
                "neuroglancer cannot draw images of this type.", (_HTML,)
            ),
            HTTPStatus.NOT_IMPLEMENTED: Content(
                "neuroglancer is not installed on the server.", (_HTML,)
            ),
        },
    ),
    Operation(
        "neuroglancer_segments",
        "GET",
        "/neuroglancer/{store}/{scan_id}/segments/{mask}/info",
        "Pages",
        "Names and volumes of the segments of a mask, for neuroglancer",
        {
            HTTPStatus.OK: Content("The properties of the segments.", (JSON,)),
            **_FACTS,
            **_NO_MASK,
        },
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
                "A redirect to the installed version.", (), headers=("Location",)
            ),
            **_ACCESS,
            HTTPStatus.NOT_FOUND: Content("The client has no such file, or is not installed."),
        },
    ),
    Operation(
        "openapi",
        "GET",
        "/v1/openapi.json",
        "The server",
        "This description, for programs (OpenAPI 3.1)",
        {HTTPStatus.OK: Content("The OpenAPI document.", (JSON,)), **_ACCESS},
    ),
    Operation(
        "docs",
        "GET",
        "/docs",
        "The server",
        "This description, for people",
        {HTTPStatus.OK: Content("The page.", (_HTML,)), **_ACCESS},
    ),
    Operation(
        "metrics",
        "GET",
        "/metrics",
        "The server",
        "Metrics for Prometheus: requests, seconds, bytes, batches in progress",
        {HTTPStatus.OK: Content("The metrics."), **_ACCESS},
    ),
    Operation(
        "healthz",
        "GET",
        "/healthz",
        "The server",
        "Whether the server runs",
        {HTTPStatus.OK: Content("The server runs.")},
        is_open=True,
    ),
    Operation(
        "readyz",
        "GET",
        "/readyz",
        "The server",
        "Whether all served stores can be opened",
        {HTTPStatus.OK: Content("All stores can be opened."), **_UNREADABLE},
        is_open=True,
    ),
)
