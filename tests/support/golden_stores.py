"""The stores of a release that later versions must read, and what they must find in them.

``python tests/support/golden_stores.py tests/golden`` writes them as ``<version>.tar.xz``:

- ``scans.zarr``, with every kind of image, mask and fact that the format has;
- ``small.zarr``, with the codecs of the profile ``small``, and with pseudonyms;
- ``derived.zarr``, which is derived from ``scans.zarr``;
- ``facts.json`` and ``values/<store>/<scan>/<array>.npy``: what is true of them.

Voxels are drawn from seeds, and facts are computed from these voxels with NumPy. No reader of
spinezarr has seen them. The same packages write the same bytes each time.
"""

import argparse
import base64
import hashlib
import hmac
import io
import json
import os
import re
import tarfile
import tempfile
from contextlib import chdir
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import spinezarr
from spinezarr.testing import (
    MetaImageForm,
    NiftiForm,
    verse_json,
    write_metaimage,
    write_nifti,
    write_seg_nrrd,
)

ROOT = {
    "dataset": "golden",
    "title": "Golden stores",
    "license": "CC0-1.0",
    "citation": "nobody, 2026: üñí",
}
RECIPE = """\
name: golden
title: Golden stores
license: CC0-1.0
citation: "nobody, 2026: üñí"
layouts:
  nifti:
    description: NIfTI files
    image: "{patient}/{scan}_ct.nii"
    label: "{patient}/{scan}_seg.nii"
    mask: optional
    label_state: whole-only
    values: {"19": T12, "20": L1, "7": L2, "26": sacrum, "30": "30", "99": "99"}
    centroids: {files: "{patient}/{scan}_points.json", convention: verse}
    sidecar: "{patient}/{scan}_sidecar.json"
    sidecar_keys: KVP
    layers:
      discs:
        files: "{patient}/{scan}_discs.nii"
        scheme: {"1": disc L1, "2": disc T12}
        author: Anna
        license: CC-BY-4.0
        model: net 2
        label_state: predicted
  slicer:
    description: files of 3D Slicer
    image: "{patient}/{scan}_slicer.mha"
    label: "{patient}/{scan}.seg.nrrd"
    segments: {first: T12, second: L1}
  parts:
    description: one file for each vertebra
    image: "{patient}/{scan}_whole.nii"
    label_parts:
      file: "{patient}/{scan}/{part}.nii"
      values: {upper: T12, lower: L1, absent: L2}
patient_id: "{patient}"
splits: {files: split.txt, sections: {one: train, two: test}, entry: "{scan}"}
labels: {scheme: canonical, state: unknown, structures: {"30": left_hip}}
tables:
  clinic: {files: clinic.csv, key: Scan, non_identifying: [Age]}
"""
REPLACED = "replaced"
"""Scan whose image has another version in the first ingest."""
KEY = bytes(range(32))
"""Key of the pseudonyms."""
WINDOW_HU = (-1000.0, 2060.0)
"""Window of the derived images."""
FILE_TIME_S = 1_700_000_000
LEVELS = [
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 14)),
    *(f"L{n}" for n in range(1, 7)),
    *("S1", "S2", "sacrum", "coccyx"),
]
VERTEBRA_OF_VALUE = {19: "T12", 20: "L1", 21: "L2", 26: "sacrum"}
STORED_OF_FILE = {19: 19, 20: 20, 7: 21, 26: 26, 30: 30, 99: 99, 150: 0}
"""Stored value of each value of a mask file; 150 is not in the recipe."""
LPS = NiftiForm("LPS")


@dataclass(frozen=True, eq=False)
class Mask:
    """A further mask, and what is known of it."""

    values: np.ndarray
    names: dict[int, str]
    scheme: str = "custom"
    license: str = ""
    author: str = ""
    model: str = ""
    label_state: str = "unknown"
    dice: float | None = None
    """Mean Dice coefficient of a saved comparison with ``label``."""


@dataclass(frozen=True, eq=False)
class Scan:
    """One scan, with the values that a reader must find: arrays have axes ``(z, y, x)``."""

    image: np.ndarray
    affine: np.ndarray
    label: np.ndarray | None = None
    form: NiftiForm | MetaImageForm = LPS
    kind: str = "nifti"
    patient: str = "P0"
    stored_dtype: str = ""
    """Type of the stored numbers, if the image is scaled."""
    label_state: str = "unknown"
    split: tuple[str, int] = ("", -1)
    columns: dict[str, str] = field(default_factory=dict)
    sidecar: dict[str, str] = field(default_factory=dict)
    points_xyz: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    """Voxel of each annotated centroid."""
    masks: dict[str, Mask] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)
    """Further attributes."""

    @property
    def spacing_zyx_mm(self):
        return np.linalg.norm(self.affine[:3, :3], axis=0)[::-1]


def affine_of(spacing_xyz, origin_xyz):
    affine = np.diag([*spacing_xyz, 1.0])
    affine[:3, 3] = origin_xyz
    return affine


AFFINE = affine_of((0.75, 0.75, 2.5), (-20.0, 30.5, -600.0))
# All numbers are dyadic, so that the float32 of NIfTI holds them exactly.
OBLIQUE = np.array(
    [
        [0.75, 0.125, 0.25, -31.0],
        [-0.125, 0.875, 0.25, 12.5],
        [-0.125, -0.25, 2.5, -200.0],
        [0.0, 0.0, 0.0, 1.0],
    ]
)


def cubes(seed, shape, low=-1000, high=2000):
    """Draw integers that are constant in cubes of 4 voxels, so that they compress well."""
    rng = np.random.default_rng(seed)
    values = rng.integers(low, high, [-(-n // 4) for n in shape], endpoint=True)
    for axis in range(3):
        values = values.repeat(4, axis)
    return values[tuple(slice(n) for n in shape)]


def noise(seed, shape, low=-1000, high=2000):
    return np.random.default_rng(seed).integers(low, high, shape, np.int16, endpoint=True)


def boxes(shape, **values):
    """Return a mask with one box for each value: ``v19=((z, y, x), (z, y, x))``, half open."""
    mask = np.zeros(shape, np.uint8)
    for name, (start, stop) in values.items():
        mask[tuple(map(slice, start, stop))] = int(name[1:])
    return mask


def spine(shape):
    """Return a mask of two vertebrae in a volume of at least (20, 14, 12) voxels."""
    return boxes(shape, v19=((10, 4, 3), (17, 11, 9)), v20=((2, 4, 3), (9, 11, 9)))


def scaled(seed, shape, dtype, slope, inter):
    """Draw values whose numbers fill the range of a type."""
    limits = np.iinfo(dtype)
    return cubes(seed, shape, limits.min, limits.max) * slope + inter


def make_scans():
    """Return all scans of ``scans.zarr`` by scan id."""
    small, long = (21, 17, 15), (130, 40, 36)
    byte_label, mm = spine(small), {"affine": AFFINE, "label_state": "whole-only"}
    prediction = byte_label.copy()
    prediction[7:9] = 0
    overlap = int((prediction == 20).sum())
    dice = (1 + 2 * overlap / (overlap + int((byte_label == 20).sum()))) / 2
    real = cubes(6, small).astype(np.float32) + np.float32(0.5)
    real[0, 0, 0], real[3, 2, 1:4] = np.nan, (np.inf, -np.inf, np.nan)
    ribs = np.random.default_rng(7).integers(0, 3, (10, 12, 11)).astype(np.uint8)
    chunks_label = boxes(
        long,
        v19=((70, 8, 6), (101, 29, 20)),
        v20=((40, 8, 6), (66, 25, 33)),
        v21=((22, 10, 8), (36, 20, 20)),
        v26=((20, 8, 20), (36, 29, 33)),
        v30=((104, 30, 30), (110, 36, 34)),
        v99=((1, 1, 1), (3, 4, 5)),
    )
    discs = boxes(long, v1=((66, 10, 8), (70, 20, 18)), v2=((101, 10, 8), (104, 20, 18)))
    return {
        "bare": Scan(
            noise(1, (10, 12, 11)),
            AFFINE,
            label_state="none",
            masks={
                "ribs": Mask(
                    ribs, {1: "left rib", 2: "right rib"}, license="MIT", author="Anna and Üwe"
                ),
                "nothing": Mask(np.zeros((10, 12, 11), np.uint8), {}),
            },
        ),
        "byte": Scan(
            scaled(2, small, "u1", 0.25, -10.0),
            label=byte_label,
            form=NiftiForm("LPS", "uint8", slope=0.25, inter=-10.0),
            stored_dtype="uint8",
            split=("train", 1),
            columns={"Age": "61"},
            masks={
                "prediction": Mask(
                    prediction, VERTEBRA_OF_VALUE, "vertebrae", model="net 1", dice=dice
                )
            },
            more={"image_scaling": [0.25, -10.0]},
            **mm,
        ),
        "chunks": Scan(
            cubes(3, long).astype(np.int16),
            label=chunks_label,
            form=NiftiForm("PIR"),
            patient="P1",
            split=("train", 0),
            columns={"Age": "40"},
            sidecar={"KVP": "120"},
            points_xyz={"L1": (20, 16, 52), "T12": (26, 20, 80), "L3": (8, 12, 24)},
            masks={
                "discs": Mask(
                    discs,
                    {1: "disc L1", 2: "disc T12"},
                    license="CC-BY-4.0",
                    author="Anna",
                    model="net 2",
                    label_state="predicted",
                )
            },
            more={"structures": {"30": "left_hip"}},
            **mm,
        ),
        "down": Scan(
            scaled(4, small, "i1", -1.5, 3.0),
            label=np.zeros(small, np.uint8),
            form=NiftiForm("LAS", "int8", slope=-1.5, inter=3.0),
            stored_dtype="int8",
            more={"image_scaling": [-1.5, 3.0]},
            **mm,
        ),
        "half": Scan(
            scaled(5, small, "i2", 0.5, 0.0),
            label=spine(small),
            form=NiftiForm("PIR", "int16", slope=0.5, big_endian=True),
            stored_dtype="int16",
            more={"image_scaling": [0.5, 0.0]},
            **mm,
        ),
        "noise_9": Scan(
            noise(9, (5, 34, 35)), label=boxes((5, 34, 35), v20=((0, 2, 3), (5, 33, 34))), **mm
        ),
        "noise_10": Scan(
            noise(10, (1, 20, 22)), label=boxes((1, 20, 22), v20=((0, 2, 3), (1, 9, 9))), **mm
        ),
        "oblique": Scan(
            noise(11, (20, 25, 23)),
            OBLIQUE,
            label=spine((20, 25, 23)),
            patient="P1",
            label_state="whole-only",
            split=("test", 0),
            points_xyz={"T12": (5, 7, 13)},
        ),
        "parts": Scan(cubes(12, small).astype(np.int16), AFFINE, label=spine(small), kind="parts"),
        "real": Scan(real, label=spine(small), form=NiftiForm("LPS", "float32"), **mm),
        REPLACED: Scan(cubes(14, small).astype(np.int16), label=spine(small), **mm),
        "slicer": Scan(
            cubes(15, small).astype(np.int16),
            AFFINE,
            label=spine(small),
            kind="slicer",
            form=MetaImageForm("LPS"),
        ),
        "voxel": Scan(
            np.full((1, 1, 1), -32768, np.int16), label=np.full((1, 1, 1), 20, np.uint8), **mm
        ),
        "wide": Scan(
            cubes(17, small, -(1 << 20), 1 << 20).astype(np.int32),
            label=spine(small),
            form=NiftiForm("LPS", "int32"),
            **mm,
        ),
        "word": Scan(
            scaled(18, small, "u2", 0.0625, -100.25),
            label=spine(small),
            form=NiftiForm("RAS", "uint16", slope=0.0625, inter=-100.25),
            stored_dtype="uint16",
            more={"image_scaling": [0.0625, -100.25]},
            **mm,
        ),
    }


# Raw files


def write_raw(raw, scans):
    """Write the files of some scans, of two that fail, and the tables of the dataset."""
    for name, scan in scans.items():
        write_scan(raw / scan.patient, name, scan)
    sections = {"train": "one", "test": "two"}
    lines = []
    for split, header in sections.items():
        listed = sorted((s.split[1], name) for name, s in scans.items() if s.split[0] == split)
        lines += [f"{header}:", *(name for _, name in listed)]
    (raw / "split.txt").write_text("\n".join(lines))
    rows = [f"{name},{scan.columns['Age']}" for name, scan in scans.items() if scan.columns]
    (raw / "clinic.csv").write_text("\n".join(["Scan,Age", *rows]))
    shape = (8, 9, 10)
    for name in ("cut", "moved"):
        write_nifti(raw / "P9" / f"{name}_ct.nii", noise(20, shape), AFFINE, LPS)
    (raw / "P9" / "cut_ct.nii").write_bytes((raw / "P9" / "cut_ct.nii").read_bytes()[:-200])
    moved = affine_of((0.75, 0.75, 2.5), (0.0, 0.0, 0.0))
    mask = NiftiForm("LPS", "uint8")
    write_nifti(raw / "P9" / "moved_seg.nii", boxes(shape), moved, mask)
    set_times(raw, FILE_TIME_S)


def write_scan(folder, name, scan):
    image = {"nifti": f"{name}_ct.nii", "parts": f"{name}_whole.nii"}.get(scan.kind)
    if image is None:
        write_metaimage(folder / f"{name}_slicer.mha", scan.image, scan.affine, scan.form)
    else:
        write_nifti(folder / image, scan.image, scan.affine, scan.form)
    mask = NiftiForm("RAS", "uint8")
    if scan.kind == "slicer":
        named = {"first": scan.label.T == 19, "second": scan.label.T == 20}
        write_seg_nrrd(folder / f"{name}.seg.nrrd", named, scan.affine, crop=True)
    elif scan.kind == "parts":
        for part, value in (("upper", 19), ("lower", 20)):
            one = (scan.label == value).astype(np.uint8)
            write_nifti(folder / name / f"{part}.nii", one, scan.affine, mask)
    elif scan.label is not None:
        file_of_stored = {stored: value for value, stored in STORED_OF_FILE.items()}
        values = np.vectorize(file_of_stored.__getitem__, otypes=[np.uint8])(scan.label)
        values[(scan.label == 0) & (np.indices(scan.label.shape).sum(axis=0) % 5 > 0)] = 0
        write_nifti(folder / f"{name}_seg.nii", values, scan.affine, mask)
    if scan.points_xyz:
        positions = {
            level: tuple((scan.affine @ (*voxel, 1))[:3].tolist())
            for level, voxel in scan.points_xyz.items()
        }
        text = verse_json(positions, scan.image.shape[::-1], scan.affine, "verse")
        (folder / f"{name}_points.json").write_text(text)
    if scan.sidecar:
        (folder / f"{name}_sidecar.json").write_text(json.dumps({**scan.sidecar, "Name": "x"}))
    if "discs" in scan.masks:
        write_nifti(folder / f"{name}_discs.nii", scan.masks["discs"].values, scan.affine, mask)


def set_times(folder, seconds):
    """Give all files one time, because the ledger of a store has a hash of their times."""
    for path in folder.rglob("*"):
        os.utime(path, (seconds, seconds))


# Stores


def write_stores(folder):
    """Write the three stores into an empty folder, and return their facts by name.

    Returns
    -------
    dict, dict
        Facts for JSON, and arrays by the key below ``values/``.
    """
    scans = make_scans()
    small = {name: scans[name] for name in ("byte", "chunks")}
    with chdir(folder):
        Path("golden.yaml").write_text(RECIPE, encoding="utf-8")
        audit = _write_scans(Path("raw"), scans)
        _write_small(Path("small-raw"), small)
        _derive()
    stores = {"scans.zarr": scans, "small.zarr": _hidden(small), "derived.zarr": _derived(small)}
    facts, values = {}, {}
    for store, present in stores.items():
        ids = sorted(present, key=_natural_key)
        facts[store] = {
            "root": {**ROOT, "codec_profile": "small" if store == "small.zarr" else "balanced"},
            "scans": {name: scan_facts(name, present[name]) for name in ids},
            "table": table_facts(ids, present),
            "audit": audit if store == "scans.zarr" else {},
        }
        for name, scan in present.items():
            arrays = {"image": scan.image, "label": scan.label}
            arrays |= {mask: one.values for mask, one in scan.masks.items()}
            for array, voxels in arrays.items():
                if voxels is not None:
                    values[f"{store}/{name}/{array}"] = np.ascontiguousarray(voxels)
    facts["small.zarr"]["root"]["pseudonym_key"] = _pseudonym("key", "")
    facts["derived.zarr"]["root"]["derived_from"] = "scans.zarr"
    return facts, values


def _ingest(raw, out, **options):
    report = spinezarr.ingest("golden.yaml", raw=raw, out=out, **options)
    assert len(report.failed) == 2, report.failed
    return report


def _write_scans(raw, scans):
    first = dict(scans)
    first[REPLACED] = replace(scans[REPLACED], image=scans[REPLACED].image[::-1])
    write_raw(raw, first)
    _ingest(raw, "scans.zarr")
    scan = scans[REPLACED]
    write_scan(raw / scan.patient, REPLACED, scan)
    set_times(raw, FILE_TIME_S)
    path = raw / scan.patient / f"{REPLACED}_ct.nii"
    os.utime(path, (FILE_TIME_S + 1, FILE_TIME_S + 1))
    assert _ingest(raw, "scans.zarr").done == (REPLACED,)
    store = spinezarr.open("scans.zarr")
    for name in ("bare", "byte"):
        for mask, one in scans[name].masks.items():
            scheme = "vertebrae" if one.scheme == "vertebrae" else one.names or {1: "disc"}
            said = {"license": one.license, "author": one.author, "model": one.model}
            versions = [one.values[::-1], one.values] if mask == "ribs" else [one.values]
            for values in versions:
                spinezarr.open("scans.zarr").write_labels(name, mask, values, scheme=scheme, **said)
    store = spinezarr.open("scans.zarr")
    compared = store.compare(layer="prediction", scans="byte", save=True)
    assert not compared.failed
    assert not compared.not_saved
    audit = spinezarr.open("scans.zarr").audit()
    assert not audit.not_written
    worst = dict.fromkeys(scans, "ok")
    for severity in ("info", "warning", "error"):
        found = {finding.scan_id for finding in audit.findings if finding.severity == severity}
        worst |= dict.fromkeys(found, severity)
    return worst


def _write_small(raw, scans):
    write_raw(raw, scans)
    Path("small.zarr.pseudonyms.key").write_text(KEY.hex())
    _ingest(raw, "small.zarr", codec="small", pseudonymize=True)


def _derive():
    report = spinezarr.open("scans.zarr").derive(
        out="derived.zarr",
        scans=["byte", "chunks"],
        spacing_mm=(5.0, 1.5, 0.75),
        antialias=False,
        crop="spine",
        margin_mm=0.0,
        intensity=WINDOW_HU,
    )
    assert not report.failed, report.failed


# What is true of the stores


def _natural_key(name):
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _pseudonym(kind, text):
    digest = hmac.digest(KEY, f"{kind}\0{text}".encode(), hashlib.sha256)
    return f"{kind}-{base64.b32encode(digest).decode().lower()[:16]}"


def _hidden(scans):
    """Return the scans as a store with pseudonyms has them."""
    return {
        _pseudonym("scan", name): replace(
            scan,
            patient=_pseudonym("patient", scan.patient),
            split=(scan.split[0], -1),
            sidecar={},
            masks={name: mask for name, mask in scan.masks.items() if name == "discs"},
        )
        for name, scan in scans.items()
    }


def _derived(scans):
    """Return the scans on every second plane and row of the box of their vertebrae, in a window."""
    low, high = WINDOW_HU
    result = {}
    for name, scan in scans.items():
        inside = np.argwhere(np.isin(scan.label, [*VERTEBRA_OF_VALUE]))
        start, last = inside.min(axis=0), inside.max(axis=0)
        steps = np.array([2, 2, 1])
        box = tuple(map(slice, start.tolist(), (last + 1).tolist(), steps.tolist()))
        affine = scan.affine.copy()
        affine[:3, 3] = (scan.affine @ [*start[::-1], 1])[:3]
        affine[:3, :3] = scan.affine[:3, :3] * steps[::-1]
        numbers = np.rint(np.clip((scan.image[box] - low) * (255 / (high - low)), 0, 255))
        result[name] = replace(
            scan,
            image=numbers * ((high - low) / 255) + low,
            affine=affine,
            label=scan.label[box],
            stored_dtype="uint8",
            points_xyz={
                level: tuple(((np.array(voxel) - start[::-1]) / steps[::-1]).tolist())
                for level, voxel in scan.points_xyz.items()
            },
            masks={
                mask: replace(one, values=one.values[box], dice=None)
                for mask, one in scan.masks.items()
            },
            more={
                "image_scaling": [(high - low) / 255, low],
                "derived_from": {
                    "store": "scans.zarr",
                    "scan_id": name,
                    "spacing_zyx_mm": [5.0, 1.5, 0.75],
                    "image_filter": None,
                    "mask_interpolation": "nearest",
                    "crop": "spine",
                    "margin_mm": 0.0,
                    "start_zyx": start.astype(float).tolist(),
                    "window_hu": [low, high],
                },
            },
        )
    return result


def label_facts(values):
    """Return count, mean voxel and box of each value of a mask except 0, by value."""
    facts = {}
    for value in np.unique(values[values > 0]).tolist():
        voxels = np.argwhere(values == value)
        facts[value] = {
            "voxel_count": len(voxels),
            "centroid_zyx": voxels.mean(axis=0).tolist(),
            "start_zyx": voxels.min(axis=0).tolist(),
            "stop_zyx": (voxels.max(axis=0) + 1).tolist(),
        }
    return facts


def _distance_mm(scan, voxel_xyz, vertebra):
    """Return the distance of a point from the voxels of a vertebra, which have edges."""
    value = {name: value for value, name in VERTEBRA_OF_VALUE.items()}.get(vertebra)
    if value is None:
        return None
    voxels = np.argwhere(scan.label == value)
    gaps = np.maximum(np.abs(voxels - np.array(voxel_xyz[::-1])) - 0.5, 0) * scan.spacing_zyx_mm
    return float(np.linalg.norm(gaps, axis=1).min())


def scan_facts(name, scan):
    """Return the attributes of a scan that are known without reading it."""
    finite = scan.image[np.isfinite(scan.image)]
    labels = {} if scan.label is None else label_facts(scan.label)
    others = {value: one for value, one in labels.items() if value not in VERTEBRA_OF_VALUE}
    return {
        "dataset": "golden",
        "scan_id": name,
        "patient_id": scan.patient,
        "split": scan.split[0],
        "split_index": scan.split[1],
        "license": ROOT["license"],
        "citation": ROOT["citation"],
        "affine": scan.affine.tolist(),
        "shape_zyx": list(scan.image.shape),
        "spacing_zyx_mm": scan.spacing_zyx_mm.tolist(),
        "label_state": scan.label_state,
        "image_dtype": scan.image.dtype.name,
        "image_stored_dtype": scan.stored_dtype or scan.image.dtype.name,
        "image_scaling": None,
        "image_range_hu": [float(finite.min()), float(finite.max())],
        "image_nan_voxels": int(np.isnan(scan.image).sum()),
        "image_infinite_voxels": int(np.isinf(scan.image).sum()),
        "vertebrae": {
            VERTEBRA_OF_VALUE[value]: one
            for value, one in labels.items()
            if value in VERTEBRA_OF_VALUE
        },
        "other_labels": {str(value): one["voxel_count"] for value, one in others.items()},
        "columns": scan.columns,
        "sidecar": scan.sidecar,
        "centroids": {
            level: {
                "position_zyx_mm": (scan.affine @ [*voxel, 1])[2::-1].tolist(),
                "label_distance_mm": _distance_mm(scan, voxel, level),
            }
            for level, voxel in scan.points_xyz.items()
        },
        "masks": {
            mask: {
                "scheme": one.scheme,
                "labels": {
                    str(value): {**facts, "name": one.names[value]}
                    for value, facts in label_facts(one.values).items()
                },
                "license": one.license,
                "author": one.author,
                "model": one.model,
                "label_state": one.label_state,
            }
            for mask, one in scan.masks.items()
        },
        "written_by": f"spinezarr {spinezarr.__version__}",
        **scan.more,
    }


def table_facts(ids, scans):
    """Return columns of the scan table as nested lists, with None for NaN."""
    facts = {name: scan_facts(name, scans[name]) for name in ids}
    plain = (
        *("patient_id", "split", "split_index", "shape_zyx", "spacing_zyx_mm", "label_state"),
        *("image_dtype", "image_stored_dtype", "image_nan_voxels", "image_infinite_voxels"),
    )
    columns = {column: [facts[name][column] for name in ids] for column in plain}
    columns["image_min_hu"] = [facts[name]["image_range_hu"][0] for name in ids]
    columns["image_max_hu"] = [facts[name]["image_range_hu"][1] for name in ids]
    columns["masks"] = [" ".join(sorted(scans[name].masks)) for name in ids]
    columns["Age"] = [scans[name].columns.get("Age", "") for name in ids]
    columns["other_label_voxels"] = [facts[name]["other_labels"].get("99", 0) for name in ids]
    return {"scan": list(ids), **columns, **_vertebra_columns(ids, scans, facts)}


def _vertebra_columns(ids, scans, facts):
    columns = {
        "voxel_count": 0,
        "volume_cm3": None,
        "centroid_zyx_mm": [None] * 3,
        "bbox_start_zyx": [-1] * 3,
        "bbox_stop_zyx": [-1] * 3,
        "annotated_centroid_zyx_mm": [None] * 3,
        "annotated_centroid_distance_mm": None,
    }
    rows = {column: [] for column in columns}
    for name in ids:
        cells = {level: dict(columns) for level in LEVELS}
        affine = scans[name].affine
        voxel_cm3 = abs(np.linalg.det(affine[:3, :3])) / 1000
        for level, one in facts[name]["vertebrae"].items():
            cells[level] |= {
                "voxel_count": one["voxel_count"],
                "volume_cm3": one["voxel_count"] * voxel_cm3,
                "centroid_zyx_mm": (affine @ [*one["centroid_zyx"][::-1], 1])[2::-1].tolist(),
                "bbox_start_zyx": one["start_zyx"],
                "bbox_stop_zyx": one["stop_zyx"],
            }
        for level, point in facts[name]["centroids"].items():
            cells[level] |= {
                "annotated_centroid_zyx_mm": point["position_zyx_mm"],
                "annotated_centroid_distance_mm": point["label_distance_mm"],
            }
        for column, values in rows.items():
            values.append([cells[level][column] for level in LEVELS])
    return {"vertebra": LEVELS, **rows}


# The archive


def write_archive(path):
    """Write stores, facts and values as one archive; the same packages write the same bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        facts, values = write_stores(folder)
        comparisons = {
            "byte": {"mask": "prediction", "dice": make_scans()["byte"].masks["prediction"].dice}
        }
        files = {}
        for store in facts:
            for file in (folder / store).rglob("*"):
                if file.is_file():
                    files[file.relative_to(folder).as_posix()] = file.read_bytes()
        for key, array in values.items():
            buffer = io.BytesIO()
            np.save(buffer, array)
            files[f"values/{key}.npy"] = buffer.getvalue()
        root = json.loads(files["scans.zarr/zarr.json"])["attributes"]
        about = {
            "spinezarr": spinezarr.__version__,
            "format_version": root["format_version"],
            "comparisons": comparisons,
            "stores": facts,
        }
        files["facts.json"] = json.dumps(about, indent=1).encode()
        with tarfile.open(path, "w:xz", preset=9) as archive:
            for key in sorted(files):
                entry = tarfile.TarInfo(key)
                entry.size = len(files[key])
                archive.addfile(entry, io.BytesIO(files[key]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write the golden stores of this version.")
    parser.add_argument("folder", type=Path, help="folder of the archives")
    place = parser.parse_args().folder / f"{spinezarr.__version__}.tar.xz"
    write_archive(place)
    print(f"{place}: {place.stat().st_size:,} bytes")
