"""The files of the page, as they lie in the package; nothing else can be asked for here."""

import gzip
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from spinezarr.serve.conditions import judge
from spinezarr.serve.http import Answer, Request, explained

__all__ = ["LIST_PAGE", "SCAN_PAGE", "answer_page_file"]

LIST_PAGE: Final = "list.html"
"""Stores and their scans."""
SCAN_PAGE: Final = "scan.html"
"""One scan."""
_NIIVUE: Final = "niivue.js"
"""Is there unless the package was built without the npm registry."""
_TYPES: Final[Mapping[str, str]] = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_HAS_NIIVUE: Final = b'data-niivue="true"'
_LACKS_NIIVUE: Final = b'data-niivue="false"'
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; "
    "style-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
"""Of a page: all that it shows and runs comes from this server."""
_LEAST_PACKED_BYTES: Final = 1024


@dataclass(frozen=True)
class _PageFile:
    """A file of the page."""

    media_type: str
    data: bytes

    @cached_property
    def etag(self) -> str:
        return f'"{hashlib.sha256(self.data).hexdigest()[:32]}"'

    @cached_property
    def packed(self) -> bytes:
        return gzip.compress(self.data, mtime=0)


@cache
def _page_files() -> Mapping[str, _PageFile]:
    """Read them all, once; the page is told whether NiiVue is among them."""
    folder = files("spinezarr.view").joinpath("page")
    read = {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }
    if _NIIVUE not in read:
        read = {name: data.replace(_HAS_NIIVUE, _LACKS_NIIVUE) for name, data in read.items()}
    return {name: _PageFile(_TYPES[name.rpartition(".")[2]], data) for name, data in read.items()}


def answer_page_file(request: Request, name: str) -> Answer:
    """Answer with a file of the page.

    Parameters
    ----------
    request
        What is asked.
    name
        Of the file.
    """
    file = _page_files().get(name)
    if file is None:
        return explained(HTTPStatus.NOT_FOUND, "There is no such file.")
    is_packed = len(file.data) >= _LEAST_PACKED_BYTES and _takes_gzip(request)
    # Forms of a file are others to a cache; the tags of HTTP name a form (RFC 9110, 8.8.3.3).
    etag = f'{file.etag[:-1]}-gz"' if is_packed else file.etag
    fields = {
        "cache-control": "no-cache",
        "etag": etag,
        "vary": "Accept-Encoding",
        "x-content-type-options": "nosniff",
        "referrer-policy": "same-origin",
    }
    conditions = {key: value for key, value in request.headers.items() if key == "if-none-match"}
    verdict = judge(request.method, conditions, etag=etag, size_bytes=len(file.data))
    if verdict.status != HTTPStatus.OK:
        return Answer(verdict.status, fields)
    fields["content-type"] = file.media_type
    if file.media_type.startswith("text/html"):
        fields["content-security-policy"] = _POLICY
    if is_packed:
        return Answer(HTTPStatus.OK, {**fields, "content-encoding": "gzip"}, file.packed)
    return Answer(HTTPStatus.OK, fields, file.data)


def _takes_gzip(request: Request) -> bool:
    """Whether a client reads gzip; those who weigh encodings at all get the file as it is."""
    offered = request.headers.get("accept-encoding", "")
    return "gzip" in (part.strip(" \t") for part in offered.split(","))
