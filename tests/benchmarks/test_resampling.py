import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "resampling.py"


def test_all_methods_give_the_same_values_and_are_measured(ctspine1k_raw, tmp_path):
    scan = ctspine1k_raw[1][0]
    options = ["--size", "16", "--spacing-mm", "1.1", "--rounds", "1", "--patches", "2"]
    command = [sys.executable, SCRIPT, scan.image_path, scan.label_path, *options]
    subprocess.run([*command, "--json", tmp_path / "out.json"], check=True, capture_output=True)
    found = json.loads((tmp_path / "out.json").read_text())
    assert len(found["boxes"]) == 18
    assert len(found["whole"]) == 6
    for row in found["boxes"] + found["whole"]:
        assert row["ms_median"] > 0
    ours = [row for row in found["boxes"] if row["method"] == "spinezarr"]
    assert [row["times_ours_median"] for row in ours] == [1, 1]
