"""Compares ``spinezarr serve`` with other file servers, on random ranges of a shard.

Each server is a process of its own, with as many workers as ours. One server is measured at a time,
while the others wait. 16 open connections request random ranges of one size, which differ in each
round. The client is our program ``load.c``, which takes little of the servers' cores, or wrk.
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
from common import absolute_path, ingest_pair, machine, spread
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
_N_COMPARED = 8
"""Number of ranges per size and server that are compared before timing."""
_PARTIAL_CONTENT = 206
_MAX_OVERHEAD = 1.1
"""Largest ratio of read bytes to body bytes: headers add about 1 %, and a whole file adds more."""

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
local size, n_starts = tonumber(os.getenv("SIZE")), tonumber(os.getenv("N_STARTS"))
function init(args) math.randomseed(tonumber(os.getenv("SEED"))) end
function request()
    local first = math.random(0, n_starts - 1)
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
        processes = (root, *root.children(recursive=True))
        times = [process.cpu_times() for process in processes]
        return sum(time.user + time.system for time in times)


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

    def run(self, server: Server, size: int, seconds: float, seed: int) -> Mapping[str, float]:
        """Return requests, bytes, seconds, and the median and 99th percentile of times."""
        ...


class LoadClient:
    """Our client, which requires status 206 and the requested length of every answer."""

    name = "load.c"

    def __init__(self, work: Path, file_bytes: int) -> None:
        self._program, self._file_bytes = work / "load", file_bytes
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, "-O2", str(FOLDER / "load.c"), "-o", str(self._program)]
        subprocess.run(command, check=True)  # noqa: S603

    def run(self, server: Server, size: int, seconds: float, seed: int) -> Mapping[str, float]:
        """See :class:`Client`."""
        arguments = (server.port, CONNECTIONS, seconds, PATH, self._file_bytes, size, seed)
        return run_client(server, [str(self._program), *map(str, arguments)])


class WrkClient:
    """The client wrk of Debian, in one thread. It reads bodies in pieces of 8 KiB."""

    name = "wrk"

    def __init__(self, work: Path, file_bytes: int) -> None:
        self._script, self._file_bytes = work / "ranges.lua", file_bytes
        self._script.write_text(_LUA)

    def run(self, server: Server, size: int, seconds: float, seed: int) -> Mapping[str, float]:
        """See :class:`Client`."""
        n_starts = self._file_bytes - size + 1
        variables = {"SIZE": str(size), "N_STARTS": str(n_starts), "SEED": str(seed)}
        options = ["-t1", f"-c{CONNECTIONS}", f"-d{math.ceil(seconds)}s", "-s", str(self._script)]
        figures = run_client(server, ["wrk", *options, server.url], variables)
        # One request of each connection may still be in flight.
        max_bytes = _MAX_OVERHEAD * size * (figures["requests"] + CONNECTIONS)
        if figures["bad"] or not size * figures["requests"] <= figures["bytes"] <= max_bytes:
            raise SystemExit(f"{server.name}: did not answer {self.name} with ranges: {figures}")
        return {**figures, "bytes": figures["requests"] * size}


def run_client(
    server: Server, command: Sequence[str], variables: Mapping[str, str] | None = None
) -> Mapping[str, float]:
    """Run a program, and return the figures in the last line of its output."""
    environment = {**os.environ, **(variables or {})}
    done = subprocess.run(  # noqa: S603
        command, check=False, capture_output=True, env=environment, text=True
    )
    if done.returncode:
        raise SystemExit(f"{server.name}: {done.stderr}")
    figures: dict[str, float] = json.loads(done.stderr or done.stdout)
    return figures


def free_port() -> int:
    """Return a free port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def commands(
    options: argparse.Namespace, store: Path, work: Path, left_out: list[str]
) -> Iterator[tuple[str, int, list[str]]]:
    """Yield name, port and command of each server that can be started here."""
    n = str(options.processes)
    port = free_port()
    ours = [sys.executable, "-c", "from spinezarr.cli.main import main; main()", "serve"]
    yield OURS, port, [*ours, str(store), "--port", str(port), "--workers", n]
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
            flags = ["--factory", "--interface", "asgi", "--workers", n, "--port", str(port)]
            flags += ["--no-ws", "--log-level", "error"]
            granian = [sys.executable, "-m", "granian", *flags]
            yield name, port, [*granian, f"peers.file_apps:{app}"]
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
    flags = ["--factory", "--workers", processes, "--port", str(port)]
    return ["-m", "uvicorn", app, *flags, "--no-access-log", "--log-level", "error"]


@contextmanager
def start_servers(
    options: argparse.Namespace, store: Path, work: Path, left_out: list[str]
) -> Iterator[list[Server]]:
    """Start all servers, and end them afterward."""
    with ExitStack() as stack:
        log = stack.enter_context((work / "servers.log").open("wb"))
        paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {"SERVED": str(store), "PYTHONPATH": os.pathsep.join(paths)}
        servers = []
        for name, port, command in commands(options, store, work, left_out):
            if options.servers and name not in {OURS, *options.servers}:
                continue
            process = subprocess.Popen(  # noqa: S603
                command, stdout=log, stderr=log, env={**os.environ, **variables}
            )
            stack.callback(stop, process)
            servers.append(Server(name, port, process))
        for server in servers:
            wait_for_server(server, work)
        yield servers


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a server and its workers."""
    if process.poll() is not None:
        return
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(_TIMEOUT_S)
    for child in children:
        if child.is_running():
            child.kill()


def wait_for_server(server: Server, work: Path) -> None:
    """Wait until a server answers."""
    deadline = time.monotonic() + _TIMEOUT_S
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise SystemExit(f"{server.name} does not answer: {(work / 'servers.log').read_text()}")


def compare(server: Server, data: bytes, sizes: Sequence[str]) -> None:
    """Compare some ranges of a server with the file."""
    random = Random(0)  # noqa: S311  no secret
    for size in (SIZES[name] for name in sizes for _ in range(_N_COMPARED)):
        start = random.randrange(len(data) - size + 1)
        headers = {"Range": f"bytes={start}-{start + size - 1}"}
        request = urllib.request.Request(server.url, headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
            if (answer.status, answer.read()) != (_PARTIAL_CONTENT, data[start : start + size]):
                raise SystemExit(f"{server.name}: gave other bytes.")


def measure_turn(client: Client, server: Server, size: str, seconds: float, seed: int) -> Turn:
    """Let a client send requests to a server, and return the results."""
    before = server.core_s()
    figures = client.run(server, SIZES[size], seconds, seed)
    core_us = 1e6 * (server.core_s() - before) / figures["requests"]
    per_s = figures["requests"] / figures["seconds"]
    gb_per_s = figures["bytes"] / figures["seconds"] / 1e9
    return Turn(
        server.name, client.name, size, per_s, gb_per_s, core_us, figures["p50_us"],
        figures["p99_us"],
    )  # fmt: skip


def measure(
    options: argparse.Namespace, clients: Sequence[Client], servers: Sequence[Server]
) -> Iterator[dict[str, object]]:
    """Measure all servers once in each round; yield a row per client, size and server."""
    for client in clients:
        for size in options.sizes:
            turns_by_server: dict[str, list[Turn]] = {server.name: [] for server in servers}
            for n in range(options.rounds + 1):  # the first round is for warming up
                k = n % len(servers)
                for server in (*servers[k:], *servers[:k]):
                    turn = measure_turn(client, server, size, options.seconds, 1 + n)
                    if n:
                        turns_by_server[server.name].append(turn)
            for name, turns in turns_by_server.items():
                pairs = list(zip(turns_by_server[OURS], turns, strict=True))
                ratios = [a.requests_per_s / b.requests_per_s for a, b in pairs]
                yield {
                    "client": client.name, "size": size, "server": name,
                    **spread("requests_per_s", [turn.requests_per_s for turn in turns]),
                    **spread("gb_per_s", [turn.gb_per_s for turn in turns]),
                    **spread("core_us", [turn.core_us for turn in turns]),
                    **spread("p50_us", [turn.p50_us for turn in turns]),
                    **spread("p99_us", [turn.p99_us for turn in turns]),
                    **spread("ours_over_this", ratios),
                    **spread("by_core_time", [b.core_us / max(a.core_us, 0.01) for a, b in pairs]),
                }  # fmt: skip


def targets_of(rows: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Compare the rows with the targets."""
    return [
        {
            "size": size, "client": row["client"], "compared_with": peer,
            "reached": row["ours_over_this_median"], "by_core_time": row["by_core_time_median"],
            "must_reach": must, "met": row["ours_over_this_median"] >= must,  # type: ignore[operator]
        }
        for peer, size, must in TARGETS
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
    parser.add_argument(
        "--servers", nargs="+", default=[], choices=PEERS, help="servers to compare with ours"
    )
    parser.add_argument(
        "--clients", nargs="+", default=["load.c", "wrk"], choices=("load.c", "wrk")
    )
    parser.add_argument(
        "--zarr-http-server",
        metavar="COMMAND",
        help="command of a Python in which zarr-http-server is installed",
    )
    parser.add_argument(
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="number of workers of each server",
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds of each server per round"
    )
    parser.add_argument(
        "--folder", type=absolute_path, help="folder for the data (default: a temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    left_out: list[str] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        work = Path(folder)
        store = ingest_pair(*choose_pair(options, work), work)
        data = (store / SHARD).read_bytes()
        clients: list[Client] = []
        if "load.c" in options.clients:
            clients.append(LoadClient(work, len(data)))
        if "wrk" in options.clients and shutil.which("wrk"):
            clients.append(WrkClient(work, len(data)))
        elif "wrk" in options.clients:
            left_out.append("wrk: is not installed (Debian: wrk)")
        with start_servers(options, store, work, left_out) as servers:
            for server in servers:
                compare(server, data, options.sizes)
            rows = list(measure(options, clients, servers))
    result = {"rows": rows, "targets": targets_of(rows), "left_out": left_out}
    print_tables(result)
    if options.json:
        environment = {**machine("granian", "uvicorn"), "load": os.getloadavg()[0]}
        figures = {**environment, "shard_bytes": len(data), **result}
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
