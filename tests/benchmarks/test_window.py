import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "window.py"


def test_windows_decode_less_and_their_samples_are_more_correlated(tmp_path, ctspine1k_url):
    options = ["--shape", "200", "200", "200", "--scans", "40", "--samples", "256"]
    options += [
        "--kinds",
        "64^3",
        "axial",
        "--store",
        ctspine1k_url,
        "--rounds",
        "1",
        "--read",
        "16",
    ]
    subprocess.run(
        [sys.executable, SCRIPT, *options, "--json", tmp_path / "out.json"],
        check=True,
        capture_output=True,
    )
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {row["kind"] for row in rows} == {"64^3", "axial"}
    for kind in ("64^3", "axial"):
        of_kind = [row for row in rows if row["kind"] == kind]
        assert [row["samples_per_scan"] for row in of_kind] == [1, 2, 4, 8, 16, 32]
        assert sum(row["default"] for row in of_kind) == 1
        decoded = [row["decoded_per_voxel"] for row in of_kind]
        assert decoded == sorted(decoded, reverse=True)
        times = [row["core_time"] for row in of_kind]
        assert times[0] == 1
        assert min(times) > 0
        assert decoded[0] > 7 * decoded[-1]
        if kind.endswith("^3"):
            assert of_kind[0]["overlap_of_two"] < of_kind[1]["overlap_of_two"]
            assert of_kind[1]["different_voxels"] > of_kind[-1]["different_voxels"]
