"""Repeating an ingest gives the same store as a fresh ingest."""

import json
import subprocess
import sys

import numpy as np
import pytest

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, verse_json, write_nifti

SPEC = PhantomSpec(shape_zyx=(24, 20, 16), spacing_zyx_mm=(8.0, 10.0, 12.0), levels=("T12", "L1"))
PHANTOM = make_phantom(SPEC)
MASK = NiftiForm(dtype="uint8")
RECIPE = """\
name: again
title: Again
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
    values: {"19": T12, "20": L1, "26": "30", "7": "31"}
    centroids: {files: "{scan}.json", convention: verse}
    sidecar: "{scan}_side.json"
    sidecar_keys: "{any:.*}"
splits: {files: split.txt, sections: {one: train, two: test}, entry: "{scan}"}
labels: {scheme: canonical, state: unknown, structures: {"30": left_hip}}
tables:
  clinic: {files: clinic.csv, key: Scan}
"""


def points(shift):
    position = {"T12": (1.0 + shift, 2.0, 3.0), "L1": (1.0, 2.0, -4.0)}
    shape = PHANTOM.image.shape[::-1]
    return verse_json(position, shape, PHANTOM.affine_xyz, "verse")


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    label = PHANTOM.label.copy()
    label[0, 0, :3] = 26, 7, 9
    for scan in "ab":
        write_nifti(folder / f"P1_{scan}_ct.nii", PHANTOM.image, PHANTOM.affine_xyz, NiftiForm())
        write_nifti(folder / f"P1_{scan}_seg.nii", label, PHANTOM.affine_xyz, MASK)
        (folder / f"{scan}.json").write_text(points(0))
        (folder / f"{scan}_side.json").write_text('{"KVP": 120}')
    (folder / "split.txt").write_text("one:\na\ntwo:\nb\n")
    (folder / "clinic.csv").write_text("Scan,Age,Sex\na,61,f\nb,40,m\n")
    return folder


def run(raw, out, text=RECIPE):
    path = raw.parent / "again.yaml"
    path.write_text(text)
    recipe = Recipe.load(str(path))
    report = ingest(recipe, discover(recipe, str(raw)), str(out))
    assert not report.failed, report.failed
    return report


HOLD = """
import sys, time
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.lock import StoreLock
with StoreLock(StoreFileSystem(sys.argv[1]), sys.argv[1], sys.argv[1], "a test"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_next_run_removes_the_leftovers_of_a_killed_one(raw, tmp_path):
    """After a run that ended normally, the next one lists no files of scans."""
    out = tmp_path / "s.zarr"
    run(raw, out)
    left = out / "scans" / "a" / "image" / "c" / "9" / "9" / "9"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a shard")
    run(raw, out)
    assert left.exists()
    command = [sys.executable, "-c", HOLD, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        process.kill()
    run(raw, out)
    assert not left.exists()


def times_of_shards(store):
    shards = [*(store / "scans").rglob("c/0/0/0"), *(store / "scans").rglob("c.0.0.0")]
    return {path: path.stat().st_mtime_ns for path in shards}


def edit_json(name, **values):
    def edit(raw):
        path = raw / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return edit


def write(name, content):
    def edit(raw):
        (raw / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    return edit


def replace_mask(raw):
    """Write another mask at another path, of the same size."""
    (raw / "P1_a_seg.nii").rename(raw / "P1_a_seg.old")
    label = np.where(PHANTOM.label == 20, 19, PHANTOM.label)
    write_nifti(raw / "P1_a_mask.nii", label, PHANTOM.affine_xyz, MASK)


AMENDED = {
    "sidecar": (edit_json("a_side.json", KVP=100), None),
    "sidecar is a list": (write("a_side.json", "[]"), None),
    "sidecar is broken": (write("a_side.json", b"\xff{"), None),
    "sidecar with odd texts": (write("a_side.json", '{"a/b": "\\ud800", "": 1, "n": NaN}'), None),
    "sidecar is gone": (lambda raw: (raw / "a_side.json").unlink(), None),
    "keys of the sidecar": (None, ('"{any:.*}"', "Name")),
    "split": (write("split.txt", "one:\nb\na\n"), None),
    "table": (write("clinic.csv", "Scan,Age,Sex\na,62,f\nb,40,m\n"), None),
    "order of columns": (write("clinic.csv", "Sex,Scan,Age\nf,a,61\nm,b,40\n"), None),
    "table is gone": (lambda raw: (raw / "clinic.csv").unlink(), None),
    "license": (None, ("CC0-1.0", "CC-BY-4.0")),
    "citation": (None, ("citation: nobody", "citation: somebody")),
    "homepage": (None, ("https://example.org", "https://example.com")),
    "label state": (None, ("whole-only", "all-visible")),
    "patient": (None, ("tables:", 'patient_id: "{patient}"\ntables:')),
    "source": (None, ("tables:", 'source: "{patient}"\ntables:')),
    "name of a structure": (None, ("left_hip", "a_much_longer_name")),
    "further structure": (None, ('"30": left_hip', '"30": left_hip, "31": right_hip')),
    "no structures": (None, (', structures: {"30": left_hip}', "")),
}
READ_AGAIN = {
    "values": (None, ('"20": L1', '"20": L2')),
    "fewer values": (None, (', "7": "31"', "")),
    "more values": (None, ('"7": "31"', '"7": "31", "9": "32"')),
    "values as they are": (
        None,
        ('    values: {"19": T12, "20": L1, "26": "30", "7": "31"}\n', ""),
    ),
    "centroids of the same size": (write("a.json", points(0).replace("1.0", "1.5")), None),
    "centroids are gone": (lambda raw: (raw / "a.json").unlink(), None),
    "another mask of the same size": (replace_mask, ("_seg.nii", "_mask.nii")),
    "mask is gone": (lambda raw: (raw / "P1_a_seg.nii").unlink(), None),
}


@pytest.mark.parametrize(
    "change",
    [pytest.param(c, marks=[pytest.mark.long] if n % 2 else []) for n, c in enumerate(AMENDED)],
)
def test_changes_that_affect_no_voxel_only_amend_the_metadata(
    change, raw, tmp_path, differing_files
):
    edit, replaced = AMENDED[change]
    out, fresh = tmp_path / "s.zarr", tmp_path / "fresh.zarr"
    run(raw, out)
    written = times_of_shards(out)
    assert replaced is None or replaced[0] in RECIPE
    text = RECIPE if replaced is None else RECIPE.replace(*replaced)
    if edit is not None:
        edit(raw)
    again = run(raw, out, text)
    assert again.done == ()
    assert bool(again.updated) == (change != "homepage")
    run(raw, fresh, text)
    assert differing_files(out, fresh) == []
    assert times_of_shards(out) == written
    assert run(raw, out, text).skipped == ("a", "b")


@pytest.mark.parametrize("change", READ_AGAIN)
def test_changes_that_affect_voxels_read_the_scan_again(change, raw, tmp_path, differing_files):
    edit, replaced = READ_AGAIN[change]
    out, fresh = tmp_path / "s.zarr", tmp_path / "fresh.zarr"
    run(raw, out)
    assert replaced is None or replaced[0] in RECIPE
    text = RECIPE if replaced is None else RECIPE.replace(*replaced)
    if edit is not None:
        edit(raw)
    again = run(raw, out, text)
    assert "a" in again.done
    assert ("b" in again.done) == (replaced is not None)
    run(raw, fresh, text)
    assert differing_files(out, fresh) == []
    assert run(raw, out, text).skipped == ("a", "b")


def test_mask_parts_with_other_values_are_read_again(raw, tmp_path, differing_files):
    parts = RECIPE.replace(
        '    label: "{patient}_{scan}_seg.nii"\n',
        '    label_parts: {file: "{scan}_{part}.nii", values: {one: L1, two: L2}}\n',
    )
    parts = parts.replace('    values: {"19": T12, "20": L1, "26": "30", "7": "31"}\n', "")
    for scan in "ab":
        for name, value in (("one", 19), ("two", 20)):
            path = raw / f"{scan}_{name}.nii"
            write_nifti(path, (PHANTOM.label == value) * 1, PHANTOM.affine_xyz, MASK)
    run(raw, tmp_path / "s.zarr", parts)
    changed = parts.replace("one: L1, two: L2", "two: L2, one: L3")
    assert run(raw, tmp_path / "s.zarr", changed).done == ("a", "b")
    run(raw, tmp_path / "fresh.zarr", changed)
    assert differing_files(tmp_path / "s.zarr", tmp_path / "fresh.zarr") == []
    stored = spinezarr.open(tmp_path / "s.zarr").scan("a").label.to_numpy()
    np.testing.assert_array_equal(stored == 22, PHANTOM.label == 19)


def test_centroids_of_another_convention_are_read_again(raw, tmp_path, differing_files):
    for scan in "ab":
        (raw / f"{scan}.json").write_text('[{"label": 20, "X": 90, "Y": 80, "Z": 70}]')
    text = RECIPE.replace("convention: verse", "convention: verse-2019-challenge")
    run(raw, tmp_path / "s.zarr", text)
    text = text.replace("2019", "2020")
    assert run(raw, tmp_path / "s.zarr", text).done == ("a", "b")
    run(raw, tmp_path / "fresh.zarr", text)
    assert differing_files(tmp_path / "s.zarr", tmp_path / "fresh.zarr") == []


def test_structures_are_renamed_where_labels_are_described(raw, tmp_path):
    out = tmp_path / "s.zarr"
    run(raw, out)
    run(raw, out, RECIPE.replace("left_hip", "right hip"))
    flags = spinezarr.open(out).scan("a").label.attrs
    named = dict(zip(flags["flag_values"], flags["flag_meanings"].split(), strict=True))
    assert named[30] == "right_hip"
    assert named[31] == "label_31"


def test_a_root_of_another_license_is_written_again(raw, tmp_path):
    run(raw, tmp_path / "s.zarr")
    run(raw, tmp_path / "s.zarr", RECIPE.replace("CC0-1.0", "CC-BY-4.0"))
    assert spinezarr.open(tmp_path / "s.zarr").attrs["license"] == "CC-BY-4.0"


def test_scans_that_are_no_longer_found_stay_and_are_reported(raw, tmp_path):
    out = tmp_path / "s.zarr"
    assert run(raw, out).from_earlier_runs == ()
    (raw / "P1_a_ct.nii").unlink()
    again = run(raw, out)
    assert (again.from_earlier_runs, again.skipped) == (("a",), ("b",))
    assert spinezarr.open(out).table.scan.to_numpy().tolist() == ["a", "b"]


def test_notes_about_sidecars_and_values_follow_the_files(raw, tmp_path):
    out = tmp_path / "s.zarr"
    outside = "mask values outside the label scheme: 31"
    assert run(raw, out).notes["a"][-1] == outside
    (raw / "a_side.json").write_text("[1]")
    passed_over = "the sidecar was ignored: it is not a JSON object"
    assert run(raw, out).notes["a"][-2:] == (passed_over, outside)
    edit_structures = RECIPE.replace('"30": left_hip', '"31": right_hip')
    assert run(raw, out, edit_structures).notes["a"][-1] == outside.replace("31", "30")
    (raw / "a_side.json").write_text("{}")
    assert passed_over not in run(raw, out).notes["a"]


def test_an_unreadable_small_file_removes_no_stored_scan(raw, tmp_path):
    out = tmp_path / "s.zarr"
    run(raw, out)
    recipe = Recipe.load(str(raw.parent / "again.yaml"))
    for scan in "ab":
        (raw / f"{scan}_side.json").touch()
    found = discover(recipe, str(raw))
    (raw / "a_side.json").unlink()
    report = ingest(recipe, found, str(out))
    (failed,) = report.failed
    assert (failed.scan_id, report.skipped) == ("a", ("b",))
    assert "a_side.json" in failed.reason
    assert spinezarr.open(out).table.scan.to_numpy().tolist() == ["a", "b"]
