import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "startup.py"


def test_commands_and_peers_are_measured(tmp_path):
    options = ["--shape", "20", "32", "32", "--rounds", "1", "--json", tmp_path / "out.json"]
    subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert {"spinezarr --help", "open a store, first batch", "import numpy"} <= {
        row["row"] for row in rows
    }
    for row in rows:
        assert 0 < row["core_s"] <= row["wall_s"] * 64
        assert row["peak_mb"] > 0
