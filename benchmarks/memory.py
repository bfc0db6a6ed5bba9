"""Measures the peak memory of ingesting a very large volume, in several orientations of its file.

The volume is like a CT, smooth anatomy under noise. It is written plane by plane, and never in
memory as a whole.
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
from common import absolute_path, folder_bytes, machine, run_process
from isal import igzip
from rich.console import Console
from rich.table import Table

from spinezarr.geometry import AxisMap

SHAPE_ZYX = (960, 2048, 2023)
NOISE_HU = 20.0
AIR_HU, SOFT_HU, BONE_HU = -1000, 40, 400
BODY_RADIUS, BONE_RADIUS = 0.9, 0.3


def planes(shape_kji: tuple[int, int, int], dtype: np.dtype) -> Iterator[np.ndarray]:
    """Yield planes of an ellipsoid of soft tissue with bone in it, and noise.

    Floats get a fraction, so that they are stored as floats.
    """
    rng = np.random.default_rng(0)
    _, nj, ni = shape_kji
    noise = rng.normal(0, NOISE_HU, (2 * nj, ni))
    noise = noise.astype(dtype) if dtype.kind == "f" else np.rint(noise).astype(dtype)
    for radius in radii(shape_kji):
        tissue = np.where(radius < BONE_RADIUS, BONE_HU, SOFT_HU) + 60 * np.cos(9 * radius)
        plane = np.where(radius < BODY_RADIUS, tissue, AIR_HU).astype(dtype)
        row = rng.integers(nj)
        yield plane + np.roll(noise[row : row + nj], rng.integers(ni), axis=1)


def mask_planes(shape_kji: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Yield the planes of a mask of the bone, as L1."""
    for radius in radii(shape_kji):
        yield (radius < BONE_RADIUS) * np.uint8(20)


def radii(shape_kji: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Yield each plane's distances from the middle."""
    nk, nj, ni = shape_kji
    v, u = np.ogrid[-1 : 1 : nj * 1j, -1 : 1 : ni * 1j]
    plane = u**2 + v**2
    for w in np.linspace(-1, 1, nk):
        yield np.sqrt(plane + w**2)


def write_huge(
    path: Path, shape_zyx: tuple[int, ...], axcodes: str, dtype: np.dtype, *, mask: bool
) -> None:
    """Write a ``.nii.gz`` file of an image or a mask, with axes i, j, k toward ``axcodes``."""
    axis_map = AxisMap.from_axcodes(axcodes)
    shape_ijk = [shape_zyx[axis_map.source_axis_zyx.index(axis)] for axis in range(3)]
    affine = np.eye(4)
    affine[:3, :3] = 0
    for store_axis, (source_axis, flip) in enumerate(
        zip(axis_map.source_axis_zyx, axis_map.flip_zyx, strict=True)
    ):
        affine[2 - store_axis, source_axis] = -0.5 if flip else 0.5
    header = nib.Nifti1Header()
    header.set_data_dtype(dtype)
    header.set_data_shape(shape_ijk)
    header.set_sform(affine, code=1)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    with igzip.open(path, "wb", compresslevel=1) as file:
        file.write(header.binaryblock + bytes(4))
        shape_kji = (shape_ijk[2], shape_ijk[1], shape_ijk[0])
        for plane in mask_planes(shape_kji) if mask else planes(shape_kji, dtype):
            file.write(plane.tobytes())


def measure(
    shape_zyx: tuple[int, ...], axcodes: str, dtype: np.dtype, work: Path, *, mask: bool
) -> dict[str, object]:
    """Write an image, or image and mask, and ingest it in a process of its own."""
    raw, out = work / "raw", work / "huge.zarr"
    raw.mkdir()
    path = raw / "huge_ct.nii.gz"
    write_huge(path, shape_zyx, axcodes, dtype, mask=False)
    cli = ["-c", "from spinezarr.cli.main import main; main()", "ingest", "pairs", "--json"]
    options = ["--raw", str(raw), "--image", "{scan}_ct.nii.gz", "--out", str(out)]
    if mask:
        mask_path = raw / "huge_seg.nii.gz"
        write_huge(mask_path, shape_zyx, axcodes, np.dtype(np.uint8), mask=True)
        options += ["--label", "{scan}_seg.nii.gz"]
    cost = run_process([*cli, *options])
    return {
        "axcodes": axcodes,
        "dtype": dtype.name,
        "mask": mask,
        "voxels_gb": math.prod(shape_zyx) * dtype.itemsize / 1e9,
        "source_gb": path.stat().st_size / 1e9,
        "stored_gb": folder_bytes(out) / 1e9,
        "peak_mb": cost.peak_mb,
        "wall_s": cost.wall_s,
        "core_s": cost.core_s,
    }


def main() -> None:
    """Measure, print a table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("axcodes", nargs="*", default=["LPS", "PIR", "SAR"])
    parser.add_argument("--shape", nargs=3, type=int, default=SHAPE_ZYX, metavar=("Z", "Y", "X"))
    parser.add_argument("--dtype", default="int16")
    parser.add_argument("--mask", action="store_true", help="ingest a mask with the image")
    parser.add_argument("--folder", type=absolute_path, help="folder with 15 GB of free space")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    rows = []
    for axcodes in options.axcodes:
        with tempfile.TemporaryDirectory(dir=options.folder) as work:
            dtype, shape_zyx = np.dtype(options.dtype), tuple(options.shape)
            rows.append(measure(shape_zyx, axcodes, dtype, Path(work), mask=options.mask))
        print(rows[-1], file=sys.stderr)
    table = Table(
        "axes", "dtype", "mask", "voxels GB", ".nii.gz GB", "store GB", "peak MB", "s", "core s"
    )
    for row in rows:
        table.add_row(
            row["axcodes"], row["dtype"], "yes" if row["mask"] else "",
            f"{row['voxels_gb']:.2f}", f"{row['source_gb']:.2f}", f"{row['stored_gb']:.2f}",
            f"{row['peak_mb']:.0f}", f"{row['wall_s']:.0f}", f"{row['core_s']:.0f}",
        )  # fmt: skip
    Console().print(table)
    if options.json:
        result = {"shape_zyx": options.shape, **machine(), "rows": rows}
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
