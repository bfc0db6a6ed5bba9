"""Read damaged files in processes of their own, and report what came of each.

``python tests/hostile/fuzz.py --count 10000 --json report.json``. The exit code is 1 if one mutant
did anything but read whole or be refused by an error of spinezarr's own.
"""

import argparse
import json
import multiprocessing as mp
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from fsspec.implementations.local import LocalFileSystem
from mutants import SHAPE_ZYX, Seed, mutant, seeds

from spinezarr.errors import SpinezarrError
from spinezarr.formats import open_volume, read_centroids
from spinezarr.formats.sheet import read_sheet
from spinezarr.geometry import Grid
from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.recipe import Recipe

KILL_S = 20.0
"""Generous: machines are shared."""
MOST_BYTES = 512 << 20
"""Resident above what the process had before."""
ADDRESS_BYTES = 4 << 30
"""Address space above what the process had before: np.empty may ask for more than it touches."""
SLAB_BYTES = 8 << 20
INGEST_EVERY = 20
"""So many read mutants to one that goes through a whole ingest."""


def read_volume(path: str) -> str:
    """Read all slabs of a volume, as an ingest does."""
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
    """Take the whole way of a user; whether a value or a refusal comes out, its reason is ours."""
    suffix = opens[opens.index(".") :] if "." in opens else "/"
    recipe = Recipe.of_pairs("{scan}" + suffix, None, name="mutant")
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


def peak_bytes() -> int:
    """Most that was resident since the last reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) << 10


def serve(pipe: Connection, seed_number: int) -> None:
    """Read the mutants whose numbers come through the pipe, until None comes."""
    # The decoders write to these of their own accord.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    if "DEBUG" not in os.environ:
        os.dup2(silence, 2)
    warnings.simplefilter("error")
    root = Path(tempfile.mkdtemp(prefix="mutants-"))
    among = seeds(root)
    for number, sound in enumerate(among):  # the first use of each reader imports what it needs
        for whole_way in (False, True):
            folder = root / f"sound-{number}-{whole_way}"
            outcome = outcome_of(sound, sound.files, folder, whole_way=whole_way)
            assert outcome in ("read", "ingested"), (sound.name, outcome)
    own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * os.sysconf(
        "SC_PAGE_SIZE"
    )
    resource.setrlimit(resource.RLIMIT_AS, (own + ADDRESS_BYTES, resource.RLIM_INFINITY))
    pipe.send("ready")
    while (number := pipe.recv()) is not None:
        chosen, files = mutant(among, seed_number, number)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = peak_bytes()
        folder = root / str(number)
        began = time.monotonic()
        whole_way = number // 5 % INGEST_EVERY == 0
        outcome = outcome_of(chosen, files, folder, whole_way=whole_way)
        seconds = time.monotonic() - began
        shutil.rmtree(folder)
        pipe.send((outcome, chosen.name, seconds, peak_bytes() - before))
    shutil.rmtree(root)


class Worker:
    """A process that reads mutants, started anew when one ends it."""

    def __init__(self, seed_number: int) -> None:
        self._seed_number = seed_number
        self._start()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, self._seed_number))
        self._process.start()
        theirs.close()
        assert self._pipe.recv() == "ready"

    def read(self, number: int) -> dict[str, object]:
        began = time.monotonic()
        self._pipe.send(number)
        try:
            if self._pipe.poll(KILL_S):
                outcome, seed, seconds, extra = self._pipe.recv()
                return {
                    "number": number,
                    "seed": seed,
                    "outcome": outcome,
                    "seconds": seconds,
                    "bytes": extra,
                }
            outcome = f"FAILED: took more than {KILL_S:g} s"
        except EOFError:
            self._process.join()
            outcome = f"FAILED: ended the process with {self._process.exitcode}"
        seconds = time.monotonic() - began
        self._process.kill()
        self._process.join()
        self._start()
        return {"number": number, "seed": "?", "outcome": outcome, "seconds": seconds, "bytes": 0}

    def stop(self) -> None:
        self._pipe.send(None)
        self._process.join()


def run(count: int, seed_number: int, processes: int, only: list[int]) -> dict[str, object]:
    """Read the mutants, and sum up."""
    numbers = only or list(range(count))

    def part(which: int) -> list[dict[str, object]]:
        worker = Worker(seed_number)
        try:
            return [worker.read(number) for number in numbers[which::processes]]
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
