import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "startup.py"


def test_commands_and_peers_are_measured(tmp_path):
    options = ["--shape", "20", "32", "32", "--rounds", "1", "--peers", "zarr", "not_installed"]
    command = [sys.executable, SCRIPT, *options, "--json", tmp_path / "out.json"]
    subprocess.run(command, check=True, capture_output=True)
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    names = {row["row"] for row in rows}
    assert {"spinezarr --help", "open a store, first batch", "import numpy"} <= names
    assert {name for name in names if name.startswith("import ")} == {
        "import typer", "import spinezarr", "import numpy", "import zarr",
    }  # fmt: skip
    for row in rows:
        assert 0 < row["core_s"] <= row["wall_s"] * 64
        assert row["peak_mb"] > 0
