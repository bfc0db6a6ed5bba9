"""Codec profiles from ingest to readers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store import layout
from spinezarr.store.layout import BALANCED, PROFILES, BloscCodecSpec, profile_named
from spinezarr.store.reader import StoreReader
from spinezarr.testing import NiftiForm, write_nifti

PAIRS = Recipe.of_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs")
AFFINE = np.diag([0.8, 0.8, 1.5, 1.0])


def write_pair(raw, scan_id, dtype="int16", shape_zyx=(70, 60, 50)):
    """Write a smooth image, and a mask of two boxes."""
    z, y, x = np.ogrid[tuple(slice(0, n) for n in shape_zyx)]
    noise = np.random.default_rng(1).integers(0, 40, shape_zyx)
    image = (300 * np.sin(z / 9) + 3 * y + 2 * x + noise).astype("int16").astype(dtype)
    if np.dtype(dtype).kind == "f":
        image += np.dtype(dtype).type(0.1)  # no int16 holds it
    label = np.zeros(shape_zyx, np.uint8)
    label[10:30, 5:25, 8:40], label[60:68, 20:55, 3:12] = 20, 21
    write_nifti(raw / f"{scan_id}_ct.nii", image, AFFINE, NiftiForm("LPS", dtype))
    write_nifti(raw / f"{scan_id}_seg.nii", label, AFFINE, NiftiForm("LPS", "uint8"))
    return image, label


def bring(raw, out, **options):
    return ingest(PAIRS, discover(PAIRS, str(raw)), str(out), **options)


def array_metadata(out, scan_id, name):
    return json.loads((Path(out) / "scans" / scan_id / name / "zarr.json").read_text())


def test_the_default_profile_is_balanced():
    assert profile_named(None) is BALANCED
    assert {name: profile.name for name, profile in PROFILES.items()} == {
        name: name for name in ("balanced", "fast", "small")
    }


@pytest.mark.parametrize("name", [None, *PROFILES])
def test_a_store_names_its_profile_and_runs_on_in_it(tmp_path, name):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    write_pair(raw, "a")
    assert bring(raw, out, codec=name).done == ("a",)
    held = name or "balanced"
    assert StoreReader(str(out)).root.codec_profile == held
    root = (out / "zarr.json").read_bytes()
    _, label = write_pair(raw, "b")
    assert bring(raw, out).done == ("b",)
    assert (out / "zarr.json").read_bytes() == root
    for array in ("image", "label"):
        first, later = (array_metadata(out, scan, array) for scan in "ab")
        assert later["codecs"] == first["codecs"]
    assert bring(raw, out, codec=held).skipped == ("a", "b")
    np.testing.assert_array_equal(spinezarr.open(out).scan("b").label, label)


def test_another_profile_for_a_store_is_refused_and_changes_nothing(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    write_pair(raw, "a")
    bring(raw, out, codec="fast")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"s\.zarr: is written with .* 'fast', not 'small'"):
        bring(raw, out, codec="small")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_an_unknown_profile_is_refused_before_anything_is_written(tmp_path):
    write_pair(tmp_path / "raw", "a")
    with pytest.raises(UsageError, match="no codec profile 'tiny'; choose balanced, fast, small"):
        bring(tmp_path / "raw", tmp_path / "s.zarr", codec="tiny")
    assert not (tmp_path / "s.zarr").exists()


def test_amending_a_scan_leaves_the_description_of_its_voxels(tmp_path, monkeypatch):
    """A later version may give a profile other numbers; stored voxels do not change with it."""
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    image, label = write_pair(raw, "a")
    bring(raw, out, codec="small")
    before = {name: array_metadata(out, "a", name) for name in ("image", "label")}
    codec = BloscCodecSpec("lz4", 1, "noshuffle", 0)
    other = replace(PROFILES["small"], chunk_shape_zyx=(16, 16, 16), image=codec)
    monkeypatch.setattr(layout, "PROFILES", {"small": other})
    licenced = PAIRS.model_copy(update={"licence": "CC0-1.0"})
    report = ingest(licenced, discover(licenced, str(raw)), str(out))
    assert report.updated == ("a",)
    assert {name: array_metadata(out, "a", name) for name in ("image", "label")} == before
    scan = spinezarr.open(out).scan("a")
    np.testing.assert_array_equal(scan.image, image)
    np.testing.assert_array_equal(scan.label, label)
