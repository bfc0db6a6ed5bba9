"""Objects through any fsspec file system, one attempt each."""

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
    PAGE_BYTES,
    REDIRECTS,
    answer_error,
    broken_off,
    broken_trust,
    changed,
    is_page,
    led_away,
    no_range,
    page_instead,
    stalled,
    too_long,
    unanswered,
)
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.remote.pace import Pace, Progress, StalledError
from spinezarr.remote.s3_errors import CREDENTIALS
from spinezarr.remote.versions import UNCHANGED, ObjectVersion, Wanted

__all__ = ["FsspecTransport"]

_THREADS: Final = 32
_CONNECTIONS: Final = 128
_CONNECT_S: Final = 10
_S3_HEAD_S: Final = 40.0
"""Until an answer of S3 begins: botocore may ask for credentials and the bucket's region first."""
_AWAY: Final = {
    "accept",
    "accept-encoding",
    "host",
    "if-match",
    "if-none-match",
    "range",
    "user-agent",
}
"""Headers that go to another server than the user named."""
_OF_NO_RANGE: Final = re.compile(r"bytes \*/(\d{1,19})")
"""``Content-Range`` of an object whose end lies before the range (RFC 9110, section 14.4)."""
_BUCKETS: Final = ("s3://", "s3a://")
_ANSWERING: Final = ("http://", "https://", *_BUCKETS)
"""Where only the server can say that an object is absent."""
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
_LED_ASTRAY: Final = {"InvalidURL", "RedirectClientError"}
"""Of aiohttp, for redirects to what it cannot ask."""
_TRANSIENT_NAMES: Final = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
    "HttpProcessingError",
    "ConnectionError",  # requests
    "IncompleteRead",  # http.client
    "Timeout",
    "TransportError",  # httpx
}
"""Classes of the libraries below fsspec, which do not agree on a builtin one."""
_NO_CREDENTIALS: Final = {
    "CredentialRetrievalError",
    "MetadataRetrievalError",
    "SSOError",
    "TokenRetrievalError",
}
"""Of botocore, besides those that it has no credentials at all."""
_DISTRUST: Final = {"ClientConnectorCertificateError", "ClientSSLError", "SSLError"}


class FsspecTransport:
    """Asks for objects through fsspec; see :class:`spinezarr.remote.transport.Transport`.

    It belongs to the process that made it.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._scheme = url.partition("://")[0]
        is_s3 = self._scheme in {"s3", "s3a"}
        self._fs, _ = open_filesystem(url, _once(options) if is_s3 else options)
        self._pace = Pace()
        self._read: Callable[..., Awaitable[ObjectVersion]] = _read_any
        if is_s3:
            self._fs.retries = 1  # of s3fs, around those of botocore
            self._read = _read_s3
        elif self._scheme in {"http", "https"}:
            self._read = _Web(self._fs).read
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spinezarr-get")

    async def get(self, path: str, start: int | None, stop: int | None, limit_bytes: int) -> Buffer:
        """See :class:`spinezarr.remote.transport.Transport`."""
        return (await self.get_version(Wanted(path, start, stop, limit_bytes))).data

    async def get_version(self, wanted: Wanted) -> ObjectVersion:
        """See :class:`spinezarr.remote.transport.Transport`."""
        path = wanted.path
        where = redact_url(path if "://" in path else f"{self._scheme}://{path}")
        if isinstance(self._fs, AsyncFileSystem) and self._fs.async_impl:
            # Explained on fsspec's own loop: what it logs of a task that was left must be clean.
            task = _explain(self._watched(wanted), where, wanted)
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(task, self._fs.loop))
        read = asyncio.get_running_loop().run_in_executor(
            self._threads, partial(self._fs.cat_file, path, start=wanted.start, end=_end(wanted))
        )
        return await _explain(_unversioned(_bounded(wanted, read)), where, wanted)

    async def _watched(self, wanted: Wanted) -> ObjectVersion:
        with Progress(self._pace) as progress:
            return await self._read(self._fs, wanted, progress)


async def _bounded(wanted: Wanted, read: Awaitable[bytes]) -> bytes:
    """Await bytes that cannot be bounded before."""
    data = await read
    if len(data) > wanted.most_bytes:
        raise _TooLongError(wanted, len(data))
    return data


async def _collected(
    wanted: Wanted, parts: AsyncIterator[bytes], length: int | None, progress: Progress
) -> bytes:
    """Return a body, if it is not longer than it may be, and does not stall."""
    if length is not None and length > wanted.most_bytes:
        raise _TooLongError(wanted, length)
    data = bytearray()
    while True:
        part = await progress.step(anext(parts, b""))
        if not part:
            return bytes(data)
        data += part
        progress.add(len(part))
        if len(data) > wanted.most_bytes:
            raise _TooLongError(wanted, None)


def _once(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return s3fs's options for one attempt and many at once."""
    config = {
        "max_pool_connections": _CONNECTIONS,
        "read_timeout": _S3_HEAD_S,
        **(options.get("config_kwargs") or {}),
    }
    return {**options, "config_kwargs": {**config, "retries": {"total_max_attempts": 1}}}


async def _explain(read: Awaitable[ObjectVersion], where: str, wanted: Wanted) -> ObjectVersion:
    """Await bytes; raise one of the kinds of error, with nothing of the original in it."""
    try:
        found = await read
    except Exception as caught:  # noqa: BLE001  any file system, any error
        if wanted.unless_tag and _answer(caught)[0] == HTTPStatus.NOT_MODIFIED:
            return UNCHANGED
        problem = _explained(caught, where, wanted.start)
    else:
        problem = None if wanted.is_met(found) else changed(where)
        if problem is None:
            return found
    if problem is None:
        return ObjectVersion(b"", {})
    raise problem


def _end(wanted: Wanted) -> int:
    """Return the end of the bytes to read where they cannot be counted as they come."""
    return (wanted.start or 0) + wanted.most_bytes + (wanted.stop is None)


async def _unversioned(read: Awaitable[bytes]) -> ObjectVersion:
    """Return bytes of which nobody says of which version they are."""
    return ObjectVersion(await read, {})


async def _read_any(fs: Any, wanted: Wanted, progress: Progress) -> ObjectVersion:  # noqa: ANN401
    end = _end(wanted)
    read = fs._cat_file(wanted.path, start=wanted.start, end=end)  # noqa: SLF001  as fsspec itself
    return await _unversioned(progress.whole(_bounded(wanted, read)))


async def _read_s3(fs: Any, wanted: Wanted, progress: Progress) -> ObjectVersion:  # noqa: ANN401
    opening = fs.open_object(wanted.path, wanted.headers)
    body, headers = await progress.step(opening, _S3_HEAD_S)
    progress.renew()
    length = int(headers["content-length"]) if "content-length" in headers else None
    content_range = headers.get("content-range")
    async with body:
        if wanted.range and content_range is None:
            beginning = await progress.step(body.read(PAGE_BYTES))
            raise _not_partial(beginning, length, wanted.start, wanted.stop)
        expected = _range_bytes(content_range or "", wanted)
        data = await _collected(wanted, fs.parts(body, wanted.path), length, progress)
    return ObjectVersion(_whole(data, expected), headers)


class _Web:
    """A web server, asked through aiohttp with fsspec's options."""

    def __init__(self, fs: Any) -> None:  # noqa: ANN401  fsspec is untyped
        self._options = dict(fs.client_kwargs)

    async def read(self, fs: Any, wanted: Wanted, progress: Progress) -> ObjectVersion:  # noqa: ANN401
        options = {"timeout": _timeout(), **fs.kwargs}
        # A range of a body that was compressed on the way is of no use, and one may grow without
        # end as it is inflated.
        given = options.pop("headers", None) or {}
        headers = {**given, "Accept-Encoding": "identity", **wanted.headers}
        session = await self._opened(fs)
        url = fs.encode_url(wanted.path)
        middlewares = (*self._options.get("middlewares", ()), _AtHome(url))
        own = {"auto_decompress": False, "max_redirects": REDIRECTS, "middlewares": middlewares}
        asking = session.get(url, headers=headers, **options, **own)
        answer = await progress.step(asking)
        progress.renew()
        try:
            return await self._taken(answer, wanted, progress)
        finally:
            answer.release()

    async def _taken(self, answer: Any, wanted: Wanted, progress: Progress) -> ObjectVersion:  # noqa: ANN401
        named = {name.lower(): text for name, text in answer.headers.items()}
        if not answer.ok or answer.status == HTTPStatus.NOT_MODIFIED:
            raise _RefusedError(answer.status, named)
        if wanted.range and answer.status != HTTPStatus.PARTIAL_CONTENT:
            # The rest may be a whole shard, and is of no use.
            beginning = await progress.step(answer.content.read(PAGE_BYTES))
            raise _not_partial(beginning, answer.content_length, wanted.start, wanted.stop)
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise _EncodedError
        expected = _range_bytes(answer.headers.get("Content-Range", ""), wanted)
        parts = answer.content.iter_any()
        data = await _collected(wanted, parts, answer.content_length, progress)
        return ObjectVersion(_whole(data, expected), named)

    async def _opened(self, fs: Any) -> Any:  # noqa: ANN401
        """Return fsspec's session, which others of the same options share, as it would make it."""
        if fs._session is None:  # noqa: SLF001  as fsspec itself
            from aiohttp import TCPConnector  # noqa: PLC0415  optional, and takes long

            # All under way have a connection, or they would wait for one, and not the server.
            own = {"connector": TCPConnector(limit=0), "trust_env": bool(getproxies())}
            fs.client_kwargs = {**own, **self._options}
        return await fs.set_session()


class _AtHome:
    """Keeps what is secret from servers that an answer leads to (a middleware of aiohttp)."""

    def __init__(self, home: Any) -> None:  # noqa: ANN401  an URL of yarl
        self._origin = home.origin()

    async def __call__(self, request: Any, handler: Any) -> Any:  # noqa: ANN401
        if request.url.origin() != self._origin:
            if is_link_local(request.url.host or ""):
                raise _LedAwayError("it leads to an address of the machine's own network")
            for name in {*request.headers}:
                if name.lower() not in _AWAY:
                    request.headers.popall(name, None)
        return await handler(request)


def _timeout() -> Any:  # noqa: ANN401
    from aiohttp import ClientTimeout  # noqa: PLC0415  optional, and takes long

    return ClientTimeout(total=None, sock_connect=_CONNECT_S)  # Progress has the others


class _RefusedError(Exception):
    """An answer without the object's bytes."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class _WrongError(Exception):
    """An answer that does not fit what was asked for."""

    def explained(self, where: str) -> OSError:
        """Return the error to raise."""
        return broken_off(where, str(self))


class _UnrangedError(_WrongError):
    """An answer to a request for a range that knows no ranges."""

    def explained(self, where: str) -> OSError:
        """Return the error to raise."""
        return no_range(where, str(self))


class _TooLongError(Exception):
    """More bytes than may come."""

    def __init__(self, wanted: Wanted, found_bytes: int | None) -> None:
        super().__init__()
        self.wanted = wanted
        self.found_bytes = found_bytes

    def explained(self, where: str) -> OSError:
        """Return the error to raise; a range is worth asking for again."""
        most = self.wanted.most_bytes
        if self.wanted.stop is None:
            return too_long(where, most, self.found_bytes)
        found = "more bytes" if self.found_bytes is None else f"{self.found_bytes} bytes"
        return broken_off(where, f"{found} came of {most}")


class _EncodedError(Exception):
    """A body that was compressed, though that was not asked for."""

    def explained(self, where: str) -> OSError:
        """Return the error to raise."""
        text = "the server compresses what it sends (Content-Encoding). Switch that off for stores"
        return OSError(errno.EIO, text, where)


class _LedAwayError(Exception):
    """A redirect that is not followed."""

    def explained(self, where: str) -> OSError:
        """Return the error to raise."""
        return led_away(where, str(self))


class _PageError(_WrongError):
    """A web page instead of the object."""

    def explained(self, where: str) -> OSError:
        """Return the error to raise."""
        return page_instead(where)


def _not_partial(
    beginning: bytes, size: int | None, start: int | None, stop: int | None
) -> Exception:
    """Return the error for an answer that says that it is the whole object.

    Parameters
    ----------
    beginning
        Its first bytes.
    size
        How many there are, if that is known.
    """
    if is_page(beginning):
        return _PageError()
    asked = f"bytes {start or 0} to {'its end' if stop is None else stop - 1}"
    if size is not None and stop is not None and size < stop:
        return _WrongError(f"the server sent {size} bytes as the whole object instead of {asked}")
    whole = "the whole object" if size is None else f"the whole object of {size} bytes"
    return _UnrangedError(f"the server sent {whole} instead of {asked}")


def _range_bytes(content_range: str, wanted: Wanted) -> int | None:
    """Return the length of a range that is the one asked for; None if all of an object is.

    Parameters
    ----------
    content_range
        What the answer says it holds.
    wanted
        What was asked for.
    """
    if not wanted.range:
        return None
    start, stop = wanted.start or 0, wanted.stop
    found = CONTENT_RANGE.fullmatch(content_range)
    if found is None:
        raise _UnrangedError("the server did not say which bytes it sent (Content-Range)")
    first, last, total = found.groups()
    ends = [x for x in (stop, None if total == "*" else int(total)) if x is not None]
    is_whole = not ends or int(last) + 1 == min(ends) or (total == "*" and int(last) < min(ends))
    if int(first) != start or not is_whole:
        asked = f"bytes {start} to {'its end' if stop is None else stop - 1}"
        raise _UnrangedError(f"the server sent bytes {first} to {last} instead of {asked}")
    return int(last) + 1 - int(first)


def _whole(data: bytes, expected_bytes: int | None) -> bytes:
    """Return what came if it is as long as it should be."""
    if expected_bytes is not None and len(data) != expected_bytes:
        raise _WrongError(f"{len(data)} bytes came of {expected_bytes}")
    return data


def _explained(problem: Exception, where: str, start: int | None) -> Exception | None:
    """Return the error to raise, or None where the object ends before the range begins."""
    if isinstance(problem, _WrongError | _TooLongError | _EncodedError | _LedAwayError):
        return problem.explained(where)
    if isinstance(problem, StalledError):
        return stalled(where)
    if "TooManyRedirects" in _names(problem):
        return led_away(where, f"it leads on more than {REDIRECTS} times")
    status, code, headers = _answer(problem)
    if "HttpProcessingError" in _names(problem) or not (status or code):
        return _without_answer(problem, where)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and start is not None:
        return _refused_range(headers, where, start)
    return answer_error(status, code, where, headers)


def _refused_range(headers: Mapping[str, str], where: str, start: int) -> OSError | None:
    """Return the error for a range that begins inside the object as the server knows it."""
    known = _OF_NO_RANGE.fullmatch(headers.get("content-range", ""))
    if known and int(known[1]) > start:
        text = f"the server refused byte {start} of an object of {known[1]} bytes (416)"
        return no_range(where, text)
    return None


def _without_answer(problem: Exception, where: str) -> OSError:
    names = _names(problem)
    if not _DISTRUST.isdisjoint(names):
        return broken_trust(where)
    if not _LED_ASTRAY.isdisjoint(names):
        return led_away(where, "it leads to what is no web server")
    number = getattr(problem, "errno", None)
    lost = isinstance(problem, ConnectionError | TimeoutError) or number in _TRANSIENT_NUMBERS
    if lost or not _TRANSIENT_NAMES.isdisjoint(names):
        return unanswered(where)
    return _of_its_own(problem, names, where)


def _of_its_own(problem: Exception, names: set[str], where: str) -> OSError:
    """Return the error for what is no fault of the network."""
    number = getattr(problem, "errno", None)
    if isinstance(problem, PermissionError) or not _NO_CREDENTIALS.isdisjoint(names):
        return _denied(problem, where)
    if isinstance(problem, FileNotFoundError) and not where.startswith(_ANSWERING):
        return FileNotFoundError(errno.ENOENT, "there is no such object", where)
    if isinstance(problem, OSError) and number and number != errno.ENOENT:
        return OSError(number, os.strerror(number), where)
    return OSError(errno.EIO, f"it cannot be read ({type(problem).__name__})", where)


def _denied(problem: Exception, where: str) -> PermissionError:
    text = "access is denied"
    if where.startswith(_BUCKETS):
        text = f"the credentials cannot be found or renewed. {CREDENTIALS}"
        if isinstance(problem, PermissionError):
            text = problem.strerror or text  # as this package says it
    return PermissionError(errno.EACCES, text, where)


def _names(problem: Exception) -> set[str]:
    """Return the names of the classes of an error and of what caused it."""
    raised = [problem, problem.__cause__]
    return {kind.__name__ for item in raised for kind in type(item).__mro__}


def _answer(problem: Exception) -> tuple[int, str, dict[str, str]]:
    """Return status, S3's code and headers of the answer that an error is about; 0 if none is."""
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
