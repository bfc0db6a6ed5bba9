"""By which address a client reached the server: what a URL that it is given begins with."""

import re
from typing import Final

from spinezarr.serve.http import Request

__all__ = ["origin_of"]

_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")


def origin_of(request: Request) -> str | None:
    """Return scheme, name and port, by which the client asked; None if it named no host.

    Proxies say by ``X-Forwarded-Proto`` that it asked them with TLS. Whoever says something wrong
    gets URLs that lead nowhere, and nobody else does: no cache keeps them.

    Examples
    --------
    >>> origin_of(Request("GET", "/", headers={"host": "lab:8765"}))
    'http://lab:8765'
    >>> tls = {"host": "data.example.org", "x-forwarded-proto": "https"}
    >>> origin_of(Request("GET", "/", headers=tls))
    'https://data.example.org'
    """
    host = request.headers.get("host", "")
    if _HOST.fullmatch(host) is None:
        return None
    is_secure = request.headers.get("x-forwarded-proto", "").lower().startswith("https")
    return f"{'https' if is_secure else 'http'}://{host}"
