"""How does neuroglancer open a scan of a store that is served here?

The Python package ``neuroglancer`` ships the client as static files. The server in that package is
neither needed nor imported. The client reads its location from a path with ``/v/``, and expects a
stream of events from a Python program. There is no such program here, so the page defines an
``EventSource`` that never sends an event. So no connection stays open while a scan is shown.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from spinezarr.serve.body import Body
from spinezarr.serve.http import (
    IMMUTABLE,
    REVALIDATE,
    Answer,
    Request,
    json_answer,
    text_answer,
)
from spinezarr.serve.opened_scan import OpenedScan, mask_of
from spinezarr.serve.origin import origin_of
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.version_headers import RefusedError
from spinezarr.view.neuroglancer_state import (
    SHOWN_DTYPES,
    LayerUrls,
    neuroglancer_state,
    segment_properties,
    state_fragment,
)

__all__ = ["CLIENT", "answer_client", "answer_segments", "answer_state"]

CLIENT: Final = "/neuroglancer-client/v"
"""Path of the client, before its version."""
_INDEX: Final = "index.html"
_STUB_SCRIPT: Final = "alone.js"
_STUB: Final = b"""\
// No Python program runs behind this page, so there are no events to receive.
window.EventSource = class {
  constructor() { setTimeout(() => this.onopen && this.onopen(), 0); }
  close() {}
};
"""
_HEAD_ELEMENTS: Final = b'<link rel="icon" href="data:,"><script src="alone.js"></script>'
_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".wasm": "application/wasm",
    }
)
"""Media types of the files that are served, by file name extension."""
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{evaluated}; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Content-Security-Policy of the client, which may only read from this server."""
_PAGE_POLICY: Final = _POLICY.format(evaluated="")
_WORKER_POLICY: Final = _POLICY.format(evaluated=" 'unsafe-eval'")
"""Policy of scripts that run as workers. The worker that decodes chunks evaluates a string when it
starts. The policy of the page applies to scripts inside the page."""
_NO_FILE: Final = text_answer(HTTPStatus.NOT_FOUND, "The client has no such file.")


@dataclass(frozen=True, slots=True, eq=False)
class _Client:
    """The installed client."""

    version: str
    files: Mapping[str, Path]
    """Files of the client's folder, by name."""

    @classmethod
    @cache
    def installed(cls) -> "_Client | None":
        """Return the installed client; None if it is not installed."""
        spec = find_spec("neuroglancer")  # find_spec imports nothing
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "static" / "client"
        if not (folder / _INDEX).is_file():
            return None
        files = {path.name: path for path in folder.iterdir() if path.suffix in _TYPES}
        try:
            client_version = version("neuroglancer")
        except PackageNotFoundError:  # a checkout has no version
            client_version = "0"
        return cls(re.sub(r"[^A-Za-z0-9._-]", "-", client_version), MappingProxyType(files))

    def has(self, name: str) -> bool:
        """Whether the client has a file of that name."""
        return name == _STUB_SCRIPT or name in self.files

    def file(self, name: str) -> Body:
        """Return a file of the client."""
        headers = {
            "cache-control": REVALIDATE if name in {_INDEX, _STUB_SCRIPT} else IMMUTABLE,
            "content-security-policy": _WORKER_POLICY if name.endswith(".js") else _PAGE_POLICY,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        return Body(self._content(name), _TYPES[Path(name).suffix], headers)

    def _content(self, name: str) -> bytes:
        if name == _STUB_SCRIPT:
            return _STUB
        data = self.files[name].read_bytes()
        return data.replace(b"<script", _HEAD_ELEMENTS + b"<script", 1) if name == _INDEX else data


@cache
def _file(client: _Client, name: str) -> Body:
    """Return a file of the client, and keep it in memory, because there are few files."""
    return client.file(name)


def answer_state(source: PatchSource, request: Request, store: str, scan_id: str) -> Answer:
    """Redirect to the client, with a state that shows a scan in the fragment of the URL.

    Parameters
    ----------
    source
        Reads the scans of the store.
    request
        The request.
    store, scan_id
        Names of store and scan.
    """
    try:
        scan = OpenedScan.of(source, scan_id, None).scan
    except RefusedError as refusal:
        return refusal.answer
    client = _Client.installed()
    if client is None:
        return _page(
            HTTPStatus.NOT_IMPLEMENTED,
            "neuroglancer is not installed on this server",
            "<p>Run <code>pip install 'spinezarr[neuroglancer]'</code> on the machine of the "
            "server, and start the server again.</p>",
        )
    dtype = scan.image.stored_dtype.name
    if dtype not in SHOWN_DTYPES:
        return _page(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "neuroglancer cannot show this scan",
            f"<p>Its image is {escape(dtype)}; neuroglancer draws float32, and integers up to 32 "
            "bits.</p>",
        )
    origin = origin_of(request)
    if origin is None:
        return text_answer(HTTPStatus.BAD_REQUEST, "The request names no host.")
    store_part, scan_part = quote(store, safe=""), quote(scan_id, safe="")
    arrays = f"{origin}/flat/{store_part}/@{scan.content_checksum}/scans/{scan_part}"
    segments = f"{origin}/neuroglancer/{store_part}/{scan_part}/segments"
    sources = LayerUrls(
        f"{arrays}/image",
        {name: f"{arrays}/{name}" for name in scan.mask_names},
        {name: f"{segments}/{name}" for name in scan.mask_names},
    )
    state = neuroglancer_state(scan, sources, f"{scan_id} in {store}")
    location = f"{CLIENT}/{client.version}/{_INDEX}#{state_fragment(state)}"
    return Answer(HTTPStatus.SEE_OTHER, {"location": location, "cache-control": "no-store"})


def answer_segments(source: PatchSource, scan_id: str, mask: str) -> Answer:
    """Answer with the names of the segments of a mask, in neuroglancer's format."""
    try:
        scan = OpenedScan.of(source, scan_id, None).scan
        mask_of(scan, mask, None)
    except RefusedError as refusal:
        return refusal.answer
    return json_answer(segment_properties(scan.attributes, mask))


def answer_client(request: Request, requested_version: str, name: str) -> Answer:
    """Return a file of the client.

    Parameters
    ----------
    request
        The request.
    requested_version
        Version of the client in the URL. A view of another version is redirected to the installed
        client.
    name
        Name of the file.
    """
    client = _Client.installed()
    if client is None or not client.has(name):
        return _NO_FILE
    if requested_version != client.version:
        if name != _INDEX:
            return _NO_FILE
        location = f"{CLIENT}/{client.version}/{_INDEX}"  # browsers keep the fragment
        return Answer(HTTPStatus.SEE_OTHER, {"location": location, "cache-control": "no-store"})
    return _file(client, name).answer(request)


def _page(status: HTTPStatus, title: str, body: str) -> Answer:
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><h1>{escape(title)}</h1>{body}</html>\n"
    )
    headers = {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Answer(status, headers, text.encode())
