"""Requests and answers, whatever server carries them."""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from spinezarr.serve.served_files import ServedFile

__all__ = [
    "Answer",
    "Receive",
    "Request",
    "Scope",
    "Send",
    "accepts_gzip",
    "negotiate_media_type",
    "parse_request",
    "text_answer",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TEXT: Final = "text/plain; charset=utf-8"
_RANGE: Final = re.compile(r"([!#$%&'*+.^_`|~\w-]+)/([!#$%&'*+.^_`|~\w-]+)", re.ASCII)
_NEVER: Final = re.compile(r"q[ \t]*=[ \t]*0(?:[.]0{0,3})?", re.ASCII)
"""The weight of what a client does not take."""
_WEIGHT: Final = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.ASCII | re.IGNORECASE)


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
    """What it gets: a body, a part of a file, or parts that are made while they are sent."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: bytes = b""
    file: ServedFile | None = None
    start: int = 0
    stop: int = 0
    stream: Iterator[bytes] | None = None

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) if self.file is None else self.stop - self.start


def text_answer(status: HTTPStatus, text: str, **headers: str) -> Answer:
    """Return an answer for a person to read; nobody keeps it."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        status,
        {"content-type": TEXT, "cache-control": "no-store", **fields},
        f"{text}\n".encode(),
    )


def parse_request(scope: Scope) -> Request:
    """Return what a client asks, of the scope of ASGI."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = unquote(raw.partition(b"?")[0].decode("latin-1"), errors="replace")
    return Request(scope["method"], path, scope.get("query_string", b"").decode("latin-1"), headers)


def negotiate_media_type(accept: str | None, offers: Sequence[str]) -> str | None:
    """Return the media type that a client likes best, or None if it likes none.

    See RFC 9110, section 12.5.1.

    Parameters
    ----------
    accept
        The header; None if there is none. Parts of it that are no media range are passed over.
    offers
        What there is; of those that are liked equally, the first is taken.

    Examples
    --------
    >>> offers = ("application/x-safetensors", "application/x-npy")
    >>> negotiate_media_type("application/*;q=0.5, application/x-npy", offers)
    'application/x-npy'
    >>> negotiate_media_type("*/*, application/x-safetensors;q=0", offers)
    'application/x-npy'
    >>> negotiate_media_type("image/png", offers)
    """
    if accept is None or not accept.strip(" \t,"):
        return offers[0]
    weights = dict(filter(None, map(_weighed, accept.split(","))))
    liked = {}
    for offer in offers:
        kind = offer.partition("/")[0]
        ranges = (offer, f"{kind}/*", "*/*")
        liked[offer] = next((weights[name] for name in ranges if name in weights), 0.0)
    best = max(offers, key=lambda offer: liked[offer])
    return best if liked[best] else None


def _weighed(part: str) -> tuple[str, float] | None:
    """Return a media range in lower case and its weight; None for others, or with parameters."""
    name, *parameters = (word.strip(" \t") for word in part.split(";"))
    weights = [_WEIGHT.fullmatch(text) for text in parameters if text]
    if _RANGE.fullmatch(name) is None or len(weights) > 1:
        return None
    if not weights:
        return name.lower(), 1.0
    return None if weights[0] is None else (name.lower(), float(weights[0][1]))


def accepts_gzip(accepted: str) -> bool:
    """Whether a client takes gzip, by its Accept-Encoding; one that says nothing does not.

    Examples
    --------
    >>> [accepts_gzip(text) for text in ("gzip, br", "br;q=1, GZIP;q=0.5", "gzip;q=0", "")]
    [True, True, False, False]
    """
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            return not _NEVER.fullmatch(weight.strip())
    return False
