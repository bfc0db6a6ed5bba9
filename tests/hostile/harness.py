"""Processes that a hostile input may crash, slow down or fill; each is then forked again."""

import faulthandler
import multiprocessing as mp
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

KILL_CPU_S, KILL_S = 20.0, 120.0
"""Generous time limits, because machines are shared."""
IDLE_S = 10.0
"""Seconds without processor time after which a process is considered as hanging."""
LOOK_S = 0.5
_TICKS = os.sysconf("SC_CLK_TCK")
MOST_BYTES = 512 << 20
"""Maximum growth of resident memory."""
ADDRESS_BYTES = 4 << 30
"""Maximum growth of address space; np.empty may reserve more than it touches."""
FULL, DONE = 77, 78
"""Exit codes of a child that has answered its number of requests, and of one told to end."""

Answer = Callable[[Any], Any]


def peak_bytes() -> int:
    """Return the peak of resident memory since the last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def cpu_s() -> float:
    """Return the processor time of this process and of its ended children."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(who)[:2]) for who in whose)


@dataclass(frozen=True)
class Cost:
    """Time and memory of a call."""

    seconds: float
    cpu_s: float
    bytes: int


def measured(work: Callable[[], Any]) -> tuple[Any, Cost]:
    """Return the result of ``work``, and its cost."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, began, cpu = peak_bytes(), time.monotonic(), cpu_s()
    found = work()
    return found, Cost(time.monotonic() - began, cpu_s() - cpu, peak_bytes() - before)


def limit_address_space() -> None:
    """Limit the further address space of this process and its children."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limit = pages * os.sysconf("SC_PAGE_SIZE") + ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


@contextmanager
def silence() -> Iterator[None]:
    """Discard all output, because decoders write to the terminal on their own."""
    kept = os.dup(1), os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    if "DEBUG" not in os.environ:
        os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for file in (*kept, nothing):
            os.close(file)


def _serve(
    pipe: Connection,
    log: str,
    prepare: Callable[..., AbstractContextManager[Answer]],
    arguments: tuple[Any, ...],
    per_child: int,
) -> None:
    """Prepare once, then fork children that answer requests."""
    with prepare(*arguments) as answer:
        pipe.send(("ready", None))
        code = FULL
        while code != DONE:
            child = os.fork()
            if not child:
                _answer(pipe, log, answer, per_child)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            if code not in {FULL, DONE}:
                pipe.send(("ended", code))


def _answer(pipe: Connection, log: str, answer: Answer, per_child: int) -> None:
    os.setsid()
    pipe.send(("child", os.getpid()))
    with Path(log).open("w", encoding="ascii") as where:
        faulthandler.enable(where)
        faulthandler.register(signal.SIGUSR1, where)
        for _ in range(per_child):
            request = pipe.recv()
            if request is None:
                os._exit(DONE)
            pipe.send(("answer", answer(request)))
    os._exit(FULL)


class Ended(Exception):  # noqa: N818  an end, not always an error
    """A request without an answer, because it took too long or crashed its process."""

    def __init__(self, how: str, where: str) -> None:
        super().__init__(how)
        self.where = where
        """What the threads of the process were doing."""


def _ticks_of(process: Path) -> tuple[int, int]:
    """Return the processor time of a process and its ended children, and its session.

    References
    ----------
    proc_pid_stat(5)
    """
    try:
        fields = (process / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return 0, 0
    return sum(map(int, fields[11:15])), int(fields[3])


class _Patience:
    """The limits of waiting for a child."""

    def __init__(self) -> None:
        self._began = self._moved = time.monotonic()
        self._ticks = self._first = -1

    def lost_with(self, child: int) -> str:
        """Return why the child is not waited for any longer, or an empty string."""
        of_all = map(_ticks_of, Path("/proc").glob("[0-9]*"))
        now, ticks = time.monotonic(), sum(used for used, session in of_all if session == child)
        if self._first < 0:
            self._first = ticks
        if ticks != self._ticks:
            self._moved, self._ticks = now, ticks
        if now - self._moved > IDLE_S:
            return f"did nothing for {IDLE_S:g} s"
        if ticks - self._first > KILL_CPU_S * _TICKS:
            return f"worked more than {KILL_CPU_S:g} s"
        if now - self._began > KILL_S:
            return f"took more than {KILL_S:g} s"
        return ""


class Worker:
    """A process that answers requests in forked children.

    Parameters
    ----------
    prepare
        Imports and makes everything that children share, and returns the function that answers.
    arguments
        Arguments of ``prepare``.
    per_child
        Number of requests that one child answers.
    """

    def __init__(
        self,
        prepare: Callable[..., AbstractContextManager[Answer]],
        *arguments: Any,
        per_child: int = 1 << 60,
    ) -> None:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        with tempfile.NamedTemporaryFile("w", delete=False) as log:
            self._log = Path(log.name)
        self._process = context.Process(
            target=_serve, args=(theirs, log.name, prepare, arguments, per_child)
        )
        self._process.start()
        theirs.close()
        self._child = 0
        assert self._pipe.recv() == ("ready", None)

    def ask(self, request: Any) -> Any:
        """Return the answer.

        Raises
        ------
        Ended
        If there is no answer.
        """
        self._pipe.send(request)
        patience, how = _Patience(), ""
        while True:
            if not how and not self._pipe.poll(LOOK_S):
                if how := patience.lost_with(self._child):
                    os.kill(self._child, signal.SIGUSR1)
                    time.sleep(LOOK_S)
                    os.killpg(self._child, signal.SIGKILL)
                continue
            kind, value = self._pipe.recv()
            if kind == "child":
                self._child = value
            elif kind == "answer" and not how:
                return value
            elif kind == "ended":
                where = self._log.read_text(encoding="ascii", errors="replace")
                raise Ended(how or f"ended the process with {value}", where)

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join()
        self._log.unlink()
