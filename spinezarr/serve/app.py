"""How does a request reach its answer?

The application checks who asks. It answers files of stores itself, and passes all other requests to
the endpoints.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final

from spinezarr.errors import SpinezarrError
from spinezarr.serve.endpoints import REQUEST, ROUTE, pages
from spinezarr.serve.file_trees import Files, answer_file
from spinezarr.serve.guard import Guard
from spinezarr.serve.http import Answer, Receive, Request, Scope, Send, parse_request, text_answer
from spinezarr.serve.limits import half_of_the_cpus
from spinezarr.serve.log import RequestLog
from spinezarr.serve.login import LOGIN, LOGOUT
from spinezarr.serve.metrics import Metrics
from spinezarr.serve.operations import FLAT, OME, OPERATIONS, ZARR, Operation
from spinezarr.serve.sending import ELSEWHERE, Sent, encoded, send_answer
from spinezarr.serve.slow_clients import set_send_timeouts_of_listeners
from spinezarr.serve.stores import ServedStores

__all__ = ["App"]

_TREES: Final[Mapping[str, Operation]] = {"zarr": ZARR, "flat": FLAT, "ome": OME}
"""The trees of files, by the first part of the path."""
_LISTENS_S: Final = 0.5
"""Seconds after which granian listens on its sockets."""
_TWO_LENGTHS: Final = text_answer(
    HTTPStatus.BAD_REQUEST,
    "A request must not have both Content-Length and Transfer-Encoding: a proxy could take its "
    "body for another request.",
    connection="close",
)
_OPEN: Final = frozenset({LOGIN, LOGOUT, *(op.path for op in OPERATIONS if op.is_open)})
"""Paths that need no token: health checks and the sign-in pages."""


class App:
    """An ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html).

    Parameters
    ----------
    stores
        The stores to serve.
    guard
        Decides who may read.
    log
        Takes a line for each answer; None for no log.
    """

    def __init__(self, stores: ServedStores, guard: Guard, log: RequestLog | None = None) -> None:
        self.stores = stores
        self._guard = guard
        self._log = log
        self._metrics = Metrics()
        self._files: Mapping[str, Callable[[str], Files | None]] = {
            "zarr": stores.files,
            "flat": stores.flat,
            "ome": stores.ome,
        }
        self._makers = ThreadPoolExecutor(half_of_the_cpus(), "spinezarr-ome")
        self._pages = pages(stores, guard, self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await _live(receive, send, self.stores.limits.unread_s)
            return
        if scope["type"] != "http":
            return
        began = time.perf_counter()
        request = self._guard.opened(parse_request(scope))
        sent = Sent()
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
        self, request: Request, scope: Scope, receive: Receive, send: Send, sent: Sent
    ) -> None:
        shared, limits = self._guard.shared(request), self.stores.limits
        answer = _TWO_LENGTHS if _has_two_lengths(request) else None
        if answer is None and request.path not in _OPEN:
            answer = self._refused(request)
        if answer is not None:
            await send_answer(send, request.method, answer, shared, sent=sent, limits=limits)
        elif (found := _tree_of(request.path)) is not None:
            tree, path = found
            sent.route = _TREES[tree].path
            readers = self.stores.executor(path.partition("/")[0])
            if readers is None and tree == "ome":
                readers = self._makers
            if readers is None:
                answer = self._bytes(request, tree, path)
            else:
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(readers, self._bytes, request, tree, path)
            await send_answer(send, request.method, answer, shared, sent=sent, limits=limits)
        else:
            inner: Scope = {**scope, "path": request.path, "root_path": "", REQUEST: request}
            noted = _Noted(send, request.method, shared, sent, inner)
            await self._pages(inner, receive, noted)

    def _refused(self, request: Request) -> Answer | None:
        """Return the answer to a preflight or refused request; None if the request may go on."""
        return self._guard.preflight(request) or self._guard.refused(request)

    def _bytes(self, request: Request, tree: str, path: str) -> Answer:
        try:
            return answer_file(self._files[tree], request, path)
        except (SpinezarrError, OSError):
            return text_answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be read.", retry_after="1"
            )


def _tree_of(path: str) -> tuple[str, str] | None:
    """Split a path into its tree of files and the rest; None if it is below no tree."""
    _, tree, rest = (*path.split("/", 2), "", "")[:3]
    is_below = path.startswith("/") and tree in _TREES and len(path) > len(tree) + 1
    return (tree, rest) if is_below else None


def _has_two_lengths(request: Request) -> bool:
    return "content-length" in request.headers and "transfer-encoding" in request.headers


class _Noted:
    """Sends the answer of an endpoint, adds the common headers, and notes status and size."""

    __slots__ = ("_inner", "_method", "_send", "_sent", "_shared")

    def __init__(
        self, send: Send, method: str, shared: Mapping[str, str], sent: Sent, inner: Scope
    ) -> None:
        self._send = send
        self._method = method
        self._shared = shared
        self._sent = sent
        self._inner = inner

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._sent.route = self._inner.get(ROUTE, ELSEWHERE)
            self._sent.status = HTTPStatus(message["status"])
            message["headers"] = [*message["headers"], *encoded(self._shared)]
        elif message["type"] == "http.response.body":
            if self._method == "HEAD":
                message["body"] = b""
            self._sent.size_bytes += len(message["body"])
        await self._send(message)


async def _live(receive: Receive, send: Send, unread_s: float) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
        asyncio.get_running_loop().call_later(_LISTENS_S, set_send_timeouts_of_listeners, unread_s)
