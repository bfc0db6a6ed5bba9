"""``add-labels`` and ``remove-labels``: aligned, reported, skipped when nothing has changed."""

import json
import os
import shutil

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
    command = ["add-labels", url, "--name", "parts", "--labels", pattern(folder)]
    command += ["--scheme", scheme, "--model", "net 2"]
    assert b"Masks 'parts' in" in run(*command, code=0).out
    assert "upper_part" in spinezarr.open(url).scan("liver_0").parts.flag_meanings
    assert set(json.loads(run(*command, "--json", code=0).out)["skipped"]) == set(values)
    shutil.copy(folder / "HN_P001.nii.gz", folder / "stranger.nii.gz")
    assert b"stranger.nii.gz" in run(*command, code=1).out
    scheme.write_text("labels:\n  upper part: 20\n  lower part: 20\n")
    assert b"several names have one value" in run(*command, code=2).err
    remove = ["remove-labels", url, "--name", "parts"]
    assert run(*remove, code=0).out.split() == b"Removed the mask 'parts' from 2 scans.".split()
    assert b"none of the chosen scans has a mask 'parts'" in run(*remove, code=2).err
