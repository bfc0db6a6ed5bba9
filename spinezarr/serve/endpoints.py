"""Which code answers each operation: JSON, patches, pictures, pages, metrics?

Starlette routes these requests. Files of stores do not come here, see :mod:`spinezarr.serve.app`.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from functools import cache, partial
from http import HTTPStatus
from typing import Final, Literal, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Asked
from starlette.responses import Response
from starlette.routing import Route

from spinezarr.errors import SpinezarrError
from spinezarr.serve import metrics
from spinezarr.serve.admission import AdmissionQueue, BusyError
from spinezarr.serve.docs_page import page, policy
from spinezarr.serve.guard import Guard
from spinezarr.serve.http import Answer, Receive, Request, Scope, Send, text_answer
from spinezarr.serve.levels import LevelRequest, answer_level
from spinezarr.serve.login import LOGIN, LOGOUT
from spinezarr.serve.neuroglancer import answer_client, answer_segments, answer_state
from spinezarr.serve.nifti import answer_nifti
from spinezarr.serve.open_in import answer_open_in
from spinezarr.serve.openapi import document
from spinezarr.serve.operations import OPERATIONS
from spinezarr.serve.page_files import LIST_PAGE, SCAN_PAGE, answer_page_file
from spinezarr.serve.patches import BODY_BYTES, PatchSource, answer_batch, answer_patch
from spinezarr.serve.sending import Sent, send_answer
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
from spinezarr.text import to_ascii_json

__all__ = ["REQUEST", "ROUTE", "pages"]

ROUTE: Final = "spinezarr.route"
"""Key of the ASGI scope for the template of the path, which metrics count by."""
REQUEST: Final = "spinezarr.request"
"""Key of the ASGI scope for the request, as the guard has returned it."""
T = TypeVar("T")
_Endpoint = Callable[[Asked], Awaitable[Answer]]


def pages(stores: ServedStores, guard: Guard, figures: metrics.Metrics) -> Starlette:
    """Make the Starlette application.

    Parameters
    ----------
    stores
        The stores to serve.
    guard
        Signs people in. It has already let the requests pass that come here.
    figures
        The metrics to count in and to publish.
    """
    prepare_tables()
    made = _Pages(stores, guard, figures)
    routes = [
        Route(LOGIN, made.routed(LOGIN, made.sign_in), methods=["GET", "POST"]),
        Route(LOGOUT, made.routed(LOGOUT, made.sign_in), methods=["POST"]),
    ]
    routes += [
        Route(op.path, made.routed(op.path, endpoint), methods=[op.method])
        for op in sorted(OPERATIONS, key=lambda op: "{" in op.path)
        if (endpoint := made.endpoints.get(op.name)) is not None
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={
            HTTPException: _of_status,
            SpinezarrError: _unreadable,
            OSError: _unreadable,
        },
    )
    app.router.redirect_slashes = False
    return app


def _request(asked: Asked) -> Request:
    request: Request = asked.scope[REQUEST]
    return request


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, answer.headers)


async def _of_status(_: Asked, problem: Exception) -> Response:
    if isinstance(problem, HTTPException) and problem.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = sorted(problem.headers["Allow"].split(", ")) if problem.headers else ()
        allow = ", ".join(allowed)
        return _response(
            text_answer(
                HTTPStatus.METHOD_NOT_ALLOWED, f"The allowed methods are {allow}.", allow=allow
            )
        )
    return _response(text_answer(HTTPStatus.NOT_FOUND, "There is no such page."))


async def _unreadable(_: Asked, __: Exception) -> Response:
    return _response(
        text_answer(HTTPStatus.SERVICE_UNAVAILABLE, "The store cannot be read.", retry_after="1")
    )


@cache
def _descriptions(*, has_tokens: bool) -> tuple[Answer, Answer]:
    """Return the OpenAPI document and its page; all servers of a process share them."""
    described = document(has_tokens=has_tokens)
    as_json = Answer(
        HTTPStatus.OK,
        {"content-type": "application/json", "cache-control": "no-cache"},
        to_ascii_json(described, indent=None).encode(),
    )
    as_page = Answer(
        HTTPStatus.OK,
        {
            "content-type": "text/html; charset=utf-8",
            "cache-control": "no-cache",
            "content-security-policy": policy(),
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
        },
        page(described).encode(),
    )
    return as_json, as_page


class _Pages:
    """The endpoint of each operation, by name."""

    def __init__(self, stores: ServedStores, guard: Guard, figures: metrics.Metrics) -> None:
        self._stores = stores
        self.limits = stores.limits
        self._guard = guard
        self._figures = figures
        self._described, self._page = _descriptions(has_tokens=guard.tokens is not None)
        self._held_bytes = 0
        self.unsent_bytes = 0
        """Bytes of answers that are being sent."""
        self.streams = 0
        """Answers that are generated while they are sent."""
        self._reading_queues: dict[Executor | None, AdmissionQueue] = {}
        """Queues for patches: one for all stores on disk, and one for each bucket."""
        self._drawing_queues: dict[Executor | None, AdmissionQueue] = {}
        """Queues for pictures and levels, in the same way."""
        self._ready: tuple[float, bool] = 0.0, False
        self.endpoints: Mapping[str, _Endpoint] = {
            "stores": self._list_stores,
            "store": self._describe_store,
            "scans": self._list_scans,
            "statistics": self._count_scans,
            "scan": self._describe_scan,
            "view": self._describe_view,
            "batch": self._read_batch,
            "patch": self._read_patch,
            "slice": self._draw_slice,
            "level": self._make_level,
            "list_page": lambda asked: self._page_file(asked, LIST_PAGE),
            "scan_page": lambda asked: self._page_file(asked, SCAN_PAGE),
            "page_file": lambda asked: self._page_file(asked, asked.path_params["file"]),
            "image_nifti": lambda asked: self._write_nifti(asked, "image"),
            "label_nifti": lambda asked: self._write_nifti(asked, "label"),
            "open_in": self._list_programs,
            "neuroglancer": self._open_neuroglancer,
            "neuroglancer_segments": self._name_segments,
            "neuroglancer_client": self._send_client,
            "openapi": self._describe,
            "docs": self._show,
            "metrics": self._count,
            "healthz": self._is_alive,
            "readyz": self._is_ready,
        }

    def routed(self, path: str, endpoint: _Endpoint) -> Callable[[Asked], Awaitable[Response]]:
        """Wrap an endpoint for Starlette, and note the template of its path."""

        async def answer(asked: Asked) -> Response:
            asked.scope[ROUTE] = path
            return _Sending(await endpoint(asked), self)

        return answer

    async def _list_stores(self, _: Asked) -> Answer:
        def find() -> Answer:
            names = self._stores.list_stores()
            return answer_stores({name: partial(self._stores.served_table, name) for name in names})

        return await _called(self._stores.executor(""), find)

    async def _describe_store(self, asked: Asked) -> Answer:
        name = asked.path_params["store"]
        return await self._of_store(asked, lambda served_table: answer_store(name, served_table))

    async def _list_scans(self, asked: Asked) -> Answer:
        request = _request(asked)
        return await self._of_store(asked, lambda table: answer_scans(table, request))

    async def _count_scans(self, asked: Asked) -> Answer:
        request = _request(asked)
        return await self._of_store(asked, lambda table: answer_statistics(table, request))

    async def _describe_scan(self, asked: Asked) -> Answer:
        scan_id = asked.path_params["scan_id"]
        return await self._of_store(asked, lambda served_table: answer_scan(served_table, scan_id))

    async def _describe_view(self, asked: Asked) -> Answer:
        name, scan_id = asked.path_params["store"], asked.path_params["scan_id"]
        request = _request(asked)

        def find(table: ServedTable) -> Answer:
            source = self._stores.patches(name)
            return _NO_STORE if source is None else answer_view(table, source, request, scan_id)

        return await self._of_store(asked, find)

    async def _open_neuroglancer(self, asked: Asked) -> Answer:
        request, params = _request(asked), asked.path_params
        store, scan_id = params["store"], params["scan_id"]
        return await self._of_source(
            asked, lambda source: answer_state(source, request, store, scan_id)
        )

    async def _name_segments(self, asked: Asked) -> Answer:
        scan_id = asked.path_params["scan_id"]
        return await self._of_source(asked, lambda source: answer_segments(source, scan_id))

    async def _send_client(self, asked: Asked) -> Answer:
        request, params = _request(asked), asked.path_params
        version, file = params["version"], params["file"]
        return await _called(None, partial(answer_client, request, version, file))

    async def _of_source(self, asked: Asked, answer: Callable[[PatchSource], Answer]) -> Answer:
        """Answer from a store whose voxels can be read."""
        name = asked.path_params["store"]

        def find() -> Answer:
            found = self._stores.patches(name)
            return _NO_STORE if found is None else answer(found)

        return await _called(self._stores.executor(name), find)

    async def _of_store(self, asked: Asked, answer: Callable[[ServedTable], Answer]) -> Answer:
        name = asked.path_params["store"]

        def find() -> Answer:
            found = self._stores.served_table(name)
            return _NO_STORE if found is None else answer(found)

        return await _called(self._stores.executor(name), find)

    async def sign_in(self, asked: Asked) -> Answer:
        form = await self._body(asked)
        return form if isinstance(form, Answer) else self._guard.login(_request(asked), form)

    async def _read_batch(self, asked: Asked) -> Answer:
        body = await self._body(asked)
        if isinstance(body, Answer):
            return body
        request, threads = _request(asked), self.limits.threads_per_batch
        return await self._read(
            asked, len(body), lambda source: answer_batch(source, request, body, threads=threads)
        )

    async def _read_patch(self, asked: Asked) -> Answer:
        request, scan_id = _request(asked), asked.path_params["scan_id"]
        threads = self.limits.threads_per_batch
        return await self._read(
            asked, 0, lambda source: answer_patch(source, request, scan_id, threads=threads)
        )

    async def _draw_slice(self, asked: Asked) -> Answer:
        request, scan_id = _request(asked), asked.path_params["scan_id"]
        return await self._draw(asked, lambda source: answer_slice(source, request, scan_id))

    async def _make_level(self, asked: Asked) -> Answer:
        request, scan_id = _request(asked), asked.path_params["scan_id"]
        threads = self.limits.threads_per_batch
        wanted = LevelRequest(scan_id, asked.path_params["level"], self._stores.kept_levels)
        return await self._draw(
            asked, lambda source: answer_level(source, request, wanted, threads=threads)
        )

    async def _write_nifti(self, asked: Asked, array: Literal["image", "label"]) -> Answer:
        if self.streams >= self.limits.streams:
            return _BUSY_STREAMS
        request, scan_id = _request(asked), asked.path_params["scan_id"]
        answer = _BUSY_STREAMS
        self.streams += 1  # counted until the stream is sent
        try:
            answer = await self._draw(
                asked, lambda source: answer_nifti(source, request, scan_id, array)
            )
        finally:
            self.streams -= answer.stream is None
        return answer

    async def _list_programs(self, asked: Asked) -> Answer:
        request, params = _request(asked), asked.path_params
        store, scan_id = params["store"], params["scan_id"]
        needs_token = self._guard.tokens is not None
        return await self._of_source(
            asked,
            lambda source: answer_open_in(source, request, store, scan_id, needs_token=needs_token),
        )

    async def _read(
        self, asked: Asked, n_bytes: int, answer: Callable[[PatchSource], Answer]
    ) -> Answer:
        readers = self._stores.executor(asked.path_params["store"])
        if readers not in self._reading_queues:
            limits = self.limits
            self._reading_queues[readers] = AdmissionQueue(
                limits.batches_at_once, limits.waiting, limits.waiting_bytes
            )
        try:
            async with self._slot(self._reading_queues[readers], n_bytes):
                with self._figures.reading():
                    return await self._of_voxels(asked, readers, answer)
        except BusyError:
            self._figures.refused()
            return _BUSY

    async def _draw(self, asked: Asked, answer: Callable[[PatchSource], Answer]) -> Answer:
        """Read voxels for a picture or level, in a queue beside that of patches."""
        readers = self._stores.executor(asked.path_params["store"])
        if readers not in self._drawing_queues:
            limits = self.limits
            at_once = limits.slices_at_once if readers is None else limits.bucket_slices_at_once
            self._drawing_queues[readers] = AdmissionQueue(
                at_once, limits.waiting, limits.waiting_bytes
            )
        try:
            async with self._slot(self._drawing_queues[readers], 0):
                return await self._of_voxels(asked, readers, answer)
        except BusyError:
            return _BUSY

    @asynccontextmanager
    async def _slot(self, queue: AdmissionQueue, n_bytes: int) -> AsyncIterator[None]:
        """Wait for a slot; raise BusyError if too much waits, or too many answers are unread."""
        async with queue.slot(n_bytes):
            if self.unsent_bytes > self.limits.unsent_bytes:
                raise BusyError
            yield

    async def _of_voxels(
        self, asked: Asked, readers: Executor | None, answer: Callable[[PatchSource], Answer]
    ) -> Answer:
        name = asked.path_params["store"]

        def find() -> Answer:
            source = self._stores.patches(name)
            return _NO_STORE if source is None else answer(source)

        return await _called(readers, find)

    async def _body(self, asked: Asked) -> bytes | Answer:
        """Read the body of a request, or return the answer that refuses it."""
        if asked.headers.get("transfer-encoding", "chunked").strip().lower() != "chunked":
            return text_answer(
                HTTPStatus.BAD_REQUEST,
                "The transfer encoding of a body must be chunked, or left out.",
            )
        parts: list[bytes] = []
        try:
            return await asyncio.wait_for(self._read_parts(asked, parts), self.limits.body_s)
        except TimeoutError:
            return text_answer(HTTPStatus.REQUEST_TIMEOUT, "The request did not come in time.")
        except ClientDisconnect:
            return text_answer(HTTPStatus.BAD_REQUEST, "The request ended early.")
        finally:
            self._held_bytes -= sum(map(len, parts))

    async def _read_parts(self, asked: Asked, parts: list[bytes]) -> bytes | Answer:
        size = 0
        async for data in asked.stream():
            parts.append(data)
            size += len(data)
            self._held_bytes += len(data)
            if size > BODY_BYTES:
                return text_answer(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"At most {BODY_BYTES} bytes are read."
                )
            if self._held_bytes > self.limits.bodies_bytes:
                return _BUSY
        return b"".join(parts)

    async def _page_file(self, asked: Asked, name: str) -> Answer:
        return await _called(None, lambda: answer_page_file(_request(asked), name))

    async def _describe(self, _: Asked) -> Answer:
        return self._described

    async def _show(self, _: Asked) -> Answer:
        return self._page

    async def _count(self, _: Asked) -> Answer:
        text = await _called(None, self._figures.text)
        fields = {"content-type": metrics.FORMAT, "cache-control": "no-store"}
        return Answer(HTTPStatus.OK, fields, text)

    async def _is_alive(self, _: Asked) -> Answer:
        return text_answer(HTTPStatus.OK, "ok")

    async def _is_ready(self, _: Asked) -> Answer:
        now = time.monotonic()
        if now >= self._ready[0]:
            is_ready = await _called(self._stores.executor(""), self._stores.can_be_opened)
            self._ready = now + self.limits.ready_s, is_ready
        if self._ready[1]:
            return text_answer(HTTPStatus.OK, "ok")
        return text_answer(
            HTTPStatus.SERVICE_UNAVAILABLE, "A store cannot be opened.", retry_after="5"
        )


class _Sending(Response):
    """Sends an :class:`Answer` as a Starlette response."""

    def __init__(self, answer: Answer, pages: _Pages) -> None:
        super().__init__(None, answer.status)
        self._answer = answer
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        size, streams = len(self._answer.body), self._answer.stream is not None
        self._pages.unsent_bytes += size
        try:
            await send_answer(
                send,
                scope["method"],
                self._answer,
                {},
                sent=Sent(),
                limits=self._pages.limits,
            )
        finally:
            self._pages.unsent_bytes -= size
            self._pages.streams -= streams


_BUSY: Final = text_answer(
    HTTPStatus.TOO_MANY_REQUESTS, "Too many requests at once; retry later.", retry_after="1"
)
_BUSY_STREAMS: Final = text_answer(
    HTTPStatus.TOO_MANY_REQUESTS, "Too many files are being sent.", retry_after="5"
)
_NO_STORE: Final = text_answer(HTTPStatus.NOT_FOUND, "There is no such store.")


async def _called(readers: Executor | None, function: Callable[[], T]) -> T:
    """Call a function that waits for a disk or network in a thread of an executor."""
    return await asyncio.get_running_loop().run_in_executor(readers, function)
