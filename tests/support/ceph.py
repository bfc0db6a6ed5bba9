"""A temporary Ceph cluster of one node with an S3 gateway, from Debian's packages.

All daemons run as children in the foreground, in one folder, on free ports of 127.0.0.1; leaving
the context ends them and removes the folder.
"""

import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

PROGRAMS = {
    "ceph": "ceph-common",
    "ceph-mgr": "ceph-mgr",
    "ceph-mon": "ceph-mon",
    "ceph-osd": "ceph-osd",
    "radosgw": "radosgw",
    "radosgw-admin": "radosgw",
}
"""Programs to start, and the Debian package of each."""

DISK_BYTES = 6 << 30
"""Size of the sparse file that holds all objects."""

_TIMEOUT_S = 120.0
_ACCESS = re.compile(rb'beast: \S+: \S+ - \S+ \[[^\]]*\] "(\w+) (\S+) HTTP/[\d.]+" (\d+) (\d+)')
"""A request in the gateway's log: method, path, status, bytes of the body."""

# cephx is off and msgr2 unencrypted: by default radosgw requests a secure connection to the
# monitor, which needs cephx. A test needs only one copy of each object.
_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{mon_v2}/0,v1:127.0.0.1:{mon_v1}/0]
mon initial members = a
public network = 127.0.0.0/8
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
log to stderr = false
err to stderr = true
mon cluster log file = {folder}/cluster.log
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
osd pool default pgp num = 4
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
auth allow insecure global id reclaim = true
[mon.a]
mon data = {folder}/mon
mon data avail crit = 1
[mgr.x]
mgr data = {folder}/mgr
mgr initial modules =
[osd.0]
osd data = {folder}/osd
osd objectstore = bluestore
osd memory target = 939524096
bluestore block size = {disk_bytes}
bluestore cache size = 134217728
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{s3}
rgw thread pool size = 32
rgw dns name =
debug rgw = 1
"""


class MissingProgramsError(RuntimeError):
    """Ceph is not installed."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request that the gateway answered."""

    method: str
    path: str
    status: int
    body_bytes: int
    """Size of the object or text that was sent in either direction."""

    @property
    def kind(self) -> str:
        """Method, with a suffix for listings, parts of uploads and errors."""
        _, _, query = self.path.partition("?")
        name = self.method
        if "list-type=2" in query:
            name = "LIST"
        elif "uploads" in query or "uploadId" in query:
            name += " multipart"
        return name if self.status < HTTPStatus.BAD_REQUEST else f"{name} {self.status}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A running S3 gateway."""

    endpoint_url: str
    access_key: str
    secret_key: str
    log: Path

    def requests(self) -> list[Request]:
        """Return every request so far, from the gateway's access log."""
        return [
            Request(method.decode(), path.decode(), int(status), int(size))
            for method, path, status, size in _ACCESS.findall(self.log.read_bytes())
        ]


def check_programs() -> None:
    """Raise MissingProgramsError, with the command to install Ceph, if a program is missing."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        packages = " ".join(sorted(set(missing)))
        raise MissingProgramsError(
            f"Ceph is not installed. On Debian: apt-get install --no-install-recommends {packages}"
        )


@contextmanager
def ceph_gateway() -> Iterator[Gateway]:
    """Run monitor, manager, one OSD and the S3 gateway.

    Raises
    ------
    MissingProgramsError
        If a program is not installed.
    RuntimeError
        If a daemon ends, or does not answer in time; shows its output.
    """
    check_programs()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="spinezarr-ceph-")))
        yield _Cluster(folder, stack).start()


class _Cluster:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._conf = folder / "ceph.conf"

    def start(self) -> Gateway:
        fsid = str(uuid.uuid4())
        ports = _free_ports(3)
        values = dict(zip(("mon_v2", "mon_v1", "s3"), ports, strict=True))
        text = _CONFIGURATION.format(
            fsid=fsid, folder=self._folder, disk_bytes=DISK_BYTES, **values
        )
        self._conf.write_text(text)
        for name in ("mon", "mgr", "osd"):
            (self._folder / name).mkdir()
        address = "[v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]".format(**values)
        monmap = str(self._folder / "monmap")
        self._run("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        osd_id = str(uuid.uuid4())
        self._run("ceph", "--connect-timeout", "30", "osd", "new", osd_id)
        self._daemon("ceph-mgr", "-i", "x")
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_id)
        osd = self._daemon("ceph-osd", "-i", "0")
        self._wait("the OSD", osd, lambda: "1 up" in self._run("ceph", "osd", "stat"))
        gateway = self._daemon("radosgw", "-n", "client.rgw")
        self._wait("the gateway", gateway, lambda: _listens(values["s3"]))
        access, secret = secrets.token_hex(10), secrets.token_hex(20)
        self._run(
            "radosgw-admin", "user", "create", "--uid", "bench", "--display-name", "bench",
            "--access-key", access, "--secret-key", secret,
        )  # fmt: skip
        url = f"http://127.0.0.1:{values['s3']}"
        return Gateway(url, access, secret, self._folder / "client.rgw.log")

    def _run(self, program: str, *arguments: str) -> str:
        command = [program, "--conf", str(self._conf), *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def _daemon(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        output = self._stack.enter_context((self._folder / f"{program}.out").open("wb"))
        process = subprocess.Popen(
            [program, "-f", "--conf", str(self._conf), *arguments],
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._stack.callback(_end, process)
        return process

    def _wait(self, what: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        until = time.monotonic() + _TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > until:
                output = b"\n".join(p.read_bytes() for p in self._folder.glob("*.out"))
                text = output.decode(errors="replace")[-2000:]
                raise RuntimeError(f"{what} did not start: {text}")
            time.sleep(0.2)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a daemon; its folder is removed anyway."""
    process.kill()
    process.wait()


def _free_ports(n: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(n)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
