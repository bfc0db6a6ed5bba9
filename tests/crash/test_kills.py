"""The short form of the kill loops; ``make test-crash`` runs the long one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from killing.check import MIXED, faults_at_end, harm_after_kill, left_over
from killing.driver import Plan
from killing.kills import count_kills

LONG = Path(__file__).parent / "long.py"


def check_kill_at(data, disk, start, change):
    """Kill a run before a change of its store; check the store, and what the next run makes."""
    url = disk.new(data.stores[start])
    words = data.words(url)
    run = data.driver.start(words, url, Plan(pause_at=change))
    run.wait_until_paused()
    run.kill()
    assert run.wait() == -9
    reference = data.references[start]
    assert harm_after_kill(disk.files(url), url, reference) == []
    code, run = data.driver.run(words, url)
    assert code == 0, run.output
    assert faults_at_end(disk.files(url), url, reference) == []


@pytest.mark.long
@pytest.mark.parametrize(("place", "kills"), [("disk", 12), ("S3", 3)], indirect=["place"])
def test_kills_do_no_harm(crash_data, place, kills):
    counts = count_kills(crash_data, place, kills, seed=1)
    assert counts.kills == kills
    assert set(counts.faults) <= {MIXED}, counts.examples


@pytest.mark.long
@pytest.mark.parametrize("start", ["nothing", "version 1"])
@pytest.mark.parametrize(
    "change",
    [
        "scans/fewer-shards/zarr.json.partial",
        "rename scans/fewer-shards/zarr.json.partial",
        "rename scans/new/zarr.json.partial",
        "rename scans/amended/zarr.json.partial",
        "open table/zarr.json.partial",
        "rename table/zarr.json.partial",
        "table_bundle/zarr.json",
        "open table_bundle/zarr.json.partial",
        "rename table_bundle/zarr.json.partial",
        "rename ingest/zarr.json.partial",
        "ingest.lock",
    ],
)
def test_a_kill_when_a_scan_or_the_table_is_published_does_no_harm(crash_data, disk, start, change):
    check_kill_at(crash_data, disk, start, change)


@pytest.mark.long
def test_leftovers_survive_an_audit_and_are_removed_by_the_next_ingest(crash_data, disk):
    url = disk.new(crash_data.stores["version 1"])
    words = crash_data.words(url)
    run = crash_data.driver.start(words, url, Plan(pause_at="open scans/new/label"))
    run.wait_until_paused()
    run.kill()
    assert run.wait() == -9
    code, run = crash_data.driver.run(["audit", url], url)
    assert code == 1, run.output  # random voxels have findings
    assert left_over(disk.files(url))  # the audit does not remove leftovers
    files = [crash_data.folder / "raw2" / f"new_{kind}.nii.gz" for kind in ("ct", "seg")]
    for file in files:
        file.rename(crash_data.folder / file.name)
    try:
        code, run = crash_data.driver.run(words, url)
    finally:
        for file in files:
            (crash_data.folder / file.name).rename(file)
    assert code == 0, run.output
    assert left_over(disk.files(url)) == []


@pytest.mark.long
def test_the_long_form_also_counts_kills_of_plain_zarr_python(tmp_path):
    options = ["--local", "1", "--s3", "0", "--baseline", "2", "--json", tmp_path / "counts.json"]
    done = subprocess.run([sys.executable, LONG, *options], capture_output=True, check=True)
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert counts["disk"]["kills"] == 1
    assert sum(counts["plain zarr-python"].values()) == 2
    assert b"silently incomplete" in done.stdout


@pytest.mark.long
@pytest.mark.parametrize(("place", "kills"), [("disk", 8), ("S3", 2)], indirect=["place"])
def test_kills_of_derive_do_no_harm(derive_data, place, kills):
    counts = count_kills(derive_data, place, kills, seed=2)
    assert counts.kills == kills
    assert set(counts.faults) <= {MIXED}, counts.examples


@pytest.mark.long
@pytest.mark.parametrize(
    ("start", "change"),
    [
        ("nothing", "open scans/kept/parts/"),
        ("nothing", "scans/kept/zarr.json.partial"),
        ("nothing", "rename scans/kept/zarr.json.partial"),
        ("version 1", "rename scans/new/zarr.json.partial"),
        ("version 1", "rename scans/amended/zarr.json.partial"),
        ("version 1", "rename table/zarr.json.partial"),
        ("nothing", "rename ingest/zarr.json.partial"),
    ],
)
def test_a_kill_when_a_derived_scan_is_published_does_no_harm(derive_data, disk, start, change):
    check_kill_at(derive_data, disk, start, change)
