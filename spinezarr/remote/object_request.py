"""Which fields do a request for an object and its response have?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final

from typing_extensions import Buffer

from spinezarr.remote.errors import CONTENT_RANGE, range_header

__all__ = ["NOT_MODIFIED", "ObjectRequest", "ObjectResponse"]


@dataclass(frozen=True, slots=True)
class ObjectRequest:
    """A request for one object, or for a range of its bytes.

    Attributes
    ----------
    path
        Path of the object: the path of the store from
        :func:`spinezarr.remote.transport.open_transport`, and the key below it.
    start, stop
        Range of bytes ``start <= i < stop``. None for both means the whole object.
    limit_bytes
        Largest response, in bytes, if ``stop`` is None.
    if_match
        Entity tag of the only version that is accepted. An empty string accepts every version.
    if_none_match
        Entity tag of the version that the caller has. The response is :data:`NOT_MODIFIED` if the
        object still has it.
    """

    path: str
    start: int | None = None
    stop: int | None = None
    limit_bytes: int = 0
    if_match: str = ""
    if_none_match: str = ""

    @property
    def max_bytes(self) -> int:
        """Largest size of the response in bytes."""
        return self.limit_bytes if self.stop is None else self.stop - (self.start or 0)

    @property
    def range(self) -> str:
        """Value of the ``Range`` header; empty for the whole object."""
        return range_header(self.start, self.stop)

    @property
    def headers(self) -> dict[str, str]:
        """Headers for the range and the entity tags (RFC 9110, sections 13 and 14)."""
        headers = {
            "Range": self.range,
            "If-Match": self.if_match,
            "If-None-Match": self.if_none_match,
        }
        return {name: text for name, text in headers.items() if text}

    def accepts(self, response: "ObjectResponse") -> bool:
        """Whether a response has the requested version. Not every server honors ``If-Match``."""
        return not self.if_match or response.etag == self.if_match


@dataclass(frozen=True, slots=True)
class ObjectResponse:
    """Bytes of an object, with the headers of the response.

    Attributes
    ----------
    data
        The requested bytes; empty if ``is_not_modified``.
    headers
        Headers of the response, names in lower case.
    is_not_modified
        Whether the object still has the version of ``if_none_match``.
    """

    data: Buffer
    headers: Mapping[str, str] = field(repr=False)
    is_not_modified: bool = False

    @property
    def etag(self) -> str:
        """Strong entity tag of this version, with its quotes; empty if the server sends none."""
        tag = self.headers.get("etag", "")
        return "" if tag.startswith("W/") else tag

    @property
    def size_bytes(self) -> int:
        """Size of the whole object; -1 if the server does not state it."""
        match = CONTENT_RANGE.fullmatch(self.headers.get("content-range", ""))
        if match is None:
            return memoryview(self.data).nbytes
        return -1 if match[3] == "*" else int(match[3])

    @property
    def modified_s(self) -> int | None:
        """Unix time of the last change by the server's clock; None if the server sends none."""
        try:
            return int(parsedate_to_datetime(self.headers.get("last-modified", "")).timestamp())
        except (ValueError, OverflowError):
            return None


NOT_MODIFIED: Final = ObjectResponse(b"", {}, is_not_modified=True)
"""Response for an object that still has the version of ``if_none_match``."""
