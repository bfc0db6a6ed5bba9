"""Peak memory of ingesting a very large volume, in several orientations of its file.

The volume is like a CT, smooth anatomy under noise, and is written in a stream: it is never held.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
from common import folder_bytes, machine, run_process
from isal import igzip
from rich.console import Console
from rich.table import Table

from spinezarr.geometry import AxisMap

SHAPE_ZYX = (960, 2048, 2023)
NOISE_HU = 20.0
AIR_HU, SOFT_HU, BONE_HU = -1000, 40, 400


def planes(shape_kji: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Yield int16 planes: an ellipsoid of soft tissue with bone in it, noise over all."""
    rng = np.random.default_rng(0)
    nk, nj, ni = shape_kji
    noise = np.rint(rng.normal(0, NOISE_HU, (2 * nj, ni))).astype(np.int16)
    v, u = np.ogrid[-1 : 1 : nj * 1j, -1 : 1 : ni * 1j]
    for w in np.linspace(-1, 1, nk):
        radius = np.sqrt(u**2 + v**2 + w**2)
        tissue = np.where(radius < 0.3, BONE_HU, SOFT_HU) + 60 * np.cos(9 * radius)  # noqa: PLR2004
        plane = np.where(radius < 0.9, tissue, AIR_HU).astype(np.int16)  # noqa: PLR2004
        row = rng.integers(nj)
        yield plane + np.roll(noise[row : row + nj], rng.integers(ni), axis=1)


def write_huge(path: Path, shape_zyx: tuple[int, ...], axcodes: str, dtype: str) -> None:
    """Write a ``.nii.gz`` whose axes i, j, k run as ``axcodes`` says."""
    axis_map = AxisMap.of_axcodes(axcodes)
    shape_ijk = [shape_zyx[axis_map.source_axis_zyx.index(axis)] for axis in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for stored, (axis, flip) in enumerate(
        zip(axis_map.source_axis_zyx, axis_map.flip_zyx, strict=True)
    ):
        affine[2 - stored, axis] = -0.5 if flip else 0.5
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape_ijk)
    header.set_sform(affine, code=1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    with igzip.open(path, "wb", compresslevel=1) as packed:
        packed.write(header.binaryblock + bytes(4))
        for plane in planes((shape_ijk[2], shape_ijk[1], shape_ijk[0])):
            packed.write(plane.astype(dtype).tobytes())


def measure(shape_zyx: tuple[int, ...], axcodes: str, dtype: str, work: Path) -> dict[str, object]:
    """Make a file, ingest it in a process of its own, remove both."""
    raw, out = work / "raw", work / "huge.zarr"
    raw.mkdir()
    path = raw / "huge.nii.gz"
    write_huge(path, shape_zyx, axcodes, dtype)
    cli = ["-c", "from spinezarr.cli.main import main; main()", "ingest", "pairs", "--json"]
    cost = run_process([*cli, "--raw", str(raw), "--image", "{scan}.nii.gz", "--out", str(out)])
    row = {
        "axcodes": axcodes,
        "dtype": dtype,
        "voxels_gb": math.prod(shape_zyx) * np.dtype(dtype).itemsize / 1e9,
        "source_gb": path.stat().st_size / 1e9,
        "stored_gb": folder_bytes(out) / 1e9,
        "peak_mb": cost.peak_mb,
        "wall_s": cost.wall_s,
        "core_s": cost.core_s,
    }
    for folder in (raw, out):
        for file in sorted(folder.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        folder.rmdir()
    return row


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axcodes", nargs="*", default=["LPS", "PIR", "SAR"])
    parser.add_argument("--shape", nargs=3, type=int, default=SHAPE_ZYX, metavar=("Z", "Y", "X"))
    parser.add_argument("--dtype", default="int16")
    parser.add_argument("--folder", type=Path, help="with room for 15 GB")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    options = parser.parse_args()
    rows = []
    for axcodes in options.axcodes:
        with tempfile.TemporaryDirectory(dir=options.folder) as work:
            rows.append(measure(tuple(options.shape), axcodes, options.dtype, Path(work)))
        print(rows[-1], file=sys.stderr)
    table = Table("axes", "dtype", "voxels GB", ".nii.gz GB", "store GB", "peak MB", "s", "core s")
    for row in rows:
        table.add_row(
            row["axcodes"], row["dtype"], f"{row['voxels_gb']:.2f}", f"{row['source_gb']:.2f}",
            f"{row['stored_gb']:.2f}", f"{row['peak_mb']:.0f}", f"{row['wall_s']:.0f}",
            f"{row['core_s']:.0f}",
        )  # fmt: skip
    Console().print(table)
    if options.json:
        result = {"shape_zyx": options.shape, **machine(), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
