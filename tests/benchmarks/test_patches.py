import json
import subprocess
import sys
from pathlib import Path

from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "patches.py"


def test_the_benchmark_measures_every_reader_on_every_kind(tmp_path):
    phantom = make_phantom(PhantomSpec(shape_zyx=(60, 70, 80), spacing_zyx_mm=(3.0, 4.0, 4.0)))
    pair = tmp_path / "ct.nii.gz", tmp_path / "seg.nii.gz"
    write_nifti(pair[0], phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(pair[1], phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    options = ["--rounds", "1", "--seconds", "0.01", "--json", tmp_path / "out.json"]
    subprocess.run([sys.executable, SCRIPT, *pair, *options], check=True, capture_output=True)
    result = json.loads((tmp_path / "out.json").read_text())
    assert {row["kind"] for row in result["rows"]} == {
        "128^3", "96^3", "axial", "coronal", "sagittal",
    }  # fmt: skip
    assert len(result["rows"]) == 4 * 5
    assert all(row["per_s_median"] > 0 for row in result["rows"])
    assert result["versions"]["zarr"]
