import json
import subprocess
import sys
from pathlib import Path

import pytest

from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "derived.py"


def test_every_derived_store_is_measured(tmp_path):
    phantom = make_phantom(PhantomSpec(shape_zyx=(60, 60, 60), spacing_zyx_mm=(3.0, 5.0, 5.0)))
    pair = tmp_path / "ct.nii.gz", tmp_path / "seg.nii.gz"
    write_nifti(pair[0], phantom.image, phantom.affine_xyz, NiftiForm())
    write_nifti(pair[1], phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    options = ["--size", "16", "--spacing-mm", "4", "--rounds", "1", "--patches", "4"]
    command = [sys.executable, SCRIPT, *pair, *options, "--json", tmp_path / "out.json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = json.loads((tmp_path / "out.json").read_text())
    mb = {row["reader"]: row["mb"] for row in found["streams"]}
    assert list(mb) == [
        "resampled on the way", "derived", "derived, spine", "derived, spine, uint8",
    ]  # fmt: skip
    assert mb["derived, spine, uint8"] < mb["derived, spine"] < mb["derived"]
    assert all(row["ms_min"] > 0 for row in found["streams"])
    assert found["streams"][0]["of_first_median"] == 1
    assert "nnunet" in found or "nnU-Net is left out" in done.stdout
