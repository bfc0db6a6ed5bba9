import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scans.py"


def test_stores_of_two_sizes_are_measured(tmp_path):
    options = ["--sizes", "5", "12", "--rounds", "1", "--json", tmp_path / "out.json"]
    subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True)
    small, large = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert (small["scans"], large["scans"]) == (5, 12)
    for row in (small, large):
        assert row["requests_scan"] == 3  # the root, the table with it, the scan
        assert row["requests_of_other_scans"] == 0
        assert row["requests_scan_by_xarray"] == 4
        assert row["add_one_s_median"] > 0
    assert small["requests_table"] == large["requests_table"]
