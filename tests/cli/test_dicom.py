"""Tests of the command line with trees of DICOM files and with linked voxels."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.testing import MetaImageForm, write_hospital, write_metaimage


def run(*words, code=0):
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == code, result.output + repr(result.exception)
    assert "Traceback" not in result.output
    return result


@pytest.fixture
def hospital(tmp_path):
    write_hospital(tmp_path / "raw")
    return tmp_path / "raw"


def test_a_tree_of_any_depth_is_ingested_series_by_series(hospital, tmp_path):
    words = ["ingest", "pairs", "--raw", hospital, "--image", "{path:.+}/"]
    words += ["--scan-id", "{path|join|lower}_{series_number}"]
    shown = " ".join(run(*words, "--dry-run").output.replace("│", " ").split())
    assert "3 scans found" in shown
    assert "6 ignored, not CT: MR Image" in shown
    found = json.loads(run(*words, "--dry-run", "--json").stdout)
    assert [scan["scan_id"] for scan in found["scans"]] == [
        "p0007_20240115_dicom_2", "p0007_20240115_dicom_3", "p0012_20231102_ct_series 302_302"
    ]  # fmt: skip
    out = tmp_path / "s.zarr"
    report = json.loads(run(*words, "--out", out, "--json").stdout)
    assert (len(report["done"]), report["failed"]) == (3, [])
    assert set(spinezarr.open(out).table.patient_id.to_numpy().tolist()) == set(report["done"])
    report = json.loads(run(*words, "--out", out, "--json").stdout)
    assert (len(report["skipped"]), report["done"]) == (3, [])
    run("verify", out, "--against", hospital)


def test_a_folder_of_several_series_is_one_scan_unless_each_is_requested(hospital, tmp_path):
    words = ["ingest", "pairs", "--raw", hospital, "--image", "{path:.+}/"]
    report = json.loads(run(*words, "--out", tmp_path / "s.zarr", "--json").stdout)
    assert report["done"] == ["P0007_20240115_DICOM", "P0012_20231102_CT_series 302"]
    (note,) = [text for text in report["notes"]["P0007_20240115_DICOM"] if "took" in text]
    assert note == "took series '3' (24 slices), not series '2' (12 slices)"


def test_the_scan_id_option_is_accepted_only_with_pairs(hospital):
    words = ["ingest", "rsna2022", "--raw", hospital, "--scan-id", "{scan}"]
    assert "--scan-id need the dataset 'pairs'" in run(*words, code=2).output


def test_a_raw_folder_without_a_ct_exits_with_0(hospital, tmp_path):
    words = ["ingest", "pairs", "--raw", hospital, "--image", "{patient}/{date}/reports/"]
    report = json.loads(run(*words, "--out", tmp_path / "s.zarr", "--json").stdout)
    assert (report["done"], report["failed"], report["exit_code"]) == ([], [], 0)


@pytest.fixture
def cache(tmp_path):
    """Return a scan in the cache of Hugging Face: links to files named by their hash."""
    dataset = tmp_path / "datasets--a--b"
    for folder in ("blobs", "snapshots/1f"):
        (dataset / folder).mkdir(parents=True)
    values = np.arange(5 * 6 * 7, dtype=np.int16).reshape(5, 6, 7)
    write_metaimage(dataset / "new/x.mhd", values, np.diag([1.0, 1, 2, 1]), MetaImageForm())
    for number, path in enumerate((dataset / "new").iterdir()):
        path.rename(dataset / "blobs" / f"{number}")
        (dataset / "snapshots/1f" / path.name).symlink_to(f"../../blobs/{number}")
    return dataset


def test_links_to_voxels_are_followed_only_if_the_user_allows_it(cache, tmp_path):
    raw, out = cache / "snapshots" / "1f", tmp_path / "s.zarr"
    words = ["ingest", "pairs", "--raw", raw, "--image", "{scan}.mhd", "--out", out, "--json"]
    (failed,) = json.loads(run(*words, code=1).stdout)["failed"]
    option = f"--follow-links {cache}"
    assert f"ingest with {option}, or copy them" in failed["reason"]
    assert json.loads(run(*words, *option.split()).stdout)["done"] == ["x"]
    assert json.loads(run(*words, *option.split()).stdout)["skipped"] == ["x"]
    assert "is a link to" in run("verify", out, "--against", raw, "--json", code=1).stdout
    run("verify", out, "--against", raw, *option.split())
    np.testing.assert_array_equal(
        spinezarr.open(out).scan("x").image.to_numpy().ravel()[:3], [0, 1, 2]
    )
