"""Sends HTTP requests over a real socket."""

import json
import urllib.error
import urllib.request

from timeouts import TIMEOUT_S

__all__ = ["fetch", "fetch_patches"]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


def fetch(url, method="GET", body=None, **headers):
    """Return status, headers and body; a redirect is returned and not followed."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, fields, method=method)  # noqa: S310
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            return answer.status, dict(answer.headers.items()), answer.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, dict(answer.headers.items()), answer.read()


def fetch_patches(url, request, **headers):
    """Post a request for patches, as JSON unless it is bytes."""
    body = request if isinstance(request, bytes) else json.dumps(request).encode()
    return fetch(url, "POST", body, **{"content_type": "application/json", **headers})
