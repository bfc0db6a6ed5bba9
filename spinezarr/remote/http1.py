"""Requests over HTTP/1.1 that take the plainest answers alone, and no byte more than may come.

An answer is taken if its head says how long it is, and that is not longer than it may be: its bytes
then go from the socket into memory of that size. All else ends the connection, whoever sends it: a
client that understands more of HTTP may ask instead. Libraries for many requests at once have no
bound here: obstore 0.12 fills memory with what an answer holds beyond a range, and takes the whole
process down by asking for as much memory as the head of an error claims.
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

from spinezarr.remote.pace import Pace, Progress, RateMeter

__all__ = ["Answer", "BrokenError", "Client", "Server", "UnplainError"]

_HEAD_BYTES: Final = 1 << 14
"""Of the head of an answer; servers and proxies send less than 8 KiB."""
_ROOM_BYTES: Final = 1 << 23
"""Answers that may be longer get their memory when their heads say how long they are."""
_REFUSAL_BYTES: Final = 1 << 13
"""Of an answer that is an error; longer ones are not read."""
_TELLING_BYTES: Final = 1 << 17
"""That are still to come of an answer that tells what the link carries; the time of fewer is that
of a process that has to be woken."""
_IDLE: Final = 128
"""Connections to a server that are kept when nothing is asked for."""
_END: Final = b"\r\n\r\n"
_HEAD: Final = re.compile(
    r"HTTP/1\.[01] [1-5]\d\d(?: [^\x00-\x08\x0a-\x1f\x7f]*)?"
    r"(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*)*"
)
"""A status line and headers of one line each (RFC 9112, sections 4 and 5; RFC 9110, section 5)."""
_VERSION_AT: Final = len("HTTP/1.")
_STATUS_AT: Final = slice(len("HTTP/1.1 "), len("HTTP/1.1 200"))
_LENGTH: Final = re.compile(r"\d{1,19}")


class UnplainError(Exception):
    """An answer that is not taken."""


class BrokenError(Exception):
    """An answer that broke off."""


class LostError(BrokenError):
    """A connection that ended before a byte of an answer came."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests go.

    Attributes
    ----------
    host
        Name or address, as in a URL but without brackets.
    port
        Of TCP.
    context
        How to know it; None for a connection that is not encrypted.
    """

    host: str
    port: int
    context: ssl.SSLContext | None

    @property
    def is_address(self) -> bool:
        """Whether the host is no name."""
        return ":" in self.host or self.host.replace(".", "").isdigit()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came; names of headers are in lower case, repeated ones are joined by commas."""

    status: int
    headers: Mapping[str, str]
    body: Buffer


class Client:
    """Connections to servers, of one event loop, used again and again."""

    def __init__(self, pace: Pace) -> None:
        self.link = RateMeter()
        """Of bytes that come after an answer has begun: the time in which a server thinks does not
        count."""
        self._pace = pace
        self._idle: dict[Server, list[_Connection]] = {}

    async def ask(self, server: Server, request: bytes, most_bytes: int) -> Answer:
        """Send a request, and return the answer.

        Parameters
        ----------
        server
            Whom to ask.
        request
            The head, its empty line included, and the body if there is one.
        most_bytes
            Of an answer that is no error.

        Raises
        ------
        UnplainError
            If something else comes than an answer with a length of at most so much.
        BrokenError
            If it breaks off.
        StalledError
            If too little comes for too long.
        OSError
            If nobody answers there.
        """
        idle = self._idle.setdefault(server, [])
        while idle:
            with suppress(LostError):  # it was closed while it was idle
                return await idle.pop().answer(request, most_bytes)
        loop = asyncio.get_running_loop()
        with Progress(self._pace) as progress:
            _, connection = await progress.step(
                loop.create_connection(
                    lambda: _Connection(self._pace, idle, self.link),
                    server.host,
                    server.port,
                    ssl=server.context,
                    server_hostname=server.host if server.context else None,
                    # RFC 8305, section 8; a name may stand for addresses that lead nowhere.
                    happy_eyeballs_delay=None if server.is_address else 0.25,
                )
            )
        return await connection.answer(request, most_bytes)

    def close(self) -> None:
        """End all connections that wait to be used."""
        for idle in self._idle.values():
            for connection in tuple(idle):
                connection.abort()


class _Connection(asyncio.BufferedProtocol):
    """One connection: a question, its answer, the next question."""

    def __init__(self, pace: Pace, idle: "list[_Connection]", link: RateMeter) -> None:
        self._link = link
        self._begun_at: int | None = None
        """Bytes that had come when the meter was told."""
        self._idle = idle
        """Where it waits to be used again."""
        self._transport: Any = None
        self._into = _nothing()
        self._filled = 0
        self._body_at = 0
        self._answer: asyncio.Future[Answer] | None = None
        self._parsed: tuple[int, dict[str, str]] | None = None
        self._most_bytes = 0
        self._pace = pace
        self._progress: Progress | None = None
        self._may_stay = self._is_open = True

    async def answer(self, request: bytes, most_bytes: int) -> Answer:
        """Send a request, and return what comes. If that is left, so is the connection."""
        answer = self._ask(request, most_bytes)
        try:
            return await answer
        except asyncio.CancelledError:
            if answer is self._answer:
                self._fail(BrokenError())
            raise

    def _ask(self, request: bytes, most_bytes: int) -> "asyncio.Future[Answer]":
        answer = self._answer = asyncio.get_running_loop().create_future()
        # A range mostly comes with its head: there is room for both, and none for more.
        room = most_bytes if most_bytes <= _ROOM_BYTES else 0
        self._into, self._filled = _room(_HEAD_BYTES + room), 0
        self._parsed, self._most_bytes = None, most_bytes
        self._progress = Progress(self._pace, self._fail)
        if self._is_open:
            self._transport.write(request)
        else:
            self._fail(LostError())
        return answer

    def abort(self) -> None:
        """End it."""
        self._is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        with suppress(ValueError):
            self._idle.remove(self)
        self._fail(BrokenError() if self._filled else LostError())

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._into[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._progress is None:
            self.abort()  # it says more than it was asked
            return
        self._progress.came += nbytes
        if self._parsed is None:
            self._read_head()
        if self._parsed is not None and self._filled == len(self._into):
            self._end()

    def _read_head(self) -> None:
        beginning = bytes(self._into[: min(self._filled, _HEAD_BYTES)])
        end = beginning.find(_END)
        if end < 0:
            if self._filled >= _HEAD_BYTES:
                self._fail(UnplainError())
            return
        try:
            status, headers, may_stay = _parsed(beginning[:end])
            length = _length(status, headers, self._most_bytes)
        except UnplainError as problem:
            self._fail(problem)
            return
        self._may_stay = may_stay and length is not None
        self._body_at = end + len(_END)
        whole = self._body_at + (length or 0)
        if length is None:
            self._filled = whole
        elif self._filled > whole:
            self._fail(UnplainError())
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
            answer.set_result(Answer(*self._parsed, body))

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
    """Return memory that nothing has been written to: a large answer touches it once."""
    return np.empty(n_bytes, np.uint8).data


def _nothing() -> memoryview:
    """Return room for the one byte that tells that a server says more than it was asked."""
    return memoryview(bytearray(1))


def _parsed(head: bytes) -> tuple[int, dict[str, str], bool]:
    """Return status and headers, and whether the connection lives on."""
    text = head.decode("latin-1")
    if _HEAD.fullmatch(text) is None:
        raise UnplainError
    headers: dict[str, str] = {}
    for line in text.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    version, status = text[_VERSION_AT], int(text[_STATUS_AT])
    wishes = headers.get("connection", "keep-alive" if version == "1" else "close").lower()
    return status, headers, "close" not in wishes


def _length(status: int, headers: Mapping[str, str], most_bytes: int) -> int | None:
    """Return the length of a body that is to be read; None if it is not.

    Raises
    ------
    UnplainError
        If it must be, and is not known or too long.
    """
    if status == HTTPStatus.NOT_MODIFIED:
        return 0  # its Content-Length is of what it did not send (RFC 9110, section 15.4.5)
    text = headers.get("content-length", "")
    is_known = bool(_LENGTH.fullmatch(text)) and "transfer-encoding" not in headers
    if not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return int(text) if is_known and int(text) <= _REFUSAL_BYTES else None
    if not is_known or int(text) > most_bytes:
        raise UnplainError
    if headers.get("content-encoding", "identity") != "identity":
        raise UnplainError
    return int(text)
