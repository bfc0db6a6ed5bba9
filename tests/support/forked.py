"""Runs commands in processes that are forked from one that has imported the package.

A new process needs about two seconds for the imports of the command line, and a forked one needs
none. :func:`command` returns the path of a ``spinezarr`` that sends its arguments, folder,
environment and standard files to the process that forks, and exits like the forked process. Tests
of a fresh interpreter start one themselves.
"""

import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib import import_module
from pathlib import Path

__all__ = ["command", "end"]

_PARENT = []
"""The process that forks, if it was started, with the path of the command."""
_SCRIPT = """\
#!/bin/sh
exec {python} -I -S {program} {folder}/socket "$@"
"""
_LENGTH = struct.Struct("<I")
_IMPORTED = (
    "api",
    *(f"cli.reports.{name}" for name in ("audit", "export", "info", "ingest", "stats", "verify")),
    *(f"verbs.{name}" for name in ("audit", "export", "ingest", "preview", "stats", "verify")),
)
"""What commands import when they run."""


# The command


def _ask(address, words):
    """Request a forked process, and return its exit code once it has ended."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        wanted = json.dumps([words, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(connection, [_LENGTH.pack(len(wanted))], [0, 1, 2])
        connection.sendall(wanted)
        (child,) = _LENGTH.unpack(_received(connection, _LENGTH.size))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(child, number))
        (code,) = struct.unpack("<i", _received(connection, 4))
    return code


def _received(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the process that forks has ended")
        data += part
    return data


# The process that forks


def _fork_for_all(address):
    """Fork a process for each request, until the standard input ends."""
    from spinezarr.cli.main import main  # noqa: PLC0415  slow, and only wanted here

    for name in _IMPORTED:
        import_module(f"spinezarr.{name}")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(address)
        listening.listen(64)
        print("ready", flush=True)
        running = {}  # descriptor of a process: its number, and who asked for it
        while True:
            asking = {connection: end for end, (_, connection) in running.items()}
            ready, _, _ = select.select([0, listening, *running, *asking], [], [])
            if 0 in ready:
                return None
            for end in ready:
                if end is listening:
                    wanted = _forked(listening.accept()[0], running)
                    if wanted is not None:
                        listening.close()
                        return _run(main, *wanted)
                elif end in running:
                    _ended(end, running)
                elif asking[end] in running:
                    os.kill(running[asking[end]][0], signal.SIGKILL)


def _forked(connection, running):
    """Fork; return the request in the child, which runs it."""
    head, standard, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    wanted = json.loads(_received(connection, _LENGTH.unpack(head)[0]))
    child = os.fork()
    if child:
        for descriptor in standard:
            os.close(descriptor)
        running[os.pidfd_open(child)] = (child, connection)
        connection.sendall(_LENGTH.pack(child))
        return None
    for end, (_, other) in running.items():
        os.close(end)
        other.close()
    connection.close()
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return wanted


def _ended(end, running):
    child, connection = running.pop(end)
    _, status = os.waitpid(child, 0)
    os.close(end)
    code = os.waitstatus_to_exitcode(status)
    with suppress(OSError):
        connection.sendall(struct.pack("<i", code if code >= 0 else 128 - code))
    connection.close()


def _run(main, words, folder, environment):
    encoding = environment.get("PYTHONIOENCODING")
    sys.stdin, sys.stdout, sys.stderr = (
        open(number, mode, encoding=encoding, closefd=False)  # noqa: SIM115
        for number, mode in enumerate("rww")
    )
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["spinezarr", *words]
    return main()


def command():
    """Return the path of the command; the first call starts the process that forks."""
    if not _PARENT:
        folder = Path(tempfile.mkdtemp(prefix="spinezarr-commands-"))
        process = subprocess.Popen(
            [sys.executable, __file__, "--fork", folder / "socket"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdout.readline() == b"ready\n"
        path = folder / "spinezarr"
        path.write_text(_SCRIPT.format(folder=folder, python=sys.executable, program=__file__))
        path.chmod(0o755)
        _PARENT.append((process, path))
    return _PARENT[0][1]


def end():
    """Stop the process that forks, if it was started."""
    while _PARENT:
        process, path = _PARENT.pop()
        process.communicate()
        shutil.rmtree(path.parent)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fork"]:
        sys.exit(_fork_for_all(sys.argv[2]))
    sys.exit(_ask(sys.argv[1], sys.argv[2:]))
