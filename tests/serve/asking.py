"""Requests over a real socket."""

import json
import urllib.error
import urllib.request


def ask(url, method="GET", body=None, **headers):
    """Return status, headers and body."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, fields, method=method)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.status, dict(answer.headers.items()), answer.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, dict(answer.headers.items()), answer.read()


def ask_for_patches(url, wanted, **headers):
    """Post what is wanted, as JSON unless it is bytes."""
    body = wanted if isinstance(wanted, bytes) else json.dumps(wanted).encode()
    return ask(url, "POST", body, **{"content_type": "application/json", **headers})
