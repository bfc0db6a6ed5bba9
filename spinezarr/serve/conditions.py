"""Which status and bytes answer a request with ranges and conditions (RFC 9110)?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

__all__ = ["ConditionResult", "check_conditions"]

_RANGE_UNIT: Final = "bytes="
_RANGE: Final = re.compile(
    r"[ \t]*(?:(\d{1,19})[ \t]*-[ \t]*(\d{0,19})|-[ \t]*(\d{1,19}))[ \t]*", re.ASCII
)
"""One range of bytes; a position with more digits lies behind the end of any file."""
_TAG: Final = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_CONDITION: Final = re.compile(
    rf"[ \t,]*+(?:{_TAG.pattern}[ \t]*+(?:,[ \t,]*+{_TAG.pattern}[ \t]*+)*+)?[ \t,]*+"
)
"""A list of entity tags. The pattern is unambiguous, so a bad list is refused quickly."""


@dataclass(frozen=True, slots=True)
class ConditionResult:
    """The status of an answer, and the range of bytes to send, ``start <= i < stop``.

    The range is empty for most statuses.
    """

    status: HTTPStatus
    start: int = 0
    stop: int = 0


def check_conditions(
    method: str, headers: Mapping[str, str], *, etag: str, size_bytes: int
) -> ConditionResult:
    """Evaluate conditions and range of a request, in the order of RFC 9110, section 13.2.2.

    Parameters
    ----------
    method
        GET or HEAD; ranges count for GET only (section 14.2).
    headers
        Headers by lower-case name; the values of repeated headers are joined by commas.
    etag
        Strong entity tag of the object as it is now, with its quotes.
    size_bytes
        Size of the object in bytes.

    Examples
    --------
    >>> check_conditions("GET", {"range": "bytes=-2"}, etag='"a"', size_bytes=10)
    ConditionResult(status=<HTTPStatus.PARTIAL_CONTENT: 206>, start=8, stop=10)
    >>> check_conditions("GET", {"if-none-match": 'W/"a"'}, etag='"a"', size_bytes=10).status.value
    304
    """
    if_match, if_none_match = headers.get("if-match"), headers.get("if-none-match")
    if if_match is not None and not _matches(if_match, etag, is_weak=False):
        return ConditionResult(HTTPStatus.PRECONDITION_FAILED)
    if if_none_match is not None and _matches(if_none_match, etag, is_weak=True):
        return ConditionResult(HTTPStatus.NOT_MODIFIED)
    range_header = headers.get("range")
    # Objects have no dates, so a date in If-Range never matches.
    has_range = method == "GET" and headers.get("if-range", etag).strip(" \t") == etag
    if (
        range_header is None
        or not has_range
        or not range_header.lower().startswith(_RANGE_UNIT)
        or "," in range_header
    ):
        return ConditionResult(HTTPStatus.OK, 0, size_bytes)
    return _range_result(range_header[len(_RANGE_UNIT) :], size_bytes)


def _range_result(byte_range: str, size_bytes: int) -> ConditionResult:
    match = _RANGE.fullmatch(byte_range)
    if match is None:
        return ConditionResult(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    first, last, length = match.groups()
    if length is not None:
        start, stop = max(size_bytes - int(length), 0), size_bytes
    else:
        start = int(first)
        stop = min(int(last) + 1, size_bytes) if last else size_bytes
    if start >= stop:
        return ConditionResult(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
    return ConditionResult(HTTPStatus.PARTIAL_CONTENT, start, stop)


def _matches(condition: str, etag: str, *, is_weak: bool) -> bool:
    """Whether a condition names an entity tag. Text that is not a list of tags names none."""
    if condition.strip(" \t") == "*":
        return True
    if _CONDITION.fullmatch(condition) is None:
        return False
    return any(tag == etag and (is_weak or not weak) for weak, tag in _TAG.findall(condition))
