"""How does a person sign in with a browser?

The person enters a token once. From then on, a cookie identifies the browser.

References
----------
Cookies: https://www.rfc-editor.org/rfc/rfc6265
Origin of a request: https://www.w3.org/TR/fetch-metadata/
"""

import hashlib
import re
from base64 import b64encode
from dataclasses import replace
from html import escape
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, quote, urlencode

from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.signing import make_session, session_name
from spinezarr.serve.tokens import Tokens

__all__ = ["LOGIN", "LOGOUT", "Login", "is_of_this_server", "wants_page"]

LOGIN: Final = "/login"
LOGOUT: Final = "/logout"
_FORM_BYTES: Final = 1 << 14
_SESSION_S: Final = 30 * 86_400
_MAX_FIELDS: Final = 8
_PATH: Final = re.compile(r"/(?![/\\])[\x21-\x7e]*")
"""A path of this server. Browsers read ``//`` and ``/\\`` as the start of another host name."""
_STYLE: Final = (
    "body{font:1rem/1.5 system-ui,sans-serif;max-width:24rem;margin:15vh auto;padding:0 1rem}"
    "input,button{font:inherit;display:block;width:100%;box-sizing:border-box;padding:.4rem;"
    "margin:.4rem 0}:root{color-scheme:light dark}"
)
_POLICY: Final = (
    "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; style-src "
    f"'sha256-{b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)


def wants_page(request: Request) -> bool:
    """Whether a browser requests a page for a person."""
    return request.method in {"GET", "HEAD"} and "text/html" in request.headers.get("accept", "")


def is_of_this_server(request: Request) -> bool:
    """Whether a person or a page of this server sent a request, and not a page of another server.

    Cookies do not distinguish the ports of a machine, so servers at other ports count as other
    servers. Browsers send ``Sec-Fetch-Site`` only to servers with TLS and on their own machine.
    They send ``Origin`` with every request except a plain read of a page.
    """
    headers = request.headers
    origin = headers.get("origin")
    if origin is not None:
        return origin.partition("://")[2].lower() == headers.get("host", "").lower() != ""
    if headers.get("sec-fetch-site", "none") in {"none", "same-origin"}:
        return True
    return wants_page(request) and headers.get("sec-fetch-dest") == "document"


class Login:
    """Pages for signing in and out.

    Parameters
    ----------
    tokens
        Tokens of those who may sign in.
    """

    def __init__(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def name(self, request: Request) -> str | None:
        """Return the name of the token that the browser signed in with; None if it did not."""
        for pair in request.headers.get("cookie", "").split(";"):
            name, _, value = pair.strip().partition("=")
            if name == self._cookie_name and (token_name := session_name(self._tokens, value)):
                return token_name
        return None

    @property
    def _cookie_name(self) -> str:
        """Return a name for the cookie of this server.

        Servers at other ports of the machine get the same cookies, so the name holds the port.
        """
        return f"spinezarr_{hashlib.sha256((self._tokens.key or '').encode()).hexdigest()[:8]}"

    def answer(self, request: Request, form: bytes) -> Answer:
        """Answer a request for one of the pages.

        Parameters
        ----------
        request
            Request for :data:`LOGIN` or :data:`LOGOUT`.
        form
            Body of the request.
        """
        refusal = _refusal(request, form)
        if refusal is not None:
            return refusal
        if request.path == LOGOUT:
            return _redirect(request, LOGIN, self._cookie(request, "", 0))
        text = form.decode("ascii", "replace") if request.method == "POST" else request.query
        try:
            fields = dict(parse_qsl(text, max_num_fields=_MAX_FIELDS))
        except ValueError:
            return text_answer(HTTPStatus.BAD_REQUEST, "The form is too large.")
        next_path = _local_path(fields.get("next", "/"))
        if "token" in fields:
            return self._start_session(request, fields["token"].strip(), next_path)
        name = self.name(request)
        return _form(HTTPStatus.OK, next_path) if name is None else _signed_in_page(name)

    def form(self, request: Request) -> Answer:
        """Return the page with the form for a token, which then leads to the requested page."""
        query = urlencode([x for x in parse_qsl(request.query) if x[0] != "token"])
        next_path = _local_path(f"{quote(request.path)}{'?' if query else ''}{query}")
        is_redirecting = _is_cross_site(request)
        return _form(HTTPStatus.UNAUTHORIZED, next_path, is_redirecting=is_redirecting)

    def _start_session(self, request: Request, token: str, next_path: str) -> Answer:
        name = self._tokens.name_of(token)
        if name is None:
            return _form(HTTPStatus.UNAUTHORIZED, next_path, "This token is not valid.")
        value = make_session(self._tokens, name, _SESSION_S)
        if value is None:
            return text_answer(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "Nobody can sign in, because the signing key next to the token file is missing. "
                "'spinezarr serve --new-token' makes it.",
            )
        return _redirect(request, next_path, self._cookie(request, value, _SESSION_S))

    def _cookie(self, request: Request, value: str, seconds: int) -> str:
        """Return the Set-Cookie header.

        The cookie is ``Secure`` if the client claims TLS. A false claim harms only that client.
        """
        is_secure = request.headers.get("x-forwarded-proto", "").lower().startswith("https")
        attributes = f"Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict"
        return f"{self._cookie_name}={value}; {attributes}{'; Secure' if is_secure else ''}"


def _refusal(request: Request, form: bytes) -> Answer | None:
    """Return the answer to a method or form that these pages do not accept; None for others."""
    allowed = ("GET", "HEAD", "POST") if request.path == LOGIN else ("POST",)
    if request.method not in allowed:
        return text_answer(
            HTTPStatus.METHOD_NOT_ALLOWED,
            "This method is not allowed here.",
            allow=", ".join(allowed),
        )
    if len(form) > _FORM_BYTES:
        return text_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "The form is too large.")
    if request.method == "POST" and not is_of_this_server(request):
        return text_answer(
            HTTPStatus.UNAUTHORIZED, "A page of another server must not send this form."
        )
    return None


def _redirect(request: Request, path: str, cookie: str) -> Answer:
    """Redirect to a path, away from a URL that may hold a token."""
    path = _local_path(path)
    headers = {"cache-control": "no-store", "referrer-policy": "no-referrer", "set-cookie": cookie}
    if _is_cross_site(request):
        page = _page(HTTPStatus.OK, f'<p><a href="{escape(path)}">Continue</a>', next_path=path)
        return replace(page, headers={**page.headers, **headers})
    return Answer(HTTPStatus.SEE_OTHER, {**headers, "location": path})


def _is_cross_site(request: Request) -> bool:
    """Whether a link of another site led here.

    The browser then withholds the cookie until a page of this site redirects it.
    """
    return request.headers.get("sec-fetch-site") == "cross-site"


def _local_path(path: str) -> str:
    return path if _PATH.fullmatch(path) else "/"


def _form(
    status: HTTPStatus, next_path: str, problem: str = "", *, is_redirecting: bool = False
) -> Answer:
    return _page(
        status,
        f'<p role="alert">{escape(problem)}</p><form method="post" action="{LOGIN}">'
        '<label for="token">Token</label><input id="token" name="token" type="password" '
        'autocomplete="current-password" required autofocus>'
        f'<input type="hidden" name="next" value="{escape(next_path)}">'
        "<button>Sign in</button></form>",
        next_path if is_redirecting else "",
    )


def _signed_in_page(name: str) -> Answer:
    return _page(
        HTTPStatus.OK,
        f'<p>Signed in as {escape(name)}.<form method="post" action="{LOGOUT}">'
        "<button>Sign out</button></form>",
    )


def _page(status: HTTPStatus, body: str, next_path: str = "") -> Answer:
    refresh = (
        f'<meta http-equiv="refresh" content="0;url={escape(next_path)}">' if next_path else ""
    )
    text = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">{refresh}<title>spinezarr</title>'
        f"<style>{_STYLE}</style><h1>spinezarr</h1>{body}</html>\n"
    )
    headers = {
        "content-type": "text/html; charset=utf-8",
        "cache-control": "no-store",
        "content-security-policy": _POLICY,
        "referrer-policy": "same-origin",  # 'no-referrer' would hide the origin of the form
        "x-content-type-options": "nosniff",
    }
    return Answer(status, headers, text.encode())
