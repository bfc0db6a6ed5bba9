"""Requests over a real socket, and servers in processes of their own."""

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress

from patience import PATIENCE_S, wait_until


class _NoOnward(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None


_OPENER = urllib.request.build_opener(_NoOnward)


def ask(url, method="GET", body=None, **headers):
    """Return status, headers and body; a redirect is returned and not followed."""
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, fields, method=method)  # noqa: S310
    try:
        with _OPENER.open(request, timeout=PATIENCE_S) as answer:
            return answer.status, dict(answer.headers.items()), answer.read()
    except urllib.error.HTTPError as answer:
        with answer:
            return answer.code, dict(answer.headers.items()), answer.read()


def ask_for_patches(url, wanted, **headers):
    """Post a request for patches, as JSON unless it is bytes."""
    body = wanted if isinstance(wanted, bytes) else json.dumps(wanted).encode()
    return ask(url, "POST", body, **{"content_type": "application/json", **headers})


FRESH = (sys.executable, "-c", "from spinezarr.cli.main import main; main()")
"""The command in a new process, which is the server itself."""


def started(*words, port=None, log=None, command=FRESH):
    """Run ``spinezarr serve``; return the process and its URL once it answers.

    Its output goes to the file ``log``; without one, its errors go to a pipe.
    """
    port = port or free_port()
    process = subprocess.Popen(
        [*command, "serve", "--port", str(port), *map(str, words)],
        stdout=log,
        stderr=log or subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    wait_for_server(process, url)
    return process, url


def wait_for_server(process, url):
    """Wait until a server answers, and fail if its process ends before."""

    def answers():
        assert process.poll() is None, process.communicate()
        with suppress(OSError):
            return ask(f"{url}/healthz")

    wait_until(answers)


def free_port():
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]
