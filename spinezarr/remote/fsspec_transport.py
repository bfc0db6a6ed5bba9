"""How does any fsspec file system read an object, with one attempt?

Errors of the libraries below fsspec are translated into the types of
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
    no_answer_error,
    no_ranges_error,
    object_changed_error,
    object_too_large_error,
    redirect_error,
    response_error,
    stalled_answer_error,
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
"""Headers that are also sent to the server of a redirect; all others stay at the first."""
_UNSATISFIED_RANGE: Final = re.compile(r"bytes \*/(\d{1,19})")
"""``Content-Range`` of a range beyond the end of the object (RFC 9110, section 14.4)."""
_BUCKETS: Final = ("s3://", "s3a://")
_ANSWERING: Final = ("http://", "https://", *_BUCKETS)
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
"""Errors of aiohttp for a redirect to something that is no web server."""
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

    async def get(self, path: str, start: int | None, stop: int | None, limit_bytes: int) -> Buffer:
        """See :class:`spinezarr.remote.transport.Transport`."""
        return (await self.get_response(ObjectRequest(path, start, stop, limit_bytes))).data

    async def get_response(self, wanted: ObjectRequest) -> ObjectResponse:
        """See :class:`spinezarr.remote.transport.Transport`."""
        path = wanted.path
        where = redact_url(path if "://" in path else f"{self._scheme}://{path}")
        if isinstance(self._fs, AsyncFileSystem) and self._fs.async_impl:
            # Translated on fsspec's event loop: asyncio logs the error of a cancelled task,
            # and the original error may contain a secret.
            task = _translate_errors(self._read_watched(wanted), where, wanted)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(task, self._fs.loop))
        read = asyncio.get_running_loop().run_in_executor(
            self._threads, partial(self._fs.cat_file, path, start=wanted.start, end=_end(wanted))
        )
        return await _translate_errors(_unversioned(_bounded(wanted, read)), where, wanted)

    async def _read_watched(self, wanted: ObjectRequest) -> ObjectResponse:
        with RequestProgress(self._detector) as progress:
            return await self._read(self._fs, wanted, progress)


async def _bounded(wanted: ObjectRequest, read: Awaitable[bytes]) -> bytes:
    """Await bytes, and check their number afterwards."""
    data = await read
    if len(data) > wanted.max_bytes:
        raise _TooLargeError(wanted, len(data))
    return data


async def _read_body(
    wanted: ObjectRequest,
    parts: AsyncIterator[bytes],
    length: int | None,
    progress: RequestProgress,
) -> bytes:
    """Read a body of at most ``max_bytes`` that does not stall."""
    if length is not None and length > wanted.max_bytes:
        raise _TooLargeError(wanted, length)
    data = bytearray()
    while True:
        part = await progress.step(anext(parts, b""))
        if not part:
            return bytes(data)
        data += part
        progress.add(len(part))
        if len(data) > wanted.max_bytes:
            raise _TooLargeError(wanted, None)


def _single_attempt(options: Mapping[str, Any], settings: RemoteSettings) -> dict[str, Any]:
    """Return options of s3fs that make one attempt, and allow many requests at once."""
    config = {
        "max_pool_connections": _CONNECTIONS,
        "read_timeout": settings.s3_first_byte_s,
        **(options.get("config_kwargs") or {}),
    }
    return {**options, "config_kwargs": {**config, "retries": {"total_max_attempts": 1}}}


async def _translate_errors(
    read: Awaitable[ObjectResponse], where: str, wanted: ObjectRequest
) -> ObjectResponse:
    """Await a response; raise an error of this package without the original one."""
    try:
        found = await read
    except Exception as caught:  # noqa: BLE001  any file system, any error
        if wanted.if_none_match and _response_of(caught)[0] == HTTPStatus.NOT_MODIFIED:
            return NOT_MODIFIED
        problem = _translated(caught, where, wanted.start)
    else:
        problem = None if wanted.accepts(found) else object_changed_error(where)
        if problem is None:
            return found
    if problem is None:
        return ObjectResponse(b"", {})
    raise problem


def _end(wanted: ObjectRequest) -> int:
    """Return the end of the range to read, one byte more than allowed for a whole object."""
    return (wanted.start or 0) + wanted.max_bytes + (wanted.stop is None)


async def _unversioned(read: Awaitable[bytes]) -> ObjectResponse:
    """Return a response without headers."""
    return ObjectResponse(await read, {})


async def _read_any(fs: Any, wanted: ObjectRequest, progress: RequestProgress) -> ObjectResponse:  # noqa: ANN401
    end = _end(wanted)
    read = fs._cat_file(wanted.path, start=wanted.start, end=end)  # noqa: SLF001  as fsspec itself
    return await _unversioned(progress.until_end(_bounded(wanted, read)))


async def _read_s3(
    fs: Any,  # noqa: ANN401
    wanted: ObjectRequest,
    progress: RequestProgress,
    *,
    first_byte_s: float,
) -> ObjectResponse:
    opening = fs.open_object(wanted.path, wanted.headers)
    body, headers = await progress.step(opening, first_byte_s)
    progress.renew()
    length = int(headers["content-length"]) if "content-length" in headers else None
    content_range = headers.get("content-range")
    async with body:
        if wanted.range and content_range is None:
            beginning = await progress.step(body.read(PAGE_BYTES))
            raise _not_partial(beginning, length, wanted.start, wanted.stop)
        expected = _range_bytes(content_range or "", wanted)
        data = await _read_body(wanted, fs.parts(body, wanted.path), length, progress)
    return ObjectResponse(_checked_length(data, expected), headers)


class _HttpReader:
    """Reads from a web server through aiohttp, with the options of fsspec."""

    def __init__(self, fs: Any) -> None:  # noqa: ANN401  fsspec is untyped
        self._options = dict(fs.client_kwargs)

    async def read(
        self,
        fs: Any,  # noqa: ANN401
        wanted: ObjectRequest,
        progress: RequestProgress,
    ) -> ObjectResponse:
        options = {"timeout": _timeout(), **fs.kwargs}
        # A range of a compressed body cannot be used, and a body may grow without end when it is
        # decompressed.
        given = options.pop("headers", None) or {}
        headers = {**given, "Accept-Encoding": "identity", **wanted.headers}
        session = await self._opened(fs)
        url = fs.encode_url(wanted.path)
        middlewares = (*self._options.get("middlewares", ()), _KeepSecretsAtOrigin(url))
        own = {"auto_decompress": False, "max_redirects": MAX_REDIRECTS, "middlewares": middlewares}
        asking = session.get(url, headers=headers, **options, **own)
        answer = await progress.step(asking)
        progress.renew()
        try:
            return await self._taken(answer, wanted, progress)
        finally:
            answer.release()

    async def _taken(
        self,
        answer: Any,  # noqa: ANN401
        wanted: ObjectRequest,
        progress: RequestProgress,
    ) -> ObjectResponse:
        named = {name.lower(): text for name, text in answer.headers.items()}
        if not answer.ok or answer.status == HTTPStatus.NOT_MODIFIED:
            raise _HttpStatusError(answer.status, named)
        if wanted.range and answer.status != HTTPStatus.PARTIAL_CONTENT:
            # The rest, which may be a whole shard, is not needed.
            beginning = await progress.step(answer.content.read(PAGE_BYTES))
            raise _not_partial(beginning, answer.content_length, wanted.start, wanted.stop)
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise _EncodedError
        expected = _range_bytes(answer.headers.get("Content-Range", ""), wanted)
        parts = answer.content.iter_any()
        data = await _read_body(wanted, parts, answer.content_length, progress)
        return ObjectResponse(_checked_length(data, expected), named)

    async def _opened(self, fs: Any) -> Any:  # noqa: ANN401
        """Return the session of fsspec, which all file systems with the same options share."""
        if fs._session is None:  # noqa: SLF001  as fsspec itself
            from aiohttp import TCPConnector  # noqa: PLC0415  optional, and takes long

            # Without a limit of connections: a request that waits for one would seem to stall.
            own = {"connector": TCPConnector(limit=0), "trust_env": bool(getproxies())}
            fs.client_kwargs = {**own, **self._options}
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
    from aiohttp import ClientTimeout  # noqa: PLC0415  optional, and takes long

    return ClientTimeout(total=None, sock_connect=_CONNECT_S)  # RequestProgress limits the rest


class _HttpStatusError(Exception):
    """The response has an error status."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class _BadResponseError(Exception):
    """The response does not fit the request; another attempt may help."""

    def translated(self, where: str) -> OSError:
        """Return the error to raise."""
        return transient_error(where, str(self))


class _NoRangeError(_BadResponseError):
    """The response to a request for a range is not that range."""

    def translated(self, where: str) -> OSError:
        """Return the error to raise."""
        return no_ranges_error(where, str(self))


class _TooLargeError(Exception):
    """The response is longer than allowed."""

    def __init__(self, wanted: ObjectRequest, found_bytes: int | None) -> None:
        super().__init__()
        self.wanted = wanted
        self.found_bytes = found_bytes

    def translated(self, where: str) -> OSError:
        """Return the error to raise; a range may be requested again."""
        most = self.wanted.max_bytes
        if self.wanted.stop is None:
            return object_too_large_error(where, most, self.found_bytes)
        found = "more bytes" if self.found_bytes is None else f"{self.found_bytes} bytes"
        return transient_error(where, f"{found} came of {most}")


class _EncodedError(Exception):
    """The body is compressed although the request forbids it."""

    def translated(self, where: str) -> OSError:
        """Return the error to raise."""
        text = "the server compresses what it sends (Content-Encoding). Switch that off for stores"
        return OSError(errno.EIO, text, where)


class _RedirectError(Exception):
    """The redirect is not followed."""

    def translated(self, where: str) -> OSError:
        """Return the error to raise."""
        return redirect_error(where, str(self))


class _WebPageError(_BadResponseError):
    """The response is a web page instead of the object."""

    def translated(self, where: str) -> OSError:
        """Return the error to raise."""
        return web_page_error(where)


def _not_partial(
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
    asked = f"bytes {start or 0} to {'its end' if stop is None else stop - 1}"
    if size is not None and stop is not None and size < stop:
        return _BadResponseError(
            f"the server sent {size} bytes as the whole object instead of {asked}"
        )
    whole = "the whole object" if size is None else f"the whole object of {size} bytes"
    return _NoRangeError(f"the server sent {whole} instead of {asked}")


def _range_bytes(content_range: str, wanted: ObjectRequest) -> int | None:
    """Return the length of the range that a response contains; None for a whole object.

    Parameters
    ----------
    content_range
        ``Content-Range`` header of the response.
    wanted
        The request.

    Raises
    ------
    _NoRangeError
        If it is another range.
    """
    if not wanted.range:
        return None
    start, stop = wanted.start or 0, wanted.stop
    found = CONTENT_RANGE.fullmatch(content_range)
    if found is None:
        raise _NoRangeError("the server did not say which bytes it sent (Content-Range)")
    first, last, total = found.groups()
    ends = [x for x in (stop, None if total == "*" else int(total)) if x is not None]
    is_whole = not ends or int(last) + 1 == min(ends) or (total == "*" and int(last) < min(ends))
    if int(first) != start or not is_whole:
        asked = f"bytes {start} to {'its end' if stop is None else stop - 1}"
        raise _NoRangeError(f"the server sent bytes {first} to {last} instead of {asked}")
    return int(last) + 1 - int(first)


def _checked_length(data: bytes, expected_bytes: int | None) -> bytes:
    """Return the bytes of a response if their number is the expected one."""
    if expected_bytes is not None and len(data) != expected_bytes:
        raise _BadResponseError(f"{len(data)} bytes came of {expected_bytes}")
    return data


def _translated(problem: Exception, where: str, start: int | None) -> Exception | None:
    """Return the error to raise; None if the object ends before the range begins."""
    if isinstance(problem, _BadResponseError | _TooLargeError | _EncodedError | _RedirectError):
        return problem.translated(where)
    if isinstance(problem, StalledError):
        return stalled_answer_error(where)
    if "TooManyRedirects" in _class_names(problem):
        return redirect_error(where, f"it leads on more than {MAX_REDIRECTS} times")
    status, code, headers = _response_of(problem)
    if "HttpProcessingError" in _class_names(problem) or not (status or code):
        return _network_error(problem, where)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start is not None:
        return _unsatisfied_range_error(headers, where, start)
    return response_error(status, code, where, headers)


def _unsatisfied_range_error(headers: Mapping[str, str], where: str, start: int) -> OSError | None:
    """Return the error for status 416; None if the object really ends before the range."""
    known = _UNSATISFIED_RANGE.fullmatch(headers.get("content-range", ""))
    if known and int(known[1]) > start:
        text = f"the server refused byte {start} of an object of {known[1]} bytes (416)"
        return no_ranges_error(where, text)
    return None


def _network_error(problem: Exception, where: str) -> OSError:
    names = _class_names(problem)
    if not _CERTIFICATE_ERRORS.isdisjoint(names):
        return certificate_error(where)
    if not _REDIRECT_ERRORS.isdisjoint(names):
        return redirect_error(where, "it leads to what is no web server")
    number = getattr(problem, "errno", None)
    lost = isinstance(problem, ConnectionError | TimeoutError) or number in _TRANSIENT_NUMBERS
    if lost or not _TRANSIENT_NAMES.isdisjoint(names):
        return no_answer_error(where)
    return _local_error(problem, names, where)


def _local_error(problem: Exception, names: set[str], where: str) -> OSError:
    """Return the error for a cause other than the network."""
    number = getattr(problem, "errno", None)
    if isinstance(problem, PermissionError) or not _NO_CREDENTIALS.isdisjoint(names):
        return _permission_error(problem, where)
    if isinstance(problem, FileNotFoundError) and not where.startswith(_ANSWERING):
        return FileNotFoundError(errno.ENOENT, "there is no such object", where)
    if isinstance(problem, OSError) and number and number != errno.ENOENT:
        return OSError(number, os.strerror(number), where)
    return OSError(errno.EIO, f"it cannot be read ({type(problem).__name__})", where)


def _permission_error(problem: Exception, where: str) -> PermissionError:
    text = "access is denied"
    if where.startswith(_BUCKETS):
        text = f"the credentials cannot be found or renewed. {CREDENTIALS_ADVICE}"
        if isinstance(problem, PermissionError):
            text = problem.strerror or text  # as this package says it
    return PermissionError(errno.EACCES, text, where)


def _class_names(problem: Exception) -> set[str]:
    """Return the class names of an error and of its cause."""
    raised = [problem, problem.__cause__]
    return {kind.__name__ for item in raised for kind in type(item).__mro__}


def _response_of(problem: Exception) -> tuple[int, str, dict[str, str]]:
    """Return status, S3's error code and headers of the response in an error; status 0 if none."""
    response = getattr(problem.__cause__ or problem, "response", None)
    if isinstance(response, dict):  # botocore's
        about = response.get("ResponseMetadata", {})
        code = str(response.get("Error", {}).get("Code", ""))
        return (
            int(about.get("HTTPStatusCode", 0)),
            "" if code.isdigit() else code,
            about.get("HTTPHeaders", {}),
        )
    for source in (problem, response):  # aiohttp's, gcsfs's; those of requests and azure
        for name in ("status", "status_code", "code"):
            status = getattr(source, name, None)
            if isinstance(status, int):
                found = getattr(source, "headers", None) or {}
                return status, "", {str(k).lower(): str(v) for k, v in found.items()}
    return 0, "", {}
