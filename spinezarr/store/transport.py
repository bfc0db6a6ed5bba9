"""One attempt to get bytes of one object, wherever it lies.

obstore asks where it can say the same as fsspec, everything else goes through fsspec. Nothing is
repeated here: an error says whether that may help.
"""

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from threading import Lock
from typing import Any, Final, Protocol

from typing_extensions import Buffer

from spinezarr.store.transport_errors import TransientError, public_url

__all__ = ["TransientError", "Transport", "open_transport"]

_S3: Final = {"s3", "s3a"}
_HTTP: Final = {"http", "https"}


class Transport(Protocol):
    """Gets bytes of objects; can be pickled, and used in forked and spawned processes."""

    async def get(self, path: str, start: int | None = None, stop: int | None = None) -> Buffer:
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

        Raises
        ------
        FileNotFoundError
            If it is absent.
        PermissionError
            If the server refuses, or there are no credentials.
        TransientError
            If it may succeed when it is asked for again.
        OSError
            If it cannot be read for another reason: there is no such bucket.
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


def open_transport(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[Transport, str]:
    """Return a transport, and the path of a URL for it without a slash at its end.

    Parameters
    ----------
    url
        A path or fsspec URL.
    storage_options
        For fsspec's file system, as :func:`spinezarr.store.files.open_filesystem` takes them.

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
    from spinezarr.store.files import open_filesystem  # noqa: PLC0415  imports fsspec

    return transport, open_filesystem(url, options)[1]


class _Fork:
    """Whether this process was forked from one that had imported obstore.

    obstore's threads do not survive a fork, and the child would wait for them for ever.
    """

    has_cut_obstore = False

    @classmethod
    def note(cls) -> None:
        cls.has_cut_obstore = cls.has_cut_obstore or "obstore" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_Fork.note)


class _Transport:
    """What both do, made anew in each process that uses it."""

    def __init__(self, url: str, options: dict[str, Any]) -> None:
        self._url = url
        self._options = options
        # Of the processes that this one was forked from: it cannot end what their threads served.
        self._parents: list[Any] = []
        self._start()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._lock = Lock()
        self._general: Any = None
        self._fast = None if _Fork.has_cut_obstore else _fast(self._url, self._options)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Transport, (self._url, self._options)

    def __repr__(self) -> str:
        return f"<Transport of {public_url(self._url)}>"

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    async def get_together(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        self._start_in_a_child()
        if self._fast is None:
            return None
        found: Sequence[Buffer] | None = await self._fast.get_together(path, spans)
        return found

    def _start_in_a_child(self) -> None:
        if self._pid != os.getpid():
            self._parents.append((self._fast, self._general))
            self._start()

    async def get(self, path: str, start: int | None = None, stop: int | None = None) -> Buffer:
        if stop is not None and stop <= (start or 0):
            return b""
        self._start_in_a_child()
        if self._fast is not None:
            from spinezarr.store.transport_obstore import NotServedError  # noqa: PLC0415  optional

            try:
                fast: Buffer = await self._fast.get(path, start, stop)
            except NotServedError:
                pass
            else:
                return fast
        general = self._general or await asyncio.to_thread(self._open_general)
        data: Buffer = await general.get(path, start, stop)
        return data

    def _open_general(self) -> Any:  # noqa: ANN401
        from spinezarr.store.transport_fsspec import FsspecTransport  # noqa: PLC0415  takes long

        with self._lock:
            if self._general is None:
                self._general = FsspecTransport(self._url, self._options)
            return self._general


def _fast(url: str, options: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return what asks through obstore, or None."""
    scheme = url.partition("://")[0]
    if scheme not in _S3 | _HTTP or find_spec("obstore") is None:
        return None
    from spinezarr.store.transport_obstore import ObstoreTransport  # noqa: PLC0415  optional

    if scheme in _HTTP:
        from spinezarr.store.transport_http import http_stores  # noqa: PLC0415  optional

        http = http_stores(options)
        return ObstoreTransport(url, http) if http else None
    from spinezarr.store.transport_s3 import s3_stores  # noqa: PLC0415  optional

    s3 = s3_stores(options)
    return ObstoreTransport(url, s3) if s3 else None
