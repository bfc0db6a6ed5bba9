"""How does any fsspec file system read an object, with one attempt?

Errors of the libraries below fsspec are to_os_error into the types of
:mod:`spinezarr.remote.errors`, so that no caller has to know these libraries.
"""

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from urllib.request import getproxies

from fsspec.asyn import AsyncFileSystem
from typing_extensions import Buffer

from spinezarr.redaction import redact_url
from spinezarr.remote.direct_transport import is_link_local
from spinezarr.remote.errors import (
    CONTENT_RANGE,
    MAX_REDIRECTS,
    PAGE_BYTES,
    certificate_error,
    is_web_page,
    no_ranges_error,
    no_response_error,
    object_changed_error,
    object_too_large_error,
    redirect_error,
    response_error,
    stalled_response_error,
    transient_error,
    web_page_error,
)
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.remote.object_request import NOT_MODIFIED, ObjectRequest, ObjectResponse
from spinezarr.remote.s3_errors import CREDENTIALS_ADVICE
from spinezarr.remote.settings import RemoteSettings
from spinezarr.remote.stall_detection import RequestProgress, StallDetector, StalledError

__all__ = ["FsspecTransport"]

_THREADS: Final = 32
_CONNECTIONS: Final = 128
_CONNECT_S: Final = 10
_FORWARDED_HEADERS: Final = {
    "accept",
    "accept-encoding",
    "host",
    "if-match",
    "if-none-match",
    "range",
    "user-agent",
}
"""Headers that are also sent to the server of a redirect; others go to the first server only."""
_UNSATISFIED_RANGE: Final = re.compile(r"bytes \*/(\d{1,19})")
"""``Content-Range`` of a range beyond the end of the object (RFC 9110, section 14.4)."""
_BUCKETS: Final = ("s3://", "s3a://")
_SERVER_SCHEMES: Final = ("http://", "https://", *_BUCKETS)
"""Schemes for which only a response of the server shows that an object does not exist."""
_TRANSIENT_NUMBERS: Final = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.ECONNABORTED,
    errno.ECONNREFUSED,
    errno.ECONNRESET,
    errno.EHOSTUNREACH,
    errno.ENETUNREACH,
    errno.EPIPE,
    errno.ETIMEDOUT,
}
_REDIRECT_ERRORS: Final = {"InvalidURL", "RedirectClientError"}
"""Errors of aiohttp for a redirect to something that is not a web server."""
_TRANSIENT_NAMES: Final = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "HttpProcessingError",
    "ConnectionError",  # requests
    "IncompleteRead",  # http.client
    "Timeout",
    "TransportError",  # httpx
}
"""Class names of connection errors; the libraries below fsspec share no class."""
_NO_CREDENTIALS: Final = {
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "SSOError",
    "TokenRetrievalError",
}
"""Class names of errors of botocore for credentials that cannot be renewed."""
_CERTIFICATE_ERRORS: Final = {"ClientConnectorCertificateError", "ClientSSLError", "SSLError"}


class FsspecTransport:
    """Reads objects through fsspec; see :class:`spinezarr.remote.transport.Transport`.

    Only the process that made it may use it.
    """

    def __init__(self, url: str, options: Mapping[str, Any], settings: RemoteSettings) -> None:
        self._scheme = url.partition("://")[0]
        is_s3 = self._scheme in {"s3", "s3a"}
        self._fs, _ = open_filesystem(url, _single_attempt(options, settings) if is_s3 else options)
        self._detector = StallDetector(settings)
        self._read: Callable[..., Awaitable[ObjectResponse]] = _read_any
        if is_s3:
            self._fs.retries = 1  # attempts of s3fs; each contains those of botocore
            self._read = partial(_read_s3, first_byte_s=settings.s3_first_byte_s)
        elif self._scheme in {"http", "https"}:
            self._read = _HttpReader(self._fs).read
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spinezarr-get")

    @property
    def received_bytes(self) -> int:
        """See :class:`spinezarr.remote.transport.Transport`."""
        return self._detector.received_bytes

    async def get(self, path: str, start: int | None, stop: int | None, limit_bytes: int) -> Buffer:
        """See :class:`spinezarr.remote.transport.Transport`."""
        return (await self.get_response(ObjectRequest(path, start, stop, limit_bytes))).data

    async def get_response(self, request: ObjectRequest) -> ObjectResponse:
        """See :class:`spinezarr.remote.transport.Transport`."""
        path = request.path
        where = redact_url(path if "://" in path else f"{self._scheme}://{path}")
        if isinstance(self._fs, AsyncFileSystem) and self._fs.async_impl:
            # Errors are translated on fsspec's event loop, as asyncio logs the error of a cancelled
            # task, and the original error may contain a secret.
            task = _translate_errors(self._read_watched(request), where, request)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(task, self._fs.loop))
        read = asyncio.get_running_loop().run_in_executor(
            self._threads, partial(self._fs.cat_file, path, start=request.start, end=_end(request))
        )
        response = _without_headers(_read_bounded(request, read))
        return await _translate_errors(response, where, request)

    async def _read_watched(self, request: ObjectRequest) -> ObjectResponse:
        with RequestProgress(self._detector) as progress:
            return await self._read(self._fs, request, progress)


async def _read_bounded(request: ObjectRequest, read: Awaitable[bytes]) -> bytes:
    """Await bytes, and then check their number."""
    data = await read
    if len(data) > request.max_bytes:
        raise _TooLargeError(request, len(data))
    return data


async def _read_body(
    request: ObjectRequest,
    parts: AsyncIterator[bytes],
    length: int | None,
    progress: RequestProgress,
) -> bytes:
    """Read a body of at most ``max_bytes`` that does not stall."""
    if length is not None and length > request.max_bytes:
        raise _TooLargeError(request, length)
    data = bytearray()
    while True:
        part = await progress.step(anext(parts, b""))
        if not part:
            return bytes(data)
        data += part
        progress.add(len(part))
        if len(data) > request.max_bytes:
            raise _TooLargeError(request, None)


def _single_attempt(options: Mapping[str, Any], settings: RemoteSettings) -> dict[str, Any]:
    """Return options of s3fs for one attempt, and for many requests at the same time."""
    config = {
        "max_pool_connections": _CONNECTIONS,
        "read_timeout": settings.s3_first_byte_s,
        **(options.get("config_kwargs") or {}),
    }
    return {**options, "config_kwargs": {**config, "retries": {"total_max_attempts": 1}}}


async def _translate_errors(
    read: Awaitable[ObjectResponse], where: str, request: ObjectRequest
) -> ObjectResponse:
    """Await a response; raise an error of this package without the original one."""
    try:
        response = await read
    except Exception as caught:  # noqa: BLE001  any file system, any error
        if request.if_none_match and _response_of(caught)[0] == HTTPStatus.NOT_MODIFIED:
            return NOT_MODIFIED
        problem = _translate(caught, where, request.start)
    else:
        problem = None if request.accepts(response) else object_changed_error(where)
        if problem is None:
            return response
    if problem is None:
        return ObjectResponse(b"", {})
    raise problem


def _end(request: ObjectRequest) -> int:
    """Return the end of the range to read, one byte more than allowed for a whole object."""
    return (request.start or 0) + request.max_bytes + (request.stop is None)


async def _without_headers(read: Awaitable[bytes]) -> ObjectResponse:
    """Return a response without headers."""
    return ObjectResponse(await read, {})


async def _read_any(
    fs: Any,  # noqa: ANN401
    request: ObjectRequest,
    progress: RequestProgress,
) -> ObjectResponse:
    start, end = request.start, _end(request)
    read = fs._cat_file(request.path, start=start, end=end)  # noqa: SLF001  as fsspec does
    return await _without_headers(progress.until_end(_read_bounded(request, read)))


async def _read_s3(
    fs: Any,  # noqa: ANN401
    request: ObjectRequest,
    progress: RequestProgress,
    *,
    first_byte_s: float,
) -> ObjectResponse:
    opening = fs.open_object(request.path, request.headers)
    body, headers = await progress.step(opening, first_byte_s)
    progress.renew()
    length = int(headers["content-length"]) if "content-length" in headers else None
    content_range = headers.get("content-range")
    async with body:
        if request.range and content_range is None:
            beginning = await progress.step(body.read(PAGE_BYTES))
            raise _no_range_error(beginning, length, request.start, request.stop)
        expected = _range_bytes(content_range or "", request)
        data = await _read_body(request, fs.parts(body, request.path), length, progress)
    return ObjectResponse(_check_length(data, expected), headers)


class _HttpReader:
    """Reads from a web server through aiohttp, with the options of fsspec."""

    def __init__(self, fs: Any) -> None:  # noqa: ANN401  fsspec is untyped
        self._options = dict(fs.client_kwargs)

    async def read(
        self,
        fs: Any,  # noqa: ANN401
        request: ObjectRequest,
        progress: RequestProgress,
    ) -> ObjectResponse:
        options = {"timeout": _timeout(), **fs.kwargs}
        # A range of a compressed body cannot be used, and a body may grow without end when it is
        # decompressed.
        headers = options.pop("headers", None) or {}
        headers = {**headers, "Accept-Encoding": "identity", **request.headers}
        session = await self._open_session(fs)
        url = fs.encode_url(request.path)
        middlewares = (*self._options.get("middlewares", ()), _KeepSecretsAtOrigin(url))
        fixed = {
            "auto_decompress": False,
            "max_redirects": MAX_REDIRECTS,
            "middlewares": middlewares,
        }
        sending = session.get(url, headers=headers, **options, **fixed)
        response = await progress.step(sending)
        progress.renew()
        try:
            return await self._read_response(response, request, progress)
        finally:
            response.release()

    async def _read_response(
        self,
        response: Any,  # noqa: ANN401
        request: ObjectRequest,
        progress: RequestProgress,
    ) -> ObjectResponse:
        headers = {name.lower(): text for name, text in response.headers.items()}
        if not response.ok or response.status == HTTPStatus.NOT_MODIFIED:
            raise _HttpStatusError(response.status, headers)
        if request.range and response.status != HTTPStatus.PARTIAL_CONTENT:
            # The rest, which may be a whole shard, is not needed.
            beginning = await progress.step(response.content.read(PAGE_BYTES))
            raise _no_range_error(beginning, response.content_length, request.start, request.stop)
        encoding = response.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise _EncodedError
        expected = _range_bytes(response.headers.get("Content-Range", ""), request)
        parts = response.content.iter_any()
        data = await _read_body(request, parts, response.content_length, progress)
        return ObjectResponse(_check_length(data, expected), headers)

    async def _open_session(self, fs: Any) -> Any:  # noqa: ANN401
        """Return the session of fsspec, which all file systems with the same options share."""
        if fs._session is None:  # noqa: SLF001  as fsspec does
            from aiohttp import TCPConnector  # noqa: PLC0415  optional and slow

            # The number of connections has no limit, as a request that waits for one would seem to
            # stall.
            defaults = {"connector": TCPConnector(limit=0), "trust_env": bool(getproxies())}
            fs.client_kwargs = {**defaults, **self._options}
        return await fs.set_session()


class _KeepSecretsAtOrigin:
    """Sends secret headers only to the first server, not to those of redirects.

    It is a middleware of aiohttp.
    """

    def __init__(self, home: Any) -> None:  # noqa: ANN401  an URL of yarl
        self._origin = home.origin()

    async def __call__(self, request: Any, handler: Any) -> Any:  # noqa: ANN401
        if request.url.origin() != self._origin:
            if is_link_local(request.url.host or ""):
                raise _RedirectError("it leads to an address of the machine's own network")
            for name in {*request.headers}:
                if name.lower() not in _FORWARDED_HEADERS:
                    request.headers.popall(name, None)
        return await handler(request)


def _timeout() -> Any:  # noqa: ANN401
    from aiohttp import ClientTimeout  # noqa: PLC0415  optional and slow

    return ClientTimeout(total=None, sock_connect=_CONNECT_S)  # RequestProgress limits the rest


class _HttpStatusError(Exception):
    """The response has an error status."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class _BadResponseError(Exception):
    """The response does not fit the request; another attempt may help."""

    def to_os_error(self, where: str) -> OSError:
        """Return the error to raise."""
        return transient_error(where, str(self))


class _NoRangeError(_BadResponseError):
    """The response to a request for a range is not that range."""

    def to_os_error(self, where: str) -> OSError:
        """Return the error to raise."""
        return no_ranges_error(where, str(self))


class _TooLargeError(Exception):
    """The response is longer than allowed."""

    def __init__(self, request: ObjectRequest, size_bytes: int | None) -> None:
        super().__init__()
        self.request = request
        self.size_bytes = size_bytes

    def to_os_error(self, where: str) -> OSError:
        """Return the error to raise; a range may be requested again."""
        max_bytes = self.request.max_bytes
        if self.request.stop is None:
            return object_too_large_error(where, max_bytes, self.size_bytes)
        size = "more" if self.size_bytes is None else f"{self.size_bytes} bytes"
        text = f"the server sent {size} where {max_bytes} bytes were requested"
        return transient_error(where, text)


class _EncodedError(Exception):
    """The body is compressed although the request forbids it."""

    def to_os_error(self, where: str) -> OSError:
        """Return the error to raise."""
        text = "the server compresses what it sends (Content-Encoding). Switch that off for stores"
        return OSError(errno.EIO, text, where)


class _RedirectError(Exception):
    """The redirect is not followed."""

    def to_os_error(self, where: str) -> OSError:
        """Return the error to raise."""
        return redirect_error(where, str(self))


class _WebPageError(_BadResponseError):
    """The response is a web page instead of the object."""

    def to_os_error(self, where: str) -> OSError:
        """Return the error to raise."""
        return web_page_error(where)


def _no_range_error(
    beginning: bytes, size: int | None, start: int | None, stop: int | None
) -> Exception:
    """Return the error for a whole object that came instead of a range.

    Parameters
    ----------
    beginning
        First bytes of the response.
    size
        Size of the response; None if it is unknown.
    start, stop
        The requested range.
    """
    if is_web_page(beginning):
        return _WebPageError()
    requested = f"bytes {start or 0} to {'its end' if stop is None else stop - 1}"
    if size is not None and stop is not None and size < stop:
        return _BadResponseError(
            f"the server sent {size} bytes as the whole object instead of {requested}"
        )
    whole = "the whole object" if size is None else f"the whole object of {size} bytes"
    return _NoRangeError(f"the server sent {whole} instead of {requested}")


def _range_bytes(content_range: str, request: ObjectRequest) -> int | None:
    """Return the length of the range that a response contains; None for a whole object.

    Parameters
    ----------
    content_range
        ``Content-Range`` header of the response.
    request
        The request.

    Raises
    ------
    _NoRangeError
        If it is another range.
    """
    if not request.range:
        return None
    start, stop = request.start or 0, request.stop
    match = CONTENT_RANGE.fullmatch(content_range)
    if match is None:
        raise _NoRangeError("the server did not state which bytes it sent (Content-Range)")
    first, last, total = match.groups()
    ends = [end for end in (stop, None if total == "*" else int(total)) if end is not None]
    is_whole = not ends or int(last) + 1 == min(ends) or (total == "*" and int(last) < min(ends))
    if int(first) != start or not is_whole:
        requested = f"bytes {start} to {'its end' if stop is None else stop - 1}"
        raise _NoRangeError(f"the server sent bytes {first} to {last} instead of {requested}")
    return int(last) + 1 - int(first)


def _check_length(data: bytes, expected_bytes: int | None) -> bytes:
    """Return the bytes of a response if their number is the expected one."""
    if expected_bytes is not None and len(data) != expected_bytes:
        raise _BadResponseError(f"the server sent {len(data)} of {expected_bytes} bytes")
    return data


def _translate(problem: Exception, where: str, start: int | None) -> Exception | None:
    """Return the error to raise; None if the object ends before the range begins."""
    if isinstance(problem, _BadResponseError | _TooLargeError | _EncodedError | _RedirectError):
        return problem.to_os_error(where)
    if isinstance(problem, StalledError):
        return stalled_response_error(where)
    if "TooManyRedirects" in _class_names(problem):
        return redirect_error(where, f"more than {MAX_REDIRECTS} redirects follow each other")
    status, code, headers = _response_of(problem)
    if "HttpProcessingError" in _class_names(problem) or not (status or code):
        return _network_error(problem, where)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start is not None:
        return _unsatisfied_range_error(headers, where, start)
    return response_error(status, code, where, headers)


def _unsatisfied_range_error(headers: Mapping[str, str], where: str, start: int) -> OSError | None:
    """Return the error for status 416; None if the object really ends before the range."""
    match = _UNSATISFIED_RANGE.fullmatch(headers.get("content-range", ""))
    if match and int(match[1]) > start:
        text = f"the server refused byte {start} of an object of {match[1]} bytes (416)"
        return no_ranges_error(where, text)
    return None


def _network_error(problem: Exception, where: str) -> OSError:
    names = _class_names(problem)
    if not _CERTIFICATE_ERRORS.isdisjoint(names):
        return certificate_error(where)
    if not _REDIRECT_ERRORS.isdisjoint(names):
        return redirect_error(where, "it does not lead to a web server")
    number = getattr(problem, "errno", None)
    is_lost = isinstance(problem, ConnectionError | TimeoutError) or number in _TRANSIENT_NUMBERS
    if is_lost or not _TRANSIENT_NAMES.isdisjoint(names):
        return no_response_error(where)
    return _local_error(problem, names, where)


def _local_error(problem: Exception, names: set[str], where: str) -> OSError:
    """Return the error for a cause other than the network."""
    number = getattr(problem, "errno", None)
    if isinstance(problem, PermissionError) or not _NO_CREDENTIALS.isdisjoint(names):
        return _permission_error(problem, where)
    if isinstance(problem, FileNotFoundError) and not where.startswith(_SERVER_SCHEMES):
        return FileNotFoundError(errno.ENOENT, "there is no such object", where)
    if isinstance(problem, OSError) and number and number != errno.ENOENT:
        return OSError(number, os.strerror(number), where)
    return OSError(errno.EIO, f"it cannot be read ({type(problem).__name__})", where)


def _permission_error(problem: Exception, where: str) -> PermissionError:
    text = "access is denied"
    if where.startswith(_BUCKETS):
        text = f"the credentials cannot be found or renewed. {CREDENTIALS_ADVICE}"
        if isinstance(problem, PermissionError):
            text = problem.strerror or text  # this package wrote it
    return PermissionError(errno.EACCES, text, where)


def _class_names(problem: Exception) -> set[str]:
    """Return the class names of an error and of its cause."""
    errors = [problem, problem.__cause__]
    return {kind.__name__ for error in errors for kind in type(error).__mro__}


def _response_of(problem: Exception) -> tuple[int, str, dict[str, str]]:
    """Return status, error code of S3 and headers of the response in an error; status 0 if none."""
    response = getattr(problem.__cause__ or problem, "response", None)
    if isinstance(response, dict):  # a response of botocore
        metadata = response.get("ResponseMetadata", {})
        code = str(response.get("Error", {}).get("Code", ""))
        return (
            int(metadata.get("HTTPStatusCode", 0)),
            "" if code.isdigit() else code,
            metadata.get("HTTPHeaders", {}),
        )
    # Errors of aiohttp and gcsfs have a status; responses of requests and azure have one.
    for source in (problem, response):
        for name in ("status", "status_code", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int):
                headers = getattr(source, "headers", None) or {}
                return status, "", {str(k).lower(): str(v) for k, v in headers.items()}
    return 0, "", {}
