"""How is a path or URL shown in a message without its secrets?

References
----------
Generic syntax of URLs: RFC 3986, https://www.rfc-editor.org/rfc/rfc3986
How web clients read URLs that do not follow it: https://url.spec.whatwg.org/#url-parsing
Chained URLs: https://filesystem-spec.readthedocs.io/en/latest/features.html#url-chaining
"""

import re
from typing import Final

__all__ = ["redact_url", "redact_urls_in", "with_two_slashes"]

_SCHEME: Final = r"[A-Za-z][A-Za-z0-9+.-]+"
_CHAINED: Final = rf"(?:{_SCHEME}::)*"
_START: Final = re.compile(
    rf"\s*{_CHAINED}(?:(?P<scheme>{_SCHEME}):[/\\]+|https?:(?=[^:]*:?[^:]*@)|[^/\\]*?://)",
    re.IGNORECASE,
)
"""Start of a URL. :class:`pathlib.Path` turns two slashes into one. The parsers of
WHATWG accept backslashes for slashes, and no slash at all after ``http:``."""
_ON_THIS_MACHINE: Final = re.compile(
    rf"\s*{_CHAINED}(?:file|local):(?:[/\\]|///+)(?![/\\])", re.IGNORECASE
)
"""Start of a local path, in which a question mark is part of a name."""
_ONE_SLASH: Final = re.compile(r"(s3a?|gs|https?):/?(?=[^/\\])", re.IGNORECASE)
"""Start of a URL without the two slashes."""
_WRAPPERS: Final = frozenset(
    [
        "blockcache",
        "cached",
        "dir",
        "filecache",
        "libarchive",
        "reference",
        "simplecache",
        "tar",
        "zip",
    ]
)
"""Schemes of fsspec after which ``::`` and another URL may follow."""
_NEXT_URL: Final = re.compile(rf"::(?={_CHAINED}{_SCHEME}:[/\\]|[/\\.~])")
_HOST: Final = re.compile(r"(?:\[[^\]@]*\]|[^:@\[\]]*)(?::(\d{1,5}))?")
_LARGEST_PORT: Final = 65535
_END_OF_PATH: Final = re.compile(r"[?#]")
_END_OF_HOST: Final = re.compile(r"[/\\?#]")
_ENCODED_AT: Final = "%40"
_PLACEHOLDER: Final = "…/"
_TICKET: Final = re.compile(r"(?<=/signed/)\d+\.\d+\.[^/]+")
"""Signature in a URL that ``spinezarr serve --sign`` makes."""
_URL_IN_TEXT: Final = re.compile(rf"{_CHAINED}\b{_SCHEME}:[/\\]+(?:\S*@)?[^\s'\"<>]*")


def redact_url(url: str) -> str:
    """Return a URL without userinfo, query and fragment, for messages.

    * A signature in the path (:mod:`spinezarr.serve.signing`) is removed.
    * If a URL does not follow RFC 3986, for example with ``/``, ``?`` or ``@`` in a password, too
      much is removed rather than too little.
    * A path on this machine is returned unchanged.

    Examples
    --------
    >>> redact_url("https://user:pass@host:80/a.zarr?token=key#part")
    'https://host:80/a.zarr'
    >>> redact_url("simplecache::s3://key:secret@bucket/a.zarr")
    'simplecache::s3://bucket/a.zarr'
    >>> redact_url("https://host/signed/1790000000.2.anna.c2VjcmV0/zarr/a")
    'https://host/signed/…/zarr/a'
    >>> redact_url("/data/a@b?c#d")
    '/data/a@b?c#d'
    """
    start = _START.match(url)
    if start is None:
        # Some programs write a share on another machine as ``//user:pass@host/share``.
        start = re.match(r"[/\\]{2}(?=[^/\\]*@)", url)
        return url if start is None else start[0] + _without_userinfo(url[start.end() :])
    if _ON_THIS_MACHINE.match(url):
        return url
    rest = url[start.end() :]
    link, following = rest, ""
    if (start["scheme"] or "").lower() in _WRAPPERS and (chained := _NEXT_URL.search(rest)):
        link, following = rest[: chained.start()], rest[chained.end() :]
    link = _without_userinfo(link)
    path = _END_OF_PATH.split(link)[0]
    if path != link:
        following = ""  # it may be a part of the query
    path = _TICKET.sub("…", path)
    inner = re.search(rf"{_SCHEME}://", path)
    if inner is not None:
        path = path[: inner.start()] + redact_url(path[inner.start() :])
    return f"{start[0]}{path}{'::' if following else ''}{redact_url(following)}"


def with_two_slashes(text: str) -> str:
    """Return the URL that a text without its two slashes most likely means; else an empty text.

    Examples
    --------
    >>> with_two_slashes("s3:/bucket/a.zarr"), with_two_slashes("https:host/a")
    ('s3://bucket/a.zarr', 'https://host/a')
    >>> with_two_slashes("s3://bucket/a.zarr"), with_two_slashes("s3/a.zarr")
    ('', '')
    """
    start = _ONE_SLASH.match(text)
    return "" if start is None else f"{start[1]}://{text[start.end() :]}"


def redact_urls_in(text: str) -> str:
    """Return a message in which :func:`redact_url` has replaced each URL.

    Examples
    --------
    >>> redact_urls_in("http://user:pass@host/a: is absent.")
    'http://host/a: is absent.'
    """
    return _URL_IN_TEXT.sub(lambda match: redact_url(match[0]), text)


def _without_userinfo(link: str) -> str:
    """Return the part of a URL after its slashes, from the host on."""
    host = _END_OF_HOST.split(link)[0]
    if _cannot_be_host(host) and "@" in link:
        link = link.rpartition("@")[2]
        host = _END_OF_HOST.split(link)[0]
    elif "@" in host:
        path = link[len(host) :]
        host = host.rpartition("@")[2]
        # By RFC 3986 this is the host, but it may be the middle of a password.
        link = f"{_PLACEHOLDER}{path.rpartition('@')[2]}" if "@" in path else f"{host}{path}"
    encoded = host.lower().rfind(_ENCODED_AT)
    return link if encoded < 0 else link[encoded + len(_ENCODED_AT) :]


def _cannot_be_host(authority: str) -> bool:
    """Whether the text in the position of host and port must be the start of a password."""
    match = _HOST.fullmatch(authority.rpartition("@")[2])
    return match is None or int(match[1] or 0) > _LARGEST_PORT
