"""How does an answer become ASGI messages: as one message, or in parts?"""

import asyncio
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Final

from spinezarr.errors import SpinezarrError
from spinezarr.forks import PerProcess
from spinezarr.serve.http import Answer, Send, text_answer
from spinezarr.serve.limits import ServeLimits, half_of_the_cpus
from spinezarr.serve.served_files import ServedFile, UnreadableError

__all__ = ["ELSEWHERE", "Sent", "encoded", "send_answer"]

ELSEWHERE: Final = "other"
"""Route of requests that match no operation."""
_FAR_BYTES: Final = 4 << 20
"""Bytes of a bucket that one request reads; a patch needs one or two."""
_WITHOUT_LENGTH: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_STREAM_MAKERS: Final = PerProcess(
    lambda: ThreadPoolExecutor(half_of_the_cpus(), "spinezarr-stream")
)
"""Threads that make the parts of streamed answers."""


class Sent:
    """Route, status and size of an answer so far."""

    __slots__ = ("route", "size_bytes", "status")

    def __init__(self) -> None:
        self.route = ELSEWHERE
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR
        self.size_bytes = 0


def encoded(fields: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers in the form of ASGI."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]


async def send_answer(
    send: Send,
    method: str,
    answer: Answer,
    shared: Mapping[str, str],
    *,
    sent: Sent,
    limits: ServeLimits,
) -> None:
    """Send an answer, and note what was sent.

    Parameters
    ----------
    send
        The ``send`` callable of ASGI.
    method
        Method of the request; HEAD gets no body.
    answer
        The answer.
    shared
        Further headers.
    sent
        Record to note status and size in.
    limits
        Sizes of the parts of long bodies.
    """
    fields = {**answer.headers, **shared}
    if answer.stream is not None:
        await _send_stream(send, answer.status, fields, answer.stream, sent)
        return
    if answer.status not in _WITHOUT_LENGTH:
        fields["content-length"] = str(answer.length)
    try:
        parts = _Parts(answer, limits) if method != "HEAD" else None
        first = b"" if parts is None else await parts.read()
    except UnreadableError as problem:
        answer = text_answer(HTTPStatus.SERVICE_UNAVAILABLE, str(problem), retry_after="1")
        await send_answer(send, method, answer, shared, sent=sent, limits=limits)
        return
    sent.status = answer.status
    status = int(answer.status)
    await send({"type": "http.response.start", "status": status, "headers": encoded(fields)})
    more = parts is not None and parts.is_left
    await send({"type": "http.response.body", "body": first, "more_body": more})
    sent.size_bytes = len(first)
    while more and parts is not None:
        try:
            data = await parts.read()
        except UnreadableError:
            return  # the connection ends early, which the client sees by the length
        more = parts.is_left
        await send({"type": "http.response.body", "body": data, "more_body": more})
        sent.size_bytes += len(data)


async def _send_stream(
    send: Send, status: HTTPStatus, fields: Mapping[str, str], stream: Iterator[bytes], sent: Sent
) -> None:
    """Send parts while they are generated; a failure ends the connection early."""
    loop = asyncio.get_running_loop()
    sent.status = status
    await send({"type": "http.response.start", "status": int(status), "headers": encoded(fields)})
    while True:
        try:
            data = await loop.run_in_executor(_STREAM_MAKERS.get(), next, stream, None)
        except (SpinezarrError, OSError):
            return
        await send({"type": "http.response.body", "body": data or b"", "more_body": bool(data)})
        if not data:
            return
        sent.size_bytes += len(data)


class _Parts:
    """Reads a body in parts."""

    def __init__(self, answer: Answer, limits: ServeLimits) -> None:
        self._body = answer.body
        self._file: ServedFile | None = answer.file
        self._at, self._stop = answer.start, answer.start + answer.length
        self._is_long = answer.length > limits.part_at_once_bytes
        self._part_bytes = limits.part_bytes
        self._ahead = memoryview(b"")
        """Bytes that were read from a bucket and are not sent yet."""

    @property
    def is_left(self) -> bool:
        return self._at < self._stop

    async def read(self) -> bytes | bytearray:
        start, stop = self._at, self._stop
        if self._is_long:
            stop = min(start + self._part_bytes, stop)
        self._at = stop
        if self._file is None:
            return self._body[start:stop]
        if self._file.executor is not None:
            return await self._read_far(self._file, start, stop)
        if self._file.data is not None or not self._is_long:
            return self._file.read(start, stop)
        found = self._file.read_from_memory(start, stop)
        if found is not None:
            return found
        return await asyncio.to_thread(self._file.read, start, stop)

    async def _read_far(self, file: ServedFile, start: int, stop: int) -> bytes:
        """Read from a bucket in larger parts than those that are sent."""
        size = stop - start
        if len(self._ahead) < size:
            at, until = start + len(self._ahead), min(start + _FAR_BYTES, self._stop)
            loop = asyncio.get_running_loop()
            more = await loop.run_in_executor(file.executor, file.read, at, until)
            self._ahead = memoryview(bytes(self._ahead) + more)
        data, self._ahead = bytes(self._ahead[:size]), self._ahead[size:]
        return data
