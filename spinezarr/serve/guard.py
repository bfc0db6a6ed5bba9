"""Which requests may read: tokens, signed URLs, pages of other origins, and host names."""

import re
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final

from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.login import Login, is_of_this_server, wants_page
from spinezarr.serve.signing import SIGNED, signed_path
from spinezarr.serve.tokens import Tokens

__all__ = ["LOOPBACK", "Guard", "is_loopback"]

_CREDENTIALS: Final = re.compile(r"[\x21-\x7e]{1,512}")
_HOST_AND_PORT: Final = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@\s]+))(?::[0-9]{0,5})?", re.ASCII
)
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names by which a machine reaches itself."""
_EXPOSED_HEADERS: Final = (
    "Content-Range, Content-Length, ETag, Accept-Ranges, Retry-After, "
    "X-Spinezarr-Dtype, X-Spinezarr-Shape-Zyx"
)
_REQUEST_HEADERS: Final = (
    "Range, Authorization, If-Match, If-None-Match, If-Range, Content-Type, Accept"
)
_DAY_S: Final = 86_400


def is_loopback(host: str) -> bool:
    """Whether a host name or address is a loopback one.

    Examples
    --------
    >>> [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "lab")]
    [True, True, True, False, False]
    """
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


@dataclass(frozen=True, slots=True)
class Guard:
    """Decides which requests are answered.

    Attributes
    ----------
    tokens
        Tokens of those who may read. With None, everybody who reaches the server may.
    hosts
        Host names of the server. Without tokens, requests for other names are refused: otherwise a
        page on the web could read stores through a name of its own that resolves to this machine
        (DNS rebinding).
    origins
        Origins of pages of other servers that may read, also with the session of the person who
        views them. Pages of this machine may always read, but without that session.
    """

    tokens: Tokens | None = None
    hosts: frozenset[str] = LOOPBACK
    origins: frozenset[str] = frozenset()

    def resolve_signed_url(self, request: Request) -> Request:
        """Return the request that a signed URL stands for; return any other request as it is.

        The returned path holds no signature, so no signature reaches a log.
        """
        if not request.path.startswith(SIGNED):
            return request
        path = None if self.tokens is None else signed_path(self.tokens, request.path)
        return replace(request, path=path or SIGNED, is_signed=path is not None)

    def login(self, request: Request, form: bytes) -> Answer:
        """Answer a request for the pages to sign in and out."""
        if self.tokens is None:
            return self.refusal(request) or text_answer(
                HTTPStatus.OK, "This server needs no token."
            )
        return Login(self.tokens).answer(request, form)

    def refusal(self, request: Request) -> Answer | None:
        """Return the answer to a request that may not read; None if it may read."""
        if request.path == SIGNED:
            return _unauthorized("The signature of this URL is not valid, or it has expired.")
        if self.tokens is None:
            if _host_of(request.headers.get("host", "")) in self.hosts:
                return None
            return text_answer(
                HTTPStatus.MISDIRECTED_REQUEST,
                "The request names another host. Start 'spinezarr serve' with --host for this "
                "name.",
            )
        if request.is_signed or self._is_authenticated(request, self.tokens):
            return None
        answer = _unauthorized("A token is needed: send 'Authorization: Bearer TOKEN'.")
        if not wants_page(request):
            return answer
        page = Login(self.tokens).form(request)
        return replace(page, headers={**answer.headers, **page.headers})

    def _is_authenticated(self, request: Request, tokens: Tokens) -> bool:
        token = _token_of(request.headers.get("authorization", ""))
        if token is not None and tokens.name_of(token) is not None:
            return True
        is_trusted = is_of_this_server(request) or request.headers.get("origin") in self.origins
        return is_trusted and Login(tokens).name(request) is not None

    def name_of(self, request: Request) -> str | None:
        """Return the name of the token of a request or of its session; None if it has neither."""
        if self.tokens is None:
            return None
        token = _token_of(request.headers.get("authorization", ""))
        name = None if token is None else self.tokens.name_of(token)
        return Login(self.tokens).name(request) if name is None else name

    def preflight(self, request: Request) -> Answer | None:
        """Answer a CORS preflight request; return None for any other request."""
        if request.method != "OPTIONS" or "access-control-request-method" not in request.headers:
            return None
        allowed = {
            "access-control-allow-methods": "GET, HEAD, POST, OPTIONS",
            "access-control-allow-headers": _REQUEST_HEADERS,
            "access-control-max-age": str(_DAY_S),
        }
        return Answer(HTTPStatus.NO_CONTENT, allowed)

    def common_headers(self, request: Request) -> Mapping[str, str]:
        """Return the CORS headers, which let the page that sent the request read the answer."""
        headers = {"vary": "Origin"}
        if request.is_signed:
            headers["referrer-policy"] = "no-referrer"
        origin = request.headers.get("origin")
        if origin is None:
            return headers
        authority = origin.partition("://")[2]
        if origin in self.origins:
            headers["access-control-allow-credentials"] = "true"
        elif not is_loopback(_host_of(authority)):
            return headers
        headers["access-control-allow-origin"] = origin
        headers["access-control-expose-headers"] = _EXPOSED_HEADERS
        return headers


def _unauthorized(text: str) -> Answer:
    return text_answer(HTTPStatus.UNAUTHORIZED, text, www_authenticate='Bearer realm="spinezarr"')


def _token_of(authorization: str) -> str | None:
    """Return the token of ``Bearer TOKEN``, or the password of ``Basic`` (RFC 6750, RFC 7617)."""
    kind, _, value = authorization.partition(" ")
    value = value.strip()
    if not _CREDENTIALS.fullmatch(value):
        return None
    if kind.lower() == "bearer":
        return value
    if kind.lower() != "basic":
        return None
    try:
        return b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def _host_of(host_and_port: str) -> str:
    """Return the host of ``host:port``, without brackets; empty if the text is not such a pair."""
    match = _HOST_AND_PORT.fullmatch(host_and_port)
    return "" if match is None else (match[1] or match[2]).lower()
