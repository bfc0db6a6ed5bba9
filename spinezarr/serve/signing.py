"""How does the server sign browser sessions, and URLs that people share?

Each session or URL belongs to a token. It expires, and it becomes invalid at once if the line of
the token or the key is deleted. The key is in a file, so all processes of a server share it, and it
remains after a restart.

A signed URL has ``/signed/<ticket>`` before the signed path. Zarr clients append keys to the path,
so the server gets a ticket in the path with each key. Most clients would drop a ticket in the
query.
"""

import hashlib
import re
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote, urlsplit

from spinezarr.errors import UsageError
from spinezarr.redaction import redact_url
from spinezarr.serve.install_hint import INSTALL
from spinezarr.serve.tokens import NAME, Tokens

if TYPE_CHECKING:
    from itsdangerous import Signer

__all__ = ["SIGNED", "make_session", "session_name", "signed_path", "signed_url"]

SIGNED: Final = "/signed/"
_SESSION: Final = "spinezarr session"
_URL: Final = "spinezarr signed URL"
_SIGNATURE: Final = r"[A-Za-z0-9_-]{43}"
_TICKET: Final = re.compile(rf"(\d{{1,11}})\.([1-9]\d?)\.({NAME})\.({_SIGNATURE})", re.ASCII)
"""A ticket: expiry time, number of signed path segments, name of the token, signature."""
_COOKIE: Final = re.compile(rf"(\d{{1,11}})\.({NAME})\.({_SIGNATURE})", re.ASCII)
_TREES: Final = frozenset({"zarr", "flat", "ome", "v1"})
_MIN_SEGMENTS: Final = 2
"""Fewest path segments of a signed URL: a tree and a store."""
_MAX_SEGMENTS: Final = 99
_INVALID_SEGMENTS: Final = frozenset({"", ".", ".."})


def make_session(tokens: Tokens, name: str, seconds: int) -> str | None:
    """Return a session for the holder of a token; None if there is no key to sign it with."""
    expires = int(time.time()) + seconds
    signature = _signature(tokens, _SESSION, name, str(expires))
    return None if signature is None else f"{expires}.{name}.{signature}"


def session_name(tokens: Tokens, value: str) -> str | None:
    """Return the name of the token of a session; None if the session is not valid any more."""
    match = _COOKIE.fullmatch(value)
    if match is None or int(match[1]) <= time.time():
        return None
    return match[2] if _is_valid(tokens, match[3], _SESSION, match[2], match[1]) else None


def signed_url(tokens: Tokens, url: str, name: str, seconds: int) -> str:
    """Return a URL that opens everything below a path without a token.

    Raises
    ------
    UsageError
        If the URL is not that of a store on a server, or there is no such token.
    """
    redacted_url = redact_url(url)
    if redacted_url != url:
        raise UsageError(f"{redacted_url}: the URL must not have a user, a password, '?' or '#'.")
    parts = urlsplit(url)
    segments = tuple(unquote(parts.path, errors="replace").strip("/").split("/"))
    if parts.scheme not in {"http", "https"} or not parts.netloc or not _may_be_signed(segments):
        raise UsageError(
            f"{redacted_url}: is not the URL of a store, such as http://lab:8765/zarr/ctspine1k. "
            "URLs below /zarr, /flat, /ome and /v1 can be signed."
        )
    expires = int(time.time()) + seconds
    signature = _signature(tokens, _URL, name, str(expires), *segments)
    if signature is None:
        names = ", ".join(sorted(tokens.names)) or "none"
        raise UsageError(f"--as {name}: there is no such token. The tokens are: {names}.")
    ticket = f"{expires}.{len(segments)}.{name}.{signature}"
    return f"{parts.scheme}://{parts.netloc}{SIGNED}{ticket}/{quote('/'.join(segments))}"


def signed_path(tokens: Tokens, path: str) -> str | None:
    """Return the path that a signed path opens; None if its ticket is not valid for it.

    Parameters
    ----------
    tokens
        The tokens of the server.
    path
        Decoded path, by which the server also looks up the file. So the file that is checked here
        is the one that is opened.
    """
    text, *segments = path.removeprefix(SIGNED).split("/")
    ticket = _TICKET.fullmatch(text)
    if (
        ticket is None
        or int(ticket[1]) <= time.time()
        or not _INVALID_SEGMENTS.isdisjoint(segments)
    ):
        return None
    depth = int(ticket[2])
    if not _MIN_SEGMENTS <= depth <= len(segments):
        return None
    tree, *rest = segments[:depth]
    # A URL that opens all files of a store opens its JSON and patches too.
    trees = ("zarr", tree) if tree == "v1" and depth == _MIN_SEGMENTS else (tree,)
    is_signed = any(
        _is_valid(tokens, ticket[4], _URL, ticket[3], ticket[1], candidate, *rest)
        for candidate in trees
    )
    return "/" + "/".join(segments) if is_signed else None


def _may_be_signed(segments: tuple[str, ...]) -> bool:
    return (
        _MIN_SEGMENTS <= len(segments) <= _MAX_SEGMENTS
        and segments[0] in _TREES
        and _INVALID_SEGMENTS.isdisjoint(segments)
    )


def _is_valid(tokens: Tokens, signature: str, purpose: str, name: str, *claims: str) -> bool:
    key = _key(tokens, name)
    return key is not None and _signer(key, purpose).verify_signature(_joined(claims), signature)


def _signature(tokens: Tokens, purpose: str, name: str, *claims: str) -> str | None:
    key = _key(tokens, name)
    return None if key is None else _signer(key, purpose).get_signature(_joined(claims)).decode()


def _key(tokens: Tokens, name: str) -> str | None:
    """Return the signing key of a token. Each token has another key."""
    key, token = tokens.key, tokens.hash_of(name)
    return None if key is None or token is None else f"{key} {name} {token}"


def _joined(claims: tuple[str, ...]) -> str:
    return "/".join(claims)  # no name holds a slash


def _signer(key: str, purpose: str) -> "Signer":
    try:
        from itsdangerous import Signer  # noqa: PLC0415  an extra
    except ImportError as problem:
        raise UsageError(INSTALL) from problem
    return Signer(key, purpose, key_derivation="hmac", digest_method=hashlib.sha256)
