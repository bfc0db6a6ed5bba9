"""Starts ``spinezarr`` as processes of their own, without importing it each time.

As a program this module is a server: it imports everything once, and forks a process for each line
of JSON on standard input. Each process has a session of its own, runs the real command line, and
records every change of a file in the store before it happens (Python's audit events). At a chosen
change it kills itself with SIGKILL, or waits for a signal to go on.
"""

import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["Driver", "Plan", "Run"]

PAUSED: Final = "(paused)"
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_CHANGES: Final = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate"}
_LONGEST_S: Final = 240.0
"""A process that takes longer counts as hanging."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The action of a process at a chosen change, and its limits."""

    kill_at: int = 0
    """Number of the change before which it kills itself; 0 for none."""
    kill_delay_s: float = 0.0
    """Delay of the kill after that change."""
    pause_at: str = ""
    """Pattern of the change before which it waits; empty for none."""
    plain_user: bool = False
    """Whether the process gives up root's right to read and write everything."""
    largest_file_bytes: int = 0
    """Limit of file sizes, as ``ulimit -f``; 0 for no limit."""
    environment: Mapping[str, str] = field(default_factory=dict)


class Run:
    """One process."""

    def __init__(self, driver: "Driver", pid: int, log: Path, changes: Path) -> None:
        self._driver = driver
        self.pid = pid
        self._log = log
        self._changes = changes

    @property
    def changes(self) -> list[str]:
        """The recorded changes, in order: action and path in the store."""
        return self._changes.read_text().splitlines()

    @property
    def output(self) -> str:
        """Output of the process so far."""
        return self._log.read_text(errors="replace")

    def kill(self) -> None:
        """Kill the process and everything that it started."""
        os.killpg(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """Return its exit code, or the negative number of the signal that ended it."""
        code = self._driver.send({"wait": self.pid})["code"]
        if code is None:
            raise TimeoutError(f"the process did not end; it printed:\n{self.output}")
        return code

    def ended_within(self, seconds: float) -> bool:
        """Wait at most ``seconds``; return whether the process has ended by then."""
        return self._driver.send({"ended": self.pid, "within": seconds})["ended"]

    def wait_until_paused(self) -> None:
        """Return once the process waits before the requested change."""
        end = time.monotonic() + _LONGEST_S
        while PAUSED not in self.changes:
            if time.monotonic() > end or self.ended_within(0):
                raise TimeoutError(f"the process never paused: {self.changes}\n{self.output}")
            time.sleep(0.005)

    def resume(self) -> None:
        """End the pause."""
        self._changes.with_suffix(".go").touch()


class Driver:
    """Starts processes.

    Parameters
    ----------
    folder
        Folder for their output.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Lines of a terminal would be folded in the middle of a message.
            env={**os.environ, "COLUMNS": "400"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._server as server:
            server.stdin.close()
            server.wait()

    def send(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request to the server and return its answer."""
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, words: Sequence[object], store: str, plan: Plan | None = None) -> Run:
        """Start ``spinezarr`` with arguments; changes in ``store`` are recorded."""
        self._count += 1
        log = self._folder / f"{self._count}.log"
        changes = self._folder / f"{self._count}.changes"
        changes.touch()
        request = {
            "words": [str(word) for word in words],
            "store": store,
            "log": str(log),
            "changes": str(changes),
            "plan": asdict(plan or Plan()),
        }
        return Run(self, self.send(request)["pid"], log, changes)

    def run(self, words: Sequence[object], store: str, plan: Plan | None = None) -> tuple[int, Run]:
        """Start ``spinezarr``, and wait for its end."""
        run = self.start(words, store, plan)
        return run.wait(), run


def _serve() -> Callable[[], None]:
    """Answer requests; in a forked process, return its task."""
    children: dict[int, int | None] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            code = _wait(request["wait"], children, _LONGEST_S)
            if code is None:
                os.killpg(request["wait"], signal.SIGKILL)
                os.waitpid(request["wait"], 0)
            answer = {"code": code}
        elif "ended" in request:
            answer = {"ended": _wait(request["ended"], children, request["within"]) is not None}
        else:
            reader, writer = os.pipe()
            pid = os.fork()
            if not pid:
                return lambda request=request, writer=writer: _child(request, writer)
            os.close(writer)
            os.read(reader, 1)  # the child has a session of its own
            os.close(reader)
            answer = {"pid": pid}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return lambda: None


def _wait(pid: int, children: dict[int, int | None], seconds: float) -> int | None:
    end = time.monotonic() + seconds
    while children.get(pid) is None:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            children[pid] = os.waitstatus_to_exitcode(status)
        elif time.monotonic() >= end:
            return None
        else:
            time.sleep(0.001)
    return children[pid]


def _child(request: Mapping[str, Any], ready: int) -> None:
    os.setsid()
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    plan = Plan(**request["plan"])
    os.environ.update(plan.environment)
    if plan.largest_file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (plan.largest_file_bytes,) * 2)
    sys.addaudithook(_Changes(request["store"], Path(request["changes"]), plan))
    if plan.plain_user:
        _give_up_capabilities()
    os.write(ready, b".")
    os.close(ready)
    words = request["words"]
    if words[0] == "plain-zarr":
        from killing.baseline import write_array  # noqa: PLC0415  the driver's own folder

        write_array(words[1])
        return
    from spinezarr.cli.main import main  # noqa: PLC0415  imported before the fork

    sys.argv = ["spinezarr", *words]
    main()


def _give_up_capabilities() -> None:
    """Limit user 0 to the permissions of file modes (``capset(2)``)."""
    if os.geteuid():
        return
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    none = (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


class _Changes:
    """Listens to Python's audit events, and records those that change a file of the store."""

    def __init__(self, store: str, place: Path, plan: Plan) -> None:
        self._store = store.rstrip("/")
        self._plan = plan
        self._file = os.open(place, os.O_WRONLY | os.O_APPEND)
        self._go = place.with_suffix(".go")
        self._pause = re.compile(plan.pause_at) if plan.pause_at else None
        self._number = 0
        self._lock = threading.Lock()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        change = self._change(event, args)
        if change is None:
            return
        with self._lock:  # while one thread waits, no other may change anything
            self._number += 1
            os.write(self._file, f"{change}\n".encode())
            if self._number == self._plan.kill_at:
                if self._plan.kill_delay_s:
                    threading.Thread(target=self._kill_later, daemon=True).start()
                else:
                    os.killpg(0, signal.SIGKILL)
            if self._pause is not None and self._pause.search(change):
                self._pause = None
                os.write(self._file, f"{PAUSED}\n".encode())
                while not self._go.exists():
                    time.sleep(0.002)

    def _kill_later(self) -> None:
        time.sleep(self._plan.kill_delay_s)
        os.killpg(0, signal.SIGKILL)

    def _change(self, event: str, args: tuple[Any, ...]) -> str | None:
        if event == "open":
            if not isinstance(args[2], int) or not args[2] & _WRITING:
                return None
        elif event not in _CHANGES:
            return None
        if isinstance(args[0], int):
            return None
        path = os.fspath(args[0])
        path = path.decode() if isinstance(path, bytes) else path
        action = event.removeprefix("os.")
        if action == "mkdir" and Path(path).is_dir():
            return None
        if path == self._store or path.startswith(f"{self._store}/"):
            return f"{action} {path[len(self._store) + 1 :]}"
        # shutil.rmtree names files relative to a folder that it holds open.
        within = action in {"remove", "rmdir"} and "/" not in path
        return f"{action} (within) {path}" if within else None


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import s3fs  # noqa: F401

    import killing.baseline  # noqa: F401
    import spinezarr.cli.main
    import spinezarr.cli.reports.derive
    import spinezarr.cli.reports.ingest
    import spinezarr.verbs.derive
    import spinezarr.verbs.ingest  # noqa: F401

    _serve()()
