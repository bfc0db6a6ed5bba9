"""Compares ingest from and to a bucket, and patches from it, with the same on disk.

The bucket is on a Ceph gateway which this script starts and ends; requests and bytes are counted
from the gateway's access log. Each round measures disk and bucket, so that a slow moment of a
shared machine affects both; the result is the ratio. The data are a CT and its mask as NIfTI,
linked as several scans, or a phantom if no files are given.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from common import machine, phantom_pair
from rich.console import Console
from rich.table import Table

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import IngestReport, ingest
from spinezarr.recipe import Recipe
from spinezarr.remote.filesystem import open_filesystem

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))

from ceph import Gateway, MissingProgramsError, Request, ceph_gateway

BUCKET = "bench"
RECIPE = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="bench")
KINDS = {"128^3": (128, 128, 128), "96^3": (96, 96, 96), "64^3": (64, 64, 64)}
BATCH_SIZE = 4
PLACES = {False: "disk", True: "bucket"}


@dataclass
class Row:
    """The results of one action over all rounds."""

    action: str
    place: str
    unit: str
    amount: float
    """Amount of one round: MB of source, or patches."""
    count: int
    """Number of scans or patches of one round, to divide requests by."""
    seconds: list[float] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    """Requests of the last round."""

    @property
    def rate(self) -> float:
        """Amount per second, as the median of the rounds."""
        return self.amount / statistics.median(self.seconds)

    def to_json(self) -> dict[str, object]:
        """Return the figures."""
        return {
            **{k: v for k, v in asdict(self).items() if k != "requests"},
            "rate_median": self.rate,
            "requests_each": self.requests_each(),
            "megabytes_moved_each": sum(r.body_bytes for r in self.requests) / 1e6 / self.count,
        }

    def megabytes_each(self) -> float:
        """Return the MB sent and received per scan or patch."""
        return sum(request.body_bytes for request in self.requests) / 1e6 / self.count

    def requests_each(self) -> dict[str, float]:
        """Return requests by method, and those of absent objects, per scan or patch."""
        counts = Counter(request.kind for request in self.requests)
        return {kind: n / self.count for kind, n in sorted(counts.items())}


class Bench:
    """A gateway, a folder, and the results."""

    def __init__(self, gateway: Gateway, work: Path) -> None:
        self.gateway = gateway
        self.work = work
        self.options = {
            "endpoint_url": gateway.endpoint_url,
            "key": gateway.access_key,
            "secret": gateway.secret_key,
        }
        self.rows: dict[tuple[str, str], Row] = {}

    def measure(self, row: Row, action: Callable[[], object]) -> None:
        """Time an action, and record its requests."""
        row = self.rows.setdefault((row.action, row.place), row)
        before = len(self.gateway.requests())
        started = time.perf_counter()
        action()
        row.seconds.append(time.perf_counter() - started)
        row.requests = self._requests_after(before)

    def _requests_after(self, before: int) -> list[Request]:
        """Return the requests in the log, which is written with a delay."""
        requests = self.gateway.requests()
        while True:
            time.sleep(0.3)
            latest = self.gateway.requests()
            if len(latest) == len(requests):
                return latest[before:]
            requests = latest

    def url(self, name: str, *, in_bucket: bool) -> str:
        """Return the URL of a raw folder or store of this name."""
        return f"s3://{BUCKET}/{name}" if in_bucket else str(self.work / name)

    def storage_options(self, url: str) -> dict[str, Any]:
        """Return the storage options of a URL."""
        return self.options if "://" in url else {}

    def ingest(self, raw: str, out: str) -> IngestReport:
        """Ingest, and exit on failure."""
        raw_options = self.storage_options(raw)
        report = ingest(
            RECIPE, discover(RECIPE, raw, raw_options), out, raw_options=raw_options,
            out_options=self.storage_options(out),
        )  # fmt: skip
        if report.exit_code:
            raise SystemExit(f"{report.failed} {report.problem}")
        return report


def measure(bench: Bench, pair: Sequence[Path], scans: int, rounds: int, patches: int) -> None:
    """Measure everything, round after round."""
    raw = bench.work / "raw"
    raw.mkdir()
    for n in range(scans):
        for path, ending in zip(pair, ("ct", "seg"), strict=True):
            (raw / f"scan{n}_{ending}.nii.gz").symlink_to(path.resolve())
    fs, _ = open_filesystem(f"s3://{BUCKET}", bench.options)
    fs.call_s3("create_bucket", Bucket=BUCKET)
    for path in raw.iterdir():
        fs.pipe_file(f"{BUCKET}/raw/{path.name}", path.read_bytes())
    megabytes = scans * sum(path.stat().st_size for path in pair) / 1e6
    for turn in range(rounds):
        measure_ingests(bench, turn, scans, megabytes)
        measure_reads(bench, turn, patches)


def measure_ingests(bench: Bench, turn: int, scans: int, megabytes: float) -> None:
    """Ingest from and to both places, and repeat an ingest without new files."""
    for from_bucket, to_bucket in ((False, False), (False, True), (True, False), (True, True)):
        source = bench.url("raw", in_bucket=from_bucket)
        store = bench.url(f"store{turn}-{from_bucket}.zarr", in_bucket=to_bucket)
        place = f"{PLACES[from_bucket]} to {PLACES[to_bucket]}"
        repeated = ["ingest again, nothing new"] if from_bucket == to_bucket else []
        for action in ("ingest", *repeated):
            row = Row(action, place, "MB/s of source", megabytes, scans)
            bench.measure(row, lambda a=source, b=store: bench.ingest(a, b))


def measure_reads(bench: Bench, turn: int, patches: int) -> None:
    """Open the stores of this turn, and stream patches from them."""
    stores: dict[bool, spinezarr.Store] = {}
    for in_bucket, place in PLACES.items():
        url = bench.url(f"store{turn}-{in_bucket}.zarr", in_bucket=in_bucket)
        options = bench.storage_options(url)
        stores[in_bucket] = spinezarr.open(url, storage_options=options)
        row = Row("open, read the table", place, "a second", 1, 1)
        bench.measure(row, lambda u=url, o=options: spinezarr.open(u, storage_options=o).table)
    for kind, size in KINDS.items():
        for in_bucket, place in PLACES.items():
            store = stores[in_bucket]
            stream = store.patches(size, batch_size=BATCH_SIZE, n_samples=patches, seed=turn)
            for _ in stream.at_epoch(1):  # metadata are read once, before the clock starts
                pass
            row = Row(f"{kind} patches", place, "patches/s", patches, patches)
            bench.measure(row, lambda s=stream: sum(1 for _ in s))


def print_table(rows: Sequence[Row]) -> None:
    """Print a table."""
    disk_rates = {row.action: row.rate for row in reversed(rows)}
    table = Table("action", "place", "rate", "of disk", "requests for each scan or patch")
    for row in rows:
        requests = ", ".join(f"{kind} {n:.1f}" for kind, n in row.requests_each().items())
        requests += f"; {row.megabytes_each():.2f} MB" if requests else "none"
        table.add_row(
            row.action, row.place, f"{row.rate:.1f} {row.unit}",
            f"{row.rate / disk_rates[row.action]:.2f} x", requests,
        )  # fmt: skip
    Console(width=140).print(table)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument(
        "--scans", type=int, default=3, help="number of scans that the pair is linked as"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--patches", type=int, default=64, help="number of patches per kind and round"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench-s3: ended"))  # ends Ceph, too
    try:
        with ceph_gateway() as gateway, tempfile.TemporaryDirectory() as folder:
            work = Path(folder)
            pair = options.pair or phantom_pair(work)
            bench = Bench(gateway, work)
            measure(bench, pair, options.scans, options.rounds, options.patches)
    except MissingProgramsError as problem:
        sys.exit(f"bench-s3: {problem}")
    rows = list(bench.rows.values())
    print_table(rows)
    if options.json:
        figures = [row.to_json() for row in rows]
        result = {"data": pair[0].name, "scans": options.scans, **machine(), "rows": figures}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
