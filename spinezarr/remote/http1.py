"""How are requests sent over HTTP/1.1, so that no response fills the memory?

A response is accepted if its head gives its length, and this is at most the expected one. Its bytes
then go from the socket into memory of that size. Everything else ends the connection, and another
client that understands more of HTTP may repeat the request. Libraries for many requests at once set
no such bound: obstore 0.12 keeps what a response contains beyond a range, and ends the whole
process when it allocates as much memory as the head of an error claims.
"""

import asyncio
import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from typing_extensions import Buffer

from spinezarr.remote.stall_detection import RateMeter, RequestProgress, StallDetector

__all__ = [
    "HttpClient",
    "HttpResponse",
    "IncompleteResponseError",
    "Server",
    "UnsupportedResponseError",
]

_HEAD_BYTES: Final = 1 << 14
"""Longest head of a response; servers and proxies send less than 8 KiB."""
_ROOM_BYTES: Final = 1 << 23
"""Memory for a response up to this size is allocated with the request; for a longer one, once its
head gives the length."""
_REFUSAL_BYTES: Final = 1 << 13
"""Longest body of an error that is read."""
_TELLING_BYTES: Final = 1 << 17
"""Bytes that must follow the head for a response to count in the rate of the link. For fewer bytes,
waking the process takes most of the time."""
_IDLE: Final = 128
"""Idle connections that are kept for each server."""
_END: Final = b"\r\n\r\n"
_HEAD: Final = re.compile(
    r"HTTP/1\.[01] [1-5]\d\d(?: [^\x00-\x08\x0a-\x1f\x7f]*)?"
    r"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*)*"
)
"""A status line and headers of one line each (RFC 9112, sections 4 and 5; RFC 9110, section 5)."""
_VERSION_AT: Final = len("HTTP/1.")
_STATUS_AT: Final = slice(len("HTTP/1.1 "), len("HTTP/1.1 200"))
_LENGTH: Final = re.compile(r"\d{1,19}")


class UnsupportedResponseError(Exception):
    """The response is not one that this client accepts."""


class IncompleteResponseError(Exception):
    """The response broke off."""


class ConnectionLostError(IncompleteResponseError):
    """The connection ended before the first byte of a response."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to connect to.

    Attributes
    ----------
    host
        Name or address, as in a URL but without brackets.
    port
        TCP port.
    context
        TLS context that checks the certificate; None for a connection without TLS.
    """

    host: str
    port: int
    context: ssl.SSLContext | None

    @property
    def is_address(self) -> bool:
        """Whether the host is an address instead of a name."""
        return ":" in self.host or self.host.replace(".", "").isdigit()


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response. Header names are in lower case, repeated headers joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: Buffer


class HttpClient:
    """Keeps connections to servers open and uses them again; for one event loop."""

    def __init__(self, detector: StallDetector) -> None:
        self.link = RateMeter()
        """Rate of the bytes after the heads of responses, without the time in which the server
        computes."""
        self._detector = detector
        self._idle: dict[Server, list[_Connection]] = {}

    async def send(self, server: Server, request: bytes, max_bytes: int) -> HttpResponse:
        """Send a request, and return the response.

        Parameters
        ----------
        server
            The server.
        request
            The head with its empty line, and the body if there is one.
        max_bytes
            Longest body of a response that is not an error.

        Raises
        ------
        UnsupportedResponseError
            If the response has no length, or a longer one.
        IncompleteResponseError
            If the response breaks off.
        StalledError
            If the response brings too few bytes for too long.
        OSError
            If there is no connection to the server.
        """
        idle = self._idle.setdefault(server, [])
        while idle:
            with suppress(ConnectionLostError):  # it was closed while it was idle
                return await idle.pop().answer(request, max_bytes)
        loop = asyncio.get_running_loop()
        with RequestProgress(self._detector) as progress:
            _, connection = await progress.step(
                loop.create_connection(
                    lambda: _Connection(self._detector, idle, self.link),
                    server.host,
                    server.port,
                    ssl=server.context,
                    server_hostname=server.host if server.context else None,
                    # RFC 8305, section 8: some addresses of a name may not be reachable.
                    happy_eyeballs_delay=None if server.is_address else 0.25,
                )
            )
        return await connection.answer(request, max_bytes)

    def close(self) -> None:
        """End all idle connections."""
        for idle in self._idle.values():
            for connection in tuple(idle):
                connection.abort()


class _Connection(asyncio.BufferedProtocol):
    """One connection, with at most one request at a time."""

    def __init__(self, detector: StallDetector, idle: "list[_Connection]", link: RateMeter) -> None:
        self._link = link
        self._begun_at: int | None = None
        """Bytes received when the transfer began for the rate of the link."""
        self._idle = idle
        """Idle connections to the same server."""
        self._transport: Any = None
        self._into = _nothing()
        self._filled = 0
        self._body_at = 0
        self._answer: asyncio.Future[HttpResponse] | None = None
        self._parsed: tuple[int, dict[str, str]] | None = None
        self._most_bytes = 0
        self._detector = detector
        self._progress: RequestProgress | None = None
        self._may_stay = self._is_open = True

    async def answer(self, request: bytes, max_bytes: int) -> HttpResponse:
        """Send a request, and return the response. Cancellation ends the connection."""
        answer = self._ask(request, max_bytes)
        try:
            return await answer
        except asyncio.CancelledError:
            if answer is self._answer:
                self._fail(IncompleteResponseError())
            raise

    def _ask(self, request: bytes, max_bytes: int) -> "asyncio.Future[HttpResponse]":
        answer = self._answer = asyncio.get_running_loop().create_future()
        # The body mostly comes together with the head: both fit, and no byte more.
        room = max_bytes if max_bytes <= _ROOM_BYTES else 0
        self._into, self._filled = _room(_HEAD_BYTES + room), 0
        self._parsed, self._most_bytes = None, max_bytes
        self._progress = RequestProgress(self._detector, self._fail)
        if self._is_open:
            self._transport.write(request)
        else:
            self._fail(ConnectionLostError())
        return answer

    def abort(self) -> None:
        """End the connection."""
        self._is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        with suppress(ValueError):
            self._idle.remove(self)
        self._fail(IncompleteResponseError() if self._filled else ConnectionLostError())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._progress is None:
            self.abort()  # bytes that belong to no request
            return
        self._progress.received_bytes += nbytes
        if self._parsed is None:
            self._read_head()
        if self._parsed is not None and self._filled == len(self._into):
            self._end()

    def _read_head(self) -> None:
        beginning = bytes(self._into[: min(self._filled, _HEAD_BYTES)])
        end = beginning.find(_END)
        if end < 0:
            if self._filled >= _HEAD_BYTES:
                self._fail(UnsupportedResponseError())
            return
        try:
            status, headers, may_stay = _parsed(beginning[:end])
            length = _length(status, headers, self._most_bytes)
        except UnsupportedResponseError as problem:
            self._fail(problem)
            return
        self._may_stay = may_stay and length is not None
        self._body_at = end + len(_END)
        whole = self._body_at + (length or 0)
        if length is None:
            self._filled = whole
        elif self._filled > whole:
            self._fail(UnsupportedResponseError())
            return
        elif whole > len(self._into):
            body = _room(whole)
            body[: self._filled] = self._into[: self._filled]
            self._into = body
        self._into, self._parsed = self._into[:whole], (status, headers)
        if whole - self._filled >= _TELLING_BYTES:
            self._begun_at = self._filled
            self._link.begin()

    def _end(self) -> None:
        answer, self._answer = self._answer, None
        self._tell_link()
        body, self._into, self._filled = self._into[self._body_at :], _nothing(), 0
        self._forget_progress()
        if self._may_stay and len(self._idle) < _IDLE:
            self._idle.append(self)
        else:
            self.abort()
        if self._parsed is not None and answer is not None and not answer.done():
            answer.set_result(HttpResponse(*self._parsed, body))

    def _fail(self, problem: Exception) -> None:
        self.abort()
        self._tell_link()
        self._forget_progress()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(problem)

    def _tell_link(self) -> None:
        if self._begun_at is not None:
            self._link.end(self._filled - self._begun_at)
            self._begun_at = None

    def _forget_progress(self) -> None:
        if self._progress is not None:
            self._progress.end()
            self._progress = None


def _room(n_bytes: int) -> memoryview:
    """Return memory without filling it with zeros, which takes long for a large response."""
    return np.empty(n_bytes, np.uint8).data


def _nothing() -> memoryview:
    """Return room for one byte, which shows that the server sends more than was requested."""
    return memoryview(bytearray(1))


def _parsed(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Return the status, the headers, and whether the connection stays open."""
    text = head.decode("latin-1")
    if _HEAD.fullmatch(text) is None:
        raise UnsupportedResponseError
    headers: dict[str, str] = {}
    for line in text.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    version, status = text[_VERSION_AT], int(text[_STATUS_AT])
    wishes = headers.get("connection", "keep-alive" if version == "1" else "close").lower()
    return status, headers, "close" not in wishes


def _length(status: int, headers: Mapping[str, str], max_bytes: int) -> int | None:
    """Return the length of the body; None if it is an error without a readable body.

    Raises
    ------
    UnsupportedResponseError
        If the response is no error, and its length is unknown or above ``max_bytes``.
    """
    if status == HTTPStatus.NOT_MODIFIED:
        return 0  # Content-Length is that of a full response (RFC 9110, section 15.4.5)
    text = headers.get("content-length", "")
    is_known = bool(_LENGTH.fullmatch(text)) and "transfer-encoding" not in headers
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return int(text) if is_known and int(text) <= _REFUSAL_BYTES else None
    if not is_known or int(text) > max_bytes:
        raise UnsupportedResponseError
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedResponseError
    return int(text)
