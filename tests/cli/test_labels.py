"""``add-labels`` and ``remove-labels``: aligned, reported, skipped when nothing has changed."""

import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.testing import NiftiForm, write_nifti


@pytest.fixture
def url(ctspine1k_url, tmp_path):
    return str(shutil.copytree(ctspine1k_url, tmp_path / "store.zarr"))


@pytest.fixture
def predictions(ctspine1k_url, tmp_path):
    """Return a folder of masks of two scans in other orientations, and their values."""
    store = spinezarr.open(ctspine1k_url)
    values = {}
    for scan_id in ("liver_0", "HN_P001"):
        scan = store.scan(scan_id)
        axcodes = "PIR" if scan_id == "HN_P001" else scan.attrs["image_source"]["orientation"]
        mask = np.roll(scan.label.to_numpy(), 3, axis=1)
        affine = np.array(scan.attrs["affine"])
        form = NiftiForm(axcodes, "uint8")
        write_nifti(tmp_path / f"pred/{scan_id}.nii.gz", mask, affine, form)
        values[scan_id] = mask
    return tmp_path / "pred", values


def pattern(folder):
    return f"{folder}/{{scan}}.nii.gz"


def test_masks_are_oriented_described_and_skipped_the_next_time(url, predictions):
    folder, values = predictions
    store = spinezarr.open(url)
    report = store.add_labels("prediction", pattern(folder), model="net 2", license="MIT")
    assert set(report.done) == set(values)
    assert (report.exit_code, report.failed, len(report.without_file)) == (0, (), 4)
    for scan_id, mask in values.items():
        scan = spinezarr.open(url).scan(scan_id)
        np.testing.assert_array_equal(scan.prediction, mask)
        record = scan.attrs["masks"]["prediction"]
        assert record["source"]["file"] == f"{scan_id}.nii.gz"
        assert record["source"]["size_bytes"] == (folder / f"{scan_id}.nii.gz").stat().st_size
        assert (record["model"], record["license"]) == ("net 2", "MIT")
    assert store.verify().faults == ()
    again = store.add_labels("prediction", pattern(folder), model="net 2", license="MIT")
    assert (again.done, set(again.skipped)) == ((), set(values))
    os.utime(folder / "liver_0.nii.gz", (1, 1))
    assert store.add_labels("prediction", pattern(folder), model="net 2", license="MIT").done == (
        "liver_0",
    )
    renamed = store.add_labels("prediction", pattern(folder), model="net 3", license="MIT")
    assert set(renamed.done) == set(values)
    assert store.verify().faults == ()


def test_files_that_cannot_be_used_fail_alone(url, predictions, tmp_path):
    folder, values = predictions
    store = spinezarr.open(url)
    store.add_labels("prediction", pattern(folder))
    image = nib.load(folder / "liver_0.nii.gz")
    moved = image.affine.copy()
    moved[0, 3] += 100
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), moved), folder / "liver_0.nii.gz")
    shutil.copy(folder / "HN_P001.nii.gz", folder / "stranger.nii.gz")
    (folder / "CTC-1018399231.nii.gz").write_bytes(b"no nifti")
    report = store.add_labels("prediction", pattern(folder))
    assert report.exit_code == 1
    assert report.skipped == ("HN_P001",)
    assert report.without_scan == ("stranger.nii.gz",)
    reasons = {scan.scan_id: scan.reason for scan in report.failed}
    assert set(reasons) == {"liver_0", "CTC-1018399231"}
    assert "corners are 100 mm apart" in reasons["liver_0"]
    np.testing.assert_array_equal(store.scan("liver_0").prediction, values["liver_0"])
    assert store.verify().faults == ()
    report = store.add_labels("prediction", pattern(folder), take_image_grid=True, scans="liver_0")
    assert report.done == ("liver_0",)
    assert "--take-image-grid" in report.notes["liver_0"][0]


@pytest.mark.parametrize(
    ("name", "labels", "found"),
    [
        ("label", "{scan}.nii.gz", "the mask that an ingest writes"),
        ("p1", "mask.nii.gz", "must have {scan}"),
        ("p1", "{scan}_{date}.nii.gz", "no other name"),
        ("p1", "{scan}.mha", "no file fits, for any of the 6 chosen scans"),
        ("p1", "{scan", "stray"),
        ("p1", "none/{scan}.nii.gz", "cannot be listed"),
    ],
)
def test_wrong_usage_changes_nothing(url, predictions, name, labels, found):
    with pytest.raises(UsageError, match=found):
        spinezarr.open(url).add_labels(name, f"{predictions[0]}/{labels}")
    assert spinezarr.open(url).table.masks.to_numpy().tolist() == [""] * 6


def test_the_command_line_adds_and_removes(url, predictions, tmp_path, run):
    folder, values = predictions
    scheme = tmp_path / "scheme.yaml"
    scheme.write_text("labels:\n  upper part: 20\n  lower part: 21\n")
    command = ["add-labels", url, "--layer", "parts", "--masks", pattern(folder)]
    command += ["--scheme", scheme, "--model", "net 2"]
    assert b"Masks 'parts' in" in run(*command, code=0).out
    assert "upper_part" in spinezarr.open(url).scan("liver_0").parts.flag_meanings
    assert set(json.loads(run(*command, "--json", code=0).out)["skipped"]) == set(values)
    shutil.copy(folder / "HN_P001.nii.gz", folder / "stranger.nii.gz")
    assert b"stranger.nii.gz" in run(*command, code=1).out
    scheme.write_text("labels:\n  upper part: 20\n  lower part: 20\n")
    assert b"several names have one value" in run(*command, code=2).err
    remove = ["remove-labels", url, "--layer", "parts"]
    assert run(*remove, code=0).out.split() == b"Removed the mask 'parts' from 2 scans.".split()
    assert b"none of the chosen scans has a mask 'parts'" in run(*remove, code=2).err


@pytest.fixture
def structures(ctspine1k_url, tmp_path):
    """Return a folder with one file for each structure of two scans, and the merged values."""
    store = spinezarr.open(ctspine1k_url)
    merged = {}
    for scan_id in ("liver_0", "HN_P001"):
        scan = store.scan(scan_id)
        label = scan.label.to_numpy()
        first, *_ = present = [int(value) for value in np.unique(label) if value]
        masks = {"vertebrae_L1": label == first, "rib_left_1": np.isin(label, present[:2])}
        merged[scan_id] = np.where(masks["vertebrae_L1"], 31, 0)
        merged[scan_id][masks["rib_left_1"]] = 92
        for part, mask in masks.items():
            path = tmp_path / f"ts/{scan_id}/{part}.nii.gz"
            form = NiftiForm(scan.attrs["image_source"]["orientation"], "uint8")
            write_nifti(path, mask, np.array(scan.attrs["affine"]), form)
    return tmp_path / "ts", merged


def test_one_file_for_each_structure_is_merged_by_the_scheme(url, structures, run):
    folder, merged = structures
    (folder / "README.txt").write_text("not a mask")
    shutil.copytree(folder / "liver_0", folder / "stranger")
    shutil.copy(folder / "liver_0/rib_left_1.nii.gz", folder / "liver_0/tooth.nii.gz")
    command = ["add-labels", url, "--layer", "structures", "--scheme", "totalsegmentator"]
    command += ["--masks", f"{folder}/{{scan}}/{{part}}.nii.gz", "--label-state", "predicted"]

    said = run(*command, "--dry-run", code=0).out.decode()
    assert "nothing is written" in said
    assert "2 files, e.g. liver_0/vertebrae_L1.nii.gz" in " ".join(said.split())
    plan = json.loads(run(*command, "--dry-run", "--json", code=0).out)
    assert set(plan["files"]) == set(merged)
    assert plan["without_scan"] == [
        "stranger/rib_left_1.nii.gz",
        "stranger/vertebrae_L1.nii.gz",
    ]
    assert plan["unmatched"] == ["README.txt", "liver_0/tooth.nii.gz"]
    assert len(plan["without_file"]) == 4
    assert (plan["done"], plan["skipped"], plan["exit_code"]) == ([], [], 0)
    assert spinezarr.open(url).table.masks.to_numpy().tolist() == [""] * 6

    report = json.loads(run(*command, "--json", code=1).out)
    assert set(report["done"]) == set(merged)
    for scan_id, values in merged.items():
        scan = spinezarr.open(url).scan(scan_id)
        np.testing.assert_array_equal(scan.structures, values)
        notes = " ".join(report["notes"][scan_id])
        assert "in two masks at once got the label of the mask that the scheme names later" in notes
        assert "(115 of 117)" in notes
        assert scan.attrs["masks"]["structures"]["label_state"] == "predicted"
    shutil.rmtree(folder / "stranger")
    plan = json.loads(run(*command, "--dry-run", "--json", code=0).out)
    assert set(plan["skipped"]) == set(merged)
    assert set(json.loads(run(*command, "--json", code=0).out)["skipped"]) == set(merged)
    # Another set of files of a scan gives another mask.
    (folder / "liver_0/rib_left_1.nii.gz").unlink()
    assert json.loads(run(*command, "--json", code=0).out)["done"] == ["liver_0"]
    assert set(np.unique(spinezarr.open(url).scan("liver_0").structures)) == {0, 31}
    assert spinezarr.open(url).verify().faults == ()


def test_a_mask_whose_files_are_gone_is_written_again(url, predictions):
    folder, _ = predictions
    store = spinezarr.open(url)
    store.add_labels("prediction", pattern(folder))
    shard = next(p for p in Path(url).glob("scans/liver_0/prediction/c/**/*") if p.is_file())
    shard.unlink()
    report = store.add_labels("prediction", pattern(folder))
    assert (report.done, report.skipped) == (("liver_0",), ("HN_P001",))
    assert store.verify().faults == ()


def test_the_error_of_a_pattern_without_files_names_some(url, predictions):
    with pytest.raises(UsageError, match=r"has 2 files, e.g. HN_P001.nii.gz, liver_0.nii.gz"):
        spinezarr.open(url).add_labels("p1", f"{predictions[0]}/{{scan}}.mha")


def test_progress_counts_bytes_and_scans(url, predictions):
    reports = []
    spinezarr.open(url).add_labels(
        "prediction", pattern(predictions[0]), on_progress=reports.append
    )
    size = sum(path.stat().st_size for path in predictions[0].iterdir())
    last = reports[-1]
    assert (last.step, last.total, last.scans_done, last.scans_total) == ("add-labels", size, 2, 2)
    assert last.done == pytest.approx(size)
    assert any(0 < report.done < size for report in reports)


@pytest.mark.long
def test_workers_give_the_same_masks(url, structures, run, tmp_path):
    folder, merged = structures
    other = str(shutil.copytree(url, tmp_path / "other.zarr"))
    (folder / "liver_0/aorta.nii.gz").write_bytes(b"no nifti")
    words = ["--layer", "structures", "--scheme", "totalsegmentator", "--json", "--masks"]
    words.append(f"{folder.name}/{{scan}}/{{part}}.nii.gz")  # a relative path
    here = json.loads(run("add-labels", url, *words, code=1).out)
    there = json.loads(run("add-labels", other, *words, "--workers", 2, code=1).out)
    assert there["done"] == here["done"] == ["HN_P001"]
    assert there["failed"] == here["failed"]
    np.testing.assert_array_equal(
        spinezarr.open(other).scan("HN_P001").structures, merged["HN_P001"]
    )
    assert spinezarr.open(other).verify().faults == ()
    assert (
        b"Give one of them"
        in run("add-labels", url, *words, "--workers", 2, "--scheduler", "tcp://x:1", code=2).err
    )
