"""One attempt to get bytes of one object, wherever it lies.

Our own client asks where it can say the same as fsspec, all else goes through fsspec. Nothing is
repeated here: an error says whether that may help.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol

from typing_extensions import Buffer

from spinezarr.forks import PerProcess
from spinezarr.redaction import redact_url
from spinezarr.remote.direct_transport import DirectTransport, NotServedError, Places
from spinezarr.remote.errors import (
    NoRangesError,
    TransientError,
    is_page,
    page_instead,
)
from spinezarr.remote.http_options import http_places
from spinezarr.remote.s3_options import s3_places
from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.remote.versions import ObjectVersion, Wanted

__all__ = ["NoRangesError", "NotServedError", "TransientError", "Transport", "open_transport"]

_S3: Final = {"s3", "s3a"}
_HTTP: Final = {"http", "https"}


class Transport(Protocol):
    """Gets bytes of objects; can be pickled, and used in forked and spawned processes."""

    async def get(
        self,
        path: str,
        start: int | None = None,
        stop: int | None = None,
        limit_bytes: int = METADATA_BYTES,
    ) -> Buffer:
        """Return bytes ``start <= i < stop`` of an object, all of it if both are None.

        May be awaited on any loop, many at once; cancelling frees the connection. One attempt, or
        two where the first did not come whole and does not tell why.
        A range that reaches behind the end of an object comes back short or empty, as on disk.
        Over HTTP and S3 a short answer that has no such reason is a TransientError; of other file
        systems it is returned, so a caller that knows the length checks it.

        Parameters
        ----------
        path
            As :func:`open_transport` returns it, and what lies below.
        start, stop
            Neither is negative.
        limit_bytes
            Most that comes where ``stop`` is None.

        Raises
        ------
        CorruptStoreError
            If the object has more bytes than that.
        FileNotFoundError
            If it is absent.
        PermissionError
            If the server refuses, there are no credentials, or a web page comes instead.
        TransientError
            If it may succeed when it is asked for again.
        NoRangesError
            If the server gives something else than the range, as one without ranges does.
        OSError
            If it cannot be read for another reason: there is no such bucket.
        """
        ...

    async def get_version(self, wanted: Wanted) -> ObjectVersion:
        """Return bytes as :meth:`get` does, with the version that they are of.

        Raises
        ------
        ChangedObjectError
            If the object is of another version than is wanted.
        OSError
            As :meth:`get`.
        """
        ...

    async def get_together(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        """Return several ranges of an object, given by start and stop, with little work.

        None, or ranges of another length, where one of them fails or there is no such way:
        :meth:`get` then tells why.
        """
        ...

    async def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """Post JSON to a web server, and return the answer of at most so many bytes.

        Raises
        ------
        NotServedError
            If there is no such way: no web server, a proxy on the way, or an answer that is not
            taken.
        FileNotFoundError, PermissionError, TransientError, OSError
            As :meth:`get`.
        """
        ...

    @property
    def link_bytes_per_s(self) -> float | None:
        """What the link carried lately; None as long as nothing is known of it."""
        ...


def open_transport(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[Transport, str]:
    """Return a transport, and the path of a URL for it without a slash at its end.

    Parameters
    ----------
    url
        A path or fsspec URL.
    storage_options
        For fsspec's file system, as :func:`spinezarr.remote.filesystem.open_filesystem` takes them.

    Raises
    ------
    UsageError
        If nothing reads such URLs, the package that does is not installed, or the options do not
        fit.
    """
    options = dict(storage_options or {})
    scheme, _, rest = url.partition("://")
    transport = _Transport(url, options)
    if transport.is_fast:
        path = rest if scheme in _S3 else url
        return transport, path.rstrip("/") or path
    from spinezarr.remote.filesystem import open_filesystem  # noqa: PLC0415  imports fsspec

    return transport, open_filesystem(url, options)[1]


class _Transport:
    """What both do, with clients of its own in each process that uses it."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        self._fast_client = PerProcess(partial(_fast, url, options))
        self._general_client = PerProcess(partial(_general, url, options))
        self._fast_client.get()  # options that cannot be used are refused here

    def __reduce__(self) -> tuple[Any, ...]:
        return _Transport, (self._url, self._options)

    def __repr__(self) -> str:
        return f"<Transport of {redact_url(self._url)}>"

    @property
    def _fast(self) -> DirectTransport | None:
        return self._fast_client.get()

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    async def get_together(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        fast = self._fast
        return None if fast is None else await fast.get_together(path, spans)

    async def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        fast = self._fast
        if fast is None or self._url.partition("://")[0] not in _HTTP:
            raise NotServedError
        return await fast.post(path, body, limit_bytes)

    @property
    def link_bytes_per_s(self) -> float | None:
        fast = self._fast
        return None if fast is None else fast.link_bytes_per_s

    async def get(
        self,
        path: str,
        start: int | None = None,
        stop: int | None = None,
        limit_bytes: int = METADATA_BYTES,
    ) -> Buffer:
        if stop is not None and stop <= (start or 0):
            return b""
        return (await self.get_version(Wanted(path, start, stop, limit_bytes))).data

    async def get_version(self, wanted: Wanted) -> ObjectVersion:
        found = await self._got(wanted)
        if not wanted.range and is_page(found.data):
            path = wanted.path
            where = path if "://" in path else f"{self._url.partition('://')[0]}://{path}"
            raise page_instead(redact_url(where))
        return found

    async def _got(self, wanted: Wanted) -> ObjectVersion:
        fast = self._fast
        if fast is not None:
            with suppress(NotServedError):
                return await fast.get_version(wanted)
        general: Any = self._general_client.peek()
        if general is None:  # opening it takes long, and others use the event loop meanwhile
            general = await asyncio.to_thread(self._general_client.get)
        found: ObjectVersion = await general.get_version(wanted)
        return found


def _fast(url: str, options: Mapping[str, Any]) -> DirectTransport | None:
    """Return what asks through our own client, or None."""
    scheme = url.partition("://")[0]
    places: Places | None = None
    if scheme in _HTTP:
        places = http_places(options)
    elif scheme in _S3:
        places = s3_places(options)
    return DirectTransport(url, places) if places else None


def _general(url: str, options: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return what asks through fsspec."""
    from spinezarr.remote.fsspec_transport import FsspecTransport  # noqa: PLC0415  takes long

    return FsspecTransport(url, options)
