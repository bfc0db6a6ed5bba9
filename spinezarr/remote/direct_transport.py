"""Objects through this package's own client, which takes no byte more than an object may have."""

import asyncio
import errno
import re
import ssl
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from http import HTTPStatus
from ipaddress import ip_address
from threading import Lock
from typing import Any, Final, Protocol, TypeVar
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from fsspec.asyn import get_loop
from typing_extensions import Buffer

from spinezarr.redaction import redact_url
from spinezarr.remote.errors import (
    CONTENT_RANGE,
    REDIRECTS,
    answer_error,
    broken_trust,
    changed,
    led_away,
    stalled,
    unanswered,
)
from spinezarr.remote.http1 import Answer, BrokenError, Client, Server, UnplainError
from spinezarr.remote.pace import Pace, StalledError
from spinezarr.remote.s3_errors import CREDENTIALS
from spinezarr.remote.versions import UNCHANGED, ObjectVersion, Wanted

__all__ = ["DirectTransport", "NotServedError", "Place", "Places", "is_plain_key", "place_of"]

T = TypeVar("T")

_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_OTHER_REGION: Final = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect"}
"""Answers after which botocore asks the bucket for its region."""
_REDIRECTED: Final = {
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
}
_TARGET: Final = re.compile(r"[!-~]+")
_PLACES_KEPT: Final = 1024
"""A training asks for few shards many times."""
_DROPPED_SEGMENTS: Final = {"", ".", ".."}


class NotServedError(Exception):
    """What is left to fsspec: it knows more of HTTP, and says what is wrong with an answer."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one object is."""

    server: Server
    host: str
    """As a header says it."""
    target: str
    """Path, and query if there is one, as they are sent."""
    headers: Mapping[str, str] = field(repr=False)
    """What goes to this server alone."""
    sign: Callable[["Place", Mapping[str, str]], Mapping[str, str]] | None = field(
        default=None, repr=False
    )
    """Returns the headers to send in place of some."""
    signs_slowly: Callable[[], bool] = lambda: False
    """Whether credentials have to be renewed first, by a program or over the network."""

    def request(self, asked: Mapping[str, str], body: bytes | None = None) -> bytes:
        """Return a request for an object, with headers of its own; or one that posts JSON."""
        headers = {**self.headers, **asked}
        if self.sign is not None:
            headers = {**self.sign(self, headers)}
        method = "GET"
        if body is not None:
            method = "POST"
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"{method} {self.target} HTTP/1.1", f"Host: {self.host}"]
        own = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "spinezarr"}
        lines += [f"{name}: {text}" for name, text in {**own, **headers}.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


class Places(Protocol):
    """Where paths lie."""

    def find(self, path: str) -> Place | None:
        """Return where an object is, or None where fsspec has to ask; may take long at first.

        Raises
        ------
        PermissionError
            If there are no credentials.
        """
        ...


class DirectTransport:
    """Asks for objects; see :class:`spinezarr.remote.transport.Transport`."""

    def __init__(self, url: str, places: Places) -> None:
        self._scheme = url.partition("://")[0]
        self._is_s3 = self._scheme in {"s3", "s3a"}
        self._client = Client(Pace())
        self._left: set[str] = set()
        """Buckets that fsspec has to ask from now on."""
        self._known: set[str] = set()
        """Buckets and origins whose places are found at once."""
        self._lock = Lock()
        self._find = lru_cache(_PLACES_KEPT)(places.find)
        self._loop = get_loop()
        weakref.finalize(self, _close, self._loop, self._client)

    async def get(self, path: str, start: int | None, stop: int | None, limit_bytes: int) -> Buffer:
        """See :class:`spinezarr.remote.transport.Transport`.

        Raises
        ------
        NotServedError
            If fsspec has to be asked instead.
        """
        return (await self.get_version(Wanted(path, start, stop, limit_bytes))).data

    async def get_version(self, wanted: Wanted) -> ObjectVersion:
        """See :class:`spinezarr.remote.transport.Transport`.

        Raises
        ------
        NotServedError
            If fsspec has to be asked instead.
        """
        return await self._on_loop(self._get(wanted))

    async def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    @property
    def link_bytes_per_s(self) -> float | None:
        """See :class:`spinezarr.remote.transport.Transport`."""
        return self._client.link.per_s

    async def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """See :class:`spinezarr.remote.transport.Transport`.

        Raises
        ------
        NotServedError
            If it would have to be asked by fsspec.
        """
        return await self._on_loop(self._post(path, body, limit_bytes))

    async def _post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        place = await self._place(path)
        answer = await self._asked(path, place, Wanted(path, limit_bytes=limit_bytes), body)
        if answer.status == HTTPStatus.OK:
            return answer.body
        raise self._explained(path, answer)

    async def get_together(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        """See :class:`spinezarr.remote.transport.Transport`."""
        asked = (self.get(path, start, stop, 0) for start, stop in spans)
        found = await asyncio.gather(*asked, return_exceptions=True)
        return [b"" if isinstance(data, BaseException) else data for data in found]

    async def _get(self, wanted: Wanted) -> ObjectVersion:
        path = wanted.path
        place = await self._place(path)
        answer = await self._asked(path, place, wanted)
        if answer.status in _REDIRECTED and not self._is_s3:
            answer = await self._followed(path, place, answer, wanted)
        if answer.status == HTTPStatus.PARTIAL_CONTENT and wanted.range:
            return self._taken(_checked(answer, wanted.start, wanted.stop), answer, wanted)
        if answer.status == HTTPStatus.OK and not wanted.range:
            return self._taken(answer.body, answer, wanted)
        if answer.status == HTTPStatus.NOT_MODIFIED and wanted.unless_tag:
            return UNCHANGED
        raise self._explained(path, answer)

    def _taken(self, data: Buffer, answer: Answer, wanted: Wanted) -> ObjectVersion:
        found = ObjectVersion(data, answer.headers)
        if not wanted.is_met(found):
            raise changed(self._where(wanted.path))
        return found

    async def _followed(self, path: str, place: Place, answer: Answer, wanted: Wanted) -> Answer:
        """Ask where an answer leads, and where that leads."""
        url, where = path, self._where(path)
        for _ in range(REDIRECTS):
            location = answer.headers.get("location")
            if answer.status not in _REDIRECTED or location is None:
                return answer
            url = _joined(url, location, where)
            place = _redirected(place, url, where)
            answer = await self._asked(path, place, wanted)
        if answer.status in _REDIRECTED:
            raise led_away(where, f"it leads on more than {REDIRECTS} times")
        return answer

    def _where(self, path: str) -> str:
        return redact_url(path if "://" in path else f"{self._scheme}://{path}")

    async def _asked(
        self, path: str, place: Place, wanted: Wanted, body: bytes | None = None
    ) -> Answer:
        try:
            if place.signs_slowly():
                request = await asyncio.to_thread(place.request, wanted.headers, body)
            else:
                request = place.request(wanted.headers, body)
            return await self._client.ask(place.server, request, wanted.most_bytes)
        except PermissionError as caught:  # of the signature
            problem: Exception = caught
        except UnplainError:
            problem = NotServedError()
        except BrokenError:
            problem = unanswered(self._where(path))
        except StalledError:
            problem = stalled(self._where(path))
        except ssl.SSLCertVerificationError:
            problem = broken_trust(self._where(path))
        except (OSError, ValueError):
            scheme = "https" if place.server.context else "http"
            problem = unanswered(self._where(path), f"{scheme}://{place.host}")
        # Not in the handler: a text of the system may hold what is secret.
        raise problem

    async def _place(self, path: str) -> Place:
        name = path.partition("/")[0] if self._is_s3 else ""
        if name in self._left:
            raise NotServedError
        try:
            if name in self._known or not self._is_s3:
                place = self._find(path)
            else:
                place = await asyncio.to_thread(self._found_slowly, path)
                self._known.add(name)
        except PermissionError as problem:
            problem.filename = self._where(path)
            raise
        except (NotServedError, ValueError, OSError):
            self._left.add(name)
            raise NotServedError from None
        if place is None or _has_proxy(place.server):
            raise NotServedError
        return place

    def _found_slowly(self, path: str) -> Place | None:
        with self._lock:
            return self._find(path)

    def _explained(self, path: str, answer: Answer) -> Exception:
        """Return the error to raise."""
        found = _CODE.search(bytes(memoryview(answer.body)))
        code = found[1].decode() if found else ""
        if self._is_s3 and (code in _OTHER_REGION or answer.status in _REDIRECTED):
            self._left.add(path.partition("/")[0])
            return NotServedError()
        refused = answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        if refused or answer.status < HTTPStatus.MULTIPLE_CHOICES:
            return NotServedError()
        return answer_error(answer.status, code, self._where(path), answer.headers)


def _close(loop: asyncio.AbstractEventLoop, client: Client) -> None:
    if loop.is_running():
        loop.call_soon_threadsafe(client.close)


def _checked(answer: Answer, start: int | None, stop: int | None) -> Buffer:
    """Return the body of an answer if it is the range that was asked for."""
    found = CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if found is None:
        raise NotServedError
    first, last, total = found.groups()
    end = int(last) + 1
    is_whole = end == stop or (total != "*" and end == int(total) and (stop or end) >= end)
    fits = len(memoryview(answer.body)) == end - int(first)
    if int(first) != (start or 0) or not is_whole or not fits:
        raise NotServedError
    return answer.body


def _joined(url: str, location: str, where: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise led_away(where, "it leads to what is no web server") from None


def _redirected(place: Place, url: str, where: str) -> Place:
    """Return the place that an answer leads to; what goes to one server goes to no other."""
    there = place_of(url, {}, place.server.context)
    if there is None:
        raise led_away(where, "it leads to what is no web server")
    is_same = there.server == place.server
    if not is_same and is_link_local(there.server.host):
        raise led_away(where, "it leads to an address of the machine's own network")
    headers = place.headers if is_same else {}
    return Place(there.server, there.host, there.target, headers)


def is_link_local(host: str) -> bool:
    """Whether a host is an address that a cloud gives its machines, and their secrets, at.

    RFC 3927 and RFC 4291, section 2.5.6; fd00:ec2::254 is that of AWS.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_link_local or str(mapped) == "fd00:ec2::254"


def place_of(
    url: str, headers: Mapping[str, str], context: ssl.SSLContext | None = None
) -> Place | None:
    """Return the place of a URL as it is written; None if it is none that can be asked for."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return None
    host = parts.hostname
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not port or not host or not _TARGET.fullmatch(target) or not _TARGET.fullmatch(host):
        return None
    secure = parts.scheme == "https"
    server = Server(host, port, (context or default_context()) if secure else None)
    return Place(server, parts.netloc.rpartition("@")[2], target, headers)


_contexts: dict[str, ssl.SSLContext] = {}


def default_context() -> ssl.SSLContext:
    """Return what knows servers by the certificates that the system trusts."""
    return _contexts.setdefault("", ssl.create_default_context())


@lru_cache(_PLACES_KEPT)
def _has_proxy(server: Server) -> bool:
    """Whether the environment, or the system, names a proxy on the way to a server."""
    proxies = getproxies()
    scheme = "https" if server.context else "http"
    return scheme in proxies and not proxy_bypass(server.host)


def is_plain_key(key: str) -> bool:
    """Whether a key is asked for as it is by all clients: some drop parts of a path."""
    return key.isprintable() and _DROPPED_SEGMENTS.isdisjoint(key.split("/"))


def no_renewal(where: str) -> PermissionError:
    """Return the error for credentials that cannot be renewed."""
    text = f"the credentials cannot be renewed. {CREDENTIALS}"
    return PermissionError(errno.EACCES, text, where)
