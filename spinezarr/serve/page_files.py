"""Which files of the viewer are served, and with which headers?

The files are those of the package's folder ``view/page``; no other file is served.
"""

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Final

from spinezarr.serve.body import Body
from spinezarr.serve.http import REVALIDATE, Answer, Request, text_answer

__all__ = ["LIST_PAGE", "SCAN_PAGE", "answer_page_file"]

LIST_PAGE: Final = "list.html"
"""File of the page that lists stores and scans."""
SCAN_PAGE: Final = "scan.html"
"""File of the page that shows one scan."""
_NIIVUE: Final = "niivue.js"
"""File of NiiVue. It is absent if the package was built without access to npm."""
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
"""Content-Security-Policy of the pages, which load everything from this server."""
_COMMON_HEADERS: Final = {
    "cache-control": REVALIDATE,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


@cache
def _page_files() -> Mapping[str, Body]:
    """Read all files once. An attribute of the pages states whether NiiVue is available."""
    folder = files("spinezarr.view").joinpath("page")
    contents = {
        entry.name: entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.rpartition(".")[2] in _TYPES
    }
    if _NIIVUE not in contents:
        contents = {
            name: data.replace(_HAS_NIIVUE, _LACKS_NIIVUE) for name, data in contents.items()
        }
    return {name: _file_body(name, data) for name, data in contents.items()}


def _file_body(name: str, data: bytes) -> Body:
    media_type = _TYPES[name.rpartition(".")[2]]
    is_page = media_type.startswith("text/html")
    policy = {"content-security-policy": _POLICY} if is_page else {}
    return Body(data, media_type, {**_COMMON_HEADERS, **policy})


def answer_page_file(request: Request, name: str) -> Answer:
    """Answer with a file of the page.

    Parameters
    ----------
    request
        The request.
    name
        Name of the file.
    """
    file = _page_files().get(name)
    if file is None:
        return text_answer(HTTPStatus.NOT_FOUND, "There is no such file.")
    return file.answer(request)
