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
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

import numpy as np
from typing_extensions import Buffer

from spinezarr.remote.stall_detection import RateMeter, RequestProgress, StallDetector

__all__ = [
    "MAX_HEAD_BYTES",
    "MAX_IDLE",
    "MIN_RATE_BYTES",
    "HttpClient",
    "HttpResponse",
    "IncompleteResponseError",
    "Server",
    "UnsupportedResponseError",
]

MAX_HEAD_BYTES: Final = 1 << 14
"""Longest head of a response, in bytes; servers and proxies send less than 8 KiB."""
_MAX_PREALLOCATED_BYTES: Final = 1 << 23
"""Longest response whose memory is allocated with the request, in bytes. For a longer one, it is
allocated when the head gives the length."""
_MAX_ERROR_BODY_BYTES: Final = 1 << 13
"""Longest body of an error that is read, in bytes."""
MIN_RATE_BYTES: Final = 1 << 17
"""Number of bytes that must follow the head for a response to count in the rate of the link. For
fewer bytes, waking the process takes most of the time."""
MAX_IDLE: Final = 512
"""Largest number of idle connections to keep for each server."""
_END: Final = b"\r\n\r\n"
_HEAD: Final = re.compile(
    r"HTTP/1\.[01] [1-5]\d\d(?: [^\x00-\x08\x0a-\x1f\x7f]*)?"
    r"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*)*"
)
"""A status line and headers of one line each (RFC 9112, sections 4 and 5; RFC 9110, section 5)."""
_VERSION_INDEX: Final = len("HTTP/1.")
_STATUS_SLICE: Final = slice(len("HTTP/1.1 "), len("HTTP/1.1 200"))
_LENGTH: Final = re.compile(r"\d{1,19}")


class UnsupportedResponseError(Exception):
    """The response is not one that this client accepts."""


class IncompleteResponseError(Exception):
    """The response was cut off."""


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
    """A response. Header names are in lower case, and repeated headers are joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: Buffer


class HttpClient:
    """Keeps connections to servers open and uses them again. It belongs to one event loop."""

    def __init__(self, detector: StallDetector) -> None:
        self.link = RateMeter()
        """Rate in bytes per second after the heads of responses, so without the time in which the
        server computes."""
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
            If the response is cut off.
        StalledError
            If the response brings too few bytes for too long.
        OSError
            If there is no connection to the server.
        """
        idle = self._idle.setdefault(server, [])
        while idle:
            with suppress(ConnectionLostError):  # the server closed the idle connection
                return await idle.pop().request(request, max_bytes)
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
        return await connection.request(request, max_bytes)

    def close(self) -> None:
        """End all idle connections."""
        for idle in self._idle.values():
            for connection in tuple(idle):
                connection.abort()


class _Connection(asyncio.BufferedProtocol):
    """One connection, with at most one request at a time."""

    def __init__(self, detector: StallDetector, idle: "list[_Connection]", link: RateMeter) -> None:
        self._link = link
        self._transfer_start: tuple[int, float] | None = None
        """Number of received bytes, and time, when the transfer that counts for the rate of the
        link began."""
        self._idle = idle
        """Idle connections to the same server."""
        self._transport: Any = None
        self._buffer = _one_byte()
        self._filled = 0
        self._body_start = 0
        self._response: asyncio.Future[HttpResponse] | None = None
        self._head: tuple[int, dict[str, str]] | None = None
        self._max_bytes = 0
        self._detector = detector
        self._progress: RequestProgress | None = None
        self._keeps_alive = self._is_open = True

    async def request(self, request: bytes, max_bytes: int) -> HttpResponse:
        """Send a request, and return the response. Cancellation ends the connection."""
        response = self._start(request, max_bytes)
        try:
            return await response
        except asyncio.CancelledError:
            if response is self._response:
                self._fail(IncompleteResponseError())
            raise

    def _start(self, request: bytes, max_bytes: int) -> "asyncio.Future[HttpResponse]":
        response = self._response = asyncio.get_running_loop().create_future()
        # The body mostly comes together with the head. The memory is as large as both.
        body_bytes = max_bytes if max_bytes <= _MAX_PREALLOCATED_BYTES else 0
        self._buffer, self._filled = _allocate(MAX_HEAD_BYTES + body_bytes), 0
        self._head, self._max_bytes = None, max_bytes
        self._progress = RequestProgress(self._detector, self._fail)
        if self._is_open:
            self._transport.write(request)
        else:
            self._fail(ConnectionLostError())
        return response

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
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._progress is None:
            self.abort()  # the bytes belong to no request
            return
        self._progress.received_bytes += nbytes
        if self._head is None:
            self._read_head()
        if self._head is not None and self._filled == len(self._buffer):
            self._end()

    def _read_head(self) -> None:
        beginning = bytes(self._buffer[: min(self._filled, MAX_HEAD_BYTES)])
        end = beginning.find(_END)
        if end < 0:
            if self._filled >= MAX_HEAD_BYTES:
                self._fail(UnsupportedResponseError())
            return
        try:
            status, headers, keeps_alive = _parse_head(beginning[:end])
            length = _body_length(status, headers, self._max_bytes)
        except UnsupportedResponseError as problem:
            self._fail(problem)
            return
        self._keeps_alive = keeps_alive and length is not None
        self._body_start = end + len(_END)
        total = self._body_start + (length or 0)
        if length is None:
            self._filled = total
        elif self._filled > total:
            self._fail(UnsupportedResponseError())
            return
        elif total > len(self._buffer):
            larger = _allocate(total)
            larger[: self._filled] = self._buffer[: self._filled]
            self._buffer = larger
        self._buffer, self._head = self._buffer[:total], (status, headers)
        if total - self._filled >= MIN_RATE_BYTES:
            self._transfer_start = self._filled, time.monotonic()

    def _end(self) -> None:
        response, self._response = self._response, None
        self._record_rate()
        body, self._buffer, self._filled = self._buffer[self._body_start :], _one_byte(), 0
        self._end_progress()
        if self._keeps_alive and len(self._idle) < MAX_IDLE:
            self._idle.append(self)
        else:
            self.abort()
        if self._head is not None and response is not None and not response.done():
            response.set_result(HttpResponse(*self._head, body))

    def _fail(self, problem: Exception) -> None:
        self.abort()
        self._record_rate()
        self._end_progress()
        if self._response is not None and not self._response.done():
            self._response.set_exception(problem)

    def _record_rate(self) -> None:
        if self._transfer_start is not None:
            filled, began_s = self._transfer_start
            self._link.add(began_s, time.monotonic(), self._filled - filled)
            self._transfer_start = None

    def _end_progress(self) -> None:
        if self._progress is not None:
            self._progress.end()
            self._progress = None


def _allocate(n_bytes: int) -> memoryview:
    """Return memory that is not filled with zeros, which would take long for a large response."""
    return np.empty(n_bytes, np.uint8).data


def _one_byte() -> memoryview:
    """Return memory for one byte, which shows whether a server sends more than was requested."""
    return memoryview(bytearray(1))


def _parse_head(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Return the status, the headers, and whether the connection stays open."""
    text = head.decode("latin-1")
    if _HEAD.fullmatch(text) is None:
        raise UnsupportedResponseError
    headers: dict[str, str] = {}
    for line in text.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    version, status = text[_VERSION_INDEX], int(text[_STATUS_SLICE])
    connection = headers.get("connection", "keep-alive" if version == "1" else "close").lower()
    return status, headers, "close" not in connection


def _body_length(status: int, headers: Mapping[str, str], max_bytes: int) -> int | None:
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
        return int(text) if is_known and int(text) <= _MAX_ERROR_BODY_BYTES else None
    if not is_known or int(text) > max_bytes:
        raise UnsupportedResponseError
    if headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedResponseError
    return int(text)
