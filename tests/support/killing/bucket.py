"""An S3 server that can kill its client, refuse a request or cut a connection."""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread
from typing import Any, Final, Literal

from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import S3Backend, s3_backends
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from killing.check import Files
from spinezarr.remote.s3_filesystem import S3

__all__ = ["BUCKET", "Action", "Bucket", "Change", "serve_bucket"]

BUCKET: Final = "crash"
_CHANGING: Final = {"PUT", "POST", "DELETE"}
_REFUSALS: Final = {
    "refuse": ("403 Forbidden", "AccessDenied", "Access Denied"),
    "fail": ("500 Internal Server Error", "InternalError", "We encountered an internal error."),
}

Action = Literal["pass", "refuse", "fail", "cut", "pass then cut"]
Change = tuple[str, str]
"""Method and key of a request that changes an object."""
_Start = Callable[..., Any]


def _pass(_number: int, _change: Change) -> Action:
    return "pass"


class Bucket:
    """One bucket. Tests also read and write it directly, without requests, like another client."""

    def __init__(self) -> None:
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = Lock()
        self._before: Callable[[int, Change], Action] = _pass
        self._after: Callable[[int, Change], object] = _pass
        self._changes: list[Change] = []
        self._backend: S3Backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
        self._backend.reset()
        self._backend.create_bucket(BUCKET, "us-east-1")
        self.environment: dict[str, str] = {}
        """Environment variables that a client needs to find it."""

    def files(self, prefix: str) -> Files:
        """Read all objects below a prefix."""
        keys = self._backend.buckets[BUCKET].keys
        names = [name for name in list(keys) if name.startswith(f"{prefix}/")]
        return {name[len(prefix) + 1 :]: keys[name].value for name in names}

    def put(self, prefix: str, files: Files) -> None:
        """Write objects below a prefix."""
        for key, data in files.items():
            self._backend.put_object(BUCKET, f"{prefix}/{key}", data)

    def set_rule(
        self,
        before: Callable[[int, Change], Action] = _pass,
        after: Callable[[int, Change], object] = _pass,
    ) -> None:
        """Set the rule for all further requests, and forget the recorded ones.

        Parameters
        ----------
        before
            Called with a request before it is done, and its number among those that change
            something; 0 for others.
        after
            Called when it is done, before the client gets the answer.
        """
        self._before, self._after, self._changes = before, after, []

    @property
    def changes(self) -> list[Change]:
        """Changes that clients requested since the last rule was set."""
        return list(self._changes)

    def __call__(self, environ: dict[str, Any], start_response: _Start) -> Iterable[bytes]:
        """Answer a request (PEP 3333)."""
        method = environ["REQUEST_METHOD"]
        query = environ["QUERY_STRING"]
        change = method, environ["PATH_INFO"].removeprefix(f"/{BUCKET}/") + (query and f"?{query}")
        number = 0
        if method in _CHANGING:
            with self._lock:
                self._changes.append(change)
                number = len(self._changes)
        action = self._before(number, change)
        if action == "cut":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            start_response("500 Internal Server Error", [])  # the client is gone
            return []
        if action in _REFUSALS:
            return _refuse(start_response, *_REFUSALS[action])
        answer = self._moto(environ, start_response)
        if action == "pass then cut":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        self._after(number, change)
        return answer


def _refuse(start_response: _Start, status: str, code: str, message: str) -> list[bytes]:
    text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    start_response(status, [("Content-Type", "application/xml")])
    return [f"<?xml version='1.0'?>{text}".encode()]


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, *_: object) -> None:
        """Keep quiet."""

    def connection_dropped(self, *_: object) -> None:
        """Killed clients end their connections."""


@contextmanager
def serve_bucket() -> Iterator[Bucket]:
    """Serve an empty bucket, and set the environment of this process to use it."""
    bucket = Bucket()
    server = make_server("127.0.0.1", 0, bucket, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    bucket.environment = {
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_MAX_ATTEMPTS": "2",  # waits between more attempts would take too long
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}",
    }
    previous = {name: os.environ.get(name) for name in bucket.environment}
    os.environ.update(bucket.environment)
    S3.clear_instance_cache()  # a cached one may use another server
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield bucket
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        S3.clear_instance_cache()
        _restore(previous)


def _restore(variables: dict[str, str | None]) -> None:
    for name, value in variables.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value
