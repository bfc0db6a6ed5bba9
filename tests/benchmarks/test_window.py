import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "window.py"


def test_windows_decode_less_and_are_more_alike(tmp_path):
    options = ["--shape", "200", "200", "200", "--scans", "40", "--samples", "512"]
    subprocess.run(
        [sys.executable, SCRIPT, *options, "--json", tmp_path / "out.json"],
        check=True,
        capture_output=True,
    )
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    for kind in ("96^3", "64^3", "axial", "sagittal"):
        of_kind = [row for row in rows if row["kind"] == kind]
        assert [row["samples_per_scan"] for row in of_kind] == [1, 2, 4, 8, 16, 32]
        assert sum(row["default"] for row in of_kind) == 1
        decoded = [row["decoded_per_voxel"] for row in of_kind]
        assert decoded == sorted(decoded, reverse=True)
        assert decoded[0] > 10 * decoded[-1]
        if kind.endswith("^3"):
            assert of_kind[0]["overlap_of_two"] < of_kind[1]["overlap_of_two"]
            assert of_kind[1]["different_voxels"] > of_kind[-1]["different_voxels"]
