"""What went wrong with a request, as one of four kinds of error, without anything secret."""

import errno
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from typing_extensions import Buffer

from spinezarr.errors import CorruptStoreError
from spinezarr.remote.s3_errors import ENDPOINT, REFUSED
from spinezarr.text import to_printable

__all__ = [
    "CONTENT_RANGE",
    "PAGE_BYTES",
    "REDIRECTS",
    "ChangedObjectError",
    "NoRangesError",
    "StalledAnswerError",
    "TransientError",
    "answer_error",
    "broken_off",
    "broken_trust",
    "changed",
    "is_page",
    "led_away",
    "no_range",
    "page_instead",
    "range_value",
    "stalled",
    "too_long",
    "unanswered",
]

_WORTH_ASKING_AGAIN: Final = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
"""Besides those of 500 and above (RFC 9110, section 15; RFC 6585, section 4; RFC 8470)."""
_NEVER: Final = {HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED}
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
"""Those that botocore repeats in its standard mode, and ServiceUnavailable.

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
_LONGEST_WAIT_S: Final = 3600.0
CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
"""RFC 9110, section 14.4."""
REDIRECTS: Final = 5
"""How often an answer may lead on."""
_CODE_LENGTH: Final = 64
"""Of what a server calls its error; S3's own names are shorter."""
PAGE_BYTES: Final = 64
"""First bytes by which :func:`is_page` knows a web page."""
_RANGES: Final = (
    "Chunks are read as byte ranges (RFC 9110, section 14). Serve the store with what gives them, "
    "such as nginx, Caddy, Apache or 'rclone serve http', not 'python -m http.server', and look "
    "for a proxy or a compression between that takes them away"
)
"""What to do about a server without ranges."""


class TransientError(ConnectionError):
    """A request that may succeed if it is made again.

    Attributes
    ----------
    retry_after_s
        Seconds that the server wishes to be left alone for, if it said so.
    """

    retry_after_s: float | None = None


class StalledAnswerError(TransientError):
    """An answer of which too little came for too long."""


class NoRangesError(OSError):
    """A server that answers a request for a range as one does that knows no ranges.

    It always will, unless it has answered others rightly.
    """


class ChangedObjectError(OSError):
    """An object that is no longer, or not, of the version that was asked for."""


class NoSuchBucketError(OSError):
    """A bucket that is not there, and so none of its objects."""


def answer_error(
    status: int, code: str, where: str, headers: Mapping[str, str] | None = None
) -> OSError:
    """Return the error for an answer that is none of the object's bytes.

    Parameters
    ----------
    status
        Of HTTP; 0 if it is not known.
    code
        S3's own, or nothing; of no meaning elsewhere.
    where
        A URL without secrets.
    headers
        Of the answer, names in lower case.
    """
    code = to_printable(code[:_CODE_LENGTH]) if _is_s3(where) else ""
    named = f"the server answered {' '.join(filter(None, (str(status or ''), code)))}"
    if status == HTTPStatus.PRECONDITION_FAILED:
        return changed(where)
    if code in _TRANSIENT_CODES or _is_transient(status):
        return broken_off(where, named, _retry_after_s(headers or {}))
    if code in _CREDENTIAL_CODES or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        text = f"{named}. Check the URL, and user, password or headers"
        if _is_s3(where):
            text = REFUSED.get(code) or REFUSED.get(str(status), named)
        return PermissionError(errno.EACCES, text, where)
    if code in REFUSED and code != "NoSuchKey":
        kind = NoSuchBucketError if code == "NoSuchBucket" else OSError
        return kind(errno.EIO, REFUSED[code], where)
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return FileNotFoundError(errno.ENOENT, REFUSED["NoSuchKey"], where)
    if not _is_s3(where):
        named += ". Check that the URL is that of the store, and that its server gives files"
    return OSError(errno.EIO, named, where)


def changed(where: str) -> ChangedObjectError:
    """Return the error for an object that is of another version than was asked for."""
    return ChangedObjectError(errno.ESTALE, "the object was replaced by another version", where)


def unanswered(where: str, server: str = "the server") -> TransientError:
    """Return the error for an answer that was cut, or never came."""
    step = ENDPOINT if _is_s3(where) else "Check the URL and the network"
    return broken_off(where, f"the answer of {server} broke off or never came. {step}")


def stalled(where: str) -> TransientError:
    """Return the error for an answer of which too little came for too long."""
    step = ENDPOINT if _is_s3(where) else "Check the URL and the network"
    text = f"the server sends nothing, or too little to go on. {step}"
    return StalledAnswerError(errno.ETIMEDOUT, text, where)


def too_long(where: str, limit_bytes: int, found_bytes: int | None = None) -> CorruptStoreError:
    """Return the error for an object that is larger than it may be."""
    found = "more" if found_bytes is None else f"{found_bytes} bytes"
    return CorruptStoreError(
        f"{where}: the server sends {found} where at most {limit_bytes} bytes are expected. "
        "Check the URL; the store or its server is damaged, or not what it says."
    )


def led_away(where: str, text: str) -> OSError:
    """Return the error for a redirect that is not followed."""
    return OSError(errno.EIO, f"the server redirects the request: {text}. Check the URL", where)


def range_value(start: int | None, stop: int | None) -> str:
    """Return the value of a Range header, or nothing for all of an object."""
    if start is None and stop is None:
        return ""
    return f"bytes={start or 0}-{'' if stop is None else stop - 1}"


def broken_off(where: str, text: str, retry_after_s: float | None = None) -> TransientError:
    """Return the error for a request that may succeed if it is made again."""
    problem = TransientError(errno.EIO, text, where)
    problem.retry_after_s = retry_after_s
    return problem


def no_range(where: str, text: str) -> NoRangesError:
    """Return the error for a server that gives something else than a range."""
    step = "Chunks are read as byte ranges, which it must give" if _is_s3(where) else _RANGES
    return NoRangesError(errno.EIO, f"{text}. {step}", where)


def is_page(data: Buffer) -> bool:
    """Whether bytes begin as a web page does, and no object of a store."""
    beginning = bytes(memoryview(data)[:PAGE_BYTES]).lstrip().lower()
    return beginning.startswith((b"<!doctype html", b"<html"))


def page_instead(where: str) -> PermissionError:
    """Return the error for a server that sends a web page where an object is asked for."""
    text = (
        "the server sent a web page instead of the object, to log in or to say that there is none. "
        "Check the URL, and user, password or headers"
    )
    return PermissionError(errno.EACCES, text, where)


def broken_trust(where: str) -> OSError:
    """Return the error for a server that cannot prove who it is."""
    text = "the server's certificate is not trusted. Check the URL, and AWS_CA_BUNDLE or verify"
    return OSError(errno.EIO, text, where)


def _is_s3(where: str) -> bool:
    return where.startswith(("s3://", "s3a://"))


def _is_transient(status: int) -> bool:
    server = status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _NEVER
    return server or status in _WORTH_ASKING_AGAIN


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return what Retry-After says: seconds or a date (RFC 9110, section 10.2.3)."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), _LONGEST_WAIT_S)
    try:
        until = parsedate_to_datetime(text)
    except ValueError:
        return None
    wait_s = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return min(max(wait_s, 0.0), _LONGEST_WAIT_S)
