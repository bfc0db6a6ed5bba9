import filecmp
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_files import files_below

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import Damage, ingest
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.recipe import Recipe
from spinezarr.testing import (
    NiftiForm,
    PhantomSpec,
    all_axcodes,
    make_phantom,
    write_ctspine1k,
    write_nifti,
)
from spinezarr.verify.store import verify_store

PAIRS = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs-test")
IMAGES = Recipe.from_pairs("{scan}_ct.nii.gz", None, name="images-test")
SPEC = PhantomSpec(shape_zyx=(70, 52, 50), spacing_zyx_mm=(3.0, 5.0, 5.0), levels=("T12", "L1"))
PHANTOM = make_phantom(SPEC)
MASK = NiftiForm(dtype="uint8")


def canonical_zyx(path):
    closest = nib.as_closest_canonical(nib.load(path))
    return np.asanyarray(closest.dataobj).transpose(2, 1, 0), closest.affine


def write_pair(folder, name="a", *, image=PHANTOM.image, label=PHANTOM.label, forms=(None, None)):
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / f"{name}_ct.nii.gz", folder / f"{name}_seg.nii.gz"
    write_nifti(paths[0], image, PHANTOM.affine_xyz, forms[0] or NiftiForm())
    if label is not None:
        write_nifti(paths[1], label, PHANTOM.affine_xyz, forms[1] or MASK)
    return paths


def write_array(path, array_ijk, affine=PHANTOM.affine_xyz):
    nib.save(nib.Nifti1Image(array_ijk, affine, dtype=array_ijk.dtype), path)


def run(folder, out, recipe=PAIRS, **options):
    return ingest(recipe, discover(recipe, str(folder)), str(out), **options)


def shards(store, scan_id, array):
    folder = store / "scans" / scan_id / array / "c"
    return sorted(path for path in folder.rglob("*") if path.is_file())


def assert_same_files(a, b):
    assert files_below(a) == files_below(b)
    for name in files_below(a):
        assert filecmp.cmp(a / name, b / name, shallow=False), name


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    image_axes=st.sampled_from(all_axcodes()),
    label_axes=st.sampled_from(all_axcodes()),
    image_dtype=st.sampled_from(["int16", "int32", "int64", "uint16", "float32", "float64"]),
    label_dtype=st.sampled_from(["uint8", "int16", "int64", "float32", "float64"]),
    scaling=st.sampled_from([(None, None), (1.0, -1024.0), (2.0, 0.0)]),
    oblique_deg=st.sampled_from([0.0, 8.0]),
    memory=st.sampled_from([MemoryBudget(), MemoryBudget(9, 9, 0)]),
)
def test_stored_voxels_and_affine_equal_those_of_the_source(
    image_axes, label_axes, image_dtype, label_dtype, scaling, oblique_deg, memory, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("pair")
    image = PHANTOM.image.astype(np.int16)
    slope, inter = scaling
    if slope == 2.0:
        image = image // 2 * 2
    if image_dtype == "uint16":
        image = np.maximum(image, 0 if inter is None else int(inter))
    image_form = NiftiForm(
        orientation=image_axes, dtype=image_dtype, slope=slope, inter=inter, oblique_deg=oblique_deg
    )
    label_form = NiftiForm(orientation=label_axes, dtype=label_dtype, oblique_deg=oblique_deg)
    paths = write_pair(folder, image=image, forms=(image_form, label_form))
    report = run(folder, folder / "s.zarr", options=ScanOptions(memory=memory))
    assert report.done == ("a",), report.failed
    for scan in (
        spinezarr.open(folder / "s.zarr").scan("a"),
        xr.open_zarr(folder / "s.zarr" / "scans" / "a"),
    ):
        for array, path, dtype in (
            (scan.image, paths[0], np.int16),
            (scan.label, paths[1], np.uint8),
        ):
            expected, affine = canonical_zyx(path)
            assert array.dtype == dtype
            np.testing.assert_array_equal(array, expected)
            # The closest canonical form of an oblique affine is the same in every orientation.
            np.testing.assert_allclose(scan.attrs["affine"], affine, atol=1e-3)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        (np.array([0, 40000], np.int32), "int32"),
        (np.array([0, 60000], np.uint16), "uint16"),
        (np.array([-(2**40), 5], np.int64), "int64"),
        (np.array([0.0, 0.5], np.float64), "float64"),
        (np.array([1.0, 0.25], np.float32), "float32"),
        (np.array([1.0, np.nan], np.float32), "float32"),
        (np.array([1.0, np.inf], np.float64), "float64"),
    ],
)
def test_images_beyond_int16_keep_their_type_with_a_note(values, kept, tmp_path):
    # The odd value comes last, after slabs that were already encoded as int16.
    array = np.full((20, 20, 150), values[0])
    array[3, 4, -1] = values[1]
    write_array(tmp_path / "a_ct.nii.gz", array)
    report = run(tmp_path, tmp_path / "s.zarr", IMAGES)
    assert report.done == ("a",)
    assert kept in report.notes["a"][0]
    store = spinezarr.open(tmp_path / "s.zarr")
    expected, _ = canonical_zyx(tmp_path / "a_ct.nii.gz")
    for scan in (store.scan("a"), xr.open_zarr(tmp_path / "s.zarr" / "scans" / "a")):
        assert scan.image.dtype == np.dtype(kept)
        np.testing.assert_array_equal(scan.image, expected)
    assert store.table.image_dtype.item() == kept
    finite = expected[np.isfinite(expected)].astype(float)
    assert store.table.image_min_hu.item() == finite.min()
    assert store.table.image_max_hu.item() == finite.max()
    assert store.table.label_state.item() == "none"
    assert "label" not in store.scan("a")


def test_metadata_of_an_image_without_finite_values_are_standard_json(tmp_path):
    write_array(tmp_path / "a_ct.nii.gz", np.full((9, 9, 9), np.nan, np.float32))
    run(tmp_path, tmp_path / "s.zarr", IMAGES)
    text = (tmp_path / "s.zarr" / "scans" / "a" / "zarr.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert np.isnan(spinezarr.open(tmp_path / "s.zarr").table.image_min_hu.item())


@pytest.mark.parametrize("pattern", ["{scan:.*}_ct.nii.gz", "{scan:[.a-z]*}_ct.nii.gz"])
def test_a_scan_id_that_is_no_folder_name_fails_only_its_scan(pattern, tmp_path):
    write_pair(tmp_path / "sub", ".a", label=None)
    recipe = Recipe.from_pairs("**/" + pattern, None, name="bad-ids")
    with pytest.raises(UsageError, match="cannot name a folder"):
        discover(recipe, str(tmp_path))
    write_pair(tmp_path / "sub" / "deep", "a", label=None)
    report = run(tmp_path, tmp_path / "s.zarr", recipe)
    assert (report.done, report.exit_code) == (("a",), 1)
    (failed,) = report.failed
    assert failed.scan_id == ".a"
    assert "sub/.a_ct.nii.gz: gives the scan id '.a', which cannot name a folder" in failed.reason


def test_images_with_fractional_scaling_are_not_rounded(tmp_path):
    image = nib.Nifti1Image(np.arange(8000, dtype=np.int16).reshape(20, 20, 20), np.eye(4))
    image.header.set_slope_inter(0.1, -3.0)
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a_ct.nii.gz")
    run(tmp_path, tmp_path / "s.zarr", IMAGES)
    expected, _ = canonical_zyx(tmp_path / "a_ct.nii.gz")
    assert expected.dtype == np.float64
    np.testing.assert_array_equal(spinezarr.open(tmp_path / "s.zarr").scan("a").image, expected)


@pytest.mark.parametrize("value", [0.5, -1.0, 256.0, np.nan])
def test_the_error_names_a_mask_value_that_is_no_label(value, tmp_path):
    label = PHANTOM.label.astype(np.float32).T.copy()
    label[1, 2, 3] = value
    write_pair(tmp_path, label=None)
    write_array(tmp_path / "a_seg.nii.gz", label)
    (failed,) = run(tmp_path, tmp_path / "s.zarr").failed
    assert "a_seg.nii.gz" in failed.reason
    assert repr(value) in failed.reason


def test_a_failed_scan_leaves_no_files_and_stops_no_other(tmp_path):
    raw = tmp_path / "raw"
    for name in ("cut", "flipped", "good", "moved", "other", "rgb", "series"):
        write_pair(raw, name)
    data = (raw / "flipped_ct.nii.gz").read_bytes()
    (raw / "flipped_ct.nii.gz").write_bytes(data[:-8] + b"\0\0\0\0" + data[-4:])
    data = (raw / "cut_seg.nii.gz").read_bytes()
    (raw / "cut_seg.nii.gz").write_bytes(data[:-40])
    shifted = PHANTOM.affine_xyz.copy()
    shifted[0, 3] += 2.5
    write_nifti(raw / "moved_seg.nii.gz", PHANTOM.label, shifted, MASK)
    write_nifti(raw / "other_seg.nii.gz", PHANTOM.label[1:], PHANTOM.affine_xyz, MASK)
    colors = np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colors, np.eye(4)), raw / "rgb_ct.nii.gz")
    write_array(raw / "series_ct.nii.gz", np.zeros((4, 4, 4, 2), np.int16))
    report = run(raw, tmp_path / "s.zarr")
    reasons = {failed.scan_id: failed.reason for failed in report.failed}
    assert report.done == ("good",)
    assert report.exit_code == 1
    for name, words in {
        "cut": ["cut_seg.nii.gz", "cut short"],
        "flipped": ["flipped_ct.nii.gz", "CRC"],
        "moved": ["moved_ct.nii.gz", "moved_seg.nii.gz", "2.5 mm apart", "--take-image-grid"],
        "other": ["different shapes", "50 x 52 x 70", "50 x 52 x 69"],
        "rgb": ["rgb_ct.nii.gz", "RGB"],
        "series": ["series_ct.nii.gz", "4 dimensions"],
    }.items():
        assert all(word in reasons[name] for word in words), reasons[name]
    scans = tmp_path / "s.zarr" / "scans"
    assert sorted(path.name for path in scans.iterdir()) == ["good", "zarr.json"]
    store = spinezarr.open(tmp_path / "s.zarr")
    assert store.table.scan.to_numpy().tolist() == ["good"]
    np.testing.assert_array_equal(store.scan("good").label, PHANTOM.label)


def test_take_image_grid_accepts_equal_shapes_only(tmp_path):
    raw = tmp_path / "raw"
    for name in ("moved", "other"):
        write_pair(raw, name)
    write_nifti(raw / "moved_seg.nii.gz", PHANTOM.label, np.diag([5.0, 5, 3, 1]), MASK)
    write_nifti(raw / "other_seg.nii.gz", PHANTOM.label[1:], PHANTOM.affine_xyz, MASK)
    report = run(raw, tmp_path / "s.zarr", options=ScanOptions(take_image_grid=True))
    assert report.done == ("moved",)
    (failed,) = report.failed
    assert failed.scan_id == "other"
    assert "--take-image-grid also needs equal shapes" in failed.reason
    stored = spinezarr.open(tmp_path / "s.zarr").scan("moved")
    np.testing.assert_array_equal(stored.label, PHANTOM.label)


@pytest.mark.parametrize("layout", ["official", "huggingface"])
def test_ctspine1k_is_read_in_every_layout(layout, tmp_path):
    raw = tmp_path / "raw"
    written = write_ctspine1k(raw, layout, scale=0.2)
    recipe = Recipe.load("ctspine1k")
    discovery = discover(recipe, str(raw))
    assert discovery.layouts == {layout: len(written)}
    report = ingest(recipe, discovery, str(tmp_path / "s.zarr"))
    assert not report.failed
    store = spinezarr.open(tmp_path / "s.zarr")
    for scan in written:
        row = store.table.sel(scan=scan.scan_id)
        assert (row.split.item(), row.source.item()) == (scan.split, scan.source)
        assert row.label_state.item() == "all-visible"
        stored = store.scan(scan.scan_id)
        for array, path in ((stored.image, scan.image_path), (stored.label, scan.label_path)):
            np.testing.assert_array_equal(array, canonical_zyx(path)[0])


def test_the_same_source_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path / "raw", name)
    for out in ("1.zarr", "2.zarr"):
        run(tmp_path / "raw", tmp_path / out)
    assert_same_files(tmp_path / "1.zarr", tmp_path / "2.zarr")


def test_a_repeated_run_redoes_missing_and_replaced_scans(tmp_path, differing_files):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    for name in ("a", "b", "c", "d"):
        write_pair(raw, name)
    run(raw, out)
    complete = tmp_path / "complete"
    shutil.copytree(out, complete)
    assert run(raw, out).skipped == ("a", "b", "c", "d")
    shards(out, "a", "image")[0].unlink()
    (out / "scans" / "b" / "zarr.json").unlink()
    shard = shards(out, "c", "label")[0]
    shard.write_bytes(shard.read_bytes()[:-1])
    again = run(raw, out, find_damaged=lambda: Damage(verify_store(str(out)).damaged_scans))
    assert (again.done, again.skipped) == (("a", "b", "c"), ("d",))
    assert differing_files(out, complete) == []
    write_pair(raw, "d", image=PHANTOM.image // 2)
    assert run(raw, out).done == ("d",)
    stored = spinezarr.open(out).scan("d").image
    np.testing.assert_array_equal(stored, PHANTOM.image // 2)
    shutil.rmtree(out / "scans" / "a")
    assert run(raw, out).done == ("a",)


def test_a_touched_source_is_read_again_only_if_its_content_differs(tmp_path, differing_files):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    raw.mkdir()
    for name in ("a", "b", "c"):  # uncompressed, so other voxels have the same size
        write_nifti(raw / f"{name}_ct.nii", PHANTOM.image, PHANTOM.affine_xyz, NiftiForm())
        write_nifti(raw / f"{name}_seg.nii", PHANTOM.label, PHANTOM.affine_xyz, MASK)
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="pairs-test")
    run(raw, out, recipe)
    before = shutil.copytree(out, tmp_path / "before")
    image, label, touched = raw / "a_ct.nii", raw / "b_seg.nii", raw / "c_seg.nii"
    for path, value in ((image, 0), (label, 20)):
        data = bytearray(path.read_bytes())
        data[-4000] = value if data[-4000] != value else 19
        path.write_bytes(data)
    touched.touch()
    again = run(raw, out, recipe)
    assert (again.done, again.skipped) == (("a", "b"), ("c",))
    run(raw, tmp_path / "fresh.zarr", recipe)
    assert differing_files(out, tmp_path / "fresh.zarr") == []
    assert differing_files(out, before) != []
    assert run(raw, out, recipe).skipped == ("a", "b", "c")


def test_unchanged_sources_are_not_opened(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    for name in ("a", "b"):
        write_pair(raw, name)
    run(raw, out)
    found = discover(PAIRS, str(raw))
    shutil.rmtree(raw)
    for name in ("a", "b"):
        for file in [path for path in (out / "scans" / name).rglob("*") if path.is_file()]:
            file.unlink()
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert ingest(PAIRS, found, str(out)).skipped == ("a", "b")
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == times


@pytest.mark.parametrize("damage", [b"", b"{}", None])
def test_a_lost_ledger_is_written_again(damage, tmp_path, differing_files):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    for name in ("a", "b"):
        write_pair(raw, name)
    run(raw, out)
    before = shutil.copytree(out, tmp_path / "before")
    ledger = out / "ingest" / "zarr.json"
    if damage is None:
        ledger.unlink()
    else:
        ledger.write_bytes(damage)
    assert run(raw, out).skipped == ("a", "b")
    assert differing_files(out, before) == []


def test_adding_scans_gives_the_table_of_a_fresh_ingest(tmp_path, differing_files):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    for name in ("b", "d"):
        write_pair(raw, name)
    run(raw, out)
    for name in ("a10", "a9", "c"):
        write_pair(raw, name, label=np.roll(PHANTOM.label, 2, 0))
    assert run(raw, out).done == ("a10", "a9", "c")
    run(raw, tmp_path / "fresh.zarr")
    assert differing_files(out, tmp_path / "fresh.zarr") == []


def test_a_changed_split_list_updates_the_splits(tmp_path):
    raw, out = tmp_path / "raw", str(tmp_path / "s.zarr")
    write_ctspine1k(raw, scale=0.2)
    recipe = Recipe.load("ctspine1k")
    ingest(recipe, discover(recipe, str(raw)), out)
    listed = (raw / "data_split.txt").read_bytes()
    moved = listed.replace(b"HN_P001.nii.gz\r\n", b"") + b"HN_P001.nii.gz\r\n"
    (raw / "data_split.txt").write_bytes(moved)
    again = ingest(recipe, discover(recipe, str(raw)), out)
    assert "HN_P001" in again.updated
    assert again.skipped
    assert not again.done
    assert spinezarr.open(out).scan("HN_P001").image.max().compute() > 0
    table = spinezarr.open(out).table
    assert table.split.sel(scan="HN_P001").item() == "test"


def test_a_broken_replacement_of_a_source_keeps_the_stored_scan(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    for name in ("a", "b"):
        write_pair(raw, name)
    run(raw, out)
    shutil.copytree(out, tmp_path / "before")
    data = (raw / "a_seg.nii.gz").read_bytes()
    (raw / "a_seg.nii.gz").write_bytes(data[:-40])
    report = run(raw, out)
    assert [failed.scan_id for failed in report.failed] == ["a"]
    assert_same_files(out, tmp_path / "before")


class StopsAt:
    """A listener that interrupts the ingest, as Ctrl-C does."""

    def __init__(self, scan_id):
        self.scan_id = scan_id

    def started(self, source):
        pass

    def advanced(self, source, share):
        if share and source.scan_id == self.scan_id:
            raise KeyboardInterrupt

    def finished(self, source, outcome):
        pass


def test_an_interrupted_ingest_keeps_finished_scans_and_can_be_continued(tmp_path, differing_files):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    for name in ("a", "b", "c"):
        write_pair(raw, name)
    with pytest.raises(KeyboardInterrupt):
        run(raw, out, listener=StopsAt("b"))
    store = spinezarr.open(out)
    assert store.table.scan.to_numpy().tolist() == ["a"]
    assert not (out / "scans" / "b").exists()
    report = run(raw, out)
    assert (report.done, report.skipped) == (("b", "c"), ("a",))
    run(raw, tmp_path / "fresh.zarr")
    assert differing_files(out, tmp_path / "fresh.zarr") == []


@pytest.mark.long
def test_a_killed_ingest_shows_only_whole_scans_and_can_be_continued(tmp_path, differing_files):
    raw, out = tmp_path / "raw", tmp_path / "s.zarr"
    names = [f"scan{i:02}" for i in range(40)]
    for name in names:
        write_pair(raw, name)
    command = [
        str(Path(sys.executable).parent / "spinezarr"), "ingest", "pairs", "--raw", str(raw),
        "--image", "{scan}_ct.nii.gz", "--label", "{scan}_seg.nii.gz", "--out", str(out),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (out / "scans" / names[2] / "image").exists():
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    visible = [name for name in names if (out / "scans" / name / "zarr.json").exists()]
    assert 2 <= len(visible) < len(names)
    for name in visible:
        scan = xr.open_zarr(out / "scans" / name)
        np.testing.assert_array_equal(scan.image, PHANTOM.image)
        np.testing.assert_array_equal(scan.label, PHANTOM.label)
    done = subprocess.run([*command, "--json"], capture_output=True, check=True)
    assert set(json.loads(done.stdout)["skipped"]) == set(visible)
    fresh = tmp_path / "fresh" / "s.zarr"
    subprocess.run([*command[:-1], str(fresh)], capture_output=True, check=True)
    assert differing_files(out, fresh) == []


def test_a_store_that_cannot_be_written_is_a_usage_error(tmp_path):
    write_pair(tmp_path / "raw")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        run(tmp_path / "raw", tmp_path / "file" / "s.zarr")


def test_a_source_that_vanishes_is_one_failed_scan(tmp_path):
    for name in ("a", "b"):
        write_pair(tmp_path, name)
    discovery = discover(PAIRS, str(tmp_path))
    (tmp_path / "a_seg.nii.gz").unlink()
    report = ingest(PAIRS, discovery, str(tmp_path / "s.zarr"))
    assert report.done == ("b",)
    (failed,) = report.failed
    assert "a_seg.nii.gz" in failed.reason


class Records:
    def __init__(self):
        self.shares = {}
        self.outcomes = {}

    def started(self, source):
        self.shares[source.scan_id] = [0.0]

    def advanced(self, source, share):
        current = self.shares[source.scan_id]
        current.append(current[-1] + share)

    def finished(self, source, outcome):
        self.outcomes[source.scan_id] = outcome


def test_progress_adds_up_to_one_per_scan(tmp_path):
    write_pair(tmp_path, "a")
    (tmp_path / "c_ct.nii.gz").write_bytes((tmp_path / "a_ct.nii.gz").read_bytes()[:99])
    (tmp_path / "c_seg.nii.gz").write_bytes((tmp_path / "a_seg.nii.gz").read_bytes())
    heard = Records()
    run(tmp_path, tmp_path / "s.zarr", listener=heard)
    assert heard.outcomes == {"a": "done", "c": "failed"}
    assert heard.shares["a"][-1] == pytest.approx(1)
    assert all(b >= a for a, b in pairwise(heard.shares["a"]))
    heard = Records()
    run(tmp_path, tmp_path / "s.zarr", listener=heard)
    assert heard.outcomes["a"] == "already in the store"


def test_progress_goes_back_when_an_image_is_encoded_again(tmp_path):
    kept = PHANTOM.image.astype(np.int32)
    kept[0, 0, 0] = 40000
    form = NiftiForm(dtype="int32", orientation="LPI")
    write_pair(tmp_path, "b", image=kept, label=None, forms=(form, None))
    heard = Records()
    # A few planes are read at once, so that some are done before the value that does not fit.
    options = ScanOptions(memory=MemoryBudget(strip_bytes=1 << 14))
    run(tmp_path, tmp_path / "s.zarr", IMAGES, listener=heard, options=options)
    assert heard.outcomes == {"b": "done"}
    assert heard.shares["b"][-1] == pytest.approx(1)
    assert not all(b >= a for a, b in pairwise(heard.shares["b"]))


def test_coordinates_of_oblique_scans_are_noted(tmp_path):
    form = NiftiForm(oblique_deg=10.0)
    write_pair(tmp_path, forms=(form, NiftiForm(dtype="uint8", oblique_deg=10.0)))
    report = run(tmp_path, tmp_path / "s.zarr")
    assert "degrees oblique" in report.notes["a"][0]
    scan = spinezarr.open(tmp_path / "s.zarr").scan("a")
    assert 5 < scan.attrs["oblique_deg"] <= 10
    np.testing.assert_allclose(np.diff(scan.z), scan.attrs["spacing_zyx_mm"][0])
