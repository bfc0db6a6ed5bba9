"""Measures opening the table, opening a scan and adding a scan in stores of very many tiny scans.

Each round adds a scan to every store; the results are ratios. Adding a scan is measured as a whole
process over the whole raw folder, as a user runs it.
"""

import argparse
import functools
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import xarray as xr
from common import machine, run_process
from rich.console import Console
from rich.table import Table

import spinezarr
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

PATTERNS = ("{scan}_ct.nii.gz", "{scan}_seg.nii.gz")
CLI = ["-c", "from spinezarr.cli.main import main; main()"]


class RecordingHandler(SimpleHTTPRequestHandler):
    """Handles requests for files, and records their paths."""

    protocol_version = "HTTP/1.1"
    paths: list[str]

    def log_message(self, *_: object) -> None:
        """Record the path instead."""
        self.paths.append(self.path)


@contextmanager
def serve_folder(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; yield its URL and the paths of all requests."""
    paths: list[str] = []
    handler = type("Handler", (RecordingHandler,), {"paths": paths})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", paths
    finally:
        server.shutdown()


def add_scans(raw: Path, numbers: range) -> None:
    """Add scans to a raw folder, as links to one scan."""
    raw.mkdir(exist_ok=True)
    first = [raw.parent / pattern.format(scan="one") for pattern in PATTERNS]
    if not first[0].exists():
        spec = PhantomSpec(
            shape_zyx=(12, 12, 12), spacing_zyx_mm=(12.0, 16.0, 16.0), levels=("T12", "L1")
        )
        phantom = make_phantom(spec)
        write_nifti(first[0], phantom.image, phantom.affine_xyz, NiftiForm())
        write_nifti(first[1], phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    for number in numbers:
        for path, pattern in zip(first, PATTERNS, strict=True):
            os.link(path, raw / pattern.format(scan=f"scan{number}"))


def ingest(raw: Path, out: Path) -> float:
    """Ingest in a process of its own; return its seconds."""
    image, label = PATTERNS
    words = ["ingest", "pairs", "--raw", str(raw), "--image", image, "--label", label]
    return run_process([*CLI, *words, "--out", str(out)]).wall_s


def measure_opening(store: Path) -> dict[str, float]:
    """Count requests and seconds of opening a store, from a web server and from disk."""
    figures: dict[str, float] = {}
    with serve_folder(store.parent) as (url, paths):
        remote_store = spinezarr.open(f"{url}/{store.name}")
        remote_store.scan("scan3")
        figures["requests_scan"] = len(paths)
        figures["requests_of_other_scans"] = sum("/scans/scan3/" not in p for p in paths) - 2
        paths.clear()
        xr.open_zarr(f"{url}/{store.name}/scans/scan4", zarr_format=3, consolidated=True)
        figures["requests_scan_by_xarray"] = len(paths)
        paths.clear()
        len(remote_store.table)
        figures["requests_table"] = len(paths)
    for name, call in (
        ("table_s", lambda: len(spinezarr.open(store).table)),
        ("table_by_xarray_s", lambda: xr.open_zarr(store / "table").load()),
    ):
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
        figures[name] = statistics.median(seconds)
    return figures


def measure(sizes: list[int], rounds: int, work: Path) -> list[dict[str, float]]:
    """Make a store of each size, then add one scan to every store in each round."""
    paths = {size: (work / f"raw{size}", work / f"{size}.zarr") for size in sizes}
    ingest_s = {}
    for size, (raw, out) in paths.items():
        add_scans(raw, range(size))
        ingest_s[size] = ingest(raw, out)
    add_one_s: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(rounds):
        for size, (raw, out) in paths.items():
            add_scans(raw, range(size + turn, size + turn + 1))
            add_one_s[size].append(ingest(raw, out))
    smallest = statistics.median(add_one_s[sizes[0]])
    return [
        {
            "scans": size,
            "ingest_s": ingest_s[size],
            **measure_opening(paths[size][1]),
            "add_one_s_median": statistics.median(add_one_s[size]),
            "add_one_s_min": min(add_one_s[size]),
            "add_one_s_max": max(add_one_s[size]),
            "add_one_times_smallest": statistics.median(add_one_s[size]) / smallest,
        }
        for size in sizes
    ]


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 1005, 10_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(options.sizes, options.rounds, Path(folder))
    table = Table("", *(f"{row['scans']:.0f} scans" for row in rows))
    for name in list(rows[0])[1:]:
        table.add_row(name, *(f"{row[name]:.3g}" for row in rows))
    Console().print(table)
    if options.json:
        options.json.write_text(json.dumps({**machine(), "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
