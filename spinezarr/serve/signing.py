"""How does the server sign browser sessions, and URLs that people pass on?

It signs both in the name of a token. Both expire, and both end at once when the line of the token
or the key is deleted. The key is in a file, so all processes of a server share it, and it outlives
a restart.

A signed URL has ``/signed/<ticket>`` before the signed path. Zarr clients append keys to the path,
so a ticket in the path reaches the server with each key. Most clients would drop a ticket in the
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

__all__ = ["SIGNED", "path_behind", "session", "session_name", "signed_url"]

SIGNED: Final = "/signed/"
_SESSION: Final = "spinezarr session"
_URL: Final = "spinezarr signed URL"
_SIGNATURE: Final = r"[A-Za-z0-9_-]{43}"
_TICKET: Final = re.compile(rf"(\d{{1,11}})\.([1-9]\d?)\.({NAME})\.({_SIGNATURE})", re.ASCII)
"""A ticket: expiry time, number of signed path segments, name of the token, signature."""
_COOKIE: Final = re.compile(rf"(\d{{1,11}})\.({NAME})\.({_SIGNATURE})", re.ASCII)
_TREES: Final = frozenset({"zarr", "flat", "ome", "v1"})
_FEWEST: Final = 2
"""Fewest path segments of a signed URL: a tree and a store."""
_MOST: Final = 99
_NO_NAMES: Final = frozenset({"", ".", ".."})


def session(tokens: Tokens, name: str, seconds: int) -> str | None:
    """Return a session for the holder of a token; None if there is no key to sign it with."""
    expires = int(time.time()) + seconds
    signature = _signature(tokens, _SESSION, name, str(expires))
    return None if signature is None else f"{expires}.{name}.{signature}"


def session_name(tokens: Tokens, value: str) -> str | None:
    """Return the name of the token of a session; None if the session is not valid any more."""
    found = _COOKIE.fullmatch(value)
    if found is None or int(found[1]) <= time.time():
        return None
    return found[2] if _holds(tokens, found[3], _SESSION, found[2], found[1]) else None


def signed_url(tokens: Tokens, url: str, name: str, seconds: int) -> str:
    """Return a URL that opens everything below a path without a token.

    Raises
    ------
    UsageError
        If the URL is not that of a store on a server, or there is no such token.
    """
    shown = redact_url(url)
    if shown != url:
        raise UsageError(f"{shown}: must not have a user, password, '?' or '#'.")
    parts = urlsplit(url)
    segments = tuple(unquote(parts.path, errors="replace").strip("/").split("/"))
    if parts.scheme not in {"http", "https"} or not parts.netloc or not _may_be_signed(segments):
        raise UsageError(
            f"{shown}: is no URL of a store, such as http://lab:8765/zarr/ctspine1k. "
            "Below /zarr, /flat, /ome and /v1 one can be signed."
        )
    expires = int(time.time()) + seconds
    signature = _signature(tokens, _URL, name, str(expires), *segments)
    if signature is None:
        names = ", ".join(sorted(tokens.names)) or "none"
        raise UsageError(f"--as {name}: there is no such token; there are: {names}.")
    ticket = f"{expires}.{len(segments)}.{name}.{signature}"
    return f"{parts.scheme}://{parts.netloc}{SIGNED}{ticket}/{quote('/'.join(segments))}"


def path_behind(tokens: Tokens, path: str) -> str | None:
    """Return the path that a signed path opens; None if its ticket is not valid for it.

    Parameters
    ----------
    tokens
        The tokens of the server.
    path
        Decoded path, the same that the server looks up files by. So no other spelling of a path
        opens another file than the one that is checked here.
    """
    text, *segments = path.removeprefix(SIGNED).split("/")
    ticket = _TICKET.fullmatch(text)
    if ticket is None or int(ticket[1]) <= time.time() or not _NO_NAMES.isdisjoint(segments):
        return None
    depth = int(ticket[2])
    if not _FEWEST <= depth <= len(segments):
        return None
    tree, *rest = segments[:depth]
    # A URL that opens all files of a store opens its JSON and patches too.
    trees = ("zarr", tree) if tree == "v1" and depth == _FEWEST else (tree,)
    is_signed = any(
        _holds(tokens, ticket[4], _URL, ticket[3], ticket[1], one, *rest) for one in trees
    )
    return "/" + "/".join(segments) if is_signed else None


def _may_be_signed(segments: tuple[str, ...]) -> bool:
    return (
        _FEWEST <= len(segments) <= _MOST
        and segments[0] in _TREES
        and _NO_NAMES.isdisjoint(segments)
    )


def _holds(tokens: Tokens, signature: str, purpose: str, name: str, *claims: str) -> bool:
    key = _key(tokens, name)
    return key is not None and _signer(key, purpose).verify_signature(_text(claims), signature)


def _signature(tokens: Tokens, purpose: str, name: str, *claims: str) -> str | None:
    key = _key(tokens, name)
    return None if key is None else _signer(key, purpose).get_signature(_text(claims)).decode()


def _key(tokens: Tokens, name: str) -> str | None:
    """Return the signing key for a token, which differs from that of other tokens."""
    key, token = tokens.key, tokens.hash_of(name)
    return None if key is None or token is None else f"{key} {name} {token}"


def _text(claims: tuple[str, ...]) -> str:
    return "/".join(claims)  # no name holds a slash


def _signer(key: str, purpose: str) -> "Signer":
    try:
        from itsdangerous import Signer  # noqa: PLC0415  an extra
    except ImportError as problem:
        raise UsageError(INSTALL) from problem
    return Signer(key, purpose, key_derivation="hmac", digest_method=hashlib.sha256)
