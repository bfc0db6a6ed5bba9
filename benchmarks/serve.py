"""Compares ``spinezarr serve`` with other file servers, on random ranges of a shard.

Each server is a process of its own, with as many workers as ours, and all take turns: one is asked
while the others wait. 16 open connections request ranges of one size, drawn anew each turn. The
client is a program of ours in C (``load.c``), which takes little of the servers' cores, or wrk.
Before anything is timed, every server's bytes are compared with the file. The results are ratios
within a round, by requests per second and by the core time of the server's processes per request,
which is the better measure on a shared machine.
"""

import argparse
import json
import math
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from getpass import getuser
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Protocol

import psutil
from common import ingest_pair, machine, spread
from patches import choose_pair
from rich.console import Console
from rich.table import Table

FOLDER = Path(__file__).parent
OURS = "spinezarr serve"
NGINX = "nginx"
GRANIAN_FILES = "FileResponse, granian"
UVICORN_FILES = "FileResponse, uvicorn"
STATIC_FILES = "StaticFiles, granian"
ZARR_SERVER = "zarr-http-server"
KIB = 1024
SIZES = {"64 KiB": 64 * KIB, "512 KiB": 512 * KIB, "4 MiB": 4096 * KIB}
PEERS = (NGINX, GRANIAN_FILES, UVICORN_FILES, STATIC_FILES, ZARR_SERVER)
TARGETS = (
    (GRANIAN_FILES, "64 KiB", 6.0),
    (NGINX, "512 KiB", 0.8),
    *((ZARR_SERVER, size, 1.5) for size in SIZES),
)
SHARD = "scans/scan/image/c/0/0/0"
PATH = f"/zarr/one/{SHARD}"
CONNECTIONS = 16
_TIMEOUT_S = 30.0
_COMPARED = 8
"""Number of ranges per size and server that are compared before timing."""
_PARTIAL = 206
_WITH_HEADS = 1.1
"""Largest ratio of read bytes to those of bodies: heads add about 1 %, and a whole file more."""

# nginx uses sendfile. A body that fits into the socket buffer is sent at once.
_NGINX = """
daemon off;
user {user};
worker_processes {processes};
pid {folder}/nginx.pid;
error_log {folder}/nginx.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush off;
    keepalive_requests 100000000;
    default_type application/octet-stream;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port}; location /zarr/one/ {{ alias {store}/; }} }}
}}
"""

_LUA = """
local size, places = tonumber(os.getenv("SIZE")), tonumber(os.getenv("PLACES"))
function init(args) math.randomseed(tonumber(os.getenv("SEED"))) end
function request()
    local first = math.random(0, places - 1)
    local range = string.format("bytes=%d-%d", first, first + size - 1)
    return wrk.format("GET", nil, {["Range"] = range, ["Host"] = "127.0.0.1"})
end
function done(summary, latency, requests)
    local e = summary.errors
    io.stderr:write(string.format(
        '{"requests": %d, "bytes": %.0f, "seconds": %f, "bad": %d, "p50_us": %f, "p99_us": %f}',
        summary.requests, summary.bytes, summary.duration / 1e6,
        e.connect + e.read + e.write + e.timeout + e.status,
        latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        """URL of the shard."""
        return f"http://127.0.0.1:{self.port}{PATH}"

    def core_s(self) -> float:
        """Return the core time of its processes in seconds."""
        root = psutil.Process(self.process.pid)
        times = [one.cpu_times() for one in (root, *root.children(recursive=True))]
        return sum(one.user + one.system for one in times)


@dataclass(frozen=True, slots=True)
class Turn:
    """The results of a server in one turn."""

    server: str
    client: str
    size: str
    requests_per_s: float
    gb_per_s: float
    core_us: float
    p50_us: float
    p99_us: float


class Client(Protocol):
    """A client that requests random ranges of a file for some seconds, drawn with a seed."""

    name: str

    def ask(self, server: Server, size: int, seconds: float, seed: int) -> Mapping[str, float]:
        """Return requests, bytes, seconds, and the median and 99th percentile of times."""
        ...


class Load:
    """Our client: every answer must be 206 and have the requested length."""

    name = "load.c"

    def __init__(self, work: Path, file_bytes: int) -> None:
        self._program, self._file_bytes = work / "load", file_bytes
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, "-O2", str(FOLDER / "load.c"), "-o", str(self._program)]
        subprocess.run(command, check=True)  # noqa: S603

    def ask(self, server: Server, size: int, seconds: float, seed: int) -> Mapping[str, float]:
        """Ask."""
        numbers = (server.port, CONNECTIONS, seconds, PATH, self._file_bytes, size, seed)
        return said(server, [str(self._program), *map(str, numbers)])


class Wrk:
    """The client wrk of Debian, in one thread. It reads bodies in pieces of 8 KiB."""

    name = "wrk"

    def __init__(self, work: Path, file_bytes: int) -> None:
        self._script, self._file_bytes = work / "ranges.lua", file_bytes
        self._script.write_text(_LUA)

    def ask(self, server: Server, size: int, seconds: float, seed: int) -> Mapping[str, float]:
        """Ask."""
        places = self._file_bytes - size + 1
        told = {"SIZE": str(size), "PLACES": str(places), "SEED": str(seed)}
        words = ["-t1", f"-c{CONNECTIONS}", f"-d{math.ceil(seconds)}s", "-s", str(self._script)]
        found = said(server, ["wrk", *words, server.url], told)
        most = (
            _WITH_HEADS * size * (found["requests"] + CONNECTIONS)
        )  # some requests are still in flight
        if found["bad"] or not size * found["requests"] <= found["bytes"] <= most:
            raise SystemExit(f"{server.name}: did not answer {self.name} with ranges: {found}")
        return {**found, "bytes": found["requests"] * size}


def said(
    server: Server, command: Sequence[str], variables: Mapping[str, str] | None = None
) -> Mapping[str, float]:
    """Run a program, and return the figures in the last line of its output."""
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(  # noqa: S603
        command, check=False, capture_output=True, env=environment, text=True
    )
    if done.returncode:
        raise SystemExit(f"{server.name}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stderr or done.stdout)
    return found


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
        return port


def commands(
    options: argparse.Namespace, store: Path, work: Path, left_out: list[str]
) -> Iterator[tuple[str, int, list[str]]]:
    """Yield name, port and command of each server that can be started here."""
    n = str(options.processes)
    port = free_port()
    ours = [sys.executable, "-c", "from spinezarr.cli.main import main; main()", "serve"]
    yield OURS, port, [*ours, str(store), "--port", str(port), "--processes", n]
    nginx = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if nginx is None:
        left_out.append(f"{NGINX}: is not installed (Debian: nginx-light)")
    else:
        port = free_port()
        (work / "nginx.conf").write_text(
            _NGINX.format(user=getuser(), processes=n, folder=work, port=port, store=store)
        )
        yield NGINX, port, [nginx, "-c", str(work / "nginx.conf"), "-e", str(work / "nginx.log")]
    if find_spec("starlette") is None:
        left_out.append("FileResponse and StaticFiles: starlette is not installed")
    else:
        for name, app in ((GRANIAN_FILES, "file_response"), (STATIC_FILES, "static_files")):
            port = free_port()
            words = ["--factory", "--interface", "asgi", "--workers", n, "--port", str(port)]
            quiet = ["--no-ws", "--log-level", "error", f"peers.file_apps:{app}"]
            yield name, port, [sys.executable, "-m", "granian", *words, *quiet]
        port = free_port()
        yield (
            UVICORN_FILES,
            port,
            [sys.executable, *uvicorn("peers.file_apps:file_response", port, n)],
        )
    python = shlex.split(options.zarr_http_server or sys.executable)
    if not options.zarr_http_server and find_spec("zarr_http_server") is None:
        left_out.append(f"{ZARR_SERVER}: is not installed (it needs Python 3.12)")
    else:
        # A Python in its own root folder can see only the folder of the store.
        shutil.copy(FOLDER / "peers" / "file_apps.py", work)
        port = free_port()
        app = uvicorn("file_apps:zarr_http_server", port, n)
        yield ZARR_SERVER, port, [*python, *app, "--app-dir", str(work)]


def uvicorn(app: str, port: int, processes: str) -> list[str]:
    """Return the command of an application under uvicorn, with its installed extras."""
    words = ["--factory", "--workers", processes, "--port", str(port)]
    return ["-m", "uvicorn", app, *words, "--no-access-log", "--log-level", "error"]


@contextmanager
def servers(
    options: argparse.Namespace, store: Path, work: Path, left_out: list[str]
) -> Iterator[list[Server]]:
    """Start all servers, and end them afterward."""
    with ExitStack() as stack:
        log = stack.enter_context((work / "servers.log").open("wb"))
        paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"SERVED": str(store), "PYTHONPATH": os.pathsep.join(paths)}
        found = []
        for name, port, command in commands(options, store, work, left_out):
            if options.servers and name not in {OURS, *options.servers}:
                continue
            process = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, env={**os.environ, **variables}
            )
            stack.callback(end, process)
            found.append(Server(name, port, process))
        for one in found:
            wait_for(one, work)
        yield found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a server and its workers."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(_TIMEOUT_S)
    for one in children:
        if one.is_running():
            one.kill()


def wait_for(server: Server, work: Path) -> None:
    """Wait until a server answers."""
    until = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < until and server.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{server.name} does not answer: {(work / 'servers.log').read_text()}")


def compare(server: Server, data: bytes, sizes: Sequence[str]) -> None:
    """Compare some ranges of a server with the file."""
    draw = Random(0)  # noqa: S311  no secret
    for size in (SIZES[name] for name in sizes for _ in range(_COMPARED)):
        first = draw.randrange(len(data) - size + 1)
        about = {"Range": f"bytes={first}-{first + size - 1}"}
        request = urllib.request.Request(server.url, headers=about)  # noqa: S310
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            if (answer.status, answer.read()) != (_PARTIAL, data[first : first + size]):
                raise SystemExit(f"{server.name}: gave other bytes.")


def measured(client: Client, server: Server, size: str, seconds: float, seed: int) -> Turn:
    """Let a client send requests to a server, and return the turn."""
    before = server.core_s()
    found = client.ask(server, SIZES[size], seconds, seed)
    core_us = 1e6 * (server.core_s() - before) / found["requests"]
    per_s = found["requests"] / found["seconds"]
    gb = found["bytes"] / found["seconds"] / 1e9
    return Turn(
        server.name, client.name, size, per_s, gb, core_us, found["p50_us"], found["p99_us"]
    )


def measure(
    options: argparse.Namespace, clients: Sequence[Client], all_servers: Sequence[Server]
) -> Iterator[dict[str, object]]:
    """Measure all servers in turn, round after round; yield a row per client and size."""
    for client in clients:
        for size in options.sizes:
            turns: dict[str, list[Turn]] = {one.name: [] for one in all_servers}
            for n in range(options.rounds + 1):  # the first round is for warming up
                k = n % len(all_servers)
                for server in (*all_servers[k:], *all_servers[:k]):
                    turn = measured(client, server, size, options.seconds, 1 + n)
                    if n:
                        turns[server.name].append(turn)
            for name, found in turns.items():
                pairs = list(zip(turns[OURS], found, strict=True))
                rates = [a.requests_per_s / b.requests_per_s for a, b in pairs]
                yield {
                    "client": client.name, "size": size, "server": name,
                    **spread("requests_per_s", [one.requests_per_s for one in found]),
                    **spread("gb_per_s", [one.gb_per_s for one in found]),
                    **spread("core_us", [one.core_us for one in found]),
                    **spread("p50_us", [one.p50_us for one in found]),
                    **spread("p99_us", [one.p99_us for one in found]),
                    **spread("ours_over_this", rates),
                    **spread("by_core_time", [b.core_us / max(a.core_us, 0.01) for a, b in pairs]),
                }  # fmt: skip


def targets_of(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Compare the rows with the targets."""
    return [
        {
            "size": size, "client": row["client"], "beside": peer,
            "reached": row["ours_over_this_median"], "by_core_time": row["by_core_time_median"],
            "must_reach": wanted, "met": row["ours_over_this_median"] >= wanted,  # type: ignore[operator]
        }
        for peer, size, wanted in TARGETS
        for row in rows
        if (row["server"], row["size"]) == (peer, size)
    ]  # fmt: skip


def print_tables(result: Mapping[str, list[dict[str, object]]]) -> None:
    """Print the results."""
    columns = ("requests_per_s", "gb_per_s", "core_us", "p50_us", "p99_us")
    ratios = ("ours_over_this", "by_core_time")
    table = Table("client", "ranges", "server", *columns, *ratios)
    for row in result["rows"]:
        figures = [f"{row[f'{name}_median']:.3g}" for name in columns]
        spreads = [
            f"{row[f'{name}_median']:.2f} ({row[f'{name}_min']:.2f} to {row[f'{name}_max']:.2f})"
            for name in ratios
        ]
        table.add_row(
            *(str(row[name]) for name in ("client", "size", "server")), *figures, *spreads
        )
    console = Console(width=170)
    console.print(table)
    table = Table(*(result["targets"] or [{"targets": ""}])[0])
    for target in result["targets"]:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in target.values()))
    console.print(table)
    for line in result["left_out"]:
        console.print(f"left out: {line}")


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--servers", nargs="+", default=[], choices=PEERS, help="beside ours")
    parser.add_argument(
        "--clients", nargs="+", default=["load.c", "wrk"], choices=("load.c", "wrk")
    )
    parser.add_argument(
        "--zarr-http-server", metavar="COMMAND", help="command of a Python that has it"
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="number of workers of each server",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each turn")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        store = ingest_pair(*choose_pair(options, work), work)
        data = (store / SHARD).read_bytes()
        clients: list[Client] = [Load(work, len(data))] if "load.c" in options.clients else []
        if "wrk" in options.clients and shutil.which("wrk"):
            clients.append(Wrk(work, len(data)))
        elif "wrk" in options.clients:
            left_out.append("wrk: is not installed (Debian: wrk)")
        with servers(options, store, work, left_out) as all_servers:
            for server in all_servers:
                compare(server, data, options.sizes)
            rows = list(measure(options, clients, all_servers))
    result = {"rows": rows, "targets": targets_of(rows), "left_out": left_out}
    print_tables(result)
    if options.json:
        about = {**machine("granian", "uvicorn"), "load": os.getloadavg()[0]}
        options.json.write_text(json.dumps({**about, "shard_bytes": len(data), **result}, indent=1))


if __name__ == "__main__":
    main()
