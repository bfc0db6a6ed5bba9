"""What went wrong with a request, as one of four kinds of error, without anything secret."""

import errno
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

from spinezarr.store.s3_errors import ENDPOINT, REFUSED

__all__ = [
    "TransientError",
    "answer_error",
    "broken_off",
    "broken_trust",
    "public_url",
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


class TransientError(ConnectionError):
    """A request that may succeed if it is made again.

    Attributes
    ----------
    retry_after_s
        Seconds that the server wishes to be left alone for, if it said so.
    """

    retry_after_s: float | None = None


class NoSuchBucketError(OSError):
    """A bucket that is not there, and so none of its objects."""


def public_url(url: str) -> str:
    """Return a URL without what may be secret in it: userinfo, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    rest = rest.partition("?")[0].partition("#")[0]
    host = rest.partition("/")[0]
    if "@" in host:
        rest = host.rpartition("@")[2] + rest[len(host) :]
    elif "@" in rest and ":" in host and not host.rpartition(":")[2].isdigit():
        rest = rest.rpartition("@")[2]  # a slash in a password
    return f"{scheme}{separator}{rest}"


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
    code = code if _is_s3(where) else ""
    named = f"the server answered {' '.join(filter(None, (str(status or ''), code)))}"
    if code in _TRANSIENT_CODES or _is_transient(status):
        return broken_off(where, named, _retry_after_s(headers or {}))
    if code in _CREDENTIAL_CODES or status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        text = f"{named}. Check the URL, and user, password or headers"
        if _is_s3(where):
            text = REFUSED.get(code) or REFUSED.get(str(status), named)
        return PermissionError(errno.EACCES, text, where)
    if code == "NoSuchBucket":
        return NoSuchBucketError(errno.EIO, REFUSED[code], where)
    if code in REFUSED and code != "NoSuchKey":
        return OSError(errno.EIO, REFUSED[code], where)
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
        return FileNotFoundError(errno.ENOENT, REFUSED["NoSuchKey"], where)
    return OSError(errno.EIO, named, where)


def unanswered(where: str, server: str = "the server") -> TransientError:
    """Return the error for an answer that was cut, or never came."""
    step = ENDPOINT if _is_s3(where) else "Check the URL and the network"
    return broken_off(where, f"the answer of {server} broke off or never came. {step}")


def broken_off(where: str, text: str, retry_after_s: float | None = None) -> TransientError:
    """Return the error for a request that may succeed if it is made again."""
    problem = TransientError(errno.EIO, text, where)
    problem.retry_after_s = retry_after_s
    return problem


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
