"""How is one attempt made to read one object?

This package's own client sends the request if it supports all given options of fsspec. Everything
else goes through fsspec. Nothing is repeated here: the type of an error says whether another
attempt may help.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from typing_extensions import Buffer

from spinezarr.forks import PerProcess
from spinezarr.redaction import redact_url
from spinezarr.remote.direct_transport import (
    DirectTransport,
    ObjectLocator,
    RangeRequests,
    UnsupportedRequestError,
)
from spinezarr.remote.errors import (
    NoRangesError,
    TransientError,
    is_web_page,
    web_page_error,
)
from spinezarr.remote.http_options import http_locator
from spinezarr.remote.hub import web_location
from spinezarr.remote.object_request import ObjectRequest, ObjectResponse
from spinezarr.remote.s3_options import s3_locator
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, METADATA_BYTES, RemoteSettings

__all__ = [
    "NoRangesError",
    "RangeRequests",
    "TransientError",
    "Transport",
    "UnsupportedRequestError",
    "open_transport",
]

_S3: Final = {"s3", "s3a"}
_HTTP: Final = {"http", "https"}


class Transport(Protocol):
    """Reads bytes of objects. It can be pickled, and used in forked and spawned processes."""

    async def get(
        self,
        path: str,
        start: int | None = None,
        stop: int | None = None,
        limit_bytes: int = METADATA_BYTES,
    ) -> Buffer:
        """Return the bytes ``start <= i < stop`` of an object; all bytes if both are None.

        Many calls may run at once, on any event loop; cancellation frees the connection. A call
        makes one attempt, or a second one through fsspec if the response to the first is not
        understood. A range that reaches beyond the end of the object is short or empty, as on disk.
        Over HTTP and S3, a response that is short for another reason is a TransientError. Other
        file systems do not raise it, so a caller that knows the size has to check it.

        Parameters
        ----------
        path
            Path of the object: the path of the store from :func:`open_transport`, and the key.
        start, stop
            Range of bytes; not negative.
        limit_bytes
            Largest size of the response if ``stop`` is None.

        Raises
        ------
        CorruptStoreError
            If the object is larger than ``limit_bytes``.
        FileNotFoundError
            If the object does not exist.
        PermissionError
            If the server refuses, no credentials are found, or the response is a web page.
        TransientError
            If another attempt may succeed.
        NoRangesError
            If the response is not the range, for example from a server that supports no ranges.
        OSError
            If the object cannot be read for another reason, for example if there is no such bucket.
        """
        ...

    async def get_response(self, request: ObjectRequest) -> ObjectResponse:
        """Return bytes as :meth:`get` does, with the headers of the response.

        Raises
        ------
        ChangedObjectError
            If the object has another version than ``if_match``.
        OSError
            As for :meth:`get`.
        """
        ...

    async def get_ranges(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        """Return several ranges ``(start, stop)`` of an object with little overhead.

        Returns
        -------
        Sequence of Buffer or None
            The bytes of each range, empty for a range that failed; :meth:`get` raises its error.
            None if only fsspec can read them.
        """
        ...

    def range_requests(self, ranges: Sequence[tuple[str, int, int]]) -> RangeRequests | None:
        """Return requests for ``(path, start, stop)`` that the calling thread itself can send.

        They take much less core time than :meth:`get_ranges`. None if some of them need the event
        loop, for example over TLS, or before the first request to a bucket.

        Raises
        ------
        PermissionError
            If a request cannot be signed.
        """
        ...

    async def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """Send JSON to a web server with POST; return the response of at most ``limit_bytes``.

        Raises
        ------
        UnsupportedRequestError
            If the URL is not that of a web server, a proxy is in use, or this package's own client
            does not understand the response.
        FileNotFoundError, PermissionError, TransientError, OSError
            As for :meth:`get`.
        """
        ...

    @property
    def link_bytes_per_s(self) -> float | None:
        """Rate of the link in the last seconds, in bytes per second; None until it is measured."""
        ...

    @property
    def received_bytes(self) -> int:
        """Bytes of all responses that have ended in this process.

        It is 0 for a file system that does not show the progress of its responses.
        """
        ...


def open_transport(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    settings: RemoteSettings = DEFAULT_REMOTE_SETTINGS,
) -> tuple[Transport, str]:
    """Return the transport for a URL, and the path of the URL without a slash at its end.

    Parameters
    ----------
    url
        Path or fsspec URL of a store.
    storage_options
        Options of the file system; see :func:`spinezarr.remote.filesystem.open_filesystem`.
    settings
        Bounds on the time of a response.

    Raises
    ------
    UsageError
        If no installed package reads such URLs, or the options do not fit.
    """
    url, options = web_location(url, storage_options)
    scheme, _, rest = url.partition("://")
    transport = _Transport(url, options, settings)
    if transport.uses_direct_client:
        path = rest if scheme in _S3 else url
        return transport, path.rstrip("/") or path
    from spinezarr.remote.filesystem import open_filesystem  # noqa: PLC0415  imports fsspec

    return transport, open_filesystem(url, options)[1]


class _Transport:
    """Both clients. Each process that uses them makes its own."""

    def __init__(self, url: str, options: dict[str, Any], settings: RemoteSettings) -> None:
        self._url = url
        self._options = options
        self._settings = settings
        self._direct_client = PerProcess(partial(_direct_transport, url, options, settings))
        self._fsspec_client = PerProcess(partial(_fsspec_transport, url, options, settings))
        self._direct_client.get()  # it raises now if the options cannot be used

    def __reduce__(self) -> tuple[Any, ...]:
        return _Transport, (self._url, self._options, self._settings)

    def __repr__(self) -> str:
        return f"<Transport of {redact_url(self._url)}>"

    @property
    def _direct(self) -> DirectTransport | None:
        return self._direct_client.get()

    @property
    def uses_direct_client(self) -> bool:
        return self._direct is not None

    async def get_ranges(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        direct = self._direct
        return None if direct is None else await direct.get_ranges(path, spans)

    def range_requests(self, ranges: Sequence[tuple[str, int, int]]) -> RangeRequests | None:
        direct = self._direct
        return None if direct is None else direct.range_requests(ranges)

    async def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        direct = self._direct
        if direct is None or self._url.partition("://")[0] not in _HTTP:
            raise UnsupportedRequestError
        return await direct.post(path, body, limit_bytes)

    @property
    def link_bytes_per_s(self) -> float | None:
        direct = self._direct
        return None if direct is None else direct.link_bytes_per_s

    @property
    def received_bytes(self) -> int:
        clients = (self._direct_client.peek(), self._fsspec_client.peek())
        return sum(client.received_bytes for client in clients if client is not None)

    async def get(
        self,
        path: str,
        start: int | None = None,
        stop: int | None = None,
        limit_bytes: int = METADATA_BYTES,
    ) -> Buffer:
        if stop is not None and stop <= (start or 0):
            return b""
        return (await self.get_response(ObjectRequest(path, start, stop, limit_bytes))).data

    async def get_response(self, request: ObjectRequest) -> ObjectResponse:
        response = await self._get_any(request)
        if not request.range and is_web_page(response.data):
            path = request.path
            where = path if "://" in path else f"{self._url.partition('://')[0]}://{path}"
            raise web_page_error(redact_url(where))
        return response

    async def _get_any(self, request: ObjectRequest) -> ObjectResponse:
        direct = self._direct
        if direct is not None:
            with suppress(UnsupportedRequestError):
                return await direct.get_response(request)
        client: Any = self._fsspec_client.peek()
        if client is None:
            # Its imports are slow, and other requests use the event loop meanwhile.
            client = await asyncio.to_thread(self._fsspec_client.get)
        response: ObjectResponse = await client.get_response(request)
        return response


def _direct_transport(
    url: str, options: Mapping[str, Any], settings: RemoteSettings
) -> DirectTransport | None:
    """Return a transport with our own client; None if it does not support the options."""
    scheme = url.partition("://")[0]
    locator: ObjectLocator | None = None
    if scheme in _HTTP:
        locator = http_locator(options)
    elif scheme in _S3:
        locator = s3_locator(options, settings)
    return DirectTransport(url, locator, settings) if locator else None


def _fsspec_transport(url: str, options: dict[str, Any], settings: RemoteSettings) -> Any:  # noqa: ANN401
    """Return the transport through fsspec."""
    from spinezarr.remote.fsspec_transport import FsspecTransport  # noqa: PLC0415  slow import

    return FsspecTransport(url, options, settings)
