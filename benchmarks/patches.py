"""Random patches and slices a second of one scan: spinezarr beside its peers, same draws, one run.

The readers take turns, so that a slow moment of a shared machine hits all of them; what counts is
the ratio to the first reader. Data: a CT and its mask as NIfTI, or a phantom if none is given.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import zarr
from common import folder_bytes, machine, phantom_pair
from rich.console import Console
from rich.table import Table

from spinezarr.geometry import Box
from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.reader import StoreReader
from spinezarr.stream.engine import Engine
from spinezarr.stream.fetch import LocalFetcher

Read = Callable[[Box], object]

THREADS = 2
SIDES = {"128^3": (128, 128, 128), "96^3": (96, 96, 96)}
PLANES = {"axial": 0, "coronal": 1, "sagittal": 2}


@dataclass(frozen=True, slots=True)
class Reader:
    """One way to read image and mask of a box."""

    name: str
    read: Read
    stored_bytes: int


def boxes(kind: str, shape_zyx: tuple[int, ...], seed: int, n: int) -> list[Box]:
    """Draw ``n`` boxes of a kind, each position equally likely."""
    if kind in SIDES:
        size = tuple(min(a, b) for a, b in zip(SIDES[kind], shape_zyx, strict=True))
    else:
        size = tuple(1 if axis == PLANES[kind] else n for axis, n in enumerate(shape_zyx))
    rng = np.random.default_rng(seed)
    room = np.subtract(shape_zyx, size)
    starts = rng.integers(0, room, (n, 3), endpoint=True).tolist()
    return [Box.at(tuple(start), size) for start in starts]


def make_readers(image: Path, label: Path, work: Path) -> tuple[list[Reader], tuple[int, ...]]:
    """Ingest the scan and open it in every way."""
    raw, out = work / "raw", work / "store.zarr"
    raw.mkdir()
    (raw / "scan_ct.nii.gz").symlink_to(image.resolve())
    (raw / "scan_seg.nii.gz").symlink_to(label.resolve())
    recipe = Recipe.of_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="bench")
    report = ingest(recipe, discover(recipe, str(raw)), str(out))
    if report.failed:
        raise SystemExit(report.failed[0].reason)
    scan = StoreReader(str(out)).scan("scan")
    group = zarr.open_group(out / "scans" / "scan", mode="r")
    arrays = {name: group[name] for name in ("image", "label")}
    for name, array in arrays.items():
        np.save(work / f"{name}.npy", array[...])
    flat = [np.load(work / f"{name}.npy", mmap_mode="r") for name in arrays]
    engine = Engine(LocalFetcher())

    def ours(box: Box) -> None:
        for spec in scan.arrays:
            engine.read_into(spec, box, np.empty(box.shape_zyx, spec.dtype))

    def whole_file(box: Box) -> None:
        for path in (image, label):
            np.ascontiguousarray(np.asanyarray(nib.load(path).dataobj).T[box.slices])

    stored = folder_bytes(out / "scans" / "scan" / "image", out / "scans" / "scan" / "label")
    source = image.stat().st_size + label.stat().st_size
    readers = [
        Reader("spinezarr", ours, stored),
        Reader(
            "zarr-python, same store", lambda b: [a[b.slices] for a in arrays.values()], stored
        ),
        Reader(".nii.gz, whole file", whole_file, source),
        Reader(".npy memory map (roof)", lambda b: [np.array(a[b.slices]) for a in flat],
               sum(a.nbytes for a in flat)),
    ]  # fmt: skip
    return readers, scan.image.shape_zyx


def rate(read: Read, wanted: list[Box], seconds: float) -> float:
    """Read boxes with ``THREADS`` threads for about ``seconds``; return boxes a second."""
    done = 0
    started = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        while done < len(wanted) and time.perf_counter() - started < seconds:
            done += len(list(pool.map(read, wanted[done : done + 2 * THREADS])))
    return done / (time.perf_counter() - started)


def measure(
    readers: list[Reader], shape_zyx: tuple[int, ...], rounds: int, seconds: float
) -> list[dict[str, object]]:
    """Measure every reader in turn, round after round."""
    rows: list[dict[str, object]] = []
    for kind in (*SIDES, *PLANES):
        rates: dict[str, list[float]] = {reader.name: [] for reader in readers}
        for turn in range(rounds):
            wanted = boxes(kind, shape_zyx, turn, 4096)
            for reader in readers:
                rates[reader.name].append(rate(reader.read, wanted, seconds))
        first = statistics.median(rates[readers[0].name])
        rows += [
            {
                "kind": kind,
                "reader": reader.name,
                "per_s_median": statistics.median(rates[reader.name]),
                "per_s_min": min(rates[reader.name]),
                "per_s_max": max(rates[reader.name]),
                "times_slower_than_first": first / statistics.median(rates[reader.name]),
                "stored_bytes": reader.stored_bytes,
            }
            for reader in readers
        ]
    return rows


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each reader and round")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        image, label = options.pair or phantom_pair(work)
        readers, shape_zyx = make_readers(image, label, work)
        rows = measure(readers, shape_zyx, options.rounds, options.seconds)
    table = Table("kind", "reader", "a second", "min to max", "slower than spinezarr", "MB")
    for row in rows:
        table.add_row(
            str(row["kind"]), str(row["reader"]), f"{row['per_s_median']:.1f}",
            f"{row['per_s_min']:.1f} to {row['per_s_max']:.1f}",
            f"{row['times_slower_than_first']:.2f} x", f"{row['stored_bytes'] / 1e6:.1f}",
        )  # fmt: skip
    Console().print(table)
    if options.json:
        result = {"data": image.name, "shape_zyx": shape_zyx, **machine(), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
