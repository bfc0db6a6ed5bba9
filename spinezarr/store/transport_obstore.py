"""Objects through obstore, which asks for many at once with little work in Python."""

import asyncio
import errno
import re
from collections.abc import Sequence
from http import HTTPStatus
from threading import Lock
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, NotSupportedError, UnauthenticatedError
from typing_extensions import Buffer

from spinezarr.store.s3_errors import CREDENTIALS
from spinezarr.store.transport_errors import (
    answer_error,
    broken_off,
    broken_trust,
    public_url,
    unanswered,
)

__all__ = ["CLIENT", "NO_RETRIES", "NotServedError", "ObstoreTransport", "Stores", "is_plain_key"]

CLIENT: Final[dict[str, Any]] = {
    "allow_http": True,
    "connect_timeout": "5s",
    "timeout": "120s",
    "pool_max_idle_per_host": "128",
}
"""obstore's own bound of 30 s for a request would end large ones over a slow link."""
NO_RETRIES: Final[Any] = {"max_retries": 0}
_STATUS: Final = re.compile(r"Server returned non-2xx status code: (\d{3})")
_ASKED: Final = re.compile(r"performing [A-Z]+ (https?://\S+)")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]+)</Code>")
_OTHER_REGION: Final = (
    "Received redirect without LOCATION",
    "<Code>AuthorizationHeaderMalformed</Code>",
    "<Code>PermanentRedirect</Code>",
)
"""Answers after which botocore asks the bucket for its region."""
_NOT_SERVED: Final = (
    "Content-Length Header missing",
    "Failed to parse value for CONTENT_RANGE",  # of unknown total size
)
"""Answers that HTTP allows and obstore does not take."""
_DROPPED_SEGMENTS: Final = {"", ".", ".."}


class NotServedError(Exception):
    """What obstore cannot do, so that fsspec has to."""


class Stores(Protocol):
    """Where paths lie for obstore."""

    def locate(self, path: str) -> tuple[str, str] | None:
        """Return the name of a store and the key in it, or None where fsspec has to ask."""
        ...

    def open(self, name: str) -> Any:  # noqa: ANN401  one of obstore's stores
        """Return that store; may take long.

        Raises
        ------
        NotServedError
            If obstore cannot.
        PermissionError
            If there are no credentials.
        """
        ...


class ObstoreTransport:
    """Asks for objects through obstore; see :class:`spinezarr.store.transport.Transport`."""

    def __init__(self, url: str, stores: Stores) -> None:
        self._scheme = url.partition("://")[0]
        self._stores = stores
        self._open: dict[str, Any] = {}
        self._left: set[str] = set()
        """Names of stores that fsspec has to ask from now on."""
        self._lock = Lock()

    async def get(self, path: str, start: int | None = None, stop: int | None = None) -> Buffer:
        """See :class:`spinezarr.store.transport.Transport`.

        Raises
        ------
        NotServedError
            If fsspec has to be asked instead.
        """
        name, key = self._stores.locate(path) or ("", "")
        if not name or name in self._left:
            raise NotServedError
        where = public_url(path if "://" in path else f"{self._scheme}://{path}")
        store: Any = self._open.get(name) or await asyncio.to_thread(self._opened, name, where)
        try:
            if start is not None and stop is not None:
                quick = await _quickly(store, key, start, stop)
                if quick is not None:
                    return quick
            answer = await obstore.get_async(store, key, options=_options(start, stop))
            data = await answer.bytes_async()
        except (BaseError, OSError) as caught:
            if any(answer in str(caught) for answer in _OTHER_REGION):
                self._left.add(name)
            problem: Exception | None = _explained(caught, where)
        else:
            first, last = answer.range
            if len(data) == last - first:
                return data
            problem = broken_off(where, f"{len(data)} bytes came of {last - first}")
        # Not in the handler: obstore's own text holds the URL with all that is secret in it.
        if problem is None:
            return b""
        raise problem

    async def get_together(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        """See :class:`spinezarr.store.transport.Transport`."""
        name, key = self._stores.locate(path) or ("", "")
        store = self._open.get(name)
        if store is None or name in self._left:
            return None
        starts, stops = zip(*spans, strict=True)
        try:
            return await obstore.get_ranges_async(store, key, starts=starts, ends=stops, coalesce=0)
        except (BaseError, OSError):
            return None

    def _opened(self, name: str, where: str) -> Any:  # noqa: ANN401
        with self._lock:
            if name not in self._open:
                try:
                    self._open[name] = self._stores.open(name)
                except PermissionError as problem:
                    problem.filename = where
                    raise
                except (BaseError, NotServedError, ValueError, OSError):
                    self._left.add(name)
            if name in self._left:
                raise NotServedError
            return self._open[name]


async def _quickly(store: Any, key: str, start: int, stop: int) -> Buffer | None:  # noqa: ANN401
    """Return a range that came whole; None for any other answer, which does not say enough."""
    try:
        data: Buffer = await obstore.get_range_async(store, key, start=start, end=stop)
    except (BaseError, OSError) as problem:
        if "Requested" in str(problem):  # the object may end inside the range
            return None
        raise
    return data if memoryview(data).nbytes == stop - start else None


def _options(start: int | None, stop: int | None) -> Any:  # noqa: ANN401  as obstore takes them
    if stop is not None:
        return {"range": (start or 0, stop)}
    return {"range": {"offset": start}} if start else None


def _explained(problem: Exception, where: str) -> Exception | None:
    """Return the error to raise, or None where the object ends before the range begins."""
    text = str(problem)
    if any(answer in text for answer in _OTHER_REGION + _NOT_SERVED):
        return NotServedError()
    found, code = _STATUS.search(text), _CODE.search(text)
    if found is None:
        return _without_status(problem, where)
    if int(found[1]) == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
        return None
    return answer_error(int(found[1]), code[1] if code else "", where)


def _without_status(problem: Exception, where: str) -> OSError:
    text = str(problem)
    if isinstance(problem, UnauthenticatedError):  # what gives the credentials failed
        text = f"the credentials cannot be renewed. {CREDENTIALS}"
        return PermissionError(errno.EACCES, text, where)
    if isinstance(problem, NotSupportedError) or "non-partial response" in text:
        return broken_off(where, "the server sent the whole object instead of the range")
    if "InvalidCertificate" in text:
        return broken_trust(where)
    asked = _ASKED.search(text)
    if asked is None:
        return unanswered(where)
    url = urlsplit(public_url(asked[1]))
    return unanswered(where, f"{url.scheme}://{url.netloc}")


def is_plain_key(key: str) -> bool:
    """Whether obstore asks for a key as it is: it refuses or drops some parts of a path."""
    return key.isprintable() and _DROPPED_SEGMENTS.isdisjoint(key.split("/"))
