"""How does a server run, as a command or in a thread of a program?"""

import os
import resource
import socket
from tempfile import TemporaryDirectory
from threading import Thread
from types import TracebackType
from typing import Final, Self

from spinezarr.errors import UsageError
from spinezarr.serve.environment import METRICS_FOLDER, SETTINGS
from spinezarr.serve.guard import is_loopback
from spinezarr.serve.install_hint import INSTALL
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.slow_clients import set_send_timeout

__all__ = ["BackgroundServer", "check_address", "run"]

_REQUEST_HEAD_MS: Final = 5_000
"""Milliseconds within which the head of a request must arrive."""
_SHUTDOWN_S: Final = 4
"""Seconds for finishing requests at the end. The processes need one more second."""
_MAX_CONNECTIONS: Final = 2048
"""Most connections of a process, with idle ones. Others wait in the queue of the system."""
_RESERVED_FILES: Final = 512
"""File descriptors that are kept for files."""


def check_address(host: str, port: int, *, has_tokens: bool) -> None:
    """Check that the server may and can listen at an address.

    Raises
    ------
    UsageError
        If other machines could read without a token, or the address is in use.
    """
    if not has_tokens and not is_loopback(host):
        raise UsageError(
            f"--host {host}: other machines could read all served stores without a token. Give "
            "--token-file, or serve on 127.0.0.1."
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as problem:
            raise UsageError(
                f"{host}:{port}: the server cannot listen here: {problem.strerror}. Choose another "
                "--port."
            ) from problem


def run(settings: ServeSettings, host: str, port: int, processes: int) -> None:
    """Serve until SIGTERM or SIGINT. Then finish open requests within five seconds.

    Raises
    ------
    UsageError
        If granian is not installed.
    """
    try:
        from granian import Granian  # noqa: PLC0415  an extra
        from granian.constants import HTTPModes, Interfaces  # noqa: PLC0415
        from granian.http import HTTP1Settings  # noqa: PLC0415
        from granian.log import LogLevels  # noqa: PLC0415
    except ImportError as problem:
        raise UsageError(INSTALL) from problem
    os.environ[SETTINGS] = settings.model_dump_json()
    with TemporaryDirectory(prefix="spinezarr-figures-") as folder:
        if processes > 1:
            os.environ[METRICS_FOLDER] = folder
        Granian(
            "spinezarr.serve.settings:create",
            factory=True,
            address=host,
            port=port,
            workers=processes,
            interface=Interfaces.ASGI,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=_REQUEST_HEAD_MS),
            backpressure=_raise_connection_limit(),
            websockets=False,
            respawn_failed_workers=True,
            workers_kill_timeout=_SHUTDOWN_S,
            log_level=LogLevels.warning,
        ).serve()


def _raise_connection_limit() -> int:
    """Raise the limit of open files as far as allowed; return how many may be connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = _MAX_CONNECTIONS + _RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(soft - _RESERVED_FILES, soft // 2)
    return _MAX_CONNECTIONS


class BackgroundServer:
    """Serves stores to this machine from a thread, until it is closed or the program ends.

    Parameters
    ----------
    settings
        Settings of the server: the stores, and who may read them.
    port
        Port to listen at; 0 for a free one.

    Attributes
    ----------
    url
        URL of the server, without a slash at its end.

    Raises
    ------
    UsageError
        If uvicorn is not installed, the port is in use, or a store cannot be served.
    """

    def __init__(self, settings: ServeSettings, port: int = 0) -> None:
        try:
            import uvicorn  # noqa: PLC0415  an extra
        except ImportError as problem:
            raise UsageError(INSTALL) from problem
        app = settings.app()
        app.stores.check()
        try:
            self._socket = socket.create_server(("127.0.0.1", port))
        except OSError as problem:
            raise UsageError(
                f"127.0.0.1:{port}: the server cannot listen here: {problem.strerror}. Choose "
                "another port."
            ) from problem
        # asyncio sets TCP_NODELAY only where a socket states its protocol, and this one does not.
        # Without it, each answer waits 40 ms for the client to acknowledge its head.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        set_send_timeout(self._socket, settings.limits.unread_s)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app, log_level="warning", lifespan="off", timeout_graceful_shutdown=_SHUTDOWN_S
        )
        self._server = uvicorn.Server(config)
        self._thread = Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop the server. Requests that have begun are finished."""
        self._server.should_exit = True
        self._thread.join(2 * _SHUTDOWN_S)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<spinezarr server at {self.url}>"
