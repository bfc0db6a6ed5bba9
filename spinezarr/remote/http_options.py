"""Web servers for our own client: what fsspec's options mean, and how a URL is written."""

import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from spinezarr.remote.direct_transport import Place, is_plain_key, place_of

__all__ = ["HttpPlaces", "http_places"]

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
"""What aiohttp leaves escaped as it finds it, and we would send bare."""
_SENT_BARE: Final = frozenset("[]^|\\")
"""What aiohttp escapes, and others do not."""
_BARE: Final = "/!$&'()*+,;=:@~"
"""What aiohttp sends as it is."""
_HEADER: Final = re.compile(r"[\t -~\xa0-\xff]*")


class HttpPlaces:
    """Where URLs lie."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = {name.title(): text for name, text in headers.items()}

    def find(self, path: str) -> Place | None:
        """See :class:`spinezarr.remote.direct_transport.Places`."""
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
        return place_of(f"{parts.scheme}://{host}/{quote(key, safe=_BARE)}", headers)


def http_places(options: Mapping[str, Any]) -> HttpPlaces | None:
    """Return the places for fsspec's options, or None if they say more than our client knows."""
    rest = {name: value for name, value in options.items() if name not in _OF_NO_MATTER}
    client, own = rest.pop("client_kwargs", None) or {}, rest.pop("headers", None) or {}
    if not isinstance(client, Mapping) or not isinstance(own, Mapping):
        return None
    client = dict(client)
    headers = {**(client.pop("headers", None) or {}), **own}
    logins = [x for x in (client.pop("auth", None), rest.pop("auth", None)) if x is not None]
    texts = [x for pair in headers.items() for x in pair]
    if rest or client or not all(isinstance(x, str) and _HEADER.fullmatch(x) for x in texts):
        return None
    if logins:
        login = logins[-1]  # aiohttp.BasicAuth, which takes long to import
        headers["Authorization"] = _basic(login.login, login.password, login.encoding)
    return HttpPlaces(headers)


def _basic(user: str, password: str, encoding: str) -> str:
    """Return the value of a header (RFC 7617)."""
    return f"Basic {b64encode(f'{user}:{password}'.encode(encoding)).decode('ascii')}"


def _key(path: str) -> str | None:
    """Return the key for which we ask as aiohttp does for this path, or None."""
    escaped = {chr(int(digits, 16)) for digits in _ESCAPED.findall(path)}
    if not _STAY_ESCAPED.isdisjoint(escaped):
        return None
    try:
        key = unquote(path.removeprefix("/"), errors="strict")
    except UnicodeDecodeError:
        return None
    return key if is_plain_key(key) and _SENT_BARE.isdisjoint(key) else None
