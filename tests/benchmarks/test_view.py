import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "view.py"
N_KEYS = len("liver_1" + "train" + "lumbar" + "warning")


@pytest.mark.skipif(
    shutil.which("chromium") is None,
    reason="Chromium is not installed. On Debian: apt-get install chromium",
)
def test_the_keys_of_a_list_are_measured(tmp_path):
    options = ["--only-lists", "--lists", "60", "--rounds", "1", "--json", tmp_path / "out.json"]
    subprocess.run([sys.executable, SCRIPT, *options], check=True, capture_output=True)
    results = json.loads((tmp_path / "out.json").read_text())
    assert results["results"] == {}
    assert list(results["lists"]) == ["60 scans"]
    figures = results["lists"]["60 scans"]
    assert figures["keys"] == N_KEYS
    for key in ("key_ms", "key_busy_ms"):
        assert 0 < figures[f"{key}_min"] <= figures[f"{key}_median"] <= figures[f"{key}_max"]
