"""Stores as bytes, for every Zarr client: ``/zarr/<store>/<key>``, and the other trees of files.

A client takes 404 for "there is no such chunk" and shows background in its place, so 404 says that
and nothing else. What cannot be read is 503, and what was replaced meanwhile 410 or 412.

``/zarr/<store>/@<content_checksum>/<key>`` is one version of a scan: it never changes, may be kept
by caches, and is 410 when the scan has been replaced.
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
"""``public`` would let a cache between give it to who has no token."""
_PARTS: Final = "no-store"
"""Chromium keeps parts of a file, and gives cut ones for neighboring parts
(https://github.com/learningequality/kolibri/pull/15105)."""
_UNFIT: Final = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
_PARTIAL: Final = HTTPStatus.PARTIAL_CONTENT
_WITHOUT_BODY: Final = (HTTPStatus.NOT_MODIFIED, HTTPStatus.PRECONDITION_FAILED)
_VERSION: Final = re.compile(r"@([0-9a-f]{32})")
_SEGMENTS: Final = {"", ".", ".."}
"""Names that no file of a store has."""


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
        Returns the files of a store, or None if no store has that name.
    request
        As it came.
    path
        Store, ``/``, and key.
    """
    if request.method not in METHODS:
        return text_answer(
            HTTPStatus.METHOD_NOT_ALLOWED, "Stores are only read.", allow=", ".join(METHODS)
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
    """Answer for a store that is not there; somebody may still read one that was."""
    within = key.partition(f"{FOLDER_SUFFIX}/")[2] or split_scan_key(key)[1]
    if is_key and within and not within.endswith("zarr.json"):
        return text_answer(HTTPStatus.GONE, "There is no such store, or no longer.")
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
