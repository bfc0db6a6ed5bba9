"""How does this package's own client follow fsspec's options for a web server?

It sends the same headers, and writes a URL in the same way as aiohttp does below fsspec.
"""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from spinezarr.remote.direct_transport import ObjectLocation, is_unambiguous_key, location_of_url

__all__ = ["HttpLocator", "http_locator"]

_IRRELEVANT_OPTIONS: Final = {
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
"""Options of fsspec's file system that do not change a request for one object."""
_ESCAPED: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_KEPT_ESCAPED: Final = frozenset("!$&'()*+,;=:@/[]^|\\")
"""Characters that aiohttp leaves escaped, while this client would send them unescaped."""
_ESCAPED_ONLY_BY_AIOHTTP: Final = frozenset("[]^|\\")
"""Characters that aiohttp escapes, while other clients do not."""
_UNESCAPED: Final = "/!$&'()*+,;=:@~"
"""Characters that aiohttp sends unescaped."""
_HEADER: Final = re.compile(r"[\t -~\xa0-\xff]*")


class HttpLocator:
    """Finds the location of objects on web servers."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name.title(): text for name, text in headers.items()}

    def locate(self, path: str) -> ObjectLocation | None:
        """See :class:`spinezarr.remote.direct_transport.ObjectLocator`."""
        try:
            parts = urlsplit(path)
        except ValueError:
            return None
        key, headers = _key(parts.path), self._headers
        if key is None or parts.query or parts.fragment or path.endswith(("?", "#")):
            return None
        login, _, host = parts.netloc.rpartition("@")
        if login:
            if "Authorization" in headers:
                return None
            user, _, password = login.partition(":")
            basic = _basic(unquote(user), unquote(password), "utf-8")
            headers = {**headers, "Authorization": basic}
        return location_of_url(f"{parts.scheme}://{host}/{quote(key, safe=_UNESCAPED)}", headers)


def http_locator(options: Mapping[str, Any]) -> HttpLocator | None:
    """Return a locator for fsspec's options; None if this client cannot follow all of them."""
    rest = {name: value for name, value in options.items() if name not in _IRRELEVANT_OPTIONS}
    client, extra = rest.pop("client_kwargs", None) or {}, rest.pop("headers", None) or {}
    if not isinstance(client, Mapping) or not isinstance(extra, Mapping):
        return None
    client = dict(client)
    headers = {**(client.pop("headers", None) or {}), **extra}
    logins = [x for x in (client.pop("auth", None), rest.pop("auth", None)) if x is not None]
    texts = [x for pair in headers.items() for x in pair]
    if rest or client or not all(isinstance(x, str) and _HEADER.fullmatch(x) for x in texts):
        return None
    if logins:
        login = logins[-1]  # an aiohttp.BasicAuth; importing its class is slow
        headers["Authorization"] = _basic(login.login, login.password, login.encoding)
    return HttpLocator(headers)


def _basic(user: str, password: str, encoding: str) -> str:
    """Return the value of an ``Authorization`` header (RFC 7617)."""
    return f"Basic {b64encode(f'{user}:{password}'.encode(encoding)).decode('ascii')}"


def _key(path: str) -> str | None:
    """Return the key of a URL's path; None if aiohttp would escape it differently."""
    escaped = {chr(int(digits, 16)) for digits in _ESCAPED.findall(path)}
    if not _KEPT_ESCAPED.isdisjoint(escaped):
        return None
    try:
        key = unquote(path.removeprefix("/"), errors="strict")
    except UnicodeDecodeError:
        return None
    return key if is_unambiguous_key(key) and _ESCAPED_ONLY_BY_AIOHTTP.isdisjoint(key) else None
