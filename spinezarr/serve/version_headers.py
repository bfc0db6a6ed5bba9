"""How long may clients keep an answer that is computed from a scan, and do they have it already?"""

import hashlib
from http import HTTPStatus
from typing import Final

from spinezarr.resources import package_version
from spinezarr.serve.conditions import check_conditions
from spinezarr.serve.http import IMMUTABLE, REVALIDATE, Answer, Request

__all__ = ["RefusedError", "headers_of_version"]

_CONDITIONS: Final = ("if-match", "if-none-match")


class RefusedError(Exception):
    """A request is answered with ``answer``, before anything is computed."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


def headers_of_version(
    request: Request, *version_parts: str, is_named: bool, vary: str | None = None
) -> dict[str, str]:
    """Return ``ETag`` and ``Cache-Control`` of an answer that depends on a version of a scan.

    Parameters
    ----------
    request
        The request.
    version_parts
        Everything that the answer depends on, except the version of spinezarr.
    is_named
        Whether the request names the version of the scan, so that the answer never changes.
    vary
        Value of the ``Vary`` header; None for no such header.

    Raises
    ------
    RefusedError
        If the conditions of the request, such as ``If-None-Match``, give the answer.
    """
    digest = hashlib.sha256("\0".join((package_version(), *version_parts)).encode()).hexdigest()[
        :32
    ]
    headers = {
        "etag": f'"{digest}"',
        "cache-control": IMMUTABLE if is_named else REVALIDATE,
        **({} if vary is None else {"vary": vary}),
    }
    conditions = {name: request.headers[name] for name in _CONDITIONS if name in request.headers}
    status = check_conditions(request.method, conditions, etag=headers["etag"], size_bytes=0).status
    if status != HTTPStatus.OK:
        raise RefusedError(Answer(status, headers))
    return headers
