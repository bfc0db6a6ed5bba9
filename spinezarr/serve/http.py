"""What do requests and answers consist of, for any HTTP server?"""

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from spinezarr.serve.served_files import ServedFile
from spinezarr.text import to_ascii_json

__all__ = [
    "BYTES",
    "GZIP",
    "IMMUTABLE",
    "JSON",
    "REVALIDATE",
    "TEXT",
    "Answer",
    "Receive",
    "Request",
    "Scope",
    "Send",
    "accepts_gzip",
    "json_answer",
    "negotiate_media_type",
    "parse_request",
    "text_answer",
]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

BYTES: Final = "application/octet-stream"
GZIP: Final = "application/gzip"
JSON: Final = "application/json"
TEXT: Final = "text/plain; charset=utf-8"
REVALIDATE: Final = "no-cache"
"""Cache control of answers for which a cache must ask again each time."""
IMMUTABLE: Final = "private, max-age=31536000, immutable"
"""Cache control of answers that never change. With ``public``, a shared cache could send them to
clients without a token."""
_MEDIA_RANGE: Final = re.compile(r"([!#$%&'*+.^_`|~\w-]+)/([!#$%&'*+.^_`|~\w-]+)", re.ASCII)
_ZERO_QUALITY: Final = re.compile(r"q[ \t]*=[ \t]*0(?:[.]0{0,3})?", re.ASCII)
"""A quality value of zero, for content that a client does not accept."""
_WEIGHT: Final = re.compile(r"q=(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes
    ----------
    path
        Path from the first ``/`` on, percent-decoded once.
    headers
        Headers by lower-case name; the values of repeated headers are joined by commas.
    is_signed
        Whether the request came by a signed URL that opens this path.
    """

    method: str
    path: str
    query: str = field(default="", repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_signed: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer.

    Attributes
    ----------
    body
        The whole body, if there is neither a file nor a stream.
    file, start, stop
        File whose bytes ``start <= i < stop`` are the body.
    stream
        Generates the parts of the body.
    """

    status: HTTPStatus
    headers: Mapping[str, str]
    body: bytes = b""
    file: ServedFile | None = None
    start: int = 0
    stop: int = 0
    stream: Iterator[bytes] | None = None

    @property
    def length(self) -> int:
        """Size of the body in bytes; 0 for a stream, whose size is not known."""
        return len(self.body) if self.file is None else self.stop - self.start


def text_answer(status: HTTPStatus, text: str, **headers: str) -> Answer:
    """Return an answer with one line of text, which no cache keeps.

    Keywords become further headers: ``retry_after`` is ``retry-after``.
    """
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        status,
        {"content-type": TEXT, "cache-control": "no-store", **fields},
        f"{text}\n".encode(),
    )


def json_answer(value: Mapping[str, Any], cache_control: str = REVALIDATE) -> Answer:
    """Return an answer with a JSON object."""
    return Answer(
        HTTPStatus.OK,
        {"content-type": JSON, "cache-control": cache_control},
        to_ascii_json(value, indent=None).encode(),
    )


def parse_request(scope: Scope) -> Request:
    """Return the request of an ASGI scope."""
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = unquote(raw.partition(b"?")[0].decode("latin-1"), errors="replace")
    return Request(scope["method"], path, scope.get("query_string", b"").decode("latin-1"), headers)


def negotiate_media_type(accept: str | None, offers: Sequence[str]) -> str | None:
    """Return the offered media type that a client prefers, or None if it accepts none.

    See RFC 9110, section 12.5.1.

    Parameters
    ----------
    accept
        Value of the Accept header; None if it is missing. Parts that are not media ranges are
        ignored.
    offers
        Media types that the server has. Of equally preferred ones, the first is returned.

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
    weights = dict(filter(None, map(_parse_media_range, accept.split(","))))
    offer_weights = {}
    for offer in offers:
        main_type = offer.partition("/")[0]
        ranges = (offer, f"{main_type}/*", "*/*")
        offer_weights[offer] = next((weights[name] for name in ranges if name in weights), 0.0)
    best = max(offers, key=lambda offer: offer_weights[offer])
    return best if offer_weights[best] else None


def _parse_media_range(part: str) -> tuple[str, float] | None:
    """Return a media range in lower case and its weight; None for other text or parameters."""
    media_range, *parameters = (word.strip(" \t") for word in part.split(";"))
    weights = [_WEIGHT.fullmatch(text) for text in parameters if text]
    if _MEDIA_RANGE.fullmatch(media_range) is None or len(weights) > 1:
        return None
    if not weights:
        return media_range.lower(), 1.0
    return None if weights[0] is None else (media_range.lower(), float(weights[0][1]))


def accepts_gzip(accepted: str) -> bool:
    """Whether a client accepts gzip, by its Accept-Encoding header, which may be empty.

    Examples
    --------
    >>> [accepts_gzip(text) for text in ("gzip, br", "br;q=1, GZIP;q=0.5", "gzip;q=0", "")]
    [True, True, False, False]
    """
    for part in accepted.lower().split(","):
        name, _, weight = part.partition(";")
        if name.strip() == "gzip":
            return not _ZERO_QUALITY.fullmatch(weight.strip())
    return False
