"""A raw folder of small scans on odd grids, with centroids and tables, and its recipe."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, verse_json, write_nifti

RECIPE = """\
name: small
title: Small scans
license: CC0-1.0
citation: nobody
homepage: https://example.org
layouts:
  flat:
    description: flat
    image: "{patient}_{scan}_ct.nii"
    label: "{patient}_{scan}_seg.nii"
    mask: optional
    label_state: whole-only
    values: {"19": T12, "20": L1, "26": sacrum, "30": "30"}
    centroids: {files: "{scan}.json", convention: verse}
splits: {files: split.txt, sections: {one: train, two: test}, entry: "{scan}"}
labels: {scheme: canonical, state: unknown, structures: {"30": left_hip}}
tables:
  clinic: {files: clinic.csv, key: Scan}
"""
OBLIQUE = np.array(
    [[0.78, 0.1, 0.2, -31], [-0.1, 0.9, 0.3, 12.5], [-0.12, -0.2, 2.4, -200], [0, 0, 0, 1]]
)
SCANS = {
    "box": ((26, 21, 24), np.diag([0.7, 0.8, 2.5, 1])),
    "oblique": ((18, 25, 23), OBLIQUE),
    "plane": ((1, 20, 22), np.diag([1.1, 0.6, 3, 1])),
    "line": ((9, 1, 14), np.diag([0.9, 2, 1.3, 1])),
    "voxel": ((1, 1, 1), np.eye(4)),
    "empty": ((12, 11, 10), np.diag([1.5, 1.5, 2, 1])),
    "bare": ((10, 12, 11), np.diag([0.8, 0.8, 1, 1])),
}
"""Shape ``(z, y, x)`` and affine of each scan.

The mask of ``empty`` is background, ``bare`` has none, and those of ``plane``, ``line`` and
``voxel`` show one vertebra.
"""
POINTS_XYZ = {"L1": (11, 9, 6), "T12": (40, 50, 60)}
"""Voxels of the annotated centroids of ``box`` and ``oblique``; that of T12 is outside of them."""


def make_image(name):
    shape, _ = SCANS[name]
    return np.random.default_rng(sum(shape)).integers(-1000, 2000, shape).astype(np.int16)


def make_label(name):
    shape, _ = SCANS[name]
    label = np.zeros(shape, np.uint8)
    if name in {"box", "oblique"}:
        label[4:9, 6:12, 7:15], label[11:14, 6:13, 8:15], label[3, 15, 3] = 20, 19, 30
    elif name in {"plane", "line", "voxel"}:
        label[tuple(slice(n // 4, n // 4 + max(1, n // 2)) for n in shape)] = 20
    return label


def write_scan(raw, name, label=None):
    """Write image, mask and centroids of a scan."""
    shape, affine = SCANS[name]
    patient = f"P{[*SCANS].index(name) // 2}"
    write_nifti(raw / f"{patient}_{name}_ct.nii", make_image(name), affine, NiftiForm("LPS"))
    if name != "bare":
        label = make_label(name) if label is None else label
        write_nifti(raw / f"{patient}_{name}_seg.nii", label, affine, NiftiForm("RAS", "uint8"))
    if name in {"box", "oblique"}:
        positions = {
            level: tuple((affine @ (*index, 1))[:3].tolist()) for level, index in POINTS_XYZ.items()
        }
        (raw / f"{name}.json").write_text(verse_json(positions, shape[::-1], affine, "verse"))


def write_raw(raw, names):
    """Write a raw folder of some scans."""
    for name in names:
        write_scan(raw, name)
    (raw / "split.txt").write_text("one:\nbox\nplane\ntwo:\noblique\n")
    (raw / "clinic.csv").write_text("Scan,Age\nbox,61\noblique,40\n")


def ingest_raw(raw, url):
    """Ingest a raw folder, again if it has changed."""
    path = raw.parent / "small.yaml"
    path.write_text(RECIPE)
    recipe = Recipe.load(str(path))
    report = ingest(recipe, discover(recipe, str(raw)), str(url))
    assert not report.failed, report.failed
    return report


def nifti_of(scan, name="image"):
    """Return a variable of a scan as an image of nibabel, with axes ``(x, y, z)``."""
    values = scan[name].to_numpy().transpose(2, 1, 0)
    return nib.Nifti1Image(values, np.array(scan.attrs["affine"]))


def make_store(folder, names):
    """Write and ingest scans, and add further masks to some of them."""
    write_raw(folder / "raw", names)
    url = str(folder / "small.zarr")
    ingest_raw(folder / "raw", url)
    store = spinezarr.open(url)
    for name in {"box", "line", "bare"} & {*names}:
        shape, _ = SCANS[name]
        values = np.random.default_rng(7).integers(0, 3, shape).astype(np.uint8)
        scheme = {1: "left rib", 2: "right rib"}
        store.write_labels(name, "ribs", values, scheme=scheme, license="MIT", author="Anna")
    if "box" in names:
        store.write_labels("box", "disc", np.zeros(SCANS["box"][0], np.uint8), model="net 1")
    return SimpleNamespace(raw=folder / "raw", url=url)
