import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

FOLDER = Path(__file__).parents[2] / "examples"
SHORT = ["--seconds", "0.5", "--rounds", "2", "--spacing-mm", "6"]


def run(name, *options):
    command = [sys.executable, FOLDER / name, *SHORT, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def check_rows(path, sources):
    rows = json.loads(path.read_text())["rows"]
    assert [row["source"] for row in rows] == sources
    assert rows[0]["of_first_median"] == 1
    for row in rows:
        assert row["samples_min"] > 0
        assert row["mb"] > 0
        assert 0 < row["waited_share_min"] <= row["waited_share_max"] < 1
        assert row["core_ms_min"] > 0
        assert row["last_loss_max"] < 10
        assert row["held_out_loss_max"] < 10
    return rows


def test_a_monai_network_trains_from_each_source(ctspine1k_url, tmp_path):
    out = tmp_path / "out.json"
    done = run("train_monai.py", ctspine1k_url, "--size", "24", "--json", out)
    assert done.returncode == 0, done.stderr
    sources = ["store", "derived store", "PersistentDataset", "CacheDataset"]
    rows = check_rows(out, sources)
    assert [row["prepared_s"] > 0 for row in rows] == [False, True, True, True]
    assert all(source in done.stdout for source in sources)


def test_nnunet_trains_from_each_source_or_says_what_it_needs(ctspine1k_url, tmp_path):
    out = tmp_path / "out.json"
    done = run("train_nnunet.py", ctspine1k_url, "--features", "4", "--json", out)
    if done.returncode == 2:
        assert "pip install nnunetv2" in done.stderr
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    check_rows(out, ["nnU-Net's copy", "derived store", "store"])
