"""What is made of one version of a scan: how long it may be kept, and who has it already."""

import hashlib
from http import HTTPStatus
from typing import Final

from spinezarr import __version__
from spinezarr.serve.conditions import check_conditions
from spinezarr.serve.http import Answer, Request

__all__ = ["RefusedError", "headers_of_version"]

_CHANGES: Final = "no-cache"
_NEVER_CHANGES: Final = "private, max-age=31536000, immutable"
_CONDITIONS: Final = ("if-match", "if-none-match")


class RefusedError(Exception):
    """Something that is not made; ``answer`` says why, or that it need not be."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer


def headers_of_version(
    request: Request, *words: str, is_named: bool, vary: str | None = None
) -> dict[str, str]:
    """Return ``ETag`` and ``Cache-Control`` of what is to be made.

    Parameters
    ----------
    request
        As it came.
    words
        All that the answer depends on, besides spinezarr itself.
    is_named
        Whether the request names the version, so that the answer never changes.
    vary
        Headers of a request that choose among forms of the answer.

    Raises
    ------
    RefusedError
        If the conditions of the request are answered without it.
    """
    digest = hashlib.sha256("\0".join((__version__, *words)).encode()).hexdigest()[:32]
    headers = {
        "etag": f'"{digest}"',
        "cache-control": _NEVER_CHANGES if is_named else _CHANGES,
        **({} if vary is None else {"vary": vary}),
    }
    conditions = {name: request.headers[name] for name in _CONDITIONS if name in request.headers}
    status = check_conditions(request.method, conditions, etag=headers["etag"], size_bytes=0).status
    if status != HTTPStatus.OK:
        raise RefusedError(Answer(status, headers))
    return headers
