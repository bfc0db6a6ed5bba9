"""Compares the ingest of one CT and its mask with building the Hugging Face Arrow form.

All methods use the same files and run once in each round, so that a slow moment of a shared machine
affects all of them; the results are ratios. The lower bound of any ingest into this format is to
inflate both files with isal and encode every chunk with the store's codec, on two threads. A second
bound encodes with LZ4HC of numcodecs, as an ingest made of libraries would.
"""

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
from common import Cost, folder_bytes, machine, phantom_pair, run_process
from isal import igzip
from rich.console import Console
from rich.table import Table

from spinezarr.geometry import AxisMap
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store import blocks
from spinezarr.store.blocks import encode_blocks
from spinezarr.store.layout import BALANCED, IMAGE, LABEL, fill_value

THREADS = 2
BOUND = "bound: inflate + encode alone"
BOUND_OF_NUMCODECS = "the same, LZ4HC of numcodecs"
PATTERNS = ("{scan}_ct.nii.gz", "{scan}_seg.nii.gz")


def measure_call(call: Callable[[], object], out: Path | None = None) -> Cost:
    """Run ``call`` in this process, and return its cost."""
    wall, core = time.perf_counter(), time.process_time()
    call()
    wall_s, core_s = time.perf_counter() - wall, time.process_time() - core
    return Cost(wall_s, core_s, written_bytes=None if out is None else folder_bytes(out))


def build_arrow(raw: Path, out: Path) -> None:
    """Build the Arrow form like the script of CTSpine1K: read as float64, one row per scan.

    References
    ----------
    ``CTSpine1K.py`` in https://huggingface.co/datasets/alexanderdann/CTSpine1K
    """
    import datasets  # noqa: PLC0415  only the benchmark has it

    datasets.disable_progress_bars()
    scans = sorted(path.name.removesuffix("_ct.nii.gz") for path in raw.glob("*_ct.nii.gz"))
    plane = nib.load(raw / PATTERNS[0].format(scan=scans[0])).shape[:2]
    features = datasets.Features(
        image=datasets.Array3D((None, *plane), "float32"),
        segmentation=datasets.Array3D((None, *plane), "int32"),
        patient_id=datasets.Value("string"),
        index=datasets.Value("int32"),
    )

    def rows() -> Iterator[dict[str, object]]:
        for index, scan in enumerate(scans):
            image, mask = (nib.load(raw / pattern.format(scan=scan)) for pattern in PATTERNS)
            yield {
                "image": np.transpose(image.get_fdata(), (2, 0, 1)),
                "segmentation": np.transpose(mask.get_fdata(), (2, 0, 1)).astype(np.uint32),
                "patient_id": scan,
                "index": index,
            }

    datasets.Dataset.from_generator(
        rows, features=features, cache_dir=str(out), writer_batch_size=1
    )


def ingest_pair(raw: Path, out: Path) -> None:
    """Ingest in this process."""
    recipe = Recipe.from_pairs(*PATTERNS, name="bench")
    report = ingest(recipe, discover(recipe, str(raw)), str(out))
    if report.failed:
        raise SystemExit(report.failed[0].reason)


def inflate(path: Path) -> None:
    """Inflate a file and discard the bytes."""
    block = bytearray(1 << 20)
    with igzip.open(path, "rb") as stream:
        while stream.readinto(block):
            pass


def cut_chunks(path: Path, array: str) -> list[np.ndarray]:
    """Return all chunks of a file that a store holds, ready to be encoded."""
    source = nib.load(path)
    values = np.asanyarray(source.dataobj)
    voxels = AxisMap.from_affine(source.affine).to_zyx(values)
    voxels = voxels.astype(np.int16 if array == IMAGE else np.uint8)
    chunks = []
    for index in np.ndindex(BALANCED.chunk_grid(voxels.shape)):
        shape = BALANCED.chunk_shape_zyx
        slices = tuple(slice(i * n, (i + 1) * n) for i, n in zip(index, shape, strict=True))
        chunk = np.full(shape, fill_value(array, voxels.dtype), voxels.dtype)
        chunk[tuple(map(slice, voxels[slices].shape))] = voxels[slices]
        if array == IMAGE or chunk.any():
            chunks.append(chunk)
    return chunks


def methods(pair: list[Path], copies: int, work: Path) -> dict[str, Callable[[], Cost]]:
    """Return every method by name; each starts with an empty folder."""
    raw = work / "raw"
    raw.mkdir()
    for copy in range(copies):
        for path, pattern in zip(pair, PATTERNS, strict=True):
            (raw / pattern.format(scan=f"scan{copy}")).symlink_to(path.resolve())

    def clear(name: str) -> Path:
        shutil.rmtree(work / name, ignore_errors=True)
        return work / name

    def spinezarr_process() -> Cost:
        out = clear("p.zarr")
        image, label = PATTERNS
        cli = ["-c", "from spinezarr.cli.main import main; main()", "ingest", "pairs"]
        options = ["--raw", str(raw), "--image", image, "--label", label, "--out", str(out)]
        cost = run_process([*cli, *options, "--json"])
        return replace(cost, written_bytes=folder_bytes(out))

    def arrow_process() -> Cost:
        out = clear("p.arrow")
        cost = run_process([__file__, "--build-arrow", str(raw), str(out)])
        return replace(cost, written_bytes=folder_bytes(out))

    def spinezarr_in_process() -> Cost:
        out = clear("h.zarr")
        return measure_call(lambda: ingest_pair(raw, out), out)

    def arrow_in_process() -> Cost:
        out = clear("h.arrow")
        return measure_call(lambda: build_arrow(raw, out), out)

    return {
        "spinezarr, whole process": spinezarr_process,
        "Arrow, whole process": arrow_process,
        "spinezarr": spinezarr_in_process,
        "Arrow": arrow_in_process,
        **bounds(pair, copies),
    }


def bounds(pair: list[Path], copies: int) -> dict[str, Callable[[], Cost]]:
    """Return what inflates and encodes and does nothing else, by name."""
    sources = zip(pair, (IMAGE, LABEL), (BALANCED.image, BALANCED.label), strict=True)
    chunks = [
        (chunk, codec) for path, array, codec in sources for chunk in cut_chunks(path, array)
    ] * copies
    paths = pair * copies

    def inflate_all() -> None:
        for path in paths:
            inflate(path)

    def encode_all() -> None:
        for chunk in chunks:
            encode_blocks(*chunk)

    def inflate_and_encode() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            jobs = [pool.submit(inflate, path) for path in paths]
            jobs += [pool.submit(encode_blocks, *chunk) for chunk in chunks]
            for job in jobs:
                job.result()

    def inflate_and_encode_by_numcodecs() -> None:
        with patch.object(blocks, "encode_lz4", return_value=None):
            inflate_and_encode()

    return {
        BOUND: lambda: measure_call(inflate_and_encode),
        BOUND_OF_NUMCODECS: lambda: measure_call(inflate_and_encode_by_numcodecs),
        "inflate alone": lambda: measure_call(inflate_all),
        "encode alone": lambda: measure_call(encode_all),
    }


def measure(pair: list[Path], copies: int, rounds: int, work: Path) -> dict[str, object]:
    """Run every method once in each round, after one round of warming up."""
    run_by_name = methods(pair, copies, work)
    costs: dict[str, list[Cost]] = {name: [] for name in run_by_name}
    for turn in range(rounds + 1):
        for name, run in run_by_name.items():
            cost = run()
            if turn:
                costs[name].append(cost)

    def median(name: str, field: str) -> float:
        return statistics.median(getattr(cost, field) for cost in costs[name])

    def ratio(slow: str, fast: str, field: str) -> float:
        """Return the median over rounds of the ratio within a round."""
        pairs = zip(costs[slow], costs[fast], strict=True)
        return statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs)

    return {
        "rows": [
            {
                "method": name,
                "wall_s_median": median(name, "wall_s"),
                "wall_s_min": min(cost.wall_s for cost in of_method),
                "wall_s_max": max(cost.wall_s for cost in of_method),
                "core_s_median": median(name, "core_s"),
                "peak_mb": max((cost.peak_mb or 0 for cost in of_method), default=0) or None,
                "written_bytes": of_method[-1].written_bytes,
            }
            for name, of_method in costs.items()
        ],
        "times_faster_than_arrow": {
            "whole process": ratio("Arrow, whole process", "spinezarr, whole process", "wall_s"),
            "in process": ratio("Arrow", "spinezarr", "wall_s"),
        },
        "share_of_bound": {
            "wall, both on two threads": ratio(BOUND, "spinezarr", "wall_s"),
            "core seconds": ratio(BOUND, "spinezarr", "core_s"),
        },
        "share_of_bound_of_numcodecs": {
            "wall, both on two threads": ratio(BOUND_OF_NUMCODECS, "spinezarr", "wall_s"),
            "core seconds": ratio(BOUND_OF_NUMCODECS, "spinezarr", "core_s"),
        },
        "bound_core_s": median("inflate alone", "core_s") + median("encode alone", "core_s"),
    }


def print_report(result: dict[str, object]) -> None:
    """Print the figures."""
    table = Table("", "wall s", "min to max", "core s", "peak MB", "written MB")
    for row in result["rows"]:
        table.add_row(
            row["method"], f"{row['wall_s_median']:.2f}",
            f"{row['wall_s_min']:.2f} to {row['wall_s_max']:.2f}", f"{row['core_s_median']:.2f}",
            "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}",
            "" if row["written_bytes"] is None else f"{row['written_bytes'] / 1e6:.1f}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    for name in ("times_faster_than_arrow", "share_of_bound", "share_of_bound_of_numcodecs"):
        for kind, value in result[name].items():
            console.print(f"{name.replace('_', ' ')}, {kind}: {value:.2f}")


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--copies",
        type=int,
        default=1,
        help="number of copies of the pair, as scans of one dataset",
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--build-arrow", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build_arrow:
        build_arrow(*options.build_arrow)
        return
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pair = options.pair or list(phantom_pair(work))
        result = measure(pair, options.copies, options.rounds, work)
    result = {
        "data": pair[0].name,
        "copies": options.copies,
        **machine("datasets", "pyarrow"),
        **result,
    }
    print_report(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
