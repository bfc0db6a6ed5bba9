"""Fixtures: a store of odd images, and raw folders of two versions of a scan."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti

SHAPE_ZYX = (70, 52, 50)
"""Shape of an image with two chunks along each axis."""
AFFINE = np.array([[0.8, 0, 0, -20], [0, 0.9, 0, 30.5], [0, 0, 2.5, -600], [0, 0, 0, 1]])
SCALED = {
    "byte": NiftiForm("LPS", "uint8", slope=0.3, inter=-10),
    "half": NiftiForm("PIR", "int16", slope=0.5, big_endian=True),
    "word": NiftiForm("RAS", "uint16", slope=0.01, inter=-100.25),
    "thin": NiftiForm("ASL", "float32", slope=1 / 3, inter=0.1),
    "down": NiftiForm("LAS", "int8", slope=-1.7, inter=3),
}
NONFINITE = {
    "holes": NiftiForm("LPS", "float32"),
    "sieve": NiftiForm("PIR", "float32", slope=0.5, inter=1),
}


@dataclass(frozen=True)
class OddImages:
    """Files of odd images, their store, and the voxels that nibabel reads of the files."""

    raw: Path
    url: str
    image: dict[str, np.ndarray]
    """Voxels ``(z, y, x)`` in RAS+ by scan id; ``plain`` is an ordinary int16 CT."""
    label: np.ndarray
    notes: dict[str, tuple[str, ...]]


def read_zyx(path):
    """Read a file with nibabel, in the axis order of a store."""
    image = nib.as_closest_canonical(nib.load(path, mmap=False))
    return np.asanyarray(image.dataobj).transpose(2, 1, 0)


def _draw_values(rng, form):
    dtype = np.dtype(form.dtype)
    if dtype.kind == "f":
        return rng.normal(0, 700, SHAPE_ZYX).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, SHAPE_ZYX, endpoint=True)


@pytest.fixture(scope="session")
def odd(tmp_path_factory):
    """Write and ingest the files; no test may change them."""
    folder, rng = tmp_path_factory.mktemp("odd"), np.random.default_rng(12)
    raw = folder / "raw"
    label = np.zeros(SHAPE_ZYX, np.uint8)
    label[20:40, 10:30, 10:40], label[41:60, 10:30, 10:40] = 20, 19
    for name, form in (SCALED | NONFINITE).items():
        slope, inter = form.slope or 1.0, form.inter or 0.0
        values = _draw_values(rng, form) * slope + inter
        if name in NONFINITE:
            for value in (np.nan, np.inf, -np.inf):
                values[rng.random(SHAPE_ZYX) < 0.01] = value
            values[30, 20, 20:23] = np.nan, np.inf, -np.inf
        write_nifti(raw / f"{name}_ct.nii", values, AFFINE, form)
    plain = rng.integers(-1024, 3071, SHAPE_ZYX).astype(np.int16)
    write_nifti(raw / "plain_ct.nii", plain, AFFINE, NiftiForm("LPS"))
    for name in (*SCALED, *NONFINITE, "plain"):
        write_nifti(raw / f"{name}_seg.nii", label, AFFINE, NiftiForm("LPS", "uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="odd")
    report = ingest(recipe, discover(recipe, str(raw)), str(folder / "odd.zarr"))
    assert not report.failed, report.failed
    image = {name: read_zyx(raw / f"{name}_ct.nii") for name in report.done}
    return OddImages(raw, str(folder / "odd.zarr"), image, label, report.notes)


@pytest.fixture(scope="session")
def two_versions(tmp_path_factory):
    """Return read-only folders ``before`` and ``after`` of one scan, which differ in a voxel."""
    folder = tmp_path_factory.mktemp("versions")
    voxels = np.random.default_rng(3).integers(-900, 900, (20, 24, 16), np.int16)
    mask = np.zeros(voxels.shape, np.uint8)
    mask[4:9, 4:9, 4:9] = 20
    for name in ("before", "after"):
        (folder / name).mkdir()
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / name / "a_ct.nii.gz")
        nib.save(nib.Nifti1Image(mask, np.eye(4)), folder / name / "a_seg.nii.gz")
        voxels[0, 0, 0] += 1
    return folder
