"""Which code answers each operation: JSON, patches, pictures, pages, metrics?

Starlette routes these requests. For files of stores, see :mod:`spinezarr.serve.app`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import cache, partial
from http import HTTPStatus
from typing import Final, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as StarletteRequest
from starlette.responses import Response
from starlette.routing import Route

from spinezarr.errors import SpinezarrError
from spinezarr.serve.admission import AdmissionQueue, BusyError
from spinezarr.serve.docs_page import page, policy
from spinezarr.serve.guard import Guard
from spinezarr.serve.http import (
    REVALIDATE,
    Answer,
    Receive,
    Request,
    Scope,
    Send,
    json_answer,
    text_answer,
)
from spinezarr.serve.levels import LevelRequest, answer_level
from spinezarr.serve.login import LOGIN, LOGOUT
from spinezarr.serve.metrics import FORMAT, Metrics
from spinezarr.serve.neuroglancer import answer_client, answer_segments, answer_state
from spinezarr.serve.nifti import answer_nifti
from spinezarr.serve.open_in import answer_open_in
from spinezarr.serve.openapi import document
from spinezarr.serve.operations import OPERATIONS
from spinezarr.serve.page_files import LIST_PAGE, SCAN_PAGE, answer_page_file
from spinezarr.serve.patches import BODY_BYTES, PatchSource, answer_batch, answer_patch
from spinezarr.serve.sending import AnswerRecord, send_answer
from spinezarr.serve.slices import answer_slice
from spinezarr.serve.statistics import answer_statistics
from spinezarr.serve.stores import ServedStores
from spinezarr.serve.tables import (
    ServedTable,
    answer_scan,
    answer_scans,
    answer_store,
    answer_stores,
    prepare_tables,
)
from spinezarr.serve.views import answer_view

__all__ = ["REQUEST", "ROUTE", "create_endpoints"]

ROUTE: Final = "spinezarr.route"
"""Key of the ASGI scope for the template of the path, by which requests are counted."""
REQUEST: Final = "spinezarr.request"
"""Key of the ASGI scope for the request that the guard has returned."""
T = TypeVar("T")
_Endpoint = Callable[[StarletteRequest], Awaitable[Answer]]


def create_endpoints(stores: ServedStores, guard: Guard, metrics: Metrics) -> Starlette:
    """Make the Starlette application of the endpoints.

    Parameters
    ----------
    stores
        The stores to serve.
    guard
        Signs people in. It has already accepted the requests that come here.
    metrics
        The metrics to update and to publish.
    """
    prepare_tables()
    endpoints = _Endpoints(stores, guard, metrics)
    routes = [
        Route(LOGIN, endpoints.route_handler(LOGIN, endpoints.sign_in), methods=["GET", "POST"]),
        Route(LOGOUT, endpoints.route_handler(LOGOUT, endpoints.sign_in), methods=["POST"]),
    ]
    routes += [
        Route(op.path, endpoints.route_handler(op.path, endpoint), methods=[op.method])
        for op in sorted(OPERATIONS, key=lambda op: "{" in op.path)
        if (endpoint := endpoints.endpoints.get(op.name)) is not None
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _answer_http_error,
            SpinezarrError: _answer_unreadable,
            OSError: _answer_unreadable,
        },
    )
    app.router.redirect_slashes = False
    return app


def _parsed_request(request: StarletteRequest) -> Request:
    parsed: Request = request.scope[REQUEST]
    return parsed


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers)


async def _answer_http_error(_: StarletteRequest, problem: Exception) -> Response:
    if isinstance(problem, HTTPException) and problem.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = sorted(problem.headers["Allow"].split(", ")) if problem.headers else ()
        allow = ", ".join(allowed)
        return _response(
            text_answer(
                HTTPStatus.METHOD_NOT_ALLOWED, f"The allowed methods are {allow}.", allow=allow
            )
        )
    return _response(text_answer(HTTPStatus.NOT_FOUND, "There is no such page."))


async def _answer_unreadable(_: StarletteRequest, __: Exception) -> Response:
    return _response(
        text_answer(HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be read.", retry_after="1")
    )


@cache
def _descriptions(*, has_tokens: bool) -> tuple[Answer, Answer]:
    """Return the OpenAPI document and its page; all servers of a process share them."""
    openapi = document(has_tokens=has_tokens)
    as_page = Answer(
        HTTPStatus.OK,
        {
            "content-type": "text/html; charset=utf-8",
            "cache-control": REVALIDATE,
            "content-security-policy": policy(),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        },
        page(openapi).encode(),
    )
    return json_answer(openapi), as_page


class _Endpoints:
    """The endpoint of each operation, by name."""

    def __init__(self, stores: ServedStores, guard: Guard, metrics: Metrics) -> None:
        self._stores = stores
        self.limits = stores.limits
        self._guard = guard
        self._metrics = metrics
        self._openapi, self._docs_page = _descriptions(has_tokens=guard.tokens is not None)
        self._body_bytes = 0
        """Bytes of request bodies that are in memory."""
        self.unsent_bytes = 0
        """Bytes of answers that are being sent."""
        self.streams = 0
        """Number of answers that are generated while they are sent."""
        self._reading_queues: dict[Executor | None, AdmissionQueue] = {}
        """Queues for patches: one for all stores on disk, and one for each bucket."""
        self._drawing_queues: dict[Executor | None, AdmissionQueue] = {}
        """Queues for pictures and levels: one for all stores on disk, and one for each bucket."""
        self._readiness: tuple[float, bool] = 0.0, False
        """Seconds of the monotonic clock until which the last check is valid, and its result."""
        self.endpoints: Mapping[str, _Endpoint] = {
            "stores": self._list_stores,
            "store": self._describe_store,
            "scans": self._list_scans,
            "statistics": self._compute_statistics,
            "scan": self._describe_scan,
            "view": self._describe_view,
            "batch": self._read_batch,
            "patch": self._read_patch,
            "slice": self._draw_slice,
            "level": self._make_level,
            "list_page": lambda request: self._page_file(request, LIST_PAGE),
            "scan_page": lambda request: self._page_file(request, SCAN_PAGE),
            "page_file": lambda request: self._page_file(request, request.path_params["file"]),
            "image_nifti": lambda request: self._write_nifti(request, "image"),
            "label_nifti": lambda request: self._write_nifti(request, "label"),
            "mask_nifti": lambda request: self._write_nifti(request, request.path_params["mask"]),
            "open_in": self._list_programs,
            "neuroglancer": self._open_neuroglancer,
            "neuroglancer_segments": self._name_segments,
            "neuroglancer_client": self._send_client,
            "openapi": self._send_openapi,
            "docs": self._send_docs,
            "metrics": self._send_metrics,
            "healthz": self._is_alive,
            "readyz": self._is_ready,
        }

    def route_handler(
        self, path: str, endpoint: _Endpoint
    ) -> Callable[[StarletteRequest], Awaitable[Response]]:
        """Wrap an endpoint for Starlette, and record the template of its path."""

        async def answer(request: StarletteRequest) -> Response:
            request.scope[ROUTE] = path
            return _AnswerResponse(await endpoint(request), self)

        return answer

    async def _list_stores(self, _: StarletteRequest) -> Answer:
        def find() -> Answer:
            names = self._stores.list_stores()
            return answer_stores({name: partial(self._stores.served_table, name) for name in names})

        return await _run_in_executor(self._stores.executor(""), find)

    async def _describe_store(self, request: StarletteRequest) -> Answer:
        name = request.path_params["store"]
        return await self._answer_from_table(request, lambda table: answer_store(name, table))

    async def _list_scans(self, request: StarletteRequest) -> Answer:
        parsed = _parsed_request(request)
        return await self._answer_from_table(request, lambda table: answer_scans(table, parsed))

    async def _compute_statistics(self, request: StarletteRequest) -> Answer:
        parsed = _parsed_request(request)
        return await self._answer_from_table(
            request, lambda table: answer_statistics(table, parsed)
        )

    async def _describe_scan(self, request: StarletteRequest) -> Answer:
        scan_id = request.path_params["scan_id"]
        return await self._answer_from_table(request, lambda table: answer_scan(table, scan_id))

    async def _describe_view(self, request: StarletteRequest) -> Answer:
        name, scan_id = request.path_params["store"], request.path_params["scan_id"]
        parsed = _parsed_request(request)

        def find(table: ServedTable) -> Answer:
            source = self._stores.patches(name)
            return _NO_STORE if source is None else answer_view(table, source, parsed, scan_id)

        return await self._answer_from_table(request, find)

    async def _open_neuroglancer(self, request: StarletteRequest) -> Answer:
        parsed, params = _parsed_request(request), request.path_params
        store, scan_id = params["store"], params["scan_id"]
        return await self._answer_from_source(
            request, lambda source: answer_state(source, parsed, store, scan_id)
        )

    async def _name_segments(self, request: StarletteRequest) -> Answer:
        scan_id, mask = request.path_params["scan_id"], request.path_params["mask"]
        return await self._answer_from_source(
            request, lambda source: answer_segments(source, scan_id, mask)
        )

    async def _send_client(self, request: StarletteRequest) -> Answer:
        parsed, params = _parsed_request(request), request.path_params
        version, file = params["version"], params["file"]
        return await _run_in_executor(None, partial(answer_client, parsed, version, file))

    async def _answer_from_source(
        self, request: StarletteRequest, answer: Callable[[PatchSource], Answer]
    ) -> Answer:
        """Answer from a store whose voxels can be read."""
        name = request.path_params["store"]

        def find() -> Answer:
            source = self._stores.patches(name)
            return _NO_STORE if source is None else answer(source)

        return await _run_in_executor(self._stores.executor(name), find)

    async def _answer_from_table(
        self, request: StarletteRequest, answer: Callable[[ServedTable], Answer]
    ) -> Answer:
        name = request.path_params["store"]

        def find() -> Answer:
            table = self._stores.served_table(name)
            return _NO_STORE if table is None else answer(table)

        return await _run_in_executor(self._stores.executor(name), find)

    async def sign_in(self, request: StarletteRequest) -> Answer:
        form = await self._body(request)
        return (
            form if isinstance(form, Answer) else self._guard.login(_parsed_request(request), form)
        )

    async def _read_batch(self, request: StarletteRequest) -> Answer:
        body = await self._body(request)
        if isinstance(body, Answer):
            return body
        parsed, threads = _parsed_request(request), self.limits.threads_per_batch
        return await self._read(
            request, len(body), lambda source: answer_batch(source, parsed, body, threads=threads)
        )

    async def _read_patch(self, request: StarletteRequest) -> Answer:
        parsed, scan_id = _parsed_request(request), request.path_params["scan_id"]
        threads = self.limits.threads_per_batch
        return await self._read(
            request, 0, lambda source: answer_patch(source, parsed, scan_id, threads=threads)
        )

    async def _draw_slice(self, request: StarletteRequest) -> Answer:
        parsed, scan_id = _parsed_request(request), request.path_params["scan_id"]
        return await self._draw(request, lambda source: answer_slice(source, parsed, scan_id))

    async def _make_level(self, request: StarletteRequest) -> Answer:
        parsed, scan_id = _parsed_request(request), request.path_params["scan_id"]
        threads = self.limits.threads_per_batch
        level_request = LevelRequest(
            scan_id, request.path_params["level"], self._stores.level_cache
        )
        return await self._draw(
            request, lambda source: answer_level(source, parsed, level_request, threads=threads)
        )

    async def _write_nifti(self, request: StarletteRequest, array: str) -> Answer:
        if self.streams >= self.limits.streams:
            return _BUSY_STREAMS
        parsed, scan_id = _parsed_request(request), request.path_params["scan_id"]
        answer = _BUSY_STREAMS
        self.streams += 1  # counted until the stream is sent
        try:
            answer = await self._draw(
                request, lambda source: answer_nifti(source, parsed, scan_id, array)
            )
        finally:
            self.streams -= answer.stream is None
        return answer

    async def _list_programs(self, request: StarletteRequest) -> Answer:
        parsed, params = _parsed_request(request), request.path_params
        store, scan_id = params["store"], params["scan_id"]
        needs_token = self._guard.tokens is not None
        return await self._answer_from_source(
            request,
            lambda source: answer_open_in(source, parsed, store, scan_id, needs_token=needs_token),
        )

    async def _read(
        self, request: StarletteRequest, n_bytes: int, answer: Callable[[PatchSource], Answer]
    ) -> Answer:
        executor = self._stores.executor(request.path_params["store"])
        if executor not in self._reading_queues:
            limits = self.limits
            self._reading_queues[executor] = AdmissionQueue(
                limits.batches_at_once, limits.waiting, limits.waiting_bytes
            )
        try:
            async with self._slot(self._reading_queues[executor], n_bytes):
                with self._metrics.reading():
                    return await self._answer_from_voxels(request, executor, answer)
        except BusyError:
            self._metrics.count_refused()
            return _BUSY

    async def _draw(
        self, request: StarletteRequest, answer: Callable[[PatchSource], Answer]
    ) -> Answer:
        """Read voxels for a picture or level. Its queue is separate from that of patches."""
        executor = self._stores.executor(request.path_params["store"])
        if executor not in self._drawing_queues:
            limits = self.limits
            at_once = limits.slices_at_once if executor is None else limits.bucket_slices_at_once
            self._drawing_queues[executor] = AdmissionQueue(
                at_once, limits.waiting, limits.waiting_bytes
            )
        try:
            async with self._slot(self._drawing_queues[executor], 0):
                return await self._answer_from_voxels(request, executor, answer)
        except BusyError:
            return _BUSY

    @asynccontextmanager
    async def _slot(self, queue: AdmissionQueue, n_bytes: int) -> AsyncIterator[None]:
        """Wait for a slot; raise BusyError if too much is waiting or too many bytes are unread."""
        async with queue.slot(n_bytes):
            if self.unsent_bytes > self.limits.unsent_bytes:
                raise BusyError
            yield

    async def _answer_from_voxels(
        self,
        request: StarletteRequest,
        executor: Executor | None,
        answer: Callable[[PatchSource], Answer],
    ) -> Answer:
        name = request.path_params["store"]

        def find() -> Answer:
            source = self._stores.patches(name)
            return _NO_STORE if source is None else answer(source)

        return await _run_in_executor(executor, find)

    async def _body(self, request: StarletteRequest) -> bytes | Answer:
        """Read the body of a request, or return the answer that refuses it."""
        if request.headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
            return text_answer(
                HTTPStatus.BAD_REQUEST,
                "The transfer encoding of a body must be chunked, or be left out.",
            )
        parts: list[bytes] = []
        try:
            return await asyncio.wait_for(self._read_parts(request, parts), self.limits.body_s)
        except TimeoutError:
            return text_answer(
                HTTPStatus.REQUEST_TIMEOUT, "The body of the request did not arrive in time."
            )
        except ClientDisconnect:
            return text_answer(HTTPStatus.BAD_REQUEST, "The body of the request ended early.")
        finally:
            self._body_bytes -= sum(map(len, parts))

    async def _read_parts(self, request: StarletteRequest, parts: list[bytes]) -> bytes | Answer:
        size = 0
        async for data in request.stream():
            parts.append(data)
            size += len(data)
            self._body_bytes += len(data)
            if size > BODY_BYTES:
                return text_answer(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {BODY_BYTES} bytes are read."
                )
            if self._body_bytes > self.limits.bodies_bytes:
                return _BUSY
        return b"".join(parts)

    async def _page_file(self, request: StarletteRequest, name: str) -> Answer:
        return await _run_in_executor(
            None, lambda: answer_page_file(_parsed_request(request), name)
        )

    async def _send_openapi(self, _: StarletteRequest) -> Answer:
        return self._openapi

    async def _send_docs(self, _: StarletteRequest) -> Answer:
        return self._docs_page

    async def _send_metrics(self, _: StarletteRequest) -> Answer:
        text = await _run_in_executor(None, self._metrics.text)
        headers = {"content-type": FORMAT, "cache-control": "no-store"}
        return Answer(HTTPStatus.OK, headers, text)

    async def _is_alive(self, _: StarletteRequest) -> Answer:
        return text_answer(HTTPStatus.OK, "ok")

    async def _is_ready(self, _: StarletteRequest) -> Answer:
        now = time.monotonic()
        if now >= self._readiness[0]:
            is_ready = await _run_in_executor(self._stores.executor(""), self._stores.can_be_opened)
            self._readiness = now + self.limits.ready_s, is_ready
        if self._readiness[1]:
            return text_answer(HTTPStatus.OK, "ok")
        return text_answer(
            HTTPStatus.SERVICE_UNAVAILABLE, "A store cannot be opened.", retry_after="5"
        )


class _AnswerResponse(Response):
    """Sends an :class:`Answer` as a Starlette response."""

    def __init__(self, answer: Answer, endpoints: _Endpoints) -> None:
        super().__init__(None, answer.status)
        self._answer = answer
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        size_bytes, is_stream = len(self._answer.body), self._answer.stream is not None
        self._endpoints.unsent_bytes += size_bytes
        try:
            await send_answer(
                send,
                scope["method"],
                self._answer,
                {},
                record=AnswerRecord(),
                limits=self._endpoints.limits,
            )
        finally:
            self._endpoints.unsent_bytes -= size_bytes
            self._endpoints.streams -= is_stream


_BUSY: Final = text_answer(
    HTTPStatus.TOO_MANY_REQUESTS,
    "There are too many requests at once; retry later.",
    retry_after="1",
)
_BUSY_STREAMS: Final = text_answer(
    HTTPStatus.TOO_MANY_REQUESTS, "Too many files are being sent.", retry_after="5"
)
_NO_STORE: Final = text_answer(HTTPStatus.NOT_FOUND, "There is no such store.")


async def _run_in_executor(executor: Executor | None, function: Callable[[], T]) -> T:
    """Call a function in a thread of an executor, because it waits for a disk or network."""
    return await asyncio.get_running_loop().run_in_executor(executor, function)
