"""The long form of the kill tests: count what many kills do, on disk and in a bucket.

``make test-crash`` runs it, then the tests beside it in their long form.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parent))

from killing.check import MIXED
from killing.bucket import serve_bucket
from killing.driver import Driver
from killing.kills import BucketPlace, Counts, FolderPlace, Workshop, count_baseline, count_kills

KINDS = ("unreadable", "silently incomplete", "lost", "not resumed", "left over", "not identical", MIXED)


def main() -> int:
    """Run the loops; exit code 1 if one kill did harm."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--local", type=int, default=300)
    options.add_argument("--s3", type=int, default=60)
    options.add_argument("--baseline", type=int, default=40)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--json", type=Path)
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as work:
        results, baseline = run(Path(work), chosen)
    show(results, baseline)
    if chosen.json:
        counted = {name: asdict(counts) for name, counts in results.items()}
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**counted, "plain zarr-python": baseline}, indent=2)
        chosen.json.write_text(text)
    return int(any(set(counts.faults) - {MIXED} for counts in results.values()))


def run(work: Path, chosen: argparse.Namespace) -> tuple[dict[str, Counts], dict[str, int]]:
    """Run all three loops."""
    with Driver(work) as driver, Progress(console=Console(stderr=True)) as progress:
        shop = Workshop.of(work, driver)
        results = {}

        def loop(name: str, place: object, kills: int) -> None:
            task = progress.add_task(name, total=kills)
            results[name] = count_kills(
                shop,
                place,
                kills,
                seed=chosen.seed,
                heard=lambda done: progress.update(task, completed=done),
            )

        loop("disk", FolderPlace(work, driver), chosen.local)
        if chosen.s3:
            with serve_bucket() as bucket:
                loop("S3", BucketPlace(bucket, driver), chosen.s3)
        return results, dict(count_baseline(shop, chosen.baseline, seed=chosen.seed))


def show(results: dict[str, Counts], baseline: dict[str, int]) -> None:
    """Print the counts as a table."""
    out = Console()
    table = Table("", "kills", *KINDS, title="Killed with SIGKILL")
    for name, counts in results.items():
        kills = f"{counts.kills} + {counts.second_kills} again"
        table.add_row(name, kills, *(str(counts.faults[kind]) for kind in KINDS))
    plain = [str(baseline.get(kind, 0)) for kind in KINDS[:2]]
    table.add_row("plain zarr-python", str(sum(baseline.values())), *plain, **("-" * (len(KINDS) - 2)))
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
