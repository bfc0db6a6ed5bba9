"""Which file and status answer a path below ``/zarr``, ``/flat`` or ``/ome``?

Zarr clients read 404 as "this chunk does not exist" and show background in its place. So 404 means
only that. A failed read is 503, and a file that was replaced meanwhile is 410 or 412.

``/zarr/<store>/@<content_checksum>/<key>`` names one version of a scan. Its image and ``label``
never change, so caches may keep them. The answer is 410 when the scan has been replaced. Further
masks may come, change and go, so caches must ask again for them, and for metadata.
"""

import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Protocol

from spinezarr.serve.conditions import check_conditions
from spinezarr.serve.http import BYTES, IMMUTABLE, JSON, REVALIDATE, Answer, Request, text_answer
from spinezarr.serve.served_files import GoneError, ServedFile, UnreadableError, split_scan_key
from spinezarr.store.layout import METADATA, SAMPLING, is_mask_name
from spinezarr.view.ome import FOLDER_SUFFIX, parse_ome_key

__all__ = ["Files", "answer_file"]

METHODS: Final = ("GET", "HEAD", "OPTIONS")
_NOT_CACHED: Final = "no-store"
"""Cache control of partial answers. Chromium caches them, and then returns truncated bytes for
adjacent ranges (https://github.com/learningequality/kolibri/pull/15105)."""
_NOT_SATISFIABLE: Final = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
_PARTIAL: Final = HTTPStatus.PARTIAL_CONTENT
_WITHOUT_BODY: Final = (HTTPStatus.NOT_MODIFIED, HTTPStatus.PRECONDITION_FAILED)
_VERSION: Final = re.compile(r"@([0-9a-f]{32})")
_INVALID_SEGMENTS: Final = {"", ".", ".."}
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
    is_key = _INVALID_SEGMENTS.isdisjoint(key.split("/"))
    if files is None or not is_key:
        return _absent_store_answer(rest if version else key, is_key=is_key)
    try:
        file = files.find(rest, version[1]) if version else files.find(key)
    except GoneError as problem:
        return text_answer(HTTPStatus.GONE, str(problem))
    except UnreadableError as problem:
        return text_answer(HTTPStatus.SERVICE_UNAVAILABLE, str(problem), retry_after="1")
    if file is None:
        return text_answer(HTTPStatus.NOT_FOUND, "There is no such file.")
    is_immutable = version is not None and _is_of_version(rest)
    return _file_answer(request.method, request.headers, file, key, is_immutable=is_immutable)


def _is_of_version(key: str) -> bool:
    """Whether a version of a scan determines the file of a key: it is no further mask's.

    Examples
    --------
    >>> _is_of_version("scans/liver_0/label/c/0/0/0"), _is_of_version("liver_0.ome.zarr/2/c/0/0/0")
    (True, True)
    >>> _is_of_version("scans/liver_0/parts/c/0/0/0"), _is_of_version("scans/liver_0/zarr.json")
    (False, False)
    """
    if key.endswith(METADATA):
        return False
    key_in_image = key.partition(f"{FOLDER_SUFFIX}/")[2]
    if key_in_image:
        ome_key = parse_ome_key(key_in_image)
        return ome_key is not None and not is_mask_name(ome_key.array)
    array, _, rest = split_scan_key(key)[1].partition("/")
    if array == SAMPLING:
        array = rest.partition("/")[0].removesuffix("_chunks")
    return not is_mask_name(array)


def _absent_store_answer(key: str, *, is_key: bool) -> Answer:
    """Answer for an absent store, which may have been removed while a client was reading it."""
    key_in_scan = key.partition(f"{FOLDER_SUFFIX}/")[2] or split_scan_key(key)[1]
    if is_key and key_in_scan and not key_in_scan.endswith(METADATA):
        return text_answer(HTTPStatus.GONE, "The store does not exist any more.")
    return text_answer(HTTPStatus.NOT_FOUND, "There is no such file.")


def _file_answer(
    method: str,
    request_headers: Mapping[str, str],
    file: ServedFile,
    key: str,
    *,
    is_immutable: bool,
) -> Answer:
    result = check_conditions(method, request_headers, etag=file.etag, size_bytes=file.size_bytes)
    headers = {"etag": file.etag, "accept-ranges": "bytes", "x-content-type-options": "nosniff"}
    status = result.status
    if status == _NOT_SATISFIABLE:
        range_headers = {
            "content-range": f"bytes */{file.size_bytes}",
            "cache-control": _NOT_CACHED,
        }
        return Answer(status, {**headers, **range_headers})
    if status == _PARTIAL:
        headers["content-range"] = f"bytes {result.start}-{result.stop - 1}/{file.size_bytes}"
        headers["cache-control"] = _NOT_CACHED
    else:
        headers["cache-control"] = IMMUTABLE if is_immutable else REVALIDATE
    if status in _WITHOUT_BODY:
        return Answer(status, headers)
    is_json = key.endswith(METADATA)
    headers["content-type"] = JSON if is_json else BYTES
    return Answer(status, headers, file=file, start=result.start, stop=result.stop)
