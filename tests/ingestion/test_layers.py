"""Layers of a recipe: further masks that an ingest reads with the scans."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import RecipeError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.label_schemes import SCHEMES
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.verify.store import verify_store

SHAPE = (20, 24, 28)
AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])
RECIPE = """
name: layered
title: Layered
license: none
citation: none
layouts:
  flat:
    description: flat
    image: "{scan}_ct.nii"
    label: "{scan}_seg.nii"
    layers:
      parts:
        files: ["{scan}_parts.nii", "{scan}_parts2.nii"]
        scheme: subregions
        model: net 2
        author: us
        license: CC0-1.0
        label_state: predicted
      mapped:
        files: "{scan}_mapped.nii"
        scheme: {"1": rib, "7": disc}
        values: {"300": rib, "4": "7"}
      structures:
        files: "{scan}/{part}.nii"
        scheme: totalsegmentator
labels: {scheme: canonical, state: unknown}
"""
LPS, PIR = NiftiForm("LPS", "uint8"), NiftiForm("PIR", "uint16")


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "layered.yaml"
    path.write_text(RECIPE)
    return Recipe.load(str(path))


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    for name in ("a", "b"):
        image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) % 2000 - 1000
        write_nifti(folder / f"{name}_ct.nii", image, AFFINE, NiftiForm("LPS"))
        write_nifti(folder / f"{name}_seg.nii", boxes(20, 21), AFFINE, LPS)
    return folder


def boxes(*values):
    mask = np.zeros(SHAPE, np.uint16)
    for i, value in enumerate(values):
        mask[2 + 3 * i : 4 + 3 * i, 2:20, 3:20] = value
    return mask


def run(recipe, raw, out, **options):
    return ingest(recipe, discover(recipe, str(raw)), str(out), options=ScanOptions(**options))


def counts(report):
    return {
        layer.name: tuple(map(len, (layer.done, layer.skipped, layer.failed, layer.without_file)))
        for layer in report.layers
    }


def image_files(out):
    """Return name and time of each stored file of images and labels."""
    found = [*out.glob("scans/*/image/**/*"), *out.glob("scans/*/label/**/*")]
    return {path: path.stat().st_mtime_ns for path in found if path.is_file()}


def test_layers_are_oriented_mapped_described_and_found_again(recipe, raw, tmp_path):
    out = tmp_path / "s.zarr"
    write_nifti(raw / "a_parts.nii", boxes(41, 50), AFFINE, PIR)
    write_nifti(raw / "a_mapped.nii", boxes(300, 4, 9), AFFINE, PIR)
    report = run(recipe, raw, out)
    assert (report.exit_code, report.done) == (0, ("a", "b"))
    assert counts(report) == {
        "parts": (1, 0, 0, 1),
        "mapped": (1, 0, 0, 1),
        "structures": (0, 0, 0, 2),
    }
    (note,) = report.notes["a"]
    assert note.startswith("mapped: 612 mask voxels became background")
    store = spinezarr.open(out)
    assert store.table.masks.to_numpy().tolist() == ["mapped parts", ""]
    scan = store.scan("a")
    np.testing.assert_array_equal(scan.parts, boxes(41, 50))
    np.testing.assert_array_equal(scan.mapped, boxes(1, 7, 0))
    assert scan.parts.flag_meanings == "background arcus corpus"
    assert scan.mapped.flag_meanings == "background rib disc"
    record = scan.attrs["masks"]["parts"]
    facts = {key: record[key] for key in ("model", "author", "license", "label_state", "scheme")}
    assert facts == {
        "model": "net 2",
        "author": "us",
        "license": "CC0-1.0",
        "label_state": "predicted",
        "scheme": "subregions",
    }
    assert record["source"]["file"] == "a_parts.nii"
    assert record["source"]["orientation"] == "PIR"
    assert verify_store(str(out)).faults == ()

    before = image_files(out)
    again = run(recipe, raw, out)
    assert (again.skipped, again.notes) == (("a", "b"), {})
    assert counts(again)["parts"] == (0, 1, 0, 1)
    # A new file of one scan, and a changed one of another.
    write_nifti(raw / "b_parts2.nii", boxes(42), AFFINE, LPS)
    write_nifti(raw / "a_mapped.nii", boxes(4), AFFINE, PIR)
    report = run(recipe, raw, out)
    assert (report.skipped, report.exit_code) == (("a", "b"), 0)
    assert {layer.name: layer.done for layer in report.layers} == {
        "parts": ("b",),
        "mapped": ("a",),
        "structures": (),
    }
    store = spinezarr.open(out)
    np.testing.assert_array_equal(store.scan("b").parts, boxes(42))
    np.testing.assert_array_equal(store.scan("a").mapped, boxes(7))
    assert store.table.masks.to_numpy().tolist() == ["mapped parts", "parts"]
    assert image_files(out) == before, "neither image nor label was written again"
    assert run(recipe, raw, out).layers[0].skipped == ("a", "b")
    assert verify_store(str(out)).faults == ()


def test_a_bad_layer_fails_alone_and_is_tried_again(recipe, raw, tmp_path):
    out = tmp_path / "s.zarr"
    moved = AFFINE.copy()
    moved[0, 3] += 100
    write_nifti(raw / "a_parts.nii", boxes(41), moved, LPS)
    (raw / "a_mapped.nii").write_bytes(b"no nifti")
    write_nifti(raw / "b_parts.nii", boxes(41), AFFINE, LPS)
    for _ in range(2):
        report = run(recipe, raw, out)
        assert (report.exit_code, report.failed) == (1, ())
        reasons = {
            layer.name: {f.scan_id: f.reason for f in layer.failed} for layer in report.layers
        }
        assert "corners are 100 mm apart" in reasons["parts"]["a"]
        assert "a_mapped.nii" in reasons["mapped"]["a"]
        assert spinezarr.open(out).table.masks.to_numpy().tolist() == ["", "parts"]
        np.testing.assert_array_equal(spinezarr.open(out).scan("a").label, boxes(20, 21))
    assert run(recipe, raw, out, take_image_grid=True).layers[0].failed == ()
    write_nifti(raw / "a_mapped.nii", boxes(4), AFFINE, LPS)
    report = run(recipe, raw, out, take_image_grid=True)
    assert (report.exit_code, counts(report)["mapped"]) == (0, (1, 0, 0, 1))
    # A bad new file fails in each run, and the mask of the old one stays.
    (raw / "a_mapped.nii").write_bytes(b"no nifti")
    for _ in range(2):
        report = run(recipe, raw, out, take_image_grid=True)
        assert (report.exit_code, counts(report)["mapped"]) == (1, (0, 0, 1, 1))
    np.testing.assert_array_equal(spinezarr.open(out).scan("a").mapped, boxes(7))
    assert verify_store(str(out)).faults == ()


def test_a_removed_mask_comes_back_and_a_new_image_gets_its_layers(recipe, raw, tmp_path):
    out = tmp_path / "s.zarr"
    write_nifti(raw / "a_parts.nii", boxes(41), AFFINE, LPS)
    run(recipe, raw, out)
    spinezarr.open(out).remove_labels("parts")
    assert counts(run(recipe, raw, out))["parts"] == (1, 0, 0, 1)
    write_nifti(raw / "a_ct.nii", np.full(SHAPE, 7, np.int16), AFFINE, NiftiForm("LPS"))
    report = run(recipe, raw, out)
    assert (report.done, counts(report)["parts"]) == (("a",), (1, 0, 0, 1))
    np.testing.assert_array_equal(spinezarr.open(out).scan("a").parts, boxes(41))
    assert spinezarr.open(out).table.masks.to_numpy().tolist() == ["parts", ""]
    # Masks of others stay.
    spinezarr.open(out).write_labels("a", "own", boxes(1).astype("u1"), scheme={1: "own"})
    write_nifti(raw / "a_parts.nii", boxes(42), AFFINE, LPS)
    assert counts(run(recipe, raw, out))["parts"] == (1, 0, 0, 1)
    assert spinezarr.open(out).table.masks.to_numpy().tolist() == ["own parts", ""]


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(SCHEMES["totalsegmentator"].values)), st.integers(0, 255)),
        max_size=4,
        unique_by=lambda drawn: drawn[0],
    )
)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_one_file_for_each_structure_is_merged_by_the_scheme(recipe, tmp_path, drawn):
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    raw, out = tmp_path / "x/raw", tmp_path / "x/s.zarr"
    shape, value_of = (3, 4, 5), SCHEMES["totalsegmentator"].values
    write_nifti(raw / "a_ct.nii", np.zeros(shape, np.int16), AFFINE, NiftiForm("LPS"))
    write_nifti(raw / "a_seg.nii", np.zeros(shape), AFFINE, LPS)
    masks = {}
    for part, seed in drawn:
        masks[part] = np.random.default_rng(seed).random(shape) < 0.3
        write_nifti(raw / f"a/{part}.nii", masks[part], AFFINE, LPS)
    expected = np.zeros(shape, np.uint8)
    for part in sorted(masks, key=value_of.__getitem__):
        expected[masks[part]] = value_of[part]
    report = run(recipe, raw, out)
    assert report.exit_code == 0
    if not drawn:
        assert counts(report)["structures"] == (0, 0, 0, 1)
        return
    scan = spinezarr.open(out).scan("a")
    np.testing.assert_array_equal(scan.structures, expected)
    record = scan.attrs["masks"]["structures"]
    assert {int(value) for value in record["labels"]} == set(np.unique(expected).tolist()) - {0}
    assert [value for value, _ in record["source"]["parts"]] == sorted(map(value_of.get, masks))
    overlap = int((np.sum([*masks.values()], axis=0) > 1).sum())
    said = " ".join(report.notes["a"])
    assert (f"{overlap} voxel" in said) == (overlap > 0)
    assert f"({117 - len(masks)} of 117)" in said


def test_files_that_fit_no_single_scan_fail_only_the_layer(recipe, raw, tmp_path):
    text = RECIPE.replace('"{scan}_mapped.nii"', '"*_mapped.nii"')
    (tmp_path / "layered.yaml").write_text(text)
    recipe = Recipe.load(str(tmp_path / "layered.yaml"))
    write_nifti(raw / "any_mapped.nii", boxes(4), AFFINE, LPS)
    (raw / "a").mkdir()
    for name in ("liver.nii", "liver.nii.gz", "LIVER.nii"):
        write_nifti(raw / "a" / name, boxes(1), AFFINE, LPS)
    write_nifti(raw / "c_parts.nii", boxes(41), AFFINE, LPS)
    found = discover(recipe, str(raw))
    assert [note.path for note in found.without_image] == ["c_parts.nii"]
    assert "a/LIVER.nii" in [note.path for note in found.ignored]
    report = ingest(recipe, found, str(tmp_path / "s.zarr"))
    assert report.failed == ()
    assert counts(report) == {
        "parts": (0, 0, 0, 2),
        "mapped": (0, 0, 2, 0),
        "structures": (1, 0, 0, 1),
    }
    (_, mapped, _) = report.layers
    assert "would belong to two scans" in mapped.failed[0].reason


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("      parts:", "      label:", "cannot be the name of a layer"),
        ("scheme: subregions", "scheme: teeth", "no label scheme 'teeth'"),
        ('"7": disc}', '"7": rib}', "several label values have one name"),
        ('"300": rib', '"300": tooth', "'tooth' is neither a name"),
        ('files: "{scan}_mapped.nii"', 'files: "{scan}/{part}.nii"', "and no others"),
        ('files: "{scan}/{part}.nii"', 'files: ["{part}.nii", "x"]', "or none does"),
        ("{scan}_mapped.nii", "{date}_mapped.nii", "uses {date}"),
        ("{scan}_seg.nii", "{scan}_{part}.nii", "uses {part}"),
    ],
)
def test_mistakes_in_a_layer_are_named(tmp_path, old, new, found):
    assert old in RECIPE
    path = tmp_path / "layered.yaml"
    path.write_text(RECIPE.replace(old, new))
    with pytest.raises(RecipeError) as problem:
        Recipe.load(str(path))
    assert found in str(problem.value)


def test_the_command_line_reports_layers_and_repairs_them(recipe, raw, tmp_path):
    out = tmp_path / "s.zarr"
    write_nifti(raw / "a_parts.nii", boxes(41), AFFINE, LPS)
    (raw / "b_parts.nii").write_bytes(b"no nifti")
    words = ["ingest", str(tmp_path / "layered.yaml"), "--raw", str(raw), "--out", str(out)]

    def cli(*more, code):
        result = CliRunner().invoke(app, [*words, *more])
        assert result.exit_code == code, result.output
        return result.stdout

    said = cli("--dry-run", code=0)
    assert "With the further mask 'parts': 2 scans." in said
    said = cli(code=1)
    assert "Further masks" in said
    assert "b: parts" in said
    (raw / "b_parts.nii").unlink()
    assert cli(code=0).count("parts") == 1
    (shard,) = (path for path in (out / "scans/a/parts/c").rglob("*") if path.is_file())
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (fault,) = verify_store(str(out)).faults
    assert "--repair" in fault.advice
    report = json.loads(cli("--repair", "--json", code=0))
    assert report["done"] == []
    assert [layer["done"] for layer in report["layers"]] == [["a"], [], []]
    assert verify_store(str(out)).faults == ()
    np.testing.assert_array_equal(spinezarr.open(out).scan("a").parts, boxes(41))


def test_layers_of_a_store_with_pseudonyms_name_no_file(recipe, raw, tmp_path, text_of_store):
    shutil.move(raw / "a_ct.nii", raw / "SECRET_ct.nii")
    shutil.move(raw / "a_seg.nii", raw / "SECRET_seg.nii")
    write_nifti(raw / "SECRET_parts.nii", boxes(41), AFFINE, LPS)
    out = tmp_path / "s.zarr"
    options = {"raw": raw, "out": out, "pseudonymize": True}
    report = spinezarr.ingest(tmp_path / "layered.yaml", **options)
    assert counts(report)["parts"] == (1, 0, 0, 1)
    assert b"SECRET" not in text_of_store(out)
    assert counts(spinezarr.ingest(tmp_path / "layered.yaml", **options))["parts"] == (0, 1, 0, 1)
    os.utime(raw / "SECRET_parts.nii", (1, 1))
    assert counts(spinezarr.ingest(tmp_path / "layered.yaml", **options))["parts"] == (1, 0, 0, 1)


@pytest.mark.long
def test_workers_and_buckets_give_the_same_layers(recipe, raw, tmp_path, s3_server):
    write_nifti(raw / "a_parts.nii", boxes(41), AFFINE, LPS)
    write_nifti(raw / "b/liver.nii", boxes(1), AFFINE, LPS)
    write_nifti(raw / "b/sacrum.nii", boxes(1), AFFINE, LPS)
    (raw / "b_mapped.nii").write_bytes(b"no nifti")
    path = tmp_path / "layered.yaml"
    here = spinezarr.ingest(path, raw=raw, out=tmp_path / "here.zarr")
    there = spinezarr.ingest(path, raw=raw, out=tmp_path / "there.zarr", workers=2)
    bucket = s3_server.new_bucket()
    for file in raw.rglob("*.nii"):
        s3_server.client.upload_file(str(file), bucket, f"raw/{file.relative_to(raw)}")
    options = s3_server.storage_options
    url = f"s3://{bucket}/s.zarr"
    remote = spinezarr.ingest(path, raw=f"s3://{bucket}/raw", out=url, storage_options=options)
    again = spinezarr.ingest(path, raw=f"s3://{bucket}/raw", out=url, storage_options=options)
    assert counts(again) == {
        "parts": (0, 1, 0, 1),
        "mapped": (0, 0, 1, 1),
        "structures": (0, 1, 0, 1),
    }
    stores = [spinezarr.open(tmp_path / "here.zarr"), spinezarr.open(tmp_path / "there.zarr")]
    stores.append(spinezarr.open(url, storage_options=options))
    for report, store in zip((here, there, remote), stores, strict=True):
        assert report.exit_code == 1
        assert counts(report) == {
            "parts": (1, 0, 0, 1),
            "mapped": (0, 0, 1, 1),
            "structures": (1, 0, 0, 1),
        }
        assert store.table.masks.to_numpy().tolist() == ["parts", "structures"]
        np.testing.assert_array_equal(store.scan("a").parts, boxes(41))
        np.testing.assert_array_equal(store.scan("b").structures, boxes(25))
        assert store.verify().faults == ()
