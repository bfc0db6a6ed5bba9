"""Requests and answers, whatever server carries them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final

from spinezarr.serve.objects import ServedFile

__all__ = ["Answer", "Request", "explained"]

TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks.

    Attributes
    ----------
    path
        Decoded once, from the first ``/`` on.
    headers
        By names in lower case; repeated ones joined by commas.
    is_signed
        Whether a signature in the URL that was asked for opened this path.
    """

    method: str
    path: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_signed: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What it gets: a body, or a part of a file."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: bytes = b""
    file: ServedFile | None = None
    start: int = 0
    stop: int = 0

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) if self.file is None else self.stop - self.start


def explained(status: HTTPStatus, text: str, **headers: str) -> Answer:
    """Return an answer for a person to read; nobody keeps it."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        status,
        {"content-type": TEXT, "cache-control": "no-store", **fields},
        f"{text}\n".encode(),
    )
