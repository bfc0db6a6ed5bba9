"""Which error does a failed request raise?

The type tells the caller what to do: :class:`TransientError` (another attempt may help),
:class:`NoRangesError` (the server supports no ranges), :class:`ChangedObjectError` (the object was
replaced), ``FileNotFoundError`` (the object does not exist), ``PermissionError`` (access is
denied), and ``OSError`` for everything else. No message contains a secret of the URL.
"""

import errno
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from typing_extensions import Buffer

from spinezarr.errors import CorruptStoreError
from spinezarr.remote.s3_errors import ENDPOINT_ADVICE, ERROR_TEXTS
from spinezarr.text import to_printable

__all__ = [
    "CONTENT_RANGE",
    "MAX_REDIRECTS",
    "PAGE_BYTES",
    "ChangedObjectError",
    "NoRangesError",
    "NoSuchBucketError",
    "StalledResponseError",
    "TransientError",
    "certificate_error",
    "is_web_page",
    "no_ranges_error",
    "no_response_error",
    "object_changed_error",
    "object_too_large_error",
    "range_header",
    "redirect_error",
    "response_error",
    "retry_after_s",
    "stalled_response_error",
    "transient_error",
    "web_page_error",
]

_RETRYABLE_STATUSES: Final = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
"""Statuses below 500 after which another attempt may succeed (RFC 9110, section 15; RFC 6585,
section 4; RFC 8470)."""
_PERMANENT_STATUSES: Final = {HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}
"""Statuses of 500 and above after which no attempt succeeds."""
_TRANSIENT_CODES: Final = {
    "BandwidthLimitExceeded",
    "InternalError",
    "PriorRequestNotComplete",
    "RequestLimitExceeded",
    "RequestThrottled",
    "RequestThrottledException",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
"""Error codes of S3 after which botocore repeats a request, and ServiceUnavailable.

References
----------
https://docs.aws.amazon.com/boto3/latest/guide/retries.html
"""
_CREDENTIAL_CODES: Final = {
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}
_HUB_HEADERS: Final = {"x-error-code", "x-error-message"}
"""Headers by which a Hugging Face hub says why it refuses a request."""
_HUB_ADVICE: Final = (
    "Check the name of the dataset, and log in with 'hf auth login' or set HF_TOKEN to a token "
    "that may read it"
)
_MAX_WAIT_S: Final = 3600.0
_USED_UP_LIMIT: Final = re.compile(r";\s*r=0\s*;\s*t=(\d{1,9})(?:[;,\s]|$)", re.ASCII)
"""Limit in a ``RateLimit`` header of which nothing remains, and the seconds until it is renewed."""
CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
"""A ``Content-Range`` header (RFC 9110, section 14.4)."""
MAX_REDIRECTS: Final = 5
"""Largest number of redirects that are followed for one request."""
_MAX_CODE_LENGTH: Final = 64
"""Longest error code that is shown; those of S3 are shorter."""
PAGE_BYTES: Final = 64
"""Number of bytes from the start that :func:`is_web_page` checks."""
_RANGES_ADVICE: Final = (
    "Chunks are read as byte ranges (RFC 9110, section 14). Use a server that supports them, such "
    "as nginx, Caddy, Apache or 'rclone serve http', not 'python -m http.server', and check "
    "whether a proxy or a compression removes them"
)
"""Advice for a server that supports no ranges."""


class TransientError(ConnectionError):
    """A request failed that may succeed if it is repeated.

    Attributes
    ----------
    retry_after_s
        Seconds to wait first, from the header ``Retry-After``; None if there is none.
    """

    retry_after_s: float | None = None


class StalledResponseError(TransientError):
    """A response brought too few bytes for too long."""


class NoRangesError(OSError):
    """The response to a request for a range is not that range.

    The server probably supports no ranges, unless it has sent other ranges before.
    """


class ChangedObjectError(OSError):
    """The object has another version than the requested one."""


class NoSuchBucketError(OSError):
    """The bucket does not exist, so none of its objects does."""


def response_error(
    status: int, code: str, where: str, headers: Mapping[str, str] | None = None
) -> OSError:
    """Return the error for a response without the requested bytes.

    Parameters
    ----------
    status
        HTTP status; 0 if it is unknown.
    code
        Error code of S3; ignored for other servers.
    where
        URL of the object without secrets.
    headers
        Headers of the response, names in lower case.
    """
    headers = headers or {}
    is_hub = not _is_s3(where) and not _HUB_HEADERS.isdisjoint(headers)
    if not _is_s3(where):
        code = ""
    shown_code = headers.get("x-error-code", "") if is_hub else code
    code, shown_code = (to_printable(c[:_MAX_CODE_LENGTH]) for c in (code, shown_code))
    text = f"the server answered {' '.join(filter(None, (str(status or ''), shown_code)))}"
    if status == HTTPStatus.PRECONDITION_FAILED:
        return object_changed_error(where)
    if code in _TRANSIENT_CODES or _is_transient(status):
        return transient_error(where, text, retry_after_s(headers))
    if code in _CREDENTIAL_CODES or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        denial = f"{text}. Check the URL, and user, password or headers"
        if is_hub:
            denial = f"{text}. {_HUB_ADVICE}"
        if _is_s3(where):
            denial = ERROR_TEXTS.get(code) or ERROR_TEXTS.get(str(status), text)
        return PermissionError(errno.EACCES, denial, where)
    if code in ERROR_TEXTS and code != "NoSuchKey":
        kind = NoSuchBucketError if code == "NoSuchBucket" else OSError
        return kind(errno.EIO, ERROR_TEXTS[code], where)
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return FileNotFoundError(errno.ENOENT, ERROR_TEXTS["NoSuchKey"], where)
    if not _is_s3(where):
        text += ". Check that the URL is that of the store, and that its server sends files"
    return OSError(errno.EIO, text, where)


def object_changed_error(where: str) -> ChangedObjectError:
    """Return the error for an object that has another version than the requested one."""
    return ChangedObjectError(errno.ESTALE, "the object was replaced by another version", where)


def no_response_error(where: str, server: str = "the server") -> TransientError:
    """Return the error for a response that was cut off or never came."""
    advice = ENDPOINT_ADVICE if _is_s3(where) else "Check the URL and the network"
    return transient_error(where, f"the answer of {server} broke off or never came. {advice}")


def stalled_response_error(where: str) -> TransientError:
    """Return the error for a response that brought too few bytes for too long."""
    advice = ENDPOINT_ADVICE if _is_s3(where) else "Check the URL and the network"
    text = f"the server sends nothing, or too little to continue. {advice}"
    return StalledResponseError(errno.ETIMEDOUT, text, where)


def object_too_large_error(
    where: str, limit_bytes: int, found_bytes: int | None = None
) -> CorruptStoreError:
    """Return the error for an object that is larger than ``limit_bytes``."""
    found = "more" if found_bytes is None else f"{found_bytes} bytes"
    return CorruptStoreError(
        f"{where}: the server sends {found} where at most {limit_bytes} bytes are expected. "
        "Check the URL. The store may be damaged, or the server may send something else."
    )


def redirect_error(where: str, text: str) -> OSError:
    """Return the error for a redirect that is not followed."""
    return OSError(errno.EIO, f"the server redirects the request: {text}. Check the URL", where)


def range_header(start: int | None, stop: int | None) -> str:
    """Return the value of the ``Range`` header; an empty string for the whole object."""
    if start is None and stop is None:
        return ""
    return f"bytes={start or 0}-{'' if stop is None else stop - 1}"


def transient_error(where: str, text: str, wait_s: float | None = None) -> TransientError:
    """Return the error for a request that may succeed if it is repeated."""
    problem = TransientError(errno.EIO, text, where)
    problem.retry_after_s = wait_s
    return problem


def no_ranges_error(where: str, text: str) -> NoRangesError:
    """Return the error for a response that is not the requested range."""
    advice = _RANGES_ADVICE
    if _is_s3(where):
        advice = "Chunks are read as byte ranges, which the server must support"
    return NoRangesError(errno.EIO, f"{text}. {advice}", where)


def is_web_page(data: Buffer) -> bool:
    """Whether bytes are the start of a web page instead of an object of a store."""
    beginning = bytes(memoryview(data)[:PAGE_BYTES]).lstrip().lower()
    return beginning.startswith((b"<!doctype html", b"<html"))


def web_page_error(where: str) -> PermissionError:
    """Return the error for a web page that came instead of an object."""
    text = (
        "the server sent a web page instead of the object, such as a login page or an error page. "
        "Check the URL, and user, password or headers"
    )
    return PermissionError(errno.EACCES, text, where)


def certificate_error(where: str) -> OSError:
    """Return the error for a server whose certificate is not trusted."""
    text = "the server's certificate is not trusted. Check the URL, and AWS_CA_BUNDLE or verify"
    return OSError(errno.EIO, text, where)


def _is_s3(where: str) -> bool:
    return where.startswith(("s3://", "s3a://"))


def _is_transient(status: int) -> bool:
    server = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _PERMANENT_STATUSES
    return server or status in _RETRYABLE_STATUSES


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``Retry-After`` asks for (RFC 9110, section 10.2.3), or None.

    A hub sends ``RateLimit`` in its place (draft-ietf-httpapi-ratelimit-headers).
    """
    text = headers.get("retry-after", "").strip()
    used_up = _USED_UP_LIMIT.search(headers.get("ratelimit", ""))
    if not text and used_up:
        text = used_up[1]
    if text.isascii() and text.isdigit():
        return min(float(text), _MAX_WAIT_S)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    wait_s = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(wait_s, 0.0), _MAX_WAIT_S)
