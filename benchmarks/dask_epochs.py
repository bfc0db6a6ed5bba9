"""Compares the rate of an epoch computed by dask with that of iterating over its stream.

Dask uses one voxel of each patch, the largest value of each patch, or all voxels, of image and
mask. Threads also store all voxels into arrays that are there, by ``dask.array.store``. Iterating
does the same work, or none. All ways run once in each round, and each round draws other patches;
the results are ratios within a round. Core time includes that of worker processes. The store holds
the scan several times, since patches of few scans share many chunks.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import dask.array as da
import numpy as np
import psutil
from common import ingest_pair, machine, phantom_pair, spread
from distributed import Client, LocalCluster
from rich.console import Console
from rich.table import Table

import spinezarr
from spinezarr.stream.epoch.stream import PatchStream

AXES = ["z", "y", "x"]
WORK = ("one voxel", "largest", "all voxels")
STORED = "all voxels, stored"
SCHEDULERS = ("threads", "processes", "cluster of 2 x 1", "cluster of 2 x 2")
ITERATE = "iterate"
Way = Callable[[PatchStream], object]


def iterate(work: str, stream: PatchStream) -> None:
    """Iterate over the batches, and do the work with each."""
    arrays: dict[str, np.ndarray] = {}
    first = 0
    for batch in stream:
        for name in ("image", "label"):
            voxels = getattr(batch, name)
            if work == "largest":
                voxels.max((1, 2, 3))
            elif work in {"all voxels", STORED}:
                shape = (stream.n_samples, *voxels.shape[1:])
                out = arrays.setdefault(name, np.empty(shape, voxels.dtype))
                out[first : first + len(batch)] = voxels
        first += len(batch)


def compute(work: str, options: dict[str, object], stream: PatchStream) -> None:
    """Let dask do the work."""
    epoch = stream.to_dask()
    if work == STORED:
        sources = [epoch.image.data, epoch.label.data]
        targets = [np.empty(source.shape, source.dtype) for source in sources]
        da.store(sources, targets, lock=False, **options)
        return
    if work == "one voxel":
        epoch = epoch.isel(dict.fromkeys(AXES, 0))
    elif work == "largest":
        epoch = epoch.max(AXES)
    epoch.compute(**options)


@contextmanager
def started(scheduler: str) -> Iterator[tuple[dict[str, object], list[psutil.Process]]]:
    """Start a scheduler; yield its options and the processes that it started."""
    here = psutil.Process()
    if scheduler == "threads":
        yield {"scheduler": "threads", "num_workers": os.cpu_count()}, []
    elif scheduler == "processes":
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["spinezarr.api", "spinezarr.stream.epoch.lazy_epoch"])
        with ProcessPoolExecutor(2, context) as pool:
            list(pool.map(abs, range(4)))
            yield {"scheduler": "processes", "pool": pool}, here.children(recursive=True)
    else:
        with (
            LocalCluster(
                n_workers=2, threads_per_worker=int(scheduler[-1]), memory_limit=None,
                dashboard_address="127.0.0.1:0",
            ) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):  # fmt: skip
            yield {"scheduler": client}, here.children(recursive=True)


def core_s(workers: list[psutil.Process]) -> float:
    """Return the core time of this process and of its workers."""
    times = [process.cpu_times() for process in (psutil.Process(), *workers)]
    return sum(of_process.user + of_process.system for of_process in times)


def rates(
    ways: dict[str, Way], stream: PatchStream, rounds: int, workers: list[psutil.Process]
) -> dict[str, list[tuple[float, float]]]:
    """Return samples per second, and per core-second, of all ways in each round."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for turn in range(rounds + 1):  # the first turn is for warming up
        offset = turn % len(ways)
        for name in [*ways][offset:] + [*ways][:offset]:
            start, cores = time.perf_counter(), core_s(workers)
            ways[name](stream.at_epoch(turn))
            wall_s = time.perf_counter() - start
            # The system counts core-seconds in hundredths of a second.
            used_s = max(core_s(workers) - cores, 0.01)
            if turn:
                found[name].append((stream.n_samples / wall_s, stream.n_samples / used_s))
    return found


def measure(stream: PatchStream, scheduler: str, rounds: int) -> list[dict[str, object]]:
    """Compare one scheduler with iterating."""
    # Other processes cannot store into an array of this one.
    works = (*WORK, STORED) if scheduler == "threads" else WORK
    with started(scheduler) as (options, workers):
        ways: dict[str, Way] = {ITERATE: partial(iterate, "")}
        for work in works:
            ways[f"{ITERATE}, {work}"] = partial(iterate, work)
            ways[work] = partial(compute, work, options)
        found = rates(ways, stream, rounds, workers)
    rows: list[dict[str, object]] = []
    for work in works:
        row: dict[str, object] = {"scheduler": scheduler, "work": work}
        row |= spread("samples_per_s", [per_s for per_s, _ in found[work]])
        for base, name in ((ITERATE, "of_iterating"), (f"{ITERATE}, {work}", "of_same_work")):
            pairs = list(zip(found[work], found[base], strict=True))
            row |= spread(name, [a[0] / b[0] for a, b in pairs])
            row |= spread(f"{name}_by_core_s", [a[1] / b[1] for a, b in pairs])
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """Print the results as a table."""
    names = ("samples_per_s", "of_iterating", "of_iterating_by_core_s")
    names += ("of_same_work", "of_same_work_by_core_s")
    table = Table("scheduler", "work", *names)
    for row in rows:
        figures = (
            f"{row[f'{name}_median']:.3g} ({row[f'{name}_min']:.3g} to {row[f'{name}_max']:.3g})"
            for name in names
        )
        table.add_row(str(row["scheduler"]), str(row["work"]), *figures)
    Console(width=170).print(table)


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument("--scans", type=int, default=12, help="number of copies of the scan")
    parser.add_argument("--size", type=int, default=64, help="side of a patch")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--samples", type=int, default=2000, help="number of samples of an epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=SCHEDULERS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        url = ingest_pair(*(options.pair or phantom_pair(work)), work, copies=options.scans)
        stream = spinezarr.open(url).patches(
            options.size, batch_size=options.batch_size, n_samples=options.samples
        )
        rows = [row for name in options.schedulers for row in measure(stream, name, options.rounds)]
    print_table(rows)
    if options.json:
        result = {**machine("dask", "distributed"), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
