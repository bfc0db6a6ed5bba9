import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "loaders.py"


def test_every_loader_is_measured(ctspine1k_raw, tmp_path):
    scan = ctspine1k_raw[1][0]
    options = ["--kinds", "16:2", "axial:2", "--rounds", "1", "--batches", "3", "--scans", "5"]
    command = [sys.executable, SCRIPT, scan.image_path, scan.label_path, *options]
    subprocess.run([*command, "--json", tmp_path / "out.json"], check=True, capture_output=True)
    result = json.loads((tmp_path / "out.json").read_text())
    rows = result["rows"]
    assert [row["of_engine_median"] for row in rows if row["loader"] == "engine alone"] == [1, 1]
    assert len(rows) == 16
    assert {row["kind"] for row in rows} == {"16", "axial"}
    for run in result["runs"].values():
        assert run["first_batch_s"] > 0
        assert run["batches_mb"] < run["other_mb"] < run["peak_mb"]
