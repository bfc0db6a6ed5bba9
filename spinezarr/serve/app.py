"""The application: which part answers, and how an answer becomes one of ASGI."""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import Executor
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from spinezarr.errors import SpinezarrError
from spinezarr.serve.bytes import answer_bytes
from spinezarr.serve.facts import answer_scan, answer_scans, answer_store, answer_stores
from spinezarr.serve.guard import Guard
from spinezarr.serve.http import Answer, Request, explained
from spinezarr.serve.login import LOGIN, LOGOUT
from spinezarr.serve.objects import ServedFile, UnreadableError
from spinezarr.serve.patches import BODY_BYTES, answer_batch
from spinezarr.serve.stores import ServedStores
from spinezarr.serve.turns import BusyError, Turns
from spinezarr.serve.unread import limit_unread_here

__all__ = ["App"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_ZARR: Final = "/zarr/"
_FLAT: Final = "/flat/"
_ABOUT: Final = "/v1/"
_FACTS: Final = re.compile(r"/v1/([^/]+)(?:/scans((?:/[^/]+)?))?")
_BATCH: Final = re.compile(r"/v1/([^/]+)/batch")
_STORE: Final = re.compile(r"/(?:zarr|flat|v1)/([^/]*).*", re.DOTALL)
_THREADS: Final = max(1, (os.cpu_count() or 1) // 2)
"""That decode a batch; others are read beside it."""
_AT_ONCE: Final = 2 * (os.cpu_count() or 1)
"""Batches that are read at once."""
_WAITING: Final = 256
"""Batches that wait for that: sixteen of each of sixteen trainings."""
_WAITING_BYTES: Final = 64 << 20
"""Of their requests."""
_UNSENT_BYTES: Final = 512 << 20
"""Of patches; whoever does not read his own must not keep others from theirs."""
_BODY_S: Final = 8.0
"""For the body of a request."""
_BODIES_BYTES: Final = 64 << 20
"""Of bodies that have not come whole; who sends more waits."""
_AT_ONCE_BYTES: Final = 1 << 19
"""Read and sent together; what is longer is read part by part, by threads if from a disk."""
_PART_BYTES: Final = 256 << 10
"""Some wait to be sent at once, for each client that reads slowly."""
_FAR_BYTES: Final = 4 << 20
"""Read together of what lies far away, where that takes a request; a patch takes one or two."""
_LISTENS_S: Final = 0.5
"""After which granian listens."""
_WITHOUT_LENGTH: Final = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)
_OPEN: Final = {"/healthz", "/readyz"}
"""What a watchdog asks for without a token."""
_BUSY: Final = explained(
    HTTPStatus.TOO_MANY_REQUESTS, "Too many patches are asked for.", retry_after="1"
)
_TWO_LENGTHS: Final = explained(
    HTTPStatus.BAD_REQUEST,
    "A request has a length or chunks: with both, a proxy may take its body for another request.",
    connection="close",
)


class App:
    """An ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html).

    Parameters
    ----------
    stores
        What is served.
    guard
        Who may ask.
    """

    def __init__(self, stores: ServedStores, guard: Guard) -> None:
        self.stores = stores
        self._guard = guard
        self._turns: dict[Executor | None, Turns] = {}
        """Of what is read from disk, and of each bucket."""
        self._held_bytes = 0
        self._unsent_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            return
        request = self._guard.opened(_request_of(scope))
        name = _BATCH.fullmatch(request.path)
        if _has_two_lengths(request):
            answer = _TWO_LENGTHS
        elif name is not None and request.method == "POST":
            answer = self.refused(request) or await self._answer_batch(request, name[1], receive)
        elif request.path in {LOGIN, LOGOUT}:
            form = await self._whole_body(request, receive)
            answer = form if isinstance(form, Answer) else self._guard.login(request, form)
        else:
            readers = self.stores.executor(_STORE.sub(r"\1", request.path))
            if readers is not None or request.path.startswith(_ABOUT):
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(readers, self.answer, request)
            else:
                answer = self.answer(request)
        self._unsent_bytes += len(answer.body)
        try:
            await _sent(send, request.method, answer, self._guard.shared(request))
        finally:
            self._unsent_bytes -= len(answer.body)

    def answer(self, request: Request) -> Answer:
        """Answer a request for files, or about the server."""
        if request.path in _OPEN:
            return explained(HTTPStatus.OK, "ok")
        refused = self.refused(request)
        if refused is not None:
            return refused
        try:
            return self._found(request)
        except (SpinezarrError, OSError):
            return explained(
                HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be read.", retry_after="1"
            )

    def _found(self, request: Request) -> Answer:
        facts = _FACTS.fullmatch(request.path)
        if facts is not None:
            return self._answer_facts(request, facts[1], facts[2])
        for prefix, files in ((_ZARR, self.stores.files), (_FLAT, self.stores.flat)):
            if request.path.startswith(prefix):
                return answer_bytes(files, request, request.path[len(prefix) :])
        return explained(HTTPStatus.NOT_FOUND, "There is no such page.")

    def refused(self, request: Request) -> Answer | None:
        """Return the answer to who may not ask, or only asks whether it may."""
        return self._guard.preflight(request) or self._guard.refused(request)

    def _answer_facts(self, request: Request, name: str, scan_id: str | None) -> Answer:
        if request.method not in {"GET", "HEAD"}:
            return explained(HTTPStatus.METHOD_NOT_ALLOWED, "It is only read.", allow="GET, HEAD")
        if name == "stores" and scan_id is None:
            opened = {n: partial(self.stores.facts, n) for n in self.stores.places()}
            return answer_stores(opened)
        found = self.stores.facts(name)
        if found is None:
            return explained(HTTPStatus.NOT_FOUND, "There is no such store.")
        if scan_id is None:
            return answer_store(found)
        if not scan_id:
            return answer_scans(found, request.query)
        return answer_scan(found, scan_id.removeprefix("/"))

    async def _answer_batch(self, request: Request, name: str, receive: Receive) -> Answer:
        body = await self._whole_body(request, receive)
        if isinstance(body, Answer):
            return body
        readers = self.stores.executor(name)
        if readers not in self._turns:
            self._turns[readers] = Turns(_AT_ONCE, _WAITING, _WAITING_BYTES)
        try:
            async with self._turns[readers].taken(len(body)):
                if self._unsent_bytes > _UNSENT_BYTES:
                    return _BUSY
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(readers, self._read_batch, name, body)
        except BusyError:
            return _BUSY
        except (SpinezarrError, OSError):
            return explained(
                HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be read.", retry_after="1"
            )

    def _read_batch(self, name: str, body: bytes) -> Answer:
        source = self.stores.patches(name)
        if source is None:
            return explained(HTTPStatus.NOT_FOUND, "There is no such store.")
        return answer_batch(source, body, threads=_THREADS)

    async def _whole_body(self, request: Request, receive: Receive) -> bytes | Answer:
        """Read the body of a request, or answer why it is not read."""
        if request.headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
            return explained(HTTPStatus.BAD_REQUEST, "A body is sent as it is, or in chunks.")
        parts: list[bytes] = []
        try:
            return await asyncio.wait_for(self._read_body(receive, parts), _BODY_S)
        except TimeoutError:
            return explained(HTTPStatus.REQUEST_TIMEOUT, "The request did not come in time.")
        finally:
            self._held_bytes -= sum(map(len, parts))

    async def _read_body(self, receive: Receive, parts: list[bytes]) -> bytes | Answer:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return explained(HTTPStatus.BAD_REQUEST, "The request did not come whole.")
            data = message.get("body", b"")
            parts.append(data)
            size, more = size + len(data), message.get("more_body", False)
            self._held_bytes += len(data)
            if size > BODY_BYTES:
                return explained(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {BODY_BYTES} bytes are read."
                )
            if self._held_bytes > _BODIES_BYTES:
                return _BUSY
        return b"".join(parts)


def _request_of(scope: Scope) -> Request:
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    path = unquote(raw.partition(b"?")[0].decode("latin-1"), errors="replace")
    return Request(scope["method"], path, scope.get("query_string", b"").decode("latin-1"), headers)


def _has_two_lengths(request: Request) -> bool:
    return "content-length" in request.headers and "transfer-encoding" in request.headers


async def _sent(send: Send, method: str, answer: Answer, shared: Mapping[str, str]) -> None:
    fields = {**answer.headers, **shared}
    if answer.status not in _WITHOUT_LENGTH:
        fields["content-length"] = str(answer.length)
    try:
        parts = _Parts(answer) if method != "HEAD" else None
        first = b"" if parts is None else await parts.read()
    except UnreadableError as problem:
        answer = explained(HTTPStatus.SERVICE_UNAVAILABLE, str(problem), retry_after="1")
        await _sent(send, method, answer, shared)
        return
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": int(answer.status), "headers": headers})
    more = parts is not None and parts.is_left
    await send({"type": "http.response.body", "body": first, "more_body": more})
    while more and parts is not None:
        try:
            data = await parts.read()
        except UnreadableError:
            return  # which ends the connection: the length tells
        more = parts.is_left
        await send({"type": "http.response.body", "body": data, "more_body": more})


class _Parts:
    """Reads a body part by part."""

    def __init__(self, answer: Answer) -> None:
        self._body = answer.body
        self._file: ServedFile | None = answer.file
        self._at, self._stop = answer.start, answer.start + answer.length
        self._is_long = answer.length > _AT_ONCE_BYTES
        self._ahead = memoryview(b"")
        """Read from far away, and not sent yet."""

    @property
    def is_left(self) -> bool:
        return self._at < self._stop

    async def read(self) -> bytes | bytearray:
        start, stop = self._at, self._stop
        if self._is_long:
            stop = min(start + _PART_BYTES, stop)
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
        """Read more at once than is sent at once."""
        size = stop - start
        if len(self._ahead) < size:
            at, until = start + len(self._ahead), min(start + _FAR_BYTES, self._stop)
            loop = asyncio.get_running_loop()
            more = await loop.run_in_executor(file.executor, file.read, at, until)
            self._ahead = memoryview(bytes(self._ahead) + more)
        data, self._ahead = bytes(self._ahead[:size]), self._ahead[size:]
        return data


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
        asyncio.get_running_loop().call_later(_LISTENS_S, limit_unread_here)
