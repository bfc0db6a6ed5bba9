"""The application: bytes are answered here, all else by the pages, each by what may ask for it."""

import asyncio
import time
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any, Final

from spinezarr.errors import SpinezarrError
from spinezarr.serve.bytes import answer_bytes
from spinezarr.serve.guard import Guard
from spinezarr.serve.http import Answer, Receive, Request, Scope, Send, explained, request_of
from spinezarr.serve.log import RequestLog
from spinezarr.serve.login import LOGIN, LOGOUT
from spinezarr.serve.metrics import Metrics
from spinezarr.serve.objects import ServedFile, UnreadableError
from spinezarr.serve.operations import FLAT, OPERATIONS, ZARR
from spinezarr.serve.pages import REQUEST, ROUTE, pages
from spinezarr.serve.stores import ServedStores

__all__ = ["App"]

_ZARR: Final = "/zarr/"
_FLAT: Final = "/flat/"
"""As long as the other."""
_ELSEWHERE: Final = "other"
"""Route of what is not there."""
_AT_ONCE_BYTES: Final = 1 << 19
"""Read and sent together; what is longer is read part by part, by threads if from a disk."""
_FAR_BYTES: Final = 4 << 20
"""The same of what lies far away, where each part takes a request; a patch takes one or two."""
_WITHOUT_LENGTH: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_OPEN: Final = frozenset({LOGIN, LOGOUT, *(op.path for op in OPERATIONS if op.is_open)})
"""What is asked for without a token: by watchdogs, and by who signs in."""


class App:
    """An ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html).

    Parameters
    ----------
    stores
        What is served.
    guard
        Who may ask.
    log
        Where each answer is written; None: nowhere.
    """

    def __init__(self, stores: ServedStores, guard: Guard, log: RequestLog | None = None) -> None:
        self.stores = stores
        self._guard = guard
        self._log = log
        self._metrics = Metrics()
        self._pages = pages(stores, guard, self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        request = self._guard.opened(request_of(scope))
        sent = _Sent()
        try:
            await self._answer(request, scope, receive, send, sent)
        finally:
            seconds = time.perf_counter() - began
            self._metrics.note(sent.route, sent.status, sent.size_bytes, seconds)
            if self._log is not None:
                self._log.note(
                    request.method,
                    request.path,
                    status=sent.status,
                    sent_bytes=sent.size_bytes,
                    seconds=seconds,
                    token=self._guard.name_of(request),
                )

    async def _answer(
        self, request: Request, scope: Scope, receive: Receive, send: Send, sent: "_Sent"
    ) -> None:
        shared = self._guard.shared(request)
        answer = None if request.path in _OPEN else self._refused(request)
        if answer is not None:
            await _send(send, request.method, answer, shared, sent)
        elif request.path.startswith((_ZARR, _FLAT)):
            sent.route = ZARR.path if request.path.startswith(_ZARR) else FLAT.path
            readers = self.stores.executor(request.path[len(_ZARR) :].partition("/")[0])
            if readers is None:
                answer = self._bytes(request)
            else:
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(readers, self._bytes, request)
            await _send(send, request.method, answer, shared, sent)
        else:
            inner: Scope = {**scope, "path": request.path, "root_path": "", REQUEST: request}
            noted = _Noted(send, request.method, shared, sent, inner)
            await self._pages(inner, receive, noted)

    def _refused(self, request: Request) -> Answer | None:
        """Return the answer to who may not ask, or only asks whether it may."""
        return self._guard.preflight(request) or self._guard.refused(request)

    def _bytes(self, request: Request) -> Answer:
        files = self.stores.files if request.path.startswith(_ZARR) else self.stores.flat
        try:
            return answer_bytes(files, request, request.path[len(_ZARR) :])
        except (SpinezarrError, OSError):
            return explained(
                HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be read.", retry_after="1"
            )


class _Sent:
    """What was sent so far."""

    __slots__ = ("route", "size_bytes", "status")

    def __init__(self) -> None:
        self.route = _ELSEWHERE
        self.status = HTTPStatus.INTERNAL_SERVER_ERROR
        self.size_bytes = 0


class _Noted:
    """Sends what a page answers, with the headers that all answers have."""

    __slots__ = ("_inner", "_method", "_send", "_sent", "_shared")

    def __init__(
        self, send: Send, method: str, shared: Mapping[str, str], sent: _Sent, inner: Scope
    ) -> None:
        self._send = send
        self._method = method
        self._shared = shared
        self._sent = sent
        self._inner = inner

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._sent.route = self._inner.get(ROUTE, _ELSEWHERE)
            self._sent.status = HTTPStatus(message["status"])
            message["headers"] = [*message["headers"], *_encoded(self._shared)]
        elif message["type"] == "http.response.body":
            if self._method == "HEAD":
                message["body"] = b""
            self._sent.size_bytes += len(message["body"])
        await self._send(message)


def _encoded(fields: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]


async def _send(
    send: Send, method: str, answer: Answer, shared: Mapping[str, str], sent: _Sent
) -> None:
    fields = {**answer.headers, **shared}
    if answer.status not in _WITHOUT_LENGTH:
        fields["content-length"] = str(answer.length)
    try:
        parts = _Parts(answer) if method != "HEAD" else None
        first = b"" if parts is None else await parts.read()
    except UnreadableError as problem:
        answer = explained(HTTPStatus.SERVICE_UNAVAILABLE, str(problem), retry_after="1")
        await _send(send, method, answer, shared, sent)
        return
    sent.status = answer.status
    status = int(answer.status)
    await send({"type": "http.response.start", "status": status, "headers": _encoded(fields)})
    more = parts is not None and parts.is_left
    await send({"type": "http.response.body", "body": first, "more_body": more})
    sent.size_bytes = len(first)
    while more and parts is not None:
        data = await parts.read()  # what fails now ends the connection: the length tells
        more = parts.is_left
        await send({"type": "http.response.body", "body": data, "more_body": more})
        sent.size_bytes += len(data)


class _Parts:
    """Reads a body part by part."""

    def __init__(self, answer: Answer) -> None:
        self._body = answer.body
        self._file: ServedFile | None = answer.file
        self._at, self._stop = answer.start, answer.stop

    @property
    def is_left(self) -> bool:
        return self._file is not None and self._at < self._stop

    async def read(self) -> bytes | bytearray:
        if self._file is None:
            return self._body
        readers = self._file.executor
        most = _AT_ONCE_BYTES if readers is None else _FAR_BYTES
        start, stop = self._at, min(self._at + most, self._stop)
        self._at = stop
        if readers is None and (
            self._stop - start <= _AT_ONCE_BYTES or self._file.data is not None
        ):
            return self._file.read(start, stop)
        found = self._file.read_from_memory(start, stop)
        if found is not None:
            return found
        return await asyncio.get_running_loop().run_in_executor(
            readers, self._file.read, start, stop
        )


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
