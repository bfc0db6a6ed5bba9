"""What is asked of an object, and which version of it comes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final

from typing_extensions import Buffer

from spinezarr.remote.errors import CONTENT_RANGE, range_value

__all__ = ["UNCHANGED", "ObjectVersion", "Wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for.

    Attributes
    ----------
    path
        As :func:`spinezarr.remote.transport.open_transport` returns it, and what lies below.
    start, stop
        Bytes ``start <= i < stop``; all of them if both are None.
    limit_bytes
        Most that comes where ``stop`` is None.
    tag
        Of the version that is wanted, and no other; empty for any.
    unless_tag
        Of the version that is known and need not come.
    """

    path: str
    start: int | None = None
    stop: int | None = None
    limit_bytes: int = 0
    tag: str = ""
    unless_tag: str = ""

    @property
    def most_bytes(self) -> int:
        """How many bytes may come."""
        return self.limit_bytes if self.stop is None else self.stop - (self.start or 0)

    @property
    def range(self) -> str:
        """Value of the header Range."""
        return range_value(self.start, self.stop)

    @property
    def headers(self) -> dict[str, str]:
        """All headers that say so (RFC 9110, sections 13 and 14)."""
        asked = {"Range": self.range, "If-Match": self.tag, "If-None-Match": self.unless_tag}
        return {name: text for name, text in asked.items() if text}

    def is_met(self, found: "ObjectVersion") -> bool:
        """Whether what came is of the version that is wanted: not all servers know If-Match."""
        return not self.tag or found.tag == self.tag


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """Bytes of an object, and what the answer said of it.

    Attributes
    ----------
    data
        What was asked for.
    headers
        Of the answer, names in lower case.
    is_unchanged
        Whether it is the version that was known, and so nothing came.
    """

    data: Buffer
    headers: Mapping[str, str] = field(repr=False)
    is_unchanged: bool = False

    @property
    def tag(self) -> str:
        """Of this version, with its quotes; empty if the server names none, or only weakly."""
        tag = self.headers.get("etag", "")
        return "" if tag.startswith("W/") else tag

    @property
    def size_bytes(self) -> int:
        """Of the whole object; -1 if the server does not say."""
        found = CONTENT_RANGE.fullmatch(self.headers.get("content-range", ""))
        if found is None:
            return memoryview(self.data).nbytes
        return -1 if found[3] == "*" else int(found[3])

    @property
    def modified_s(self) -> int | None:
        """When it was written, by the server's clock in seconds of Unix; None if it is not said."""
        try:
            return int(parsedate_to_datetime(self.headers.get("last-modified", "")).timestamp())
        except (ValueError, OverflowError):
            return None


UNCHANGED: Final = ObjectVersion(b"", {}, is_unchanged=True)
"""What comes of a version that is known."""
