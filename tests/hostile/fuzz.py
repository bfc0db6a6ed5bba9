"""Read damaged files in processes of their own, and report the outcome of each.

Run ``python tests/hostile/fuzz.py --count 10000 --json report.json``. The exit code is 1 unless
every mutant is read whole or refused by an error of spinezarr's own.
"""

import argparse
import json
import shutil
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from harness import MOST_BYTES, Ended, Worker, limit_address_space, measured, silence
from mutants import SHAPE_ZYX, Seed, mutant, seeds

from spinezarr.errors import SpinezarrError
from spinezarr.formats.centroids import read_centroids
from spinezarr.formats.sheet import read_sheet
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import Grid
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe

SLAB_BYTES = 8 << 20
INGEST_EVERY = 20
"""Number of mutants of which one goes through a whole ingest; the others are only read."""


def read_volume(path: str) -> str:
    """Read all slabs of a volume, like an ingest."""
    volume = open_volume(LocalFileSystem(), path)
    ni, nj, nk = volume.grid.shape_ijk
    thick = max(1, SLAB_BYTES // (ni * nj * volume.dtype.itemsize))
    thicknesses = [min(thick, nk - k) for k in range(0, nk, thick)]
    for thickness, slab in zip(thicknesses, volume.slabs(thicknesses), strict=True):
        assert slab.shape == (ni, nj, thickness)
        assert slab.dtype == volume.dtype
    assert volume.source_file().size_bytes > 0
    assert np.isfinite([*volume.grid.spacing_zyx_mm, *volume.grid.affine_xyz.ravel()]).all()
    assert volume.grid.describe()
    return "read"


def ingest_volume(folder: Path, opens: str) -> str:
    """Run a whole ingest; it must succeed, or fail with a reason of our own."""
    suffix = opens[opens.index(".") :] if "." in opens else "/"
    recipe = Recipe.from_pairs("{scan}" + suffix, None, name="mutant")
    store = tempfile.mkdtemp(suffix=".zarr")
    try:
        report = ingest(recipe, discover(recipe, str(folder)), store)
    finally:
        shutil.rmtree(store)
    for failed in report.failed:
        assert "Please report this" not in failed.reason, failed.reason
        return "refused by ingest"
    return "ingested"


def read_small(path: Path) -> str:
    """Read a file of centroids or a table."""
    data = path.read_bytes()
    if path.stem == "table":
        read_sheet(data, str(path), delimiter=";")
        return "read"
    grid = Grid(SHAPE_ZYX[::-1], np.diag([-0.8, -0.9, 2.5, 1.0]))
    read_centroids(data, str(path), convention=path.stem, grid=grid)
    return "read"


def outcome_of(seed: Seed, files: dict[str, bytes], folder: Path, *, whole_way: bool) -> str:
    """Write the files and read them."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    try:
        if seed.kind == "small":
            return read_small(folder / seed.opens)
        if whole_way:
            return ingest_volume(folder, seed.opens)
        return read_volume(f"{folder}/{seed.opens}")
    except SpinezarrError as problem:
        text = str(problem)
        named = (str(folder), *files)
        if not any(name in text for name in named):
            return f"FAILED, names no file: {text}"[:400]
        return f"refused: {type(problem).__name__}"
    except Exception as problem:  # noqa: BLE001  the failure that is looked for
        return f"FAILED {type(problem).__name__}: {problem}"[:400]


@contextmanager
def ready(seed_number: int) -> Iterator[Callable[[int], dict[str, object]]]:
    """Make the seeds, and return a function that reads the mutant of a number."""
    with silence(), tempfile.TemporaryDirectory(prefix="mutants-") as name:
        warnings.simplefilter("error")
        root = Path(name)
        among = seeds(root)
        for number, sound in enumerate(among):  # the first use of a reader imports its modules
            for whole_way in (False, True):
                folder = root / f"sound-{number}-{whole_way}"
                outcome = outcome_of(sound, sound.files, folder, whole_way=whole_way)
                assert outcome in ("read", "ingested"), (sound.name, outcome)
        limit_address_space()

        def read(number: int) -> dict[str, object]:
            chosen, files = mutant(among, seed_number, number)
            folder = root / str(number)
            whole_way = number // 5 % INGEST_EVERY == 0
            outcome, cost = measured(lambda: outcome_of(chosen, files, folder, whole_way=whole_way))
            shutil.rmtree(folder)
            return {
                "number": number,
                "seed": chosen.name,
                "outcome": outcome,
                "seconds": cost.seconds,
                "bytes": cost.bytes,
            }

        yield read


def read_by(worker: Worker, number: int) -> dict[str, object]:
    """Read a mutant in a worker."""
    try:
        found: dict[str, object] = worker.ask(number)
    except Ended as how:
        return {
            "number": number,
            "seed": "?",
            "outcome": f"FAILED: {how}",
            "seconds": 0,
            "bytes": 0,
        }
    return found


def run(count: int, seed_number: int, processes: int, only: list[int]) -> dict[str, object]:
    """Read the mutants, and return a summary."""
    numbers = only or list(range(count))

    def part(which: int) -> list[dict[str, object]]:
        worker = Worker(ready, seed_number)
        try:
            return [read_by(worker, number) for number in numbers[which::processes]]
        finally:
            worker.stop()

    with ThreadPoolExecutor(processes) as pool:
        results = [result for part in pool.map(part, range(processes)) for result in part]
    failed = [r for r in results if r["outcome"].startswith("FAILED") or r["bytes"] > MOST_BYTES]
    by_kind = {
        kind: Counter(
            "FAILED" if r["outcome"].startswith("FAILED") else r["outcome"]
            for r in results
            if r["number"] % 5 in numbers_of
        )
        for kind, numbers_of in {
            "nifti": (0,), "metaimage": (1,), "dicom": (2, 3), "small": (4,)
        }.items()
    }  # fmt: skip
    return {
        "mutants": len(results),
        "outcomes": by_kind,
        "slowest": sorted(results, key=lambda r: -r["seconds"])[:5],
        "over_2_s": sum(r["seconds"] > 2 for r in results),
        "largest": sorted(results, key=lambda r: -r["bytes"])[:5],
        "failed": failed,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="*", default=[], help="numbers of mutants")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    report = json.dumps(run(args.count, args.seed, args.processes, args.only), indent=1)
    sys.stdout.write(f"{report}\n")
    if args.json:
        args.json.write_text(report, encoding="utf-8")
    return 1 if json.loads(report)["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
