"""Runs commands in processes that are forked from one that has imported the package.

A new process needs about two seconds for the imports of the command line, and a forked one needs
none. :func:`command` returns the path of a ``spinezarr`` that sends its arguments, folder,
environment and standard files to the fork server, and exits like the forked process. Tests of a
fresh interpreter start one themselves.
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

__all__ = ["command", "stop"]

_SERVERS = []
"""The fork server, if it was started, with the path of the command."""
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
"""Modules that commands import when they run."""


# The command


def _run_remotely(address, words):
    """Let the fork server run a command, and return the exit code of the command."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        request = json.dumps([words, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(connection, [_LENGTH.pack(len(request))], [0, 1, 2])
        connection.sendall(request)
        (child,) = _LENGTH.unpack(_receive(connection, _LENGTH.size))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os.kill(child, number))
        (code,) = struct.unpack("<i", _receive(connection, 4))
    return code


def _receive(connection, size):
    data = b""
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise ConnectionError("the fork server has ended")
        data += part
    return data


# The fork server


def _serve(address):
    """Fork a process for each request, until the standard input ends."""
    from spinezarr.cli.main import main  # noqa: PLC0415  slow, and needed only here

    for name in _IMPORTED:
        import_module(f"spinezarr.{name}")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        running = {}  # descriptor of a process: its number, and the connection of the command
        while True:
            waiting = {connection: process for process, (_, connection) in running.items()}
            ready, _, _ = select.select([0, listener, *running, *waiting], [], [])
            if 0 in ready:
                return None
            for source in ready:
                if source is listener:
                    request = _fork(listener.accept()[0], running)
                    if request is not None:
                        listener.close()
                        return _run(main, *request)
                elif source in running:
                    _report_exit(source, running)
                elif waiting[source] in running:
                    os.kill(running[waiting[source]][0], signal.SIGKILL)


def _fork(connection, running):
    """Fork; return the request in the child, which runs it."""
    head, standard, _, _ = socket.recv_fds(connection, _LENGTH.size, 3)
    request = json.loads(_receive(connection, _LENGTH.unpack(head)[0]))
    child = os.fork()
    if child:
        for descriptor in standard:
            os.close(descriptor)
        running[os.pidfd_open(child)] = (child, connection)
        connection.sendall(_LENGTH.pack(child))
        return None
    for process, (_, other) in running.items():
        os.close(process)
        other.close()
    connection.close()
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    return request


def _report_exit(process, running):
    child, connection = running.pop(process)
    _, status = os.waitpid(child, 0)
    os.close(process)
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
    """Return the path of the command; the first call starts the fork server."""
    if not _SERVERS:
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
        _SERVERS.append((process, path))
    return _SERVERS[0][1]


def stop():
    """Stop the fork server, if it was started."""
    while _SERVERS:
        process, path = _SERVERS.pop()
        process.communicate()
        shutil.rmtree(path.parent)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--fork"]:
        sys.exit(_serve(sys.argv[2]))
    sys.exit(_run_remotely(sys.argv[1], sys.argv[2:]))
