"""A server in its own processes, started as a user starts it."""

import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from asking import started
from patience import PATIENCE_S

__all__ = ["Running", "running"]


@dataclass(frozen=True, slots=True)
class Running:
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
def running(folder, *words):
    """Run ``spinezarr serve`` until the context ends; its output is in a file in the folder."""
    log = Path(folder) / "serve.log"
    with log.open("w", encoding="utf-8") as file:
        process, url = started(*words, log=file)
    try:
        yield Running(url, process, log)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)
