"""Measures the tradeoff of windows: fewer decoded blocks against more correlated samples.

Draws and blocks are counted over many scans of one shape. Nothing is read, so these figures are the
same on every machine. With ``--store``, samples of a store are read, too; the result is the core
time of one sample, relative to that of an exact draw in the same run.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from common import machine
from rich.console import Console
from rich.table import Table

import spinezarr
from spinezarr.geometry import Box, ShapeZYX
from spinezarr.store.layout import BALANCED
from spinezarr.stream.draw.sampler import Sampler
from spinezarr.stream.draw.window import window_sampler
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.request import PatchRequest

SAMPLES = (2, 4, 8, 16, 32)
"""Numbers of samples per scan to measure."""
KINDS = {"128^3": (128, 128, 128), "96^3": (96, 96, 96), "64^3": (64, 64, 64)}
PLANES = {"axial": 0, "sagittal": 2}
VOXEL_BYTES = 3
"""Bytes of a voxel of image and mask together."""
N_SUCCESSIVE = 1000
"""Number of successive samples whose scans are counted."""
N_POINTS = 2000
"""Number of random voxels of each scan that are looked for in the samples."""


@dataclass(frozen=True, slots=True)
class EqualVolumes:
    """Scans of one shape, without files."""

    def prefetch_scans(self, scan_ids: Iterable[str]) -> None:
        """Do nothing, because there are no files."""

    def chunk_shape_zyx(self, scan_id: str) -> ShapeZYX:  # noqa: ARG002  all have the same
        """Return the chunk shape of the default profile."""
        return BALANCED.chunk_shape_zyx

    def chunk_voxels(self, scan_id: str, vertebra: str, k: int) -> tuple[np.ndarray, int]:
        """Raise an error, because only uniform draws are counted."""
        raise NotImplementedError(scan_id, vertebra, k)


def sampler_of(size_zyx: ShapeZYX, shape_zyx: ShapeZYX, n_scans: int) -> Sampler:
    """Return a sampler that draws uniformly from equal scans."""
    return Sampler(
        scan_ids=tuple(f"scan-{i}" for i in range(n_scans)),
        shapes_zyx=np.array([shape_zyx] * n_scans),
        spacings_mm=np.ones((n_scans, 3)),
        vertebrae=(),
        voxel_count=np.zeros((n_scans, 0), int),
        annotated=np.zeros((n_scans, 0), bool),
        size_zyx=size_zyx,
        seed=0,
        foreground=0.0,
    )


def no_voxel(scan_id: str, vertebra: str, k: int | None) -> ShapeZYX:
    """Raise an error, because uniform draws need no voxel."""
    raise NotImplementedError(scan_id, vertebra, k)


def block_shape_zyx() -> ShapeZYX:
    """Return the shape of the blocks of a chunk of int16, the smallest part that is decoded."""
    _, y, x = BALANCED.chunk_shape_zyx
    return (BALANCED.image.blocksize // (y * x * np.dtype(np.int16).itemsize), y, x)


def blocks_of(box: Box) -> set[ShapeZYX]:
    """Return the blocks that a box overlaps."""
    sides = zip(box.start_zyx, box.stop_zyx, block_shape_zyx(), strict=True)
    z, y, x = (range(a // side, -(-b // side)) for a, b, side in sides)
    return {(i, j, k) for i in z for j in y for k in x}


def overlap(a: Box, b: Box) -> float:
    """Return the intersection of two boxes of one shape over their union."""
    intersection = a.intersect(b)
    shared = 0 if intersection is None else int(np.prod(intersection.shape_zyx))
    return shared / (2 * int(np.prod(a.shape_zyx)) - shared)


def distinct_fraction(requests: list[PatchRequest], shape_zyx: ShapeZYX) -> float:
    """Return the number of different voxels in samples, as a fraction of all their voxels."""
    points = np.random.default_rng(0).integers(0, shape_zyx, (N_POINTS, 3))
    n_samples: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(N_POINTS, int))
    for request in requests:
        inside = (points >= request.box.start_zyx) & (points < request.box.stop_zyx)
        n_samples[request.scan_id] += inside.all(axis=1)
    counts = np.stack(list(n_samples.values()))
    return float((counts > 0).sum() / counts.sum())


def figures(groups: list[list[PatchRequest]], shape_zyx: ShapeZYX) -> dict[str, float]:
    """Return the figures of samples; those of a group are read together."""
    ordered = sorted((r for group in groups for r in group), key=lambda request: request.index)
    voxels = len(ordered) * int(np.prod(ordered[0].box.shape_zyx))
    blocks = sum(len(set().union(*(blocks_of(r.box) for r in group))) for group in groups)
    pairs = [pair for group in groups for pair in combinations(group, 2)]
    return {
        "decoded_per_voxel": blocks * int(np.prod(block_shape_zyx())) / voxels,
        "overlap_of_two": float(np.mean([overlap(a.box, b.box) for a, b in pairs] or [0.0])),
        "different_voxels": distinct_fraction(ordered, shape_zyx),
        "scans_in_1000": len({request.scan_id for request in ordered[:N_SUCCESSIVE]}),
    }


def measure(
    size_zyx: ShapeZYX, shape_zyx: ShapeZYX, n_scans: int, n_samples: int
) -> list[dict[str, object]]:
    """Return the figures of exact draws, and of windows of several samples per scan."""
    sampler = sampler_of(size_zyx, shape_zyx, n_scans)
    exact = [sampler.draw(0, i, no_voxel) for i in range(n_samples)]
    rows = [{"samples_per_scan": 1, "default": False} | figures([[r] for r in exact], shape_zyx)]
    # For comparison, two exact draws of one scan are measured.
    one_scan = sampler_of(size_zyx, shape_zyx, 1)
    pairs = [[one_scan.draw(0, 2 * i + j, no_voxel).box for j in (0, 1)] for i in range(n_samples)]
    rows[0]["overlap_of_two"] = float(np.mean([overlap(*pair) for pair in pairs]))
    default = window_sampler(
        sampler, EqualVolumes(), shuffle="window", window_scans=None, samples_per_scan=None,
        voxel_bytes=VOXEL_BYTES,
    ).samples_per_scan  # fmt: skip
    for samples_per_scan in SAMPLES:
        windows = window_sampler(
            sampler, EqualVolumes(), shuffle="window", window_scans=None,
            samples_per_scan=samples_per_scan, voxel_bytes=VOXEL_BYTES,
        )  # fmt: skip
        groups: dict[tuple[int, int], list[PatchRequest]] = defaultdict(list)
        for i in range(n_samples // windows.n_samples * windows.n_samples):
            groups[i // windows.n_samples, i % windows.n_neighborhoods].append(windows.draw(0, i))
        row = {"samples_per_scan": samples_per_scan, "default": samples_per_scan == default}
        rows.append(row | figures(list(groups.values()), shape_zyx))
    return rows


def core_s(stream: PatchStream, n_samples: int) -> float:
    """Return the core time of one sample in seconds, from about ``n_samples``."""
    stream.read_group(0)  # allocates memory and loads shard indices
    started, n_read, group = time.thread_time(), 0, 0
    while n_read < n_samples:
        group += 1
        n_read += sum(map(len, stream.read_group(group)))
    return (time.thread_time() - started) / n_read


def core_times(
    url: str, kinds: list[str], rounds: int, n_samples: int
) -> dict[str, dict[int, float]]:
    """Measure the core time of a sample relative to an exact draw, by kind and samples per scan."""
    store = spinezarr.open(url)
    ratios: dict[str, dict[int, float]] = {}
    for kind in kinds:
        times = defaultdict(list)
        for _ in range(rounds):
            for k in (1, *SAMPLES):
                options = {"batch_size": 8, "n_samples": 1 << 20}
                if k > 1:
                    options |= {"shuffle": "window", "samples_per_scan": k}
                stream = (
                    store.slices(kind, **options)
                    if kind in PLANES
                    else store.patches(KINDS[kind], **options)
                )
                times[k].append(core_s(stream, n_samples))
        median = {k: statistics.median(of_k) for k, of_k in times.items()}
        ratios[kind] = {k: median[k] / median[1] for k in median}
    return ratios


def main() -> None:
    """Count, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", type=int, nargs=3, default=(535, 512, 512), help="z y x")
    parser.add_argument("--scans", type=int, default=1005)
    parser.add_argument("--samples", type=int, default=4096)
    kinds = [*KINDS, *PLANES]
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds)
    parser.add_argument("--store", help="store whose samples are read and timed, too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--read", type=int, default=128, help="number of samples per round and kind"
    )
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    shape_zyx = tuple(options.shape)
    sizes = {kind: tuple(map(min, size, shape_zyx)) for kind, size in KINDS.items()}
    for plane, axis in PLANES.items():
        sizes[plane] = tuple(1 if i == axis else n for i, n in enumerate(shape_zyx))
    times = {}
    if options.store:
        times = core_times(options.store, options.kinds, options.rounds, options.read)
    rows = []
    table = Table(
        "kind", "samples a scan", "decoded", "overlap", "different", "scans in 1,000", "core time"
    )
    for kind in options.kinds:
        for row in measure(sizes[kind], shape_zyx, options.scans, options.samples):
            core = times.get(kind, {}).get(row["samples_per_scan"])
            rows.append({"kind": kind, **row, "core_time": core})
            table.add_row(
                kind, f"{row['samples_per_scan']}{' (default)' if row['default'] else ''}",
                f"{row['decoded_per_voxel']:.2f}", f"{row['overlap_of_two']:.3f}",
                f"{row['different_voxels']:.3f}", str(row["scans_in_1000"]),
                "" if core is None else f"{core:.2f}",
            )  # fmt: skip
    Console().print(table)
    if options.json:
        result = {
            "shape_zyx": shape_zyx,
            "scans": options.scans,
            "samples": options.samples,
            **machine(),
            "rows": rows,
        }
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
