"""Web servers for obstore: what fsspec's options mean there, and how a URL is written."""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from obstore.store import HTTPStore

from spinezarr.store.transport_obstore import CLIENT, NO_RETRIES, is_plain_key

__all__ = ["HttpStores", "http_stores"]

_OF_NO_MATTER: Final = {
    "block_size",
    "cache_options",
    "cache_type",
    "listings_expiry_time",
    "max_paths",
    "same_scheme",
    "simple_links",
    "size_policy",
    "skip_instance_cache",
    "use_listings_cache",
}
"""Options of fsspec's file system that say nothing about a request for one object."""
_ESCAPED: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_STAY_ESCAPED: Final = frozenset("!$&'()*+,;=:@/[]^|\\")
"""What aiohttp leaves escaped as it finds it, and obstore would send bare."""
_SENT_BARE: Final = frozenset("[]^|\\")
"""What aiohttp escapes, and obstore does not."""


class HttpStores:
    """One store an origin."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name.title(): text for name, text in headers.items()}

    def locate(self, path: str) -> tuple[str, str] | None:
        """See :class:`spinezarr.store.transport_obstore.Stores`."""
        try:
            parts = urlsplit(path)
        except ValueError:
            return None
        key = _key(parts.path)
        is_login_given_twice = "@" in parts.netloc and "Authorization" in self._headers
        if (
            key is None
            or is_login_given_twice
            or parts.query
            or parts.fragment
            or path.endswith(("?", "#"))
        ):
            return None
        return f"{parts.scheme}://{parts.netloc}", key

    def open(self, name: str) -> HTTPStore:
        """See :class:`spinezarr.store.transport_obstore.Stores`."""
        parts, headers = urlsplit(name), dict(self._headers)
        login, _, host = parts.netloc.rpartition("@")
        if login:
            user, _, password = login.partition(":")
            headers["Authorization"] = _basic(unquote(user), unquote(password), "utf-8")
        client: Any = {**CLIENT, "default_headers": headers}
        origin = f"{parts.scheme}://{host}"
        return HTTPStore.from_url(origin, client_options=client, retry_config=NO_RETRIES)


def http_stores(options: Mapping[str, Any]) -> HttpStores | None:
    """Return the stores for fsspec's options, or None if obstore has no way to say them."""
    rest = {name: value for name, value in options.items() if name not in _OF_NO_MATTER}
    client, own = rest.pop("client_kwargs", None) or {}, rest.pop("headers", None) or {}
    if not isinstance(client, Mapping) or not isinstance(own, Mapping):
        return None
    client = dict(client)
    headers = {**(client.pop("headers", None) or {}), **own}
    logins = [x for x in (client.pop("auth", None), rest.pop("auth", None)) if x is not None]
    if rest or client or not all(isinstance(x, str) for pair in headers.items() for x in pair):
        return None
    if logins:
        login = logins[-1]  # aiohttp.BasicAuth, which takes long to import
        headers["Authorization"] = _basic(login.login, login.password, login.encoding)
    return HttpStores(headers)


def _basic(user: str, password: str, encoding: str) -> str:
    """Return the value of a header (RFC 7617)."""
    return f"Basic {b64encode(f'{user}:{password}'.encode(encoding)).decode('ascii')}"


def _key(path: str) -> str | None:
    """Return the key for which obstore asks as aiohttp does for this path, or None."""
    escaped = {chr(int(digits, 16)) for digits in _ESCAPED.findall(path)}
    if not _STAY_ESCAPED.isdisjoint(escaped):
        return None
    try:
        key = unquote(path.removeprefix("/"), errors="strict")
    except UnicodeDecodeError:
        return None
    return key if is_plain_key(key) and _SENT_BARE.isdisjoint(key) else None
