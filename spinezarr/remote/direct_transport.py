"""How does this package's own client read an object?

It reads at most as many bytes as were requested, whatever the server sends. For options, proxies
and responses that it does not support, it raises :class:`UnsupportedRequestError`. fsspec then
reads the object.
"""

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
    MAX_REDIRECTS,
    certificate_error,
    no_response_error,
    object_changed_error,
    range_header,
    redirect_error,
    response_error,
    stalled_response_error,
    transient_error,
)
from spinezarr.remote.http1 import (
    HttpClient,
    HttpResponse,
    IncompleteResponseError,
    Server,
    UnsupportedResponseError,
)
from spinezarr.remote.object_request import NOT_MODIFIED, ObjectRequest, ObjectResponse
from spinezarr.remote.range_client import RangeCall, RangeClient, ReadRange
from spinezarr.remote.s3_errors import CREDENTIALS_ADVICE
from spinezarr.remote.settings import RemoteSettings
from spinezarr.remote.stall_detection import StallDetector, StalledError

__all__ = [
    "DirectTransport",
    "ObjectLocation",
    "ObjectLocator",
    "RangeRequests",
    "UnsupportedRequestError",
    "credentials_renewal_error",
    "is_link_local",
    "is_unambiguous_key",
    "location_of_url",
]

T = TypeVar("T")

_CODE: Final = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_OTHER_REGION: Final = {"AuthorizationHeaderMalformed", "PermanentRedirect", "TemporaryRedirect"}
"""Error codes after which botocore looks up the region of the bucket."""
_REDIRECT_STATUSES: Final = {
    HTTPStatus.MOVED_PERMANENTLY,
    HTTPStatus.FOUND,
    HTTPStatus.SEE_OTHER,
    HTTPStatus.TEMPORARY_REDIRECT,
    HTTPStatus.PERMANENT_REDIRECT,
}
_TARGET: Final = re.compile(r"[!-~]+")
_CACHED_LOCATIONS: Final = 1024
"""Number of locations in memory; a training reads the same shards many times."""
_DROPPED_SEGMENTS: Final = {"", ".", ".."}


class UnsupportedRequestError(Exception):
    """Our own client cannot send the request, or does not understand the response.

    fsspec supports more of HTTP, and raises the error that fits a response.
    """


@dataclass(frozen=True, slots=True)
class ObjectLocation:
    """Where one object is, and how a request for it is sent."""

    server: Server
    host: str
    """Value of the ``Host`` header."""
    target: str
    """Request target (RFC 9112, section 3.2): the path, and the query if there is one."""
    headers: Mapping[str, str] = field(repr=False)
    """Headers that are sent to this server only, such as credentials."""
    sign: Callable[["ObjectLocation", Mapping[str, str]], Mapping[str, str]] | None = field(
        default=None, repr=False
    )
    """Returns the headers with a signature; None if requests are not signed."""
    signs_slowly: Callable[[], bool] = lambda: False
    """Whether signing takes long, because credentials must be renewed first."""

    def request(self, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
        """Return the bytes of a request: GET, or POST if there is a JSON body."""
        headers = {**self.headers, **headers}
        if self.sign is not None:
            headers = {**self.sign(self, headers)}
        method = "GET"
        if body is not None:
            method = "POST"
            headers |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        lines = [f"{method} {self.target} HTTP/1.1", f"Host: {self.host}"]
        defaults = {"Accept": "*/*", "Accept-Encoding": "identity", "User-Agent": "spinezarr"}
        lines += [f"{name}: {text}" for name, text in {**defaults, **headers}.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@dataclass(frozen=True, slots=True)
class RangeRequests:
    """Requests for ranges, all to one server."""

    client: RangeClient
    server: Server
    heads: Sequence[bytes] = field(repr=False)

    def read(
        self, spans: Sequence[tuple[int, int]], call: RangeCall, at_once: int
    ) -> list[ReadRange | None]:
        """See :meth:`spinezarr.remote.range_client.RangeClient.read`."""
        return self.client.read(self.server, self.heads, spans, call, at_once)


class ObjectLocator(Protocol):
    """Finds the location of each path."""

    def locate(self, path: str) -> ObjectLocation | None:
        """Return the location of an object; None if only fsspec can read it.

        The first call for a bucket may take long.

        Raises
        ------
        PermissionError
            If no credentials are found.
        """
        ...


class DirectTransport:
    """Reads objects with this package's own client.

    See :class:`spinezarr.remote.transport.Transport`.
    """

    def __init__(self, url: str, locator: ObjectLocator, settings: RemoteSettings) -> None:
        self._scheme = url.partition("://")[0]
        self._is_s3 = self._scheme in {"s3", "s3a"}
        self._detector = StallDetector(settings)
        self._client = HttpClient(self._detector)
        self._ranges = RangeClient(self._detector, self._client.link)
        self._fsspec_buckets: set[str] = set()
        """Buckets that only fsspec can read."""
        self._located_buckets: set[str] = set()
        """Buckets whose settings are known, so that locating an object takes no time."""
        self._lock = Lock()
        self._locate = lru_cache(_CACHED_LOCATIONS)(locator.locate)
        self._loop = get_loop()
        weakref.finalize(self, _close, self._loop, self._client)

    async def get(self, path: str, start: int | None, stop: int | None, limit_bytes: int) -> Buffer:
        """See :class:`spinezarr.remote.transport.Transport`.

        Raises
        ------
        UnsupportedRequestError
            If only fsspec can read the object.
        """
        return (await self.get_response(ObjectRequest(path, start, stop, limit_bytes))).data

    async def get_response(self, request: ObjectRequest) -> ObjectResponse:
        """See :class:`spinezarr.remote.transport.Transport`.

        Raises
        ------
        UnsupportedRequestError
            If only fsspec can read the object.
        """
        return await self._on_loop(self._get(request))

    async def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    @property
    def link_bytes_per_s(self) -> float | None:
        """See :class:`spinezarr.remote.transport.Transport`."""
        return self._client.link.per_s

    @property
    def received_bytes(self) -> int:
        """See :class:`spinezarr.remote.transport.Transport`."""
        return self._detector.received_bytes

    async def post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        """See :class:`spinezarr.remote.transport.Transport`.

        Raises
        ------
        UnsupportedRequestError
            If this client cannot send the request.
        """
        return await self._on_loop(self._post(path, body, limit_bytes))

    async def _post(self, path: str, body: bytes, limit_bytes: int) -> Buffer:
        location = await self._location(path)
        request = ObjectRequest(path, limit_bytes=limit_bytes)
        response = await self._send(path, location, request, body)
        if response.status == HTTPStatus.OK:
            return response.body
        raise self._response_error(path, response)

    def range_requests(self, ranges: Sequence[tuple[str, int, int]]) -> RangeRequests | None:
        """See :class:`spinezarr.remote.transport.Transport`."""
        if not ranges:
            return None
        heads: list[bytes] = []
        servers: set[Server] = set()
        located: dict[str, ObjectLocation] = {}
        for path, start, stop in ranges:
            location = located.get(path)
            if location is None:
                location = self._known_location(path)
                if location is None:
                    return None
                located[path] = location
                servers.add(location.server)
            heads.append(location.request({"Range": range_header(start, stop)}))
        if len(servers) > 1:
            return None
        return RangeRequests(self._ranges, servers.pop(), heads)

    def _known_location(self, path: str) -> ObjectLocation | None:
        """Return the location of an object that our own code in C can read at once, or None."""
        name = path.partition("/")[0] if self._is_s3 else ""
        if name in self._fsspec_buckets or (self._is_s3 and name not in self._located_buckets):
            return None
        try:
            location = self._locate(path)
        except (PermissionError, UnsupportedRequestError, ValueError, OSError):
            return None  # the event loop raises the error
        if location is None or not self._ranges.can_read(location.server):
            return None
        if location.signs_slowly() or _has_proxy(location.server):
            return None
        return location

    async def get_ranges(
        self, path: str, spans: Sequence[tuple[int, int]]
    ) -> Sequence[Buffer] | None:
        """See :class:`spinezarr.remote.transport.Transport`."""
        reads = (self.get(path, start, stop, 0) for start, stop in spans)
        results = await asyncio.gather(*reads, return_exceptions=True)
        return [b"" if isinstance(data, BaseException) else data for data in results]

    async def _get(self, request: ObjectRequest) -> ObjectResponse:
        path = request.path
        location = await self._location(path)
        response = await self._send(path, location, request)
        is_direct = response.status == HTTPStatus.PARTIAL_CONTENT
        if response.status in _REDIRECT_STATUSES and not self._is_s3:
            response = await self._follow_redirects(path, location, response, request)
            if response.status == HTTPStatus.FORBIDDEN:
                # A signed address has expired on the way, and the next redirect has a new one.
                text = "the address that the server redirects to refuses the request (403)"
                raise transient_error(self._where(path), text)
        if response.status == HTTPStatus.PARTIAL_CONTENT and request.range:
            data = _requested_range(response, request.start, request.stop)
            if is_direct and location.server.context is None:
                self._ranges.allow(location.server)
            return self._to_object_response(data, response, request)
        if response.status == HTTPStatus.OK and not request.range:
            return self._to_object_response(response.body, response, request)
        if response.status == HTTPStatus.NOT_MODIFIED and request.if_none_match:
            return NOT_MODIFIED
        raise self._response_error(path, response)

    def _to_object_response(
        self, data: Buffer, response: HttpResponse, request: ObjectRequest
    ) -> ObjectResponse:
        result = ObjectResponse(data, response.headers)
        if not request.accepts(result):
            raise object_changed_error(self._where(request.path))
        return result

    async def _follow_redirects(
        self, path: str, location: ObjectLocation, response: HttpResponse, request: ObjectRequest
    ) -> HttpResponse:
        """Follow redirects, and return the response at their end."""
        url, where = path, self._where(path)
        for _ in range(MAX_REDIRECTS):
            target = response.headers.get("location")
            if response.status not in _REDIRECT_STATUSES or target is None:
                return response
            url = _join_url(url, target, where)
            location = _redirect_location(location, url, where)
            response = await self._send(path, location, request)
        if response.status in _REDIRECT_STATUSES:
            raise redirect_error(where, f"more than {MAX_REDIRECTS} redirects follow each other")
        return response

    def _where(self, path: str) -> str:
        return redact_url(path if "://" in path else f"{self._scheme}://{path}")

    async def _send(
        self, path: str, location: ObjectLocation, request: ObjectRequest, body: bytes | None = None
    ) -> HttpResponse:
        try:
            if location.signs_slowly():
                message = await asyncio.to_thread(location.request, request.headers, body)
            else:
                message = location.request(request.headers, body)
            return await self._client.send(location.server, message, request.max_bytes)
        except PermissionError as caught:  # signing raised it
            problem: Exception = caught
        except UnsupportedResponseError:
            problem = UnsupportedRequestError()
        except IncompleteResponseError:
            problem = no_response_error(self._where(path))
        except StalledError:
            problem = stalled_response_error(self._where(path))
        except ssl.SSLCertVerificationError:
            problem = certificate_error(self._where(path))
        except (OSError, ValueError):
            scheme = "https" if location.server.context else "http"
            problem = no_response_error(self._where(path), f"{scheme}://{location.host}")
        # It is not raised in the handler, as the original error may contain a secret.
        raise problem

    async def _location(self, path: str) -> ObjectLocation:
        name = path.partition("/")[0] if self._is_s3 else ""
        if name in self._fsspec_buckets:
            raise UnsupportedRequestError
        try:
            if name in self._located_buckets or not self._is_s3:
                location = self._locate(path)
            else:
                location = await asyncio.to_thread(self._locate_slowly, path)
                self._located_buckets.add(name)
        except PermissionError as problem:
            problem.filename = self._where(path)
            raise
        except (UnsupportedRequestError, ValueError, OSError):
            self._fsspec_buckets.add(name)
            raise UnsupportedRequestError from None
        if location is None or _has_proxy(location.server):
            raise UnsupportedRequestError
        return location

    def _locate_slowly(self, path: str) -> ObjectLocation | None:
        with self._lock:
            return self._locate(path)

    def _response_error(self, path: str, response: HttpResponse) -> Exception:
        """Return the error for a response without the requested bytes."""
        match = _CODE.search(bytes(memoryview(response.body)))
        code = match[1].decode() if match else ""
        if self._is_s3 and (code in _OTHER_REGION or response.status in _REDIRECT_STATUSES):
            self._fsspec_buckets.add(path.partition("/")[0])
            return UnsupportedRequestError()
        is_unsatisfiable = response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
        if is_unsatisfiable or response.status < HTTPStatus.MULTIPLE_CHOICES:
            return UnsupportedRequestError()
        return response_error(response.status, code, self._where(path), response.headers)


def _close(loop: asyncio.AbstractEventLoop, client: HttpClient) -> None:
    if loop.is_running():
        loop.call_soon_threadsafe(client.close)


def _requested_range(response: HttpResponse, start: int | None, stop: int | None) -> Buffer:
    """Return the body of a response if it is the requested range."""
    match = CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None:
        raise UnsupportedRequestError
    first, last, total = match.groups()
    end = int(last) + 1
    is_whole = end == stop or (total != "*" and end == int(total) and (stop or end) >= end)
    fits = len(memoryview(response.body)) == end - int(first)
    if int(first) != (start or 0) or not is_whole or not fits:
        raise UnsupportedRequestError
    return response.body


def _join_url(url: str, target: str, where: str) -> str:
    try:
        return urljoin(url, target)
    except ValueError:
        raise redirect_error(where, "it does not lead to a web server") from None


def _redirect_location(location: ObjectLocation, url: str, where: str) -> ObjectLocation:
    """Return the location of a redirect. Headers for one server are not sent to another."""
    target = location_of_url(url, {}, location.server.context)
    if target is None:
        raise redirect_error(where, "it does not lead to a web server")
    is_same = target.server == location.server
    if not is_same and is_link_local(target.server.host):
        raise redirect_error(where, "it leads to an address of the machine's own network")
    headers = location.headers if is_same else {}
    return ObjectLocation(target.server, target.host, target.target, headers)


def is_link_local(host: str) -> bool:
    """Whether a host is a link-local address, where clouds give credentials to their machines.

    See RFC 3927 and RFC 4291, section 2.5.6. AWS also uses fd00:ec2::254.
    """
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None) or address
    return mapped.is_link_local or str(mapped) == "fd00:ec2::254"


def location_of_url(
    url: str, headers: Mapping[str, str], context: ssl.SSLContext | None = None
) -> ObjectLocation | None:
    """Return the location of a URL; None if the URL is not valid."""
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
    return ObjectLocation(server, parts.netloc.rpartition("@")[2], target, headers)


_contexts: dict[str, ssl.SSLContext] = {}


def default_context() -> ssl.SSLContext:
    """Return the TLS context with the certificates that the system trusts."""
    return _contexts.setdefault("", ssl.create_default_context())


@lru_cache(_CACHED_LOCATIONS)
def _has_proxy(server: Server) -> bool:
    """Whether the environment or the system names a proxy for a server."""
    proxies = getproxies()
    scheme = "https" if server.context else "http"
    return scheme in proxies and not proxy_bypass(server.host)


def is_unambiguous_key(key: str) -> bool:
    """Whether all clients send a key unchanged; some drop empty and dotted segments."""
    return key.isprintable() and _DROPPED_SEGMENTS.isdisjoint(key.split("/"))


def credentials_renewal_error(where: str) -> PermissionError:
    """Return the error for credentials that cannot be renewed."""
    text = f"the credentials cannot be renewed. {CREDENTIALS_ADVICE}"
    return PermissionError(errno.EACCES, text, where)
