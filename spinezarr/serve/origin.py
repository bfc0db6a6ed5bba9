"""Which address did the client use to reach the server?

URLs in answers begin with this address.
"""

import re
from typing import Final

from spinezarr.serve.http import Request

__all__ = ["origin_of"]

_HOST: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(?::[0-9]{1,5})?")


def origin_of(request: Request) -> str | None:
    """Return scheme, host name and port of the request; None if it names no host.

    A proxy states in ``X-Forwarded-Proto`` that the client used TLS. A client that sends a false
    header gets wrong URLs. Other clients do not, because no cache keeps these answers.

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
