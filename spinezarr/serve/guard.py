"""Who may ask: tokens, pages of other origins, and names that lead here by a trick."""

import hashlib
import hmac
import re
import secrets
from base64 import b64decode
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from threading import Lock
from typing import Final

from spinezarr.errors import UsageError
from spinezarr.serve.http import Answer, Request, explained

__all__ = ["LOOPBACK", "Guard", "Tokens", "is_loopback", "new_token"]

_LINE: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+sha256:([0-9a-f]{64})")
_WORD: Final = re.compile(r"[\x21-\x7e]{1,512}")
_PLACE: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/@\s]+))(?::[0-9]{0,5})?", re.ASCII)
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
"""Names of this machine."""
_EXPOSED: Final = "Content-Range, Content-Length, ETag, Accept-Ranges, Retry-After"
_ASKED: Final = "Range, Authorization, If-Match, If-None-Match, If-Range, Content-Type, Accept"
_DAY_S: Final = 86_400


def is_loopback(host: str) -> bool:
    """Whether a host is this machine alone.

    Examples
    --------
    >>> [is_loopback(host) for host in ("localhost", "127.0.0.2", "::1", "0.0.0.0", "lab")]
    [True, True, True, False, False]
    """
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def new_token(path: Path, name: str) -> str:
    """Make a token and add its hash to a file, which only its owner may read.

    Raises
    ------
    UsageError
        If the name cannot stand in the file, or is there already.
    """
    token = secrets.token_urlsafe(32)
    line = f"{name} sha256:{_hash(token)}"
    if not _LINE.fullmatch(line):
        raise UsageError(f"{name!r}: a token's name holds letters, digits, '.', '_' and '-' only.")
    path.touch(mode=0o600)
    if name in Tokens(path).names:
        raise UsageError(
            f"{path}: has a token {name!r} already. Choose another name, or delete its line."
        )
    with path.open("a") as file:
        file.write(f"{line}\n")
    return token


class Tokens:
    """Hashes of tokens in a file, read again when it changes.

    Parameters
    ----------
    path
        One line a token: its name and ``sha256:`` with the SHA-256 of the token in hexadecimal.

    Raises
    ------
    UsageError
        If it cannot be read, or a line is none.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._seen: tuple[int, int, int] | None = None
        self._hashes: dict[str, str] = {}
        self._load()

    @property
    def names(self) -> frozenset[str]:
        """Of all tokens."""
        return frozenset(self._hashes)

    def named(self, token: str) -> str | None:
        """Return the name of a token that is in the file now; None if it is not."""
        try:
            self._load()
        except UsageError:  # half written, or gone: nobody is let in
            return None
        asked, found = _hash(token), None
        for name, known in self._hashes.items():
            if hmac.compare_digest(known, asked):
                found = name
        return found

    def _load(self) -> None:
        try:
            status = self._path.stat()
            now = (status.st_ino, status.st_mtime_ns, status.st_size)
            with self._lock:
                if now != self._seen:
                    self._hashes = _parsed(self._path)
                    self._seen = now
        except OSError as problem:
            raise UsageError(
                f"{self._path}: the file of tokens cannot be read: {problem.strerror}."
            ) from problem


def _parsed(path: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None or match[1] in found:
            raise UsageError(
                f"{path}, line {number}: is no token, expected a name of its own and "
                "'sha256:' with 64 digits. Make one with --new-token NAME."
            )
        found[match[1]] = match[2]
    return found


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Guard:
    """What a request must have.

    Attributes
    ----------
    tokens
        None: whoever reaches the server may read.
    hosts
        Names that the server is reached by; without tokens no other is answered, or a page of
        somebody else could read by a name of its own that leads here (DNS rebinding).
    origins
        Of pages elsewhere that may read. Pages of this machine always may.
    """

    tokens: Tokens | None = None
    hosts: frozenset[str] = LOOPBACK
    origins: frozenset[str] = frozenset()

    def refused(self, request: Request) -> Answer | None:
        """Return the answer to who may not ask; None for all others."""
        if self.tokens is None:
            if _host_of(request.headers.get("host", "")) not in self.hosts:
                return explained(
                    HTTPStatus.MISDIRECTED_REQUEST, "This server has another name (--host)."
                )
            return None
        token = _token_of(request.headers.get("authorization", ""))
        if token is not None and self.tokens.named(token) is not None:
            return None
        return explained(
            HTTPStatus.UNAUTHORIZED,
            "A token is needed: send 'Authorization: Bearer TOKEN'.",
            www_authenticate='Bearer realm="spinezarr"',
        )

    def preflight(self, request: Request) -> Answer | None:
        """Answer a browser that asks whether a page may ask; None for any other request."""
        if request.method != "OPTIONS" or "access-control-request-method" not in request.headers:
            return None
        allowed = {
            "access-control-allow-methods": "GET, HEAD, POST, OPTIONS",
            "access-control-allow-headers": _ASKED,
            "access-control-max-age": str(_DAY_S),
        }
        return Answer(HTTPStatus.NO_CONTENT, allowed)

    def shared(self, request: Request) -> Mapping[str, str]:
        """Return the headers that let the page that asks read the answer."""
        origin = request.headers.get("origin")
        if origin is None:
            return {"vary": "Origin"}
        place = origin.partition("://")[2]
        if origin not in self.origins and not is_loopback(_host_of(place)):
            return {"vary": "Origin"}
        return {
            "vary": "Origin",
            "access-control-allow-origin": origin,
            "access-control-expose-headers": _EXPOSED,
        }


def _token_of(authorization: str) -> str | None:
    """Return the token of ``Bearer TOKEN``, or the password of ``Basic`` (RFC 6750, RFC 7617)."""
    kind, _, value = authorization.partition(" ")
    value = value.strip()
    if not _WORD.fullmatch(value):
        return None
    if kind.lower() == "bearer":
        return value
    if kind.lower() != "basic":
        return None
    try:
        return b64decode(value, validate=True).decode().partition(":")[2]
    except ValueError:
        return None


def _host_of(place: str) -> str:
    """Return the host of ``host:port``, without brackets; nothing if it is no such pair."""
    found = _PLACE.fullmatch(place)
    return "" if found is None else (found[1] or found[2]).lower()
