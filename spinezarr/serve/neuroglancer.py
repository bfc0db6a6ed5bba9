"""neuroglancer, on stores that are served here: its client, and where it begins with a scan.

The package ``neuroglancer`` brings the client as static files, and a server of its own for them,
which is neither needed nor imported. Its client takes its place from a path with ``/v/`` in it and
expects a stream of events from the program behind it. There is none here, so the page brings an
``EventSource`` that is open and silent: no connection is held for as long as somebody looks.
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
from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.opened_scan import OpenedScan
from spinezarr.serve.origin import origin_of
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.version_headers import RefusedError
from spinezarr.text import to_ascii_json
from spinezarr.view.neuroglancer_state import (
    SHOWN_DTYPES,
    StatePlaces,
    neuroglancer_state,
    segment_properties,
    state_fragment,
)

__all__ = ["CLIENT", "answer_client", "answer_segments", "answer_state"]

CLIENT: Final = "/neuroglancer-client/v"
"""Where the client lies, by version."""
_INDEX: Final = "index.html"
_ALONE: Final = "alone.js"
_SCRIPT: Final = b"""\
// There is no Python program behind this page: nothing is to come from it.
window.EventSource = class {
  constructor() { setTimeout(() => this.onopen && this.onopen(), 0); }
  close() {}
};
"""
_HEAD: Final = b'<link rel="icon" href="data:,"><script src="alone.js"></script>'
_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".css": "text/css; charset=utf-8",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".wasm": "application/wasm",
    }
)
"""Of the files that are served, by ending."""
_POLICY: Final = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'{evaluated}; worker-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""Of the client: it reads from this server alone, whatever its address says."""
_OF_PAGE: Final = _POLICY.format(evaluated="")
_OF_WORKER: Final = _POLICY.format(evaluated=" 'unsafe-eval'")
"""Of scripts, which counts where they run as workers: that which decodes chunks makes a function of
a text when it begins. In the page they are held to the page's."""
_NEVER_CHANGES: Final = "private, max-age=31536000, immutable"
_NO_FILE: Final = text_answer(HTTPStatus.NOT_FOUND, "The client has no such file.")


@dataclass(frozen=True, slots=True, eq=False)
class _Client:
    """The client that is installed."""

    version: str
    files: Mapping[str, Path]
    """By name; those of its folder, and none elsewhere."""

    @classmethod
    @cache
    def installed(cls) -> "_Client | None":
        """Look for it; None if it is not installed."""
        spec = find_spec("neuroglancer")  # which imports nothing
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent / "static" / "client"
        if not (folder / _INDEX).is_file():
            return None
        files = {path.name: path for path in folder.iterdir() if path.suffix in _TYPES}
        try:
            found = version("neuroglancer")
        except PackageNotFoundError:  # a checkout
            found = "0"
        return cls(re.sub(r"[^A-Za-z0-9._-]", "-", found), MappingProxyType(files))

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return name == _ALONE or name in self.files

    def file(self, name: str) -> Body:
        """Return a file that there is."""
        fields = {
            "cache-control": "no-cache" if name in {_INDEX, _ALONE} else _NEVER_CHANGES,
            "content-security-policy": _OF_WORKER if name.endswith(".js") else _OF_PAGE,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        }
        return Body(self._content(name), _TYPES[Path(name).suffix], fields)

    def _content(self, name: str) -> bytes:
        if name == _ALONE:
            return _SCRIPT
        data = self.files[name].read_bytes()
        return data.replace(b"<script", _HEAD + b"<script", 1) if name == _INDEX else data


@cache
def _file(client: _Client, name: str) -> Body:
    """Keep a file, of which there are few."""
    return client.file(name)


def answer_state(source: PatchSource, request: Request, store: str, scan_id: str) -> Answer:
    """Lead to the client, which is told to show a scan.

    Parameters
    ----------
    source
        Of the store.
    request
        As it came.
    store, scan_id
        Names of store and scan.
    """
    try:
        scan = OpenedScan.of(source, scan_id, None).scan
    except RefusedError as refused:
        return refused.answer
    client = _Client.installed()
    if client is None:
        return _page(
            HTTPStatus.NOT_IMPLEMENTED,
            "neuroglancer is not installed beside this server",
            "<p>On the machine that serves: <code>pip install 'spinezarr[neuroglancer]'</code>, "
            "and start the server again.</p>",
        )
    dtype = scan.image.stored_dtype.name
    if dtype not in SHOWN_DTYPES:
        return _page(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "neuroglancer cannot show this scan",
            f"<p>Its image is {escape(dtype)}; neuroglancer draws integers to 32 bit and float32."
            "</p>",
        )
    origin = origin_of(request)
    if origin is None:
        return text_answer(HTTPStatus.BAD_REQUEST, "The request names no host.")
    name, scan_name = quote(store, safe=""), quote(scan_id, safe="")
    arrays = f"{origin}/flat/{name}/@{scan.content_checksum}/scans/{scan_name}"
    places = StatePlaces(
        f"{arrays}/image",
        f"{arrays}/label",
        f"{origin}/neuroglancer/{name}/{scan_name}/segments",
    )
    state = neuroglancer_state(scan, places, f"{scan_id} in {store}")
    place = f"{CLIENT}/{client.version}/{_INDEX}#{state_fragment(state)}"
    return Answer(HTTPStatus.SEE_OTHER, {"location": place, "cache-control": "no-store"})


def answer_segments(source: PatchSource, scan_id: str) -> Answer:
    """Say what the segments of a scan's mask are called, as neuroglancer reads it."""
    try:
        scan = OpenedScan.of(source, scan_id, None).scan
    except RefusedError as refused:
        return refused.answer
    return Answer(
        HTTPStatus.OK,
        {"content-type": "application/json", "cache-control": "no-cache"},
        to_ascii_json(segment_properties(scan.attributes), indent=None).encode(),
    )


def answer_client(request: Request, asked_version: str, name: str) -> Answer:
    """Return a file of the client.

    Parameters
    ----------
    request
        As it came.
    asked_version
        Of the client; the address of a view in another one leads to that which is installed.
    name
        Of the file.
    """
    client = _Client.installed()
    if client is None or not client.has(name):
        return _NO_FILE
    if asked_version != client.version:
        if name != _INDEX:
            return _NO_FILE
        place = f"{CLIENT}/{client.version}/{_INDEX}"  # browsers keep what stands behind the #
        return Answer(HTTPStatus.SEE_OTHER, {"location": place, "cache-control": "no-store"})
    return _file(client, name).answer(request)


def _page(status: HTTPStatus, title: str, body: str) -> Answer:
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><h1>{escape(title)}</h1>{body}</html>\n"
    )
    fields = {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-store",
        "content-security-policy": "default-src 'none'; base-uri 'none'; frame-ancestors 'none'",
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    return Answer(status, fields, text.encode())
