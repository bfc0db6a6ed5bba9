"""``derive``: options, reports and exit codes."""

import json

import pytest
from small_scans import make_store

import spinezarr


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Write and ingest some scans; no test may change them."""
    return make_store(tmp_path_factory.mktemp("own"), ["box", "oblique", "bare"])


OPTIONS = ("--spacing-mm", "5,1,1", "--crop", "spine", "--margin-mm", 3, "--layer", "none")


def test_the_command_has_exit_codes_and_reports(run, own, tmp_path):
    command = ("derive", own.url, "--out", tmp_path / "derived.zarr", *OPTIONS)
    done = run(*command, "--intensity", "-200,1000", code=1).out.decode()
    assert "resampled to 5 x 1 x 1 mm (z, y, x)" in done
    assert "bare" in done
    assert "no spine to crop to" in " ".join(done.split())
    derived = spinezarr.open(tmp_path / "derived.zarr")
    assert derived.table.masks.to_numpy().tolist() == ["", ""]
    info = run("info", tmp_path / "derived.zarr", code=0).out.decode()
    assert f"derived from {own.url}: resampled to 5 x 1 x 1 mm" in info
    again = run(*command, "--intensity", "-200,1000", "--scan", "box", "--json", code=0)
    report = json.loads(again.out)
    assert (report["skipped"], report["failed"]) == (["box"], [])
    assert report["from_earlier_runs"] == ["oblique"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--spacing-mm", "1,2"], "or three for z, y and x, such as 3,1,1"),
        (["--spacing-mm", "one"], "give one number of at least 0.001 mm, or three"),
        (["--spacing-mm", "0"], "at least 0.001"),
        (["--margin-mm", "5"], "--margin-mm needs --crop"),
        (["--mask-interpolation", "linear"], "needs --spacing-mm"),
        (["--no-antialias"], "needs --spacing-mm"),
        (["--intensity", "5,5"], "larger HU of 255"),
        (["--intensity", "5"], "give two numbers in HU, such as -200,1000"),
        (["--crop", "skull"], "skull"),
        (["--scan", "nobody"], "has no scan 'nobody'"),
        (["--layer", "label"], "in any case"),
        (["--codec", "tiny"], "no codec profile 'tiny'"),
        (["--codec", "balnced"], "Did you mean 'balanced'?"),
    ],
)
def test_mistakes_are_usage_errors(run, own, tmp_path, words, message):
    out = tmp_path / "derived.zarr"
    problem = run("derive", own.url, "--out", out, *words, code=2).err.decode()
    assert message in " ".join(problem.split())
    assert "Traceback" not in problem
    assert not out.exists()
