import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "dask_epochs.py"


def test_every_scheduler_does_all_work(ctspine1k_raw, tmp_path):
    scan = ctspine1k_raw[1][0]
    options = ["--size", "16", "--samples", "40", "--rounds", "1", "--scans", "2"]
    command = [sys.executable, SCRIPT, scan.image_path, scan.label_path, *options]
    subprocess.run([*command, "--json", tmp_path / "out.json"], check=True, capture_output=True)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert len({(row["scheduler"], row["work"]) for row in rows}) == 13
    for row in rows:
        assert row["samples_per_s_median"] > 0
        assert row["of_same_work_by_core_s_median"] > 0
