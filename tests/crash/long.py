"""The long form of the kill tests: count the effects of many kills, on disk and in a bucket.

``make test-crash`` runs it, and then the tests of this folder in their long form.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

from killing.bucket import serve_bucket
from killing.check import MIXED
from killing.driver import Driver
from killing.kills import (
    BucketPlace,
    Counts,
    CrashData,
    FolderPlace,
    Place,
    count_baseline,
    count_kills,
)
from killing.memory import in_memory

PART = 15
"""Number of kills in one process."""

KINDS = (
    "unreadable",
    "silently incomplete",
    "lost",
    "not resumed",
    "left over",
    "not identical",
    MIXED,
)


def main() -> int:
    """Run the loops; the exit code is 1 if a kill did harm."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--local", type=int, default=300)
    options.add_argument("--s3", type=int, default=60)
    options.add_argument("--baseline", type=int, default=40)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--jobs", type=int, default=os.cpu_count())
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory(dir=in_memory()) as work:
        results, baseline = run(Path(work), chosen)
    show(results, baseline)
    if chosen.json:
        counted = {name: counts.to_json() for name, counts in results.items()}
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**counted, "plain zarr-python": baseline}, indent=2)
        chosen.json.write_text(text)
    return int(any(set(counts.faults) - {MIXED} for counts in results.values()))


def run(work: Path, chosen: argparse.Namespace) -> tuple[dict[str, Counts], dict[str, int]]:
    """Run all loops, several parts in parallel."""
    parts = [("disk", kills) for kills in _parts(chosen.local)]
    parts += [("S3", kills) for kills in _parts(chosen.s3)]
    results = {"disk": Counts(), "S3": Counts()}
    with Driver(work) as driver:
        baseline = dict(count_baseline(work, driver, chosen.baseline, seed=chosen.seed))
    with (
        ProcessPoolExecutor(chosen.jobs, mp_context=get_context("spawn")) as pool,
        Progress(console=Console(stderr=True)) as progress,
    ):
        task = progress.add_task("kills", total=chosen.local + chosen.s3)
        running = {
            pool.submit(run_part, work / str(i), name, kills, chosen.seed + i): name
            for i, (name, kills) in enumerate(parts)
        }
        for done in as_completed(running):
            results[running[done]].add(done.result())
            progress.advance(task, done.result().kills)
    return results, baseline


def _parts(kills: int) -> list[int]:
    return [min(PART, kills - done) for done in range(0, kills, PART)]


def run_part(work: Path, name: str, kills: int, seed: int) -> Counts:
    """Run a part of a loop, with stores and processes of its own."""
    work.mkdir()
    try:
        with Driver(work) as driver, ExitStack() as stack:
            crash_data = CrashData.create(work, driver)
            place: Place = FolderPlace(work, driver)
            if name == "S3":
                place = BucketPlace(stack.enter_context(serve_bucket()), driver)
            return count_kills(crash_data, place, kills, seed=seed)
    finally:
        shutil.rmtree(work)


def show(results: dict[str, Counts], baseline: dict[str, int]) -> None:
    """Print the counts as a table."""
    out = Console(width=180)
    table = Table("", "kills", *KINDS, title="Killed with SIGKILL")
    for name, counts in results.items():
        kills = f"{counts.kills} + {counts.second_kills} again"
        table.add_row(name, kills, *(str(counts.faults[kind]) for kind in KINDS))
    plain = [str(baseline.get(kind, 0)) for kind in KINDS[:2]]
    table.add_row(
        "plain zarr-python", str(sum(baseline.values())), *plain, *("-" * (len(KINDS) - 2))
    )
    out.print(table)
    stages = Table("killed at", *results, title="Where the runs were")
    for stage in sorted({stage for counts in results.values() for stage in counts.stages}):
        stages.add_row(stage, *(str(counts.stages[stage]) for counts in results.values()))
    out.print(stages)
    for name, counts in results.items():
        for example in counts.examples[:50]:
            out.print(f"{name}: {example}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
