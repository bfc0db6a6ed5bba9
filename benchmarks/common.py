"""Helpers of all benchmarks: a description of the machine, and a phantom if no scan is given."""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from spinezarr.geometry import ShapeZYX
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

PACKAGES = ("spinezarr", "zarr", "numcodecs", "numpy", "nibabel", "isal")

# This script runs a process and prints its cost. It is a process of its own, because the peak
# memory of a child counts from the fork on, and so includes that of its parent.
_LAUNCHER = """
import json, os, subprocess, sys, time
started = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
seconds = time.perf_counter() - started
unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss
peak_mb = usage.ru_maxrss * unit / 1e6
core_s = usage.ru_utime + usage.ru_stime
print(json.dumps([os.waitstatus_to_exitcode(status), seconds, core_s, peak_mb]))
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Time and memory of one run."""

    wall_s: float
    core_s: float
    peak_mb: float | None = None
    written_bytes: int | None = None


def run_process(arguments: list[str]) -> Cost:
    """Run Python with ``arguments`` to its end."""
    launcher = [sys.executable, "-S", "-c", _LAUNCHER, sys.executable, *arguments]
    done = subprocess.run(launcher, check=True, stdout=subprocess.PIPE)  # noqa: S603
    exit_code, wall_s, core_s, peak_mb = json.loads(done.stdout)
    if exit_code:
        raise SystemExit(f"{' '.join(arguments)}: exit code {exit_code}")
    return Cost(wall_s, core_s, peak_mb)


def machine(*packages: str) -> dict[str, object]:
    """Return a description of the machine and of the package versions."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    ).stdout.strip()  # fmt: skip
    return {
        "commit": commit,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in (*PACKAGES, *packages)},
    }


def phantom_pair(work: Path, shape_zyx: ShapeZYX = (133, 512, 512)) -> tuple[Path, Path]:
    """Write a phantom, by default with the size of an ordinary chest CT."""
    z, y, x = shape_zyx
    spacing_zyx_mm = (2.5 * 133 / z, 0.7 * 512 / y, 0.7 * 512 / x)
    phantom = make_phantom(PhantomSpec(shape_zyx=shape_zyx, spacing_zyx_mm=spacing_zyx_mm))
    image, label = work / "phantom_ct.nii.gz", work / "phantom_seg.nii.gz"
    write_nifti(image, phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(label, phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    return image, label


def folder_bytes(*folders: Path) -> int:
    """Return the size of all files below some folders."""
    return sum(f.stat().st_size for d in folders for f in d.rglob("*") if f.is_file())


def ingest_pair(image: Path, label: Path, work: Path, copies: int = 1) -> Path:
    """Ingest one scan, or several copies of it; return its store."""
    raw, out = work / "raw", work / "one.zarr"
    raw.mkdir()
    for scan in ["scan", *(f"scan{i}" for i in range(1, copies))]:
        (raw / f"{scan}_ct.nii.gz").symlink_to(image.resolve())
        (raw / f"{scan}_seg.nii.gz").symlink_to(label.resolve())
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="bench")
    report = ingest(recipe, discover(recipe, str(raw)), str(out))
    if report.failed:
        raise SystemExit(report.failed[0].reason)
    return out


def absolute_path(text: str) -> Path:
    """Return the absolute path for an option of the command line.

    The configurations of servers and the targets of links need absolute paths.
    """
    return Path(text).resolve()


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Return median, smallest and largest value, with names."""
    return {
        f"{name}_median": statistics.median(values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }
