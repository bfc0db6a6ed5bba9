"""Compares batches per second of iterators and PyTorch loaders with the engine on the same draws.

All of them run once in each round, so that a slow moment of a shared machine affects all; the
result is the ratio to the engine. Two more measurements run in processes of their own: the time to
the first batch of a store of many scans, and the memory of a run in addition to its batches.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import ingest_pair, machine, phantom_pair, spread
from rich.console import Console
from rich.table import Table
from scans import add_scans
from scans import ingest as ingest_many
from torch.utils.data import DataLoader

import spinezarr
from spinezarr.loaders.torch import PatchDataset, PatchLoader, as_tensors
from spinezarr.stream.epoch.stream import PatchStream

ENGINE = "engine alone"

# The script measures a training up to its first batch, and then the growth of memory. A small
# process starts it, because the peak memory of a child includes that of its parent.
_LAUNCHER = "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"
_TRAINING = """
import json, resource, sys, time
started = time.perf_counter()
url, size, batch_size, n_batches, with_torch = json.loads(sys.argv[1])
if with_torch:
    import torch
torch_s = time.perf_counter() - started
started = time.perf_counter()
import spinezarr.api
if with_torch:
    from spinezarr.loaders.torch import PatchLoader
import_s = time.perf_counter() - started
imported_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
started = time.perf_counter()
store = spinezarr.open(url)
n_samples = batch_size * n_batches
stream = store.patches(size, batch_size=batch_size, n_samples=n_samples, foreground=0.5)
batches = iter(PatchLoader(stream) if with_torch else stream)
next(batches)
first_s = time.perf_counter() - started
for batch in batches:
    pass
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
group_bytes = stream.read_ahead.group_bytes
ahead = min(2 * stream.threads, max(1, stream.prefetch_bytes // group_bytes), n_batches - 1)
batches_mb = (1 + ahead) * group_bytes / 1e6
print(json.dumps({"torch_s": torch_s, "import_s": import_s, "first_batch_s": first_s,
                  "imported_mb": imported_mb, "peak_mb": peak_mb, "batches_mb": batches_mb,
                  "other_mb": peak_mb - batches_mb}))
"""


def engine_alone(stream: PatchStream) -> Iterable[object]:
    """Read the batches with the threads of the stream; their positions are drawn before."""
    batches_of_requests = [
        [stream.request(index) for index in range(first, first + stream.batch_size)]
        for first in range(0, stream.n_samples, stream.batch_size)
    ]
    n_ahead = 2 * stream.threads
    yield None  # the clock starts
    with ThreadPoolExecutor(stream.threads) as pool:
        futures = deque(pool.submit(stream.read, item) for item in batches_of_requests[:n_ahead])
        for requests in [*batches_of_requests[n_ahead:], *[None] * len(futures)]:
            batch = futures.popleft().result()
            if requests is not None:
                futures.append(pool.submit(stream.read, requests))
            yield batch


def after_none(batches: Iterable[object]) -> Iterable[object]:
    """Yield None first, when the clock starts."""
    yield None
    yield from batches


def by_workers(stream: PatchStream, n: int) -> Iterable[object]:
    """Read with PyTorch's own loader and ``n`` worker processes."""
    return after_none(DataLoader(PatchDataset(stream), batch_size=None, num_workers=n))


LOADERS: dict[str, Callable[[PatchStream], Iterable[object]]] = {
    ENGINE: engine_alone,
    "iter(stream)": after_none,
    "iter(stream), as tensors": lambda stream: after_none(map(as_tensors, stream)),
    "DataLoader, no workers": lambda stream: by_workers(stream, 0),
    "DataLoader, 2 workers": lambda stream: by_workers(stream, 2),
    "DataLoader, 4 workers": lambda stream: by_workers(stream, 4),
    "PatchLoader, no workers": lambda stream: after_none(PatchLoader(stream)),
    "PatchLoader, 2 workers": lambda stream: after_none(PatchLoader(stream, num_workers=2)),
}


def rate(batches: Iterable[object]) -> tuple[float, float]:
    """Return batches per second, and per core-second, from the first ``None`` on.

    The start of threads or workers is included, and core-seconds include those of workers.
    """
    iterator = iter(batches)
    next(iterator)
    started, cores = time.perf_counter(), sum(os.times()[:4])
    n = sum(1 for _ in iterator)
    wall_s = time.perf_counter() - started
    del iterator  # waits for workers
    # The system counts core-seconds in hundredths of a second.
    return n / wall_s, n / max(sum(os.times()[:4]) - cores, 0.01)


def measure(
    store: spinezarr.Store, kinds: list[tuple[str, int]], rounds: int, n_batches: int
) -> list[dict[str, object]]:
    """Measure all loaders once in each round; each round draws other patches."""
    rows: list[dict[str, object]] = []
    for kind, batch_size in kinds:
        options = {"batch_size": batch_size, "n_samples": batch_size * n_batches}
        stream = (
            store.patches(int(kind), **options) if kind.isdigit() else store.slices(kind, **options)
        )
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in LOADERS}
        for turn in range(rounds + 1):  # the first turn is for warming up
            offset = turn % len(LOADERS)
            for name in [*LOADERS][offset:] + [*LOADERS][:offset]:
                new_rate = rate(LOADERS[name](stream.at_epoch(turn)))
                if turn:
                    rates[name].append(new_rate)
        for name, of_loader in rates.items():
            pairs = list(zip(of_loader, rates[ENGINE], strict=True))
            rows.append({
                "kind": kind, "batch_size": batch_size, "loader": name,
                **spread("batches_per_s", [per_s for per_s, _ in of_loader]),
                **spread("of_engine", [a[0] / b[0] for a, b in pairs]),
                **spread("of_engine_by_core_s", [a[1] / b[1] for a, b in pairs]),
            })  # fmt: skip
    return rows


def run_training(rounds: int, url: Path, *arguments: object) -> dict[str, float]:
    """Run the script in new processes; return the median of each figure."""
    launcher = [sys.executable, "-S", "-c", _LAUNCHER]
    command = [*launcher, sys.executable, "-c", _TRAINING, json.dumps([str(url), *arguments])]
    runs = [
        json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603
        for _ in range(rounds)
    ]
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def print_tables(rows: list[dict[str, object]], runs: dict[str, dict[str, float]]) -> None:
    """Print the results as tables."""
    table = Table("kind", "loader", "batches a second", "of the engine", "by core-seconds")
    for row in rows:
        figures = (
            f"{row[f'{name}_median']:.3g} ({row[f'{name}_min']:.3g} to {row[f'{name}_max']:.3g})"
            for name in ("batches_per_s", "of_engine", "of_engine_by_core_s")
        )
        table.add_row(f"{row['kind']} x {row['batch_size']}", str(row["loader"]), *figures)
    Console(width=140).print(table)
    table = Table("", *runs)
    for name in next(iter(runs.values())):
        table.add_row(name, *(f"{run[name]:.3g}" for run in runs.values()))
    Console(width=140).print(table)


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument(
        "--kinds", nargs="+", default=["128:2", "96:4", "64:8", "axial:8", "sagittal:8"],
        help="side or plane, and batch size",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--batches", type=int, default=60, help="number of batches per loader and round"
    )
    parser.add_argument(
        "--scans", type=int, default=1005, help="number of scans of the large store"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    kinds = [(kind, int(n)) for kind, n in (text.split(":") for text in options.kinds)]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        one_scan = ingest_pair(*(options.pair or phantom_pair(work)), work)
        rows = measure(spinezarr.open(one_scan), kinds, options.rounds, options.batches)
        add_scans(work / "many", range(options.scans))
        ingest_many(work / "many", work / "many.zarr")
        side = next((int(kind) for kind, _ in kinds if kind.isdigit()), 64)
        n = options.rounds
        runs = {
            f"{options.scans} scans": run_training(n, work / "many.zarr", 8, 4, 300, False),
            f"{options.scans} scans, torch": run_training(n, work / "many.zarr", 8, 4, 300, True),
            "one scan": run_training(n, one_scan, side, 2, options.batches, False),
            "one scan, torch": run_training(n, one_scan, side, 2, options.batches, True),
        }
    print_tables(rows, runs)
    if options.json:
        result = {**machine("torch"), "threads": os.cpu_count(), "rows": rows, "runs": runs}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
