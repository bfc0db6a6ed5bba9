"""Objects through any fsspec file system, one attempt each."""

import asyncio
import errno
import os
import re
from collections.abc import Awaitable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from fsspec.asyn import AsyncFileSystem
from typing_extensions import Buffer

from spinezarr.store.files import open_filesystem
from spinezarr.store.s3_errors import CREDENTIALS
from spinezarr.store.transport_errors import (
    answer_error,
    broken_off,
    broken_trust,
    public_url,
    unanswered,
)

__all__ = ["FsspecTransport"]

_THREADS: Final = 32
_CONNECTIONS: Final = 128
_TOTAL_S: Final = 120
_CONNECT_S: Final = 5
_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_WHOLE: Final = "the server sent the whole object instead of the range"
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
_TRANSIENT_NAMES: Final = {
    "ClientConnectionError",  # aiohttp
    "ClientPayloadError",
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
    """Asks for objects through fsspec; see :class:`spinezarr.store.transport.Transport`.

    It belongs to the process that made it.
    """

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._scheme = url.partition("://")[0]
        is_s3 = self._scheme in {"s3", "s3a"}
        self._fs, _ = open_filesystem(url, _once(options) if is_s3 else options)
        self._read = _read_any
        if is_s3:
            self._fs.retries = 1  # of s3fs, around those of botocore
            self._read = _read_s3
        elif self._scheme in {"http", "https"}:
            self._read = _read_http
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spinezarr-get")

    async def get(self, path: str, start: int | None = None, stop: int | None = None) -> Buffer:
        """See :class:`spinezarr.store.transport.Transport`."""
        where = public_url(path if "://" in path else f"{self._scheme}://{path}")
        if isinstance(self._fs, AsyncFileSystem) and self._fs.async_impl:
            # Explained on fsspec's own loop: what it logs of a task that was left must be clean.
            task = _explain(self._read(self._fs, path, start, stop), where)
            data = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(task, self._fs.loop))
        else:
            read = asyncio.get_running_loop().run_in_executor(
                self._threads, partial(self._fs.cat_file, path, start=start, end=stop)
            )
            data = await _explain(read, where)
        if start is not None and stop is not None and len(data) > stop - start:
            raise broken_off(where, _WHOLE)
        return data


def _once(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return s3fs's options for one attempt and many at once."""
    config = {"max_pool_connections": _CONNECTIONS, **(options.get("config_kwargs") or {})}
    return {**options, "config_kwargs": {**config, "retries": {"total_max_attempts": 1}}}


async def _explain(read: Awaitable[bytes], where: str) -> bytes:
    """Await bytes; raise one of the four kinds of error, with nothing of the original in it."""
    try:
        return await read
    except Exception as caught:  # noqa: BLE001  any file system, any error
        problem = _explained(caught, where)
    if problem is None:
        return b""
    raise problem


async def _read_any(fs: Any, path: str, start: int | None, stop: int | None) -> bytes:  # noqa: ANN401
    data: bytes = await fs._cat_file(path, start=start, end=stop)  # noqa: SLF001  as fsspec itself
    return data


async def _read_s3(fs: Any, path: str, start: int | None, stop: int | None) -> bytes:  # noqa: ANN401
    data, content_range = await fs.get_object(path, _range(start, stop))
    return _checked(data, content_range, start, stop)


async def _read_http(fs: Any, path: str, start: int | None, stop: int | None) -> bytes:  # noqa: ANN401
    options = {"timeout": _timeout(), **fs.kwargs}
    # A range of a body that was compressed on the way is of no use.
    headers = {**(options.pop("headers", None) or {}), "Accept-Encoding": "identity"}
    wanted = _range(start, stop)
    if wanted:
        headers["Range"] = wanted
    session = await fs.set_session()
    async with session.get(fs.encode_url(path), headers=headers, **options) as answer:
        if not answer.ok or answer.status == HTTPStatus.NOT_MODIFIED:
            named = {name.lower(): text for name, text in answer.headers.items()}
            raise _RefusedError(answer.status, named)
        data: bytes = await answer.read()
        partial_content = answer.status == HTTPStatus.PARTIAL_CONTENT
        content_range = answer.headers.get("Content-Range", "") if partial_content else None
    return _checked(data, content_range, start, stop)


def _timeout() -> Any:  # noqa: ANN401
    from aiohttp import ClientTimeout  # noqa: PLC0415  optional, and takes long

    return ClientTimeout(total=_TOTAL_S, sock_connect=_CONNECT_S)


class _RefusedError(Exception):
    """An answer without the object's bytes."""

    def __init__(self, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(status)
        self.status = status
        self.headers = headers


class _BrokenError(Exception):
    """An answer that does not fit what was asked for."""


def _range(start: int | None, stop: int | None) -> str:
    """Return the value of a Range header, or nothing for all of an object."""
    if start is None and stop is None:
        return ""
    return f"bytes={start or 0}-{'' if stop is None else stop - 1}"


def _checked(data: bytes, content_range: str | None, start: int | None, stop: int | None) -> bytes:
    """Return what an answer holds if it is the range that was asked for.

    Parameters
    ----------
    content_range
        What the answer says it holds; None if it says that it is the whole object.
    """
    if start is None and stop is None:
        return data
    if content_range is None:
        raise _BrokenError(_WHOLE)
    found = _CONTENT_RANGE.fullmatch(content_range)
    if found is None:
        raise _BrokenError("the server did not say which range it sent")
    first, last, total = found.groups()
    ends = [x for x in (stop, None if total == "*" else int(total)) if x is not None]
    is_whole = not ends or int(last) + 1 == min(ends) or (total == "*" and int(last) < min(ends))
    if int(first) != (start or 0) or not is_whole:
        raise _BrokenError("the server sent another range than the one asked for")
    if len(data) != int(last) + 1 - int(first):
        raise _BrokenError(f"{len(data)} bytes came of {int(last) + 1 - int(first)}")
    return data


def _explained(problem: Exception, where: str) -> Exception | None:
    """Return the error to raise, or None where the object ends before the range begins."""
    if isinstance(problem, _BrokenError):
        return broken_off(where, str(problem))
    if "HttpProcessingError" in _names(problem):
        return unanswered(where)
    status, code, headers = _answer(problem)
    if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return None
    if status or code:
        return answer_error(status, code, where, headers)
    return _without_answer(problem, where)


def _without_answer(problem: Exception, where: str) -> OSError:
    names = _names(problem)
    if not _DISTRUST.isdisjoint(names):
        return broken_trust(where)
    number = getattr(problem, "errno", None)
    lost = isinstance(problem, ConnectionError | TimeoutError) or number in _TRANSIENT_NUMBERS
    if lost or not _TRANSIENT_NAMES.isdisjoint(names):
        return unanswered(where)
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
