import json
import subprocess
import sys
from pathlib import Path

import pytest

from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parents[2] / "benchmarks"


def run(script, *options):
    subprocess.run([sys.executable, FOLDER / script, *options], check=True, capture_output=True)


def test_the_ingest_the_arrow_form_and_the_lower_bound_are_measured(tmp_path):
    pytest.importorskip("datasets", reason="the extra 'bench' has it")
    phantom = make_phantom(PhantomSpec(shape_zyx=(60, 70, 80), spacing_zyx_mm=(3.0, 4.0, 4.0)))
    pair = tmp_path / "ct.nii.gz", tmp_path / "seg.nii.gz"
    write_nifti(pair[0], phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(pair[1], phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    run("ingest.py", *pair, "--rounds", "1", "--copies", "2", "--json", tmp_path / "out.json")
    result = json.loads((tmp_path / "out.json").read_text())
    rows = {row["method"]: row for row in result["rows"]}
    assert len(rows) == 8
    assert all(row["wall_s_median"] > 0 for row in rows.values())
    # Arrow writes two rows of float32 and int32, with a little overhead.
    overhead = rows["Arrow"]["written_bytes"] / (2 * phantom.image.size * 8)
    assert 1 <= overhead < 1.1
    assert rows["spinezarr"]["written_bytes"] < rows["Arrow"]["written_bytes"] / 3
    for method in ("spinezarr, whole process", "Arrow, whole process"):
        assert 50 < rows[method]["peak_mb"] < 2000
        in_process = rows[method.split(",")[0]]["written_bytes"]
        assert rows[method]["written_bytes"] == pytest.approx(in_process, rel=0.01)
    assert result["times_faster_than_arrow"]["in process"] > 0
    assert 0 < result["share_of_bound"]["core seconds"] < 1
    assert result["share_of_bound_of_numcodecs"]["core seconds"] > 0
    assert result["versions"]["datasets"]


def test_peak_memory_is_measured_in_every_orientation(tmp_path):
    options = ["--shape", "60", "70", "80", "--folder", tmp_path, "--json", tmp_path / "out.json"]
    run("memory.py", "LPS", "SAR", "--dtype", "float64", "--mask", *options)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["axcodes"] for row in rows] == ["LPS", "SAR"]
    assert all(50 < row["peak_mb"] < 700 for row in rows)
    assert rows[0]["voxels_gb"] == pytest.approx(60 * 70 * 80 * 8 / 1e9)
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
