"""Compares how fast a decoded box of voxels is resampled: by the kernel, and by its peers.

Each patch is drawn from a scan, and the voxels around it are decoded before the clock starts. Then
all methods fill the same patch, image (linear) and mask (nearest), from the same voxels. They take
turns within a round, so that a slow moment of a shared machine affects all of them; the results are
ratios within a round. Last, whole patches are read from the store, decoding included.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
import SimpleITK
import torch
from common import ingest_pair, machine, phantom_pair, spread
from rich.console import Console
from rich.table import Table
from scipy import ndimage
from torch.nn import functional

import spinezarr
from spinezarr.geometry import Box
from spinezarr.stream.epoch.stream import PatchStream
from spinezarr.stream.read import resample
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.resample import Resampling, SourceRegion, resample_all
from spinezarr.stream.request import PatchRequest
from spinezarr.stream.spacing import grid_shape_zyx, positions_along, step_zyx

OURS, BEFORE = "spinezarr", "spinezarr, NumPy"
ELSEWHERE = "torch, interpolate"
"""It has no offset, so its values lie at other positions, up to a voxel away."""
HAND_WRITTEN = ("torch, index_select and lerp", "torch, matrices")
"""These are separable programs of a few lines and no function of their library."""
WHOLE = ("patches", "patches, NumPy", "the same voxels, decoded only")

Voxels = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Job:
    """A patch to fill from decoded voxels, with what peers may know before the clock starts."""

    image: Resampling
    label: Resampling
    step_zyx: tuple[float, float, float]
    grid: torch.Tensor
    """Positions for ``grid_sample``: 1, z, y, x, 3."""
    lower: list[torch.Tensor]
    upper: list[torch.Tensor]
    nearest: list[torch.Tensor]
    weight: list[torch.Tensor]
    matrices: list[torch.Tensor]
    """Matrices that interpolate along z, y and x."""

    @property
    def start_zyx(self) -> tuple[float, ...]:
        """Position of the first value."""
        return tuple(float(along[0]) for along in self.image.positions_zyx)


def jobs(stream: PatchStream, target_mm: float, indices: range) -> Iterator[Job]:
    """Draw patches, and decode the voxels around them."""
    for index in indices:
        request = stream.request(index)
        scan = stream.reader.listed_scan(request.scan_id)
        step = step_zyx(scan.attributes.spacing_zyx_mm, (target_mm,) * 3)
        inside = request.box.intersect(Box((0, 0, 0), grid_shape_zyx(scan.image.shape_zyx, step)))
        if inside is None or scan.label is None:
            raise SystemExit("a patch outside of its scan, or no mask")
        sides = zip(inside.start_zyx, inside.stop_zyx, step, scan.image.shape_zyx, strict=True)
        region = SourceRegion.of([positions_along(*along) for along in sides])
        resamplings = []
        engine = stream.batch_reader.engine
        for array, dtype in ((scan.image, np.int16), (scan.label, np.uint8)):
            out = np.full(inside.shape_zyx, 0, dtype)  # pages are there, as those of a pool
            planned = region.plan(array, out, linear=array is scan.image, buffers=engine.buffers)
            if not isinstance(planned, Resampling):
                raise SystemExit("the scan already has the requested spacing")
            engine.read([planned.read])
            resamplings.append(planned)
        yield make_job(*resamplings, step)


def make_job(image: Resampling, label: Resampling, step: tuple[float, float, float]) -> Job:
    """Compute what peers may know before the clock starts."""
    shape, positions = image.read.out.shape, image.positions_zyx
    scaled = [
        torch.from_numpy(2 * at / max(n - 1, 1) - 1).float()
        for at, n in zip(positions, shape, strict=True)
    ]
    z, y, x = torch.meshgrid(*scaled, indexing="ij")
    lower = [np.floor(at).astype(np.int64) for at in positions]
    weight = [at - low for at, low in zip(positions, lower, strict=True)]
    upper = [low + (w > 0) for low, w in zip(lower, weight, strict=True)]
    matrices = []
    for n, low, high, w in zip(shape, lower, upper, weight, strict=True):
        matrix, rows = np.zeros((len(low), n), np.float32), np.arange(len(low))
        matrix[rows, high] += w
        matrix[rows, low] += 1 - w
        matrices.append(torch.from_numpy(matrix))
    return Job(
        image=image,
        label=label,
        step_zyx=step,
        grid=torch.stack([x, y, z], -1)[None],
        lower=[torch.from_numpy(low) for low in lower],
        upper=[torch.from_numpy(high) for high in upper],
        nearest=[torch.from_numpy(np.floor(at + 0.5).astype(np.int64)) for at in positions],
        weight=[torch.from_numpy(w).float() for w in weight],
        matrices=matrices,
    )


# Each method returns image and mask.


def ours(job: Job, threads: int) -> tuple[Voxels, Voxels]:
    """Resample by the kernel."""
    resample_all([job.image, job.label], threads=threads)
    return job.image.out, job.label.out


def before(job: Job, threads: int) -> tuple[Voxels, Voxels]:  # noqa: ARG001  it has one
    """Resample with NumPy, as it was done before the kernel did it."""
    job.image.run()
    job.label.run()
    return job.image.out, job.label.out


def scipy_affine(job: Job, threads: int) -> tuple[Voxels, Voxels]:
    """Resample by ``affine_transform`` with a factor for each axis; a thread fills some planes."""

    def fill(resampling: Resampling, part: slice) -> None:
        z, *yx = job.start_zyx
        ndimage.affine_transform(
            resampling.read.out,
            job.step_zyx,
            (z + part.start * job.step_zyx[0], *yx),
            output=resampling.out[part],
            output_shape=resampling.out[part].shape,
            order=1 if resampling.linear else 0,
            mode="nearest",
            prefilter=False,
        )

    in_planes(fill, (job.image, job.label), threads)
    return job.image.out, job.label.out


def scipy_coordinates(job: Job, threads: int) -> tuple[Voxels, Voxels]:
    """Resample by ``map_coordinates``."""

    def fill(resampling: Resampling, part: slice) -> None:
        z, y, x = resampling.positions_zyx
        ndimage.map_coordinates(
            resampling.read.out,
            np.meshgrid(z[part], y, x, indexing="ij"),
            output=resampling.out[part],
            order=1 if resampling.linear else 0,
            mode="nearest",
            prefilter=False,
        )

    in_planes(fill, (job.image, job.label), threads)
    return job.image.out, job.label.out


def in_planes(
    fill: Callable[[Resampling, slice], None], resamplings: Sequence[Resampling], threads: int
) -> None:
    """Fill outputs, each thread some planes of each."""
    for resampling in resamplings:
        n = len(resampling.out)
        borders = [n * part // threads for part in range(threads + 1)]
        parts = [slice(*ends) for ends in pairwise(borders)]
        if threads == 1:
            fill(resampling, parts[0])
        else:
            list(POOL.map(fill, [resampling] * threads, parts))


def torch_grid(job: Job, threads: int) -> tuple[Voxels, Voxels]:  # noqa: ARG001  set before
    """Resample by ``grid_sample``, at the same positions."""
    image = torch.from_numpy(job.image.read.out)[None, None].float()
    label = torch.from_numpy(job.label.read.out)[None, None].float()
    options = {"padding_mode": "border", "align_corners": True}
    values = functional.grid_sample(image, job.grid, "bilinear", **options)
    mask = functional.grid_sample(label, job.grid, "nearest", **options)
    return values[0, 0].round_().to(torch.int16).numpy(), mask[0, 0].to(torch.uint8).numpy()


def torch_interpolate(job: Job, threads: int) -> tuple[Voxels, Voxels]:  # noqa: ARG001  set before
    """Resample by ``interpolate``, from the first to the last voxel of the box."""
    image = torch.from_numpy(job.image.read.out)[None, None].float()
    label = torch.from_numpy(job.label.read.out)[None, None]
    size = job.image.out.shape
    values = functional.interpolate(image, size, mode="trilinear", align_corners=True)
    mask = functional.interpolate(label, size, mode="nearest-exact")
    return values[0, 0].round_().to(torch.int16).numpy(), mask[0, 0].numpy()


def torch_lerp(job: Job, threads: int) -> tuple[Voxels, Voxels]:  # noqa: ARG001  set before
    """Resample along one axis after the other, by ``index_select`` and ``lerp``."""
    values = torch.from_numpy(job.image.read.out)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        low = values.index_select(axis, job.lower[axis]).float()
        high = values.index_select(axis, job.upper[axis]).float()
        values = low.lerp_(high, job.weight[axis].view(shape))
    return values.round_().to(torch.int16).numpy(), torch_nearest(job)


def torch_matrices(job: Job, threads: int) -> tuple[Voxels, Voxels]:  # noqa: ARG001  set before
    """Resample by one matrix for each axis: x and y first, which become shorter."""
    image = torch.from_numpy(job.image.read.out).float()
    along_z, along_y, along_x = job.matrices
    values = torch.matmul(along_y, image @ along_x.T)
    values = (along_z @ values.view(len(image), -1)).view(job.image.out.shape)
    return values.round_().to(torch.int16).numpy(), torch_nearest(job)


def torch_nearest(job: Job) -> Voxels:
    """Take the nearest voxels of the mask."""
    label = torch.from_numpy(job.label.read.out)
    for axis in (1, 2, 0):
        label = label.index_select(axis, job.nearest[axis])
    return label.numpy()


def simpleitk(job: Job, threads: int) -> tuple[Voxels, Voxels]:
    """Resample by SimpleITK, whose images are made from the arrays."""
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    outputs = []
    for resampling in (job.image, job.label):
        source = SimpleITK.GetImageFromArray(resampling.read.out)
        interpolator = SimpleITK.sitkLinear if resampling.linear else SimpleITK.sitkNearestNeighbor
        out = SimpleITK.Resample(
            source,
            [int(n) for n in resampling.out.shape[::-1]],
            SimpleITK.Transform(),
            interpolator,
            list(job.start_zyx[::-1]),
            list(job.step_zyx[::-1]),
            np.eye(3).ravel().tolist(),
        )
        outputs.append(SimpleITK.GetArrayFromImage(out))
    return outputs[0], outputs[1]


POOL = ThreadPoolExecutor(os.cpu_count())
METHODS: dict[str, Callable[[Job, int], tuple[Voxels, Voxels]]] = {
    OURS: ours,
    BEFORE: before,
    "scipy, affine_transform": scipy_affine,
    "scipy, map_coordinates": scipy_coordinates,
    "torch, grid_sample": torch_grid,
    ELSEWHERE: torch_interpolate,
    **dict(zip(HAND_WRITTEN, (torch_lerp, torch_matrices), strict=True)),
    "SimpleITK": simpleitk,
}


def compare(job: Job) -> None:
    """Check that all methods give the values of the kernel, but for halves and nearest of two."""
    image, label = (voxels.copy() for voxels in ours(job, 1))
    for name, method in METHODS.items():
        values, mask = method(job, 1)
        if name == ELSEWHERE:
            continue
        apart = np.abs(values.astype(int) - image).max()
        others = (mask != label).mean()
        exact = name == BEFORE
        if apart > (0 if exact else 1) or others > (0 if exact else 1e-3):
            raise SystemExit(f"{name}: values differ by {apart}, and {others:.2g} of the mask")


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return seconds, and core-seconds."""
    began, cores = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - began, time.process_time() - cores


def measure_boxes(
    stream: PatchStream, target_mm: float, threads: int, rounds: int, n_patches: int
) -> list[dict[str, object]]:
    """Measure all methods in turn, round after round; each round has other patches."""
    torch.set_num_threads(threads)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
    for turn in range(rounds + 1):  # the first turn is for warming up
        drawn = list(jobs(stream, target_mm, range(turn * n_patches, (turn + 1) * n_patches)))
        if not turn:
            compare(drawn[0])
        names = list(METHODS)[turn % len(METHODS) :] + list(METHODS)[: turn % len(METHODS)]
        for name in names:
            seconds, core_seconds = timed(
                lambda method=METHODS[name], jobs=drawn: [method(job, threads) for job in jobs]
            )
            if turn:
                times[name].append((seconds / n_patches, core_seconds / n_patches))
    return rows_of(times, OURS, threads)


def measure_patches(
    stream: PatchStream, target_mm: float, threads: int, rounds: int, n_patches: int
) -> list[dict[str, object]]:
    """Measure whole patches of a store: with the kernel, with NumPy, and decoding alone."""
    reading = stream.with_reading(threads=threads)
    engine = stream.batch_reader.engine
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in WHOLE}
    for turn in range(rounds + 1):
        indices = range(turn * n_patches, (turn + 1) * n_patches)
        requests = [stream.request(index) for index in indices]
        reads = [[job.image.read, job.label.read] for job in jobs(stream, target_mm, indices)]

        def patches(some: list[PatchRequest] = requests) -> None:
            for request in some:
                reading.read([request])

        def decoded(some: list[list[BoxRead]] = reads) -> None:
            for boxes in some:
                engine.read(boxes, threads=threads)

        def by_numpy(patches: Callable[[], None] = patches) -> None:
            with patch.object(resample, "kernel", lambda: None):
                patches()

        works = dict(zip(WHOLE, (patches, by_numpy, decoded), strict=True))
        names = list(WHOLE)[turn % len(WHOLE) :] + list(WHOLE)[: turn % len(WHOLE)]
        for name in names:
            seconds, core_seconds = timed(works[name])
            if turn:
                times[name].append((seconds / n_patches, core_seconds / n_patches))
    return rows_of(times, WHOLE[0], threads)


def rows_of(
    times: dict[str, list[tuple[float, float]]], ours: str, threads: int
) -> list[dict[str, object]]:
    """Return milliseconds for a patch, and how many times those of ours."""
    rows: list[dict[str, object]] = []
    for name, durations in times.items():
        pairs = list(zip(durations, times[ours], strict=True))
        rows.append({
            "method": name, "threads": threads,
            **spread("ms", [1e3 * one[0] for one in durations]),
            **spread("core_ms", [1e3 * one[1] for one in durations]),
            **spread("times_ours", [one[0] / other[0] for one, other in pairs]),
            **spread("core_times_ours", [one[1] / other[1] for one, other in pairs]),
        })  # fmt: skip
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """Print the results as a table."""
    table = Table("method", "threads", "ms a patch", "core ms", "times ours", "times our core ms")
    for row in rows:
        figures = (
            f"{row[f'{name}_median']:.3g} ({row[f'{name}_min']:.3g} to {row[f'{name}_max']:.3g})"
            for name in ("ms", "core_ms", "times_ours", "core_times_ours")
        )
        table.add_row(str(row["method"]), str(row["threads"]), *figures)
    Console(width=140).print(table)


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="CT.nii.gz and MASK.nii.gz")
    parser.add_argument("--size", type=int, default=128, help="side of a patch in voxels")
    parser.add_argument("--spacing-mm", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--patches", type=int, default=4, help="number per method and round")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    boxes: list[dict[str, object]] = []
    whole: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        store = spinezarr.open(ingest_pair(*(options.pair or phantom_pair(work)), work))
        stream = store.patches(
            options.size,
            spacing_zyx_mm=options.spacing_mm,
            n_samples=(options.rounds + 1) * options.patches,
        )
        repetitions = (options.rounds, options.patches)
        for threads in options.threads:
            boxes += measure_boxes(stream, options.spacing_mm, threads, *repetitions)
            whole += measure_patches(stream, options.spacing_mm, threads, *repetitions)
        spacing_zyx_mm = np.asarray(store.table.spacing_zyx_mm)[0].tolist()
    print_table(boxes)
    print_table(whole)
    if options.json:
        result = {
            **machine("torch", "scipy", "SimpleITK"),
            "spacing_zyx_mm": spacing_zyx_mm,
            "size": options.size,
            "spacing_mm": options.spacing_mm,
            "boxes": boxes,
            "whole": whole,
        }
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
