"""How does an answer become one or several ASGI messages?"""

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

__all__ = ["NO_ROUTE", "AnswerRecord", "encode_headers", "send_answer"]

NO_ROUTE: Final = "other"
"""Name of the route for requests that match no operation."""
_REMOTE_READ_BYTES: Final = 4 << 20
"""Bytes that one request reads from a bucket. A patch needs one or two requests."""
_WITHOUT_LENGTH: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_STREAM_EXECUTOR: Final = PerProcess(
    lambda: ThreadPoolExecutor(half_of_the_cpus(), "spinezarr-stream")
)
"""Threads that make the parts of streamed answers."""


class AnswerRecord:
    """Route and status of an answer, and the size in bytes of the sent part of its body."""

    __slots__ = ("route", "size_bytes", "status")

    def __init__(self) -> None:
        self.route = NO_ROUTE
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR
        self.size_bytes = 0


def encode_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as pairs of bytes, as ASGI requires."""
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


async def send_answer(
    send: Send,
    method: str,
    answer: Answer,
    common_headers: Mapping[str, str],
    *,
    record: AnswerRecord,
    limits: ServeLimits,
) -> None:
    """Send an answer, and record its status and size.

    Parameters
    ----------
    send
        The ``send`` callable of ASGI.
    method
        Method of the request; HEAD gets no body.
    answer
        The answer.
    common_headers
        Further headers.
    record
        Record of status and size, which is updated.
    limits
        Sizes of the parts of long bodies.
    """
    headers = {**answer.headers, **common_headers}
    if answer.stream is not None:
        await _send_stream(send, answer.status, headers, answer.stream, record)
        return
    if answer.status not in _WITHOUT_LENGTH:
        headers["content-length"] = str(answer.length)
    try:
        parts = _Parts(answer, limits) if method != "HEAD" else None
        first = b"" if parts is None else await parts.read()
    except UnreadableError as problem:
        answer = text_answer(HTTPStatus.SERVICE_UNAVAILABLE, str(problem), retry_after="1")
        await send_answer(send, method, answer, common_headers, record=record, limits=limits)
        return
    record.status = answer.status
    status = int(answer.status)
    await send(
        {"type": "http.response.start", "status": status, "headers": encode_headers(headers)}
    )
    has_more = parts is not None and parts.has_more
    await send({"type": "http.response.body", "body": first, "more_body": has_more})
    record.size_bytes = len(first)
    while has_more and parts is not None:
        try:
            data = await parts.read()
        except UnreadableError:
            return  # the connection ends early, and the client sees that the body is too short
        has_more = parts.has_more
        await send({"type": "http.response.body", "body": data, "more_body": has_more})
        record.size_bytes += len(data)


async def _send_stream(
    send: Send,
    status: HTTPStatus,
    headers: Mapping[str, str],
    stream: Iterator[bytes],
    record: AnswerRecord,
) -> None:
    """Send parts while they are generated. A failure ends the connection early."""
    loop = asyncio.get_running_loop()
    record.status = status
    await send(
        {"type": "http.response.start", "status": int(status), "headers": encode_headers(headers)}
    )
    while True:
        try:
            data = await loop.run_in_executor(_STREAM_EXECUTOR.get(), next, stream, None)
        except (SpinezarrError, OSError):
            return
        await send({"type": "http.response.body", "body": data or b"", "more_body": bool(data)})
        if not data:
            return
        record.size_bytes += len(data)


class _Parts:
    """Reads a body in parts."""

    def __init__(self, answer: Answer, limits: ServeLimits) -> None:
        self._body = answer.body
        self._file: ServedFile | None = answer.file
        self._offset, self._stop = answer.start, answer.start + answer.length
        self._is_long = answer.length > limits.part_at_once_bytes
        self._part_bytes = limits.part_bytes
        self._read_ahead = memoryview(b"")
        """Bytes that were read from a bucket and are not sent yet."""

    @property
    def has_more(self) -> bool:
        return self._offset < self._stop

    async def read(self) -> bytes | bytearray:
        start, stop = self._offset, self._stop
        if self._is_long:
            stop = min(start + self._part_bytes, stop)
        self._offset = stop
        if self._file is None:
            return self._body[start:stop]
        if self._file.executor is not None:
            return await self._read_remote(self._file, start, stop)
        if self._file.data is not None or not self._is_long:
            return self._file.read(start, stop)
        data = self._file.read_from_memory(start, stop)
        if data is not None:
            return data
        return await asyncio.to_thread(self._file.read, start, stop)

    async def _read_remote(self, file: ServedFile, start: int, stop: int) -> bytes:
        """Read from a bucket. The parts that are read are larger than those that are sent."""
        size = stop - start
        if len(self._read_ahead) < size:
            first, last = start + len(self._read_ahead), min(start + _REMOTE_READ_BYTES, self._stop)
            loop = asyncio.get_running_loop()
            more = await loop.run_in_executor(file.executor, file.read, first, last)
            self._read_ahead = memoryview(bytes(self._read_ahead) + more)
        data, self._read_ahead = bytes(self._read_ahead[:size]), self._read_ahead[size:]
        return data
