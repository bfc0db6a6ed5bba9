"""An S3 server, and a proxy before it that sees each request and may kill, refuse or cut there."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Final, Literal

import botocore.session
from s3fs import S3FileSystem

from killing.check import Files

__all__ = ["BUCKET", "Action", "Bucket", "Change", "serve_bucket"]

BUCKET: Final = "crash"
_CHANGING: Final = {"PUT", "POST", "DELETE"}
_HOP_BY_HOP: Final = {"connection", "keep-alive", "transfer-encoding", "date", "server"}
_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "nobody",
    "AWS_SECRET_ACCESS_KEY": "nothing",
    "AWS_DEFAULT_REGION": "us-east-1",
}
_REFUSALS: Final = {
    "refuse": (403, "AccessDenied", "Access Denied"),
    "fail": (500, "InternalError", "We encountered an internal error. Please try again."),
}

Action = Literal["pass", "refuse", "fail", "cut"]
Change = tuple[str, str]
"""Method and key of a request that changes something."""


class Bucket:
    """One bucket; clients go through the proxy, :meth:`files` and :meth:`put` do not."""

    def __init__(self, direct: str, proxy: "_Proxy") -> None:
        self._proxy = proxy
        self.client = botocore.session.get_session().create_client("s3", endpoint_url=direct)
        self.client.create_bucket(Bucket=BUCKET)
        port = proxy.server_port
        self.environment = {**_CREDENTIALS, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}

    def files(self, prefix: str) -> Files:
        """Read all objects below a prefix."""
        pages = self.client.get_paginator("list_objects_v2").paginate(
            Bucket=BUCKET, Prefix=f"{prefix}/"
        )
        keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
        return {
            key[len(prefix) + 1 :]: self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
        }

    def put(self, prefix: str, files: Files) -> None:
        """Write objects below a prefix."""
        for key, data in files.items():
            self.client.put_object(Bucket=BUCKET, Key=f"{prefix}/{key}", Body=data)

    def rule(
        self,
        before: Callable[[int, Change], Action] = lambda _number, _change: "pass",
        after: Callable[[int, Change], None] = lambda _number, _change: None,
    ) -> None:
        """Set what happens at each change from now on, and forget those before.

        Parameters
        ----------
        before
            Called with number and change before the server hears of it.
        after
            Called when the server has done it, before the client hears of that.
        """
        self._proxy.before, self._proxy.after = before, after
        self._proxy.changes.clear()

    @property
    def changes(self) -> list[Change]:
        """What clients asked for since the last rule was set."""
        return list(self._proxy.changes)


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = port
        self.before: Callable[[int, Change], Action] = lambda _number, _change: "pass"
        self.after: Callable[[int, Change], None] = lambda _number, _change: None
        self.changes: list[Change] = []
        self.lock = Lock()

    def handle_error(self, *_: object) -> None:
        """Keep quiet: killed clients end their connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16
    server: _Proxy

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        change = self.command, self.path.removeprefix(f"/{BUCKET}/")
        number = 0
        if self.command in _CHANGING:
            with self.server.lock:
                self.server.changes.append(change)
                number = len(self.server.changes)
        action = self.server.before(number, change)
        if action == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if action in _REFUSALS:
            self._refuse(*_REFUSALS[action])
            return
        status, headers, answer = self._forward(body)
        if number:
            self.server.after(number, change)
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers):
            self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _answer

    def _forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.upstream)
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() != "expect"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _refuse(self, status: int, code: str, message: str) -> None:
        text = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        body = b"" if self.command == "HEAD" else f"<?xml version='1.0'?>{text}".encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_expect_100(self) -> bool:
        """Tell the client at once that it may send the body."""
        done = super().handle_expect_100()
        self.wfile.flush()
        return done

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


@contextmanager
def serve_bucket(log: Path) -> Iterator[Bucket]:
    """Run a server with an empty bucket, and let this process find it; its output goes to ``log``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    direct = f"http://127.0.0.1:{port}"
    ours = {**_CREDENTIALS, "AWS_ENDPOINT_URL": direct}
    known = {name: os.environ.get(name) for name in ours}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output)
    os.environ.update(ours)
    S3FileSystem.clear_instance_cache()  # one may know another server
    proxy = _Proxy(port)
    thread = Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        _wait_for(port, server)
        yield Bucket(direct, proxy)
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.kill()
        server.wait()
        S3FileSystem.clear_instance_cache()
        _restore(known)


def _restore(known: dict[str, str | None]) -> None:
    for name, value in known.items():
        if value is None:
            os.environ.pop(name)
        else:
            os.environ[name] = value


def _wait_for(port: int, server: "subprocess.Popen[Any]") -> None:
    while server.poll() is None:
        with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.05)
    raise ChildProcessError("the S3 server ended")
