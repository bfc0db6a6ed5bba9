"""Runs ``spinezarr serve`` in processes of its own, as a user starts it."""

import socket
import subprocess
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from http_client import fetch
from timeouts import TIMEOUT_S, wait_until

__all__ = ["ServerProcess", "free_port", "server_process", "start_server", "wait_for_server"]

_NEW_INTERPRETER = (sys.executable, "-c", "from spinezarr.cli.main import main; main()")
"""Command in a new process, which is the server itself."""


@dataclass(frozen=True, slots=True)
class ServerProcess:
    """A running server."""

    url: str
    process: subprocess.Popen
    log: Path

    @property
    def port(self):
        return int(self.url.rpartition(":")[2])

    @property
    def workers(self):
        """Return the worker processes."""
        return psutil.Process(self.process.pid).children()

    @property
    def output(self):
        """Return its output; granian prints to the standard output."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    @property
    def descriptors(self):
        """Count the open descriptors of the worker processes."""
        return sum(worker.num_fds() for worker in self.workers)

    @property
    def sockets(self):
        """Count open descriptors that are no files, such as connections."""
        return self.descriptors - sum(len(worker.open_files()) for worker in self.workers)

    @property
    def n_connections(self):
        """Count the connections of clients."""
        ends = [end for worker in self.workers for end in worker.net_connections("tcp")]
        return sum(bool(end.raddr) and end.laddr.port == self.port for end in ends)

    @property
    def resident_bytes(self):
        return sum(worker.memory_info().rss for worker in self.workers)


@contextmanager
def server_process(folder, *words):
    """Run a server until the context ends; its output is in a file in the folder."""
    log = Path(folder) / "serve.log"
    with log.open("w", encoding="utf-8") as file:
        process, url = start_server(*words, log=file)
    try:
        yield ServerProcess(url, process, log)
    finally:
        process.terminate()
        process.wait(timeout=TIMEOUT_S)


def start_server(*words, port=None, log=None, command=_NEW_INTERPRETER):
    """Start a server; return the process and its URL once it answers.

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
            return fetch(f"{url}/healthz")

    wait_until(answers)


def free_port():
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
