"""Compares patches of a derived store with patches that are resampled on the way.

One CT with its mask is ingested, and stores are derived from it: resampled, cropped to the spine,
and with 8 bits a voxel. Each reader then draws patches of the same spacing. With nnU-Net installed,
its preprocessed copy is compared with the two stores that take its place. Readers take turns within
a round, so that a slow moment of a shared machine affects all; ratios are within a round.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import folder_bytes, ingest_pair, machine, phantom_pair, spread
from nnunet_folders import missing_packages, plan
from rich.console import Console
from rich.table import Table

import spinezarr

STREAMS = ("resampled on the way", "derived", "derived, spine", "derived, spine, uint8")
COPY, LINKED = "nnU-Net, its copy", "nnU-Net, the derived store"
LINKED_SOURCE = "nnU-Net, the source store"

Read = Callable[[int], None]
"""Reads the patches of a round."""


@dataclass(frozen=True, slots=True)
class Reader:
    """What is measured, and its bytes on disk."""

    name: str
    read: Read
    n_bytes: int


def by_stream(store: spinezarr.Store, size: int, spacing_mm: float, n: int) -> Read:
    """Return a reader that iterates over a stream, in batches of four."""
    stream = store.patches(size, spacing_zyx_mm=spacing_mm, batch_size=4, n_samples=n)

    def read(turn: int) -> None:
        for batch in stream.at_epoch(turn):
            del batch

    return read


def stream_readers(
    source: Path, work: Path, size: int, spacing_mm: float, n: int
) -> Iterator[Reader]:
    """Derive the stores, and yield a reader of each."""
    store = spinezarr.open(source)
    options: dict[str, dict[str, Any]] = {
        STREAMS[1]: {},
        STREAMS[2]: {"crop": "spine", "margin_mm": 20.0},
        STREAMS[3]: {"crop": "spine", "margin_mm": 20.0, "intensity": (-1000.0, 2000.0)},
    }
    yield Reader(STREAMS[0], by_stream(store, size, spacing_mm, n), folder_bytes(source))
    for i, (name, chosen) in enumerate(options.items()):
        out = work / f"derived{i}.zarr"
        report = store.derive(out=out, spacing_mm=spacing_mm, **chosen)
        if report.failed:
            raise SystemExit(report.failed[0].reason)
        derived = spinezarr.open(out)
        yield Reader(name, by_stream(derived, size, spacing_mm, n), folder_bytes(out))


def by_nnunet(dataset: Any, size: int, n: int) -> Read:  # noqa: ANN401  of nnU-Net
    """Return a reader that takes patches of image and mask as nnU-Net's loader takes them."""
    (case,) = dataset.identifiers

    def read(turn: int) -> None:
        rng = np.random.default_rng(turn)
        for _ in range(n):
            image, mask, *_ = dataset.load_case(case)
            shape = image.shape[1:]
            starts = [int(rng.integers(0, max(side - size, 0) + 1)) for side in shape]
            box = tuple(slice(start, start + size) for start in starts)
            np.asarray(image[(slice(None), *box)])
            np.asarray(mask[(slice(None), *box)])

    return read


def nnunet_readers(
    stores: dict[str, Path], work: Path, size: int, spacing_mm: float, n: int
) -> Iterator[Reader]:
    """Preprocess the scan by nnU-Net, and yield a reader of its copy and of each linked store."""
    folders = plan(spinezarr.open(stores[LINKED_SOURCE]), work, spacing_mm)
    from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2  # noqa: PLC0415

    from spinezarr.loaders.nnunet import StoreDataset  # noqa: PLC0415

    links = {name: folders.link(store, name) for name, store in stores.items()}
    copy = folders.preprocess()
    yield Reader(COPY, by_nnunet(nnUNetDatasetBlosc2(str(copy)), size, n), folder_bytes(copy))
    for name, folder in links.items():
        dataset = StoreDataset(str(folder))
        yield Reader(name, by_nnunet(dataset, size, n), folder_bytes(stores[name]))


def measure(readers: list[Reader], rounds: int, n: int) -> list[dict[str, object]]:
    """Let the readers take turns; return ms and core ms of a patch, and ratios to the first."""
    ms: dict[str, list[float]] = {reader.name: [] for reader in readers}
    core_ms: dict[str, list[float]] = {reader.name: [] for reader in readers}
    for turn in range(rounds + 1):  # the first turn is for warming up
        for reader in readers:
            started, core = time.perf_counter(), time.process_time()
            reader.read(turn)
            if turn:
                ms[reader.name].append((time.perf_counter() - started) * 1e3 / n)
                core_ms[reader.name].append((time.process_time() - core) * 1e3 / n)
    first = ms[readers[0].name]
    return [
        {
            "reader": reader.name,
            "mb": reader.n_bytes / 1e6,
            **spread("ms", ms[reader.name]),
            "core_ms_median": statistics.median(core_ms[reader.name]),
            **spread("of_first", [a / b for a, b in zip(ms[reader.name], first, strict=True)]),
        }
        for reader in readers
    ]


def print_table(rows: list[dict[str, object]]) -> None:
    """Print the rows as a table."""
    table = Table("reader", "ms a patch", "core ms", f"times {rows[0]['reader']}", "MB")
    for row in rows:
        ms, of_first = (
            f"{row[f'{name}_median']:.3g} ({row[f'{name}_min']:.3g} to {row[f'{name}_max']:.3g})"
            for name in ("ms", "of_first")
        )
        figures = f"{row['core_ms_median']:.3g}", of_first, f"{row['mb']:.1f}"
        table.add_row(str(row["reader"]), ms, *figures)
    Console(width=140).print(table)


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument("--size", type=int, default=128, help="side of a patch in voxels")
    parser.add_argument("--spacing-mm", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=32, help="patches of a stream in a round")
    parser.add_argument("--nnunet-patches", type=int, default=4, help="the same for nnU-Net")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    size, spacing_mm = options.size, options.spacing_mm
    result = machine()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = ingest_pair(*(options.pair or phantom_pair(work)), work)
        streams = [*stream_readers(source, work, size, spacing_mm, options.patches)]
        result["streams"] = measure(streams, options.rounds, options.patches)
        print_table(result["streams"])
        missing = missing_packages()
        if missing:
            print(f"nnU-Net is left out, because these packages are missing: {', '.join(missing)}")
        else:
            stores, n = (
                {LINKED: work / "derived0.zarr", LINKED_SOURCE: source},
                options.nnunet_patches,
            )
            copies = [*nnunet_readers(stores, work, size, spacing_mm, n)]
            result["nnunet"] = measure(copies, options.rounds, n)
            print_table(result["nnunet"])
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
