"""Which file and status answer a path below ``/zarr``, ``/flat`` or ``/ome``?

Zarr clients take 404 for "this chunk does not exist" and show background in its place. So 404 says
only that. A failed read is 503, and a file that was replaced meanwhile is 410 or 412.

``/zarr/<store>/@<content_checksum>/<key>`` names one version of a scan. It never changes, so caches
may keep it, and it is 410 when the scan has been replaced.
"""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Protocol

from spinezarr.serve.conditions import check_conditions
from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.served_files import GoneError, ServedFile, UnreadableError, split_scan_key
from spinezarr.view.ome import FOLDER_SUFFIX

__all__ = ["Files", "answer_file"]

METHODS: Final = ("GET", "HEAD", "OPTIONS")
_CHANGES: Final = "no-cache"
_NEVER_CHANGES: Final = "private, max-age=31536000, immutable"
"""With ``public``, a shared cache could send the file to clients without a token."""
_PARTS: Final = "no-store"
"""Cache control of partial answers. Chromium caches them, and then returns truncated bytes for
adjacent ranges (https://github.com/learningequality/kolibri/pull/15105)."""
_UNFIT: Final = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
_PARTIAL: Final = HTTPStatus.PARTIAL_CONTENT
_WITHOUT_BODY: Final = (HTTPStatus.NOT_MODIFIED, HTTPStatus.PRECONDITION_FAILED)
_VERSION: Final = re.compile(r"@([0-9a-f]{32})")
_SEGMENTS: Final = {"", ".", ".."}
"""Path segments that no key of a store has."""


class Files(Protocol):
    """The files of one store."""

    def find(self, key: str, version: str | None = None) -> ServedFile | None:
        """See :meth:`spinezarr.serve.served_files.ServedFolder.find`."""
        ...


def answer_file(files_of: Callable[[str], Files | None], request: Request, path: str) -> Answer:
    """Answer a request for a file of a store.

    Parameters
    ----------
    files_of
        Returns the files of a store by its name, or None if there is no such store.
    request
        The request.
    path
        Path below the tree: store, ``/``, and key.
    """
    if request.method not in METHODS:
        return text_answer(
            HTTPStatus.METHOD_NOT_ALLOWED, "Stores are read-only.", allow=", ".join(METHODS)
        )
    name, _, key = path.partition("/")
    files = files_of(name)
    first, _, rest = key.partition("/")
    version = _VERSION.fullmatch(first)
    is_key = _SEGMENTS.isdisjoint(key.split("/"))
    if files is None or not is_key:
        return _without_store(rest if version else key, is_key=is_key)
    try:
        found = files.find(rest, version[1]) if version else files.find(key)
    except GoneError as problem:
        return text_answer(HTTPStatus.GONE, str(problem))
    except UnreadableError as problem:
        return text_answer(HTTPStatus.SERVICE_UNAVAILABLE, str(problem), retry_after="1")
    if found is None:
        return text_answer(HTTPStatus.NOT_FOUND, "There is no such file.")
    return _part(request.method, request.headers, found, key, is_kept=version is not None)


def _without_store(key: str, *, is_key: bool) -> Answer:
    """Answer for an absent store, which a client may have been reading until it was removed."""
    within = key.partition(f"{FOLDER_SUFFIX}/")[2] or split_scan_key(key)[1]
    if is_key and within and not within.endswith("zarr.json"):
        return text_answer(HTTPStatus.GONE, "There is no such store any more.")
    return text_answer(HTTPStatus.NOT_FOUND, "There is no such file.")


def _part(
    method: str, asked: Mapping[str, str], found: ServedFile, key: str, *, is_kept: bool
) -> Answer:
    verdict = check_conditions(method, asked, etag=found.etag, size_bytes=found.size_bytes)
    headers = {"etag": found.etag, "accept-ranges": "bytes", "x-content-type-options": "nosniff"}
    status = verdict.status
    if status == _UNFIT:
        about = {"content-range": f"bytes */{found.size_bytes}", "cache-control": _PARTS}
        return Answer(status, {**headers, **about})
    if status == _PARTIAL:
        headers["content-range"] = f"bytes {verdict.start}-{verdict.stop - 1}/{found.size_bytes}"
        headers["cache-control"] = _PARTS
    else:
        headers["cache-control"] = _NEVER_CHANGES if is_kept else _CHANGES
    if status in _WITHOUT_BODY:
        return Answer(status, headers)
    is_json = key.endswith("zarr.json")
    headers["content-type"] = "application/json" if is_json else "application/octet-stream"
    return Answer(status, headers, file=found, start=verdict.start, stop=verdict.stop)
