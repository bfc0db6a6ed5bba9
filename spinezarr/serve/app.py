"""How does a request reach its answer?

The application checks who sends a request. It answers requests for files of stores itself, and
passes all others to the endpoints.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from typing import Any, Final

from spinezarr.errors import SpinezarrError
from spinezarr.serve.endpoints import REQUEST, ROUTE, create_endpoints
from spinezarr.serve.file_trees import Files, answer_file
from spinezarr.serve.guard import Guard
from spinezarr.serve.http import Answer, Receive, Request, Scope, Send, parse_request, text_answer
from spinezarr.serve.limits import half_of_the_cpus
from spinezarr.serve.log import RequestLog
from spinezarr.serve.login import LOGIN, LOGOUT
from spinezarr.serve.metrics import Metrics
from spinezarr.serve.operations import FLAT, OME, OPERATIONS, ZARR, Operation
from spinezarr.serve.sending import NO_ROUTE, AnswerRecord, encode_headers, send_answer
from spinezarr.serve.slow_clients import set_send_timeouts_of_listeners
from spinezarr.serve.stores import ServedStores

__all__ = ["App"]

_TREES: Final[Mapping[str, Operation]] = {"zarr": ZARR, "flat": FLAT, "ome": OME}
"""The trees of files, by the first part of the path."""
_LISTENING_AFTER_S: Final = 0.5
"""Seconds after which granian listens on its sockets."""
_TWO_LENGTHS: Final = text_answer(
    HTTPStatus.BAD_REQUEST,
    "A request must not have both Content-Length and Transfer-Encoding: a proxy could take its "
    "body for another request.",
    connection="close",
)
_OPEN_PATHS: Final = frozenset({LOGIN, LOGOUT, *(op.path for op in OPERATIONS if op.is_open)})
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
        self._ome_executor = ThreadPoolExecutor(half_of_the_cpus(), "spinezarr-ome")
        self._endpoints = create_endpoints(stores, guard, self._metrics)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] == "lifespan":
            await _run_lifespan(receive, send, self.stores.limits.unread_s)
            return
        if scope["type"] != "http":
            return
        start_s = time.perf_counter()
        request = self._guard.resolve_signed_url(parse_request(scope))
        record = AnswerRecord()
        try:
            await self._answer(request, scope, receive, send, record)
        finally:
            seconds = time.perf_counter() - start_s
            self._metrics.note(record.route, record.status, record.size_bytes, seconds)
            if self._log is not None:
                self._log.note(
                    request.method,
                    request.path,
                    status=record.status,
                    sent_bytes=record.size_bytes,
                    seconds=seconds,
                    token=self._guard.name_of(request),
                )

    async def _answer(
        self, request: Request, scope: Scope, receive: Receive, send: Send, record: AnswerRecord
    ) -> None:
        common_headers, limits = self._guard.common_headers(request), self.stores.limits
        answer = _TWO_LENGTHS if _has_two_lengths(request) else None
        if answer is None and request.path not in _OPEN_PATHS:
            answer = self._refusal(request)
        if answer is not None:
            await send_answer(
                send, request.method, answer, common_headers, record=record, limits=limits
            )
        elif (tree_path := _split_tree(request.path)) is not None:
            tree, path = tree_path
            record.route = _TREES[tree].path
            executor = self.stores.executor(path.partition("/")[0])
            if executor is None and tree == "ome":
                executor = self._ome_executor
            if executor is None:
                answer = self._answer_file(request, tree, path)
            else:
                loop = asyncio.get_running_loop()
                answer = await loop.run_in_executor(
                    executor, self._answer_file, request, tree, path
                )
            await send_answer(
                send, request.method, answer, common_headers, record=record, limits=limits
            )
        else:
            inner_scope: Scope = {**scope, "path": request.path, "root_path": "", REQUEST: request}
            recording_send = _RecordingSend(
                send, request.method, common_headers, record, inner_scope
            )
            await self._endpoints(inner_scope, receive, recording_send)

    def _refusal(self, request: Request) -> Answer | None:
        """Return the answer to a preflight or refused request; None if the request may go on."""
        return self._guard.preflight(request) or self._guard.refusal(request)

    def _answer_file(self, request: Request, tree: str, path: str) -> Answer:
        try:
            return answer_file(self._files[tree], request, path)
        except (SpinezarrError, OSError):
            return text_answer(
                HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be read.", retry_after="1"
            )


def _split_tree(path: str) -> tuple[str, str] | None:
    """Split a path into its tree of files and the path below it; None if it is below no tree."""
    _, tree, rest = (*path.split("/", 2), "", "")[:3]
    is_below = path.startswith("/") and tree in _TREES and len(path) > len(tree) + 1
    return (tree, rest) if is_below else None


def _has_two_lengths(request: Request) -> bool:
    return "content-length" in request.headers and "transfer-encoding" in request.headers


class _RecordingSend:
    """Sends the answer of an endpoint with the common headers, and records status and size."""

    __slots__ = ("_common_headers", "_method", "_record", "_scope", "_send")

    def __init__(
        self,
        send: Send,
        method: str,
        common_headers: Mapping[str, str],
        record: AnswerRecord,
        scope: Scope,
    ) -> None:
        self._send = send
        self._method = method
        self._common_headers = common_headers
        self._record = record
        self._scope = scope

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._record.route = self._scope.get(ROUTE, NO_ROUTE)
            self._record.status = HTTPStatus(message["status"])
            message["headers"] = [*message["headers"], *encode_headers(self._common_headers)]
        elif message["type"] == "http.response.body":
            if self._method == "HEAD":
                message["body"] = b""
            self._record.size_bytes += len(message["body"])
        await self._send(message)


async def _run_lifespan(receive: Receive, send: Send, unread_s: float) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
        asyncio.get_running_loop().call_later(
            _LISTENING_AFTER_S, set_send_timeouts_of_listeners, unread_s
        )
