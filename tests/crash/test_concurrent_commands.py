"""Several commands on one store at once all succeed, or one explains why not; no scan is mixed."""

import os
import re
import socket
import time
from dataclasses import replace

import numpy as np
import pytest
from killing.check import faults_at_end, harm_after_kill, left_over
from killing.driver import Plan

pytestmark = pytest.mark.long

RANDOM = np.random.default_rng()
ROUNDS = int(os.environ.get("CRASH_ROUNDS", "1"))


def names_the_other(run, other):
    """Return whether the output names the other process, its machine, and what to do."""
    named = re.search(rf"process {other.pid} on {re.escape(socket.gethostname())}", run.output)
    return bool(named) and "Wait until it has ended" in run.output


def both(crash_data, place, url, words):
    """Start two commands at nearly the same time and wait for them."""
    runs = [place.start(words[0], url, None)]
    time.sleep(RANDOM.choice([0, 0.05, 0.2, 0.5]))
    runs.append(crash_data.driver.start(words[1], url, Plan(environment=place.environment)))
    codes = [run.wait() for run in runs]
    for code, run, other in zip(codes, runs, runs[::-1], strict=True):
        assert "Traceback" not in run.output
        assert code in {0, 1, 2}
        assert code == 0 or words[0] != words[1] or names_the_other(run, other), run.output
    return list(zip(codes, runs, strict=True))


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_two_ingests_of_the_same_files_give_one_valid_store(crash_data, place, round_):
    url = place.new(crash_data.stores["version 1"])
    ended = both(crash_data, place, url, [crash_data.words(url)] * 2)
    assert 0 in {code for code, _ in ended}
    reference = crash_data.references["version 1"]
    assert faults_at_end(place.files(url), url, reference) == []
    run = place.start(crash_data.words(url), url, None)
    assert run.wait() == 0, run.output
    assert faults_at_end(place.files(url), url, reference) == []


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_two_ingests_of_different_files_never_mix_a_scan(crash_data, place, round_):
    url = place.new({})
    ended = both(crash_data, place, url, [crash_data.words(url, 1), crash_data.words(url, 2)])
    assert 0 in {code for code, _ in ended}
    for i, (code, run) in enumerate(ended):
        assert code == 0 or names_the_other(run, ended[1 - i][1]), run.output
    reference = replace(crash_data.references["version 1"], before=frozenset(), table_before=False)
    files = place.files(url)
    assert harm_after_kill(files, url, reference) == []
    assert left_over(files) == []


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_an_ingest_and_an_audit_at_once_give_a_valid_store(crash_data, place, round_):
    url = place.new(crash_data.stores["version 1"])
    words = [crash_data.words(url), ["audit", url]]
    if RANDOM.random() < 0.5:
        words.reverse()
    ended = both(crash_data, place, url, words)
    reference = crash_data.references["version 1"]
    for (code, run), command, (_, other) in zip(ended, words, ended[::-1], strict=True):
        findings = command[0] == "audit" and "Audit of" in run.output  # random voxels have some
        assert code == 0 or findings or names_the_other(run, other), run.output
    files = place.files(url)
    assert harm_after_kill(files, url, reference) == []
    assert left_over(files) == []
    run = place.start(crash_data.words(url), url, None)
    assert run.wait() == 0, run.output
    end = {fault.text for fault in faults_at_end(place.files(url), url, reference)}
    assert end <= {"the scan table"}  # the table shows the findings of the audit


def test_the_error_of_a_second_ingest_names_the_first(crash_data, disk):
    url = disk.new(crash_data.stores["version 1"])
    first = crash_data.driver.start(
        crash_data.words(url), url, Plan(pause_at="open scans/new/image")
    )
    first.wait_until_paused()
    code, second = crash_data.driver.run(crash_data.words(url), url)
    assert code in {1, 2}
    assert names_the_other(second, first), second.output
    assert second.changes == [change for change in second.changes if "ingest.lock" in change]
    first.resume()
    assert first.wait() == 0, first.output
    assert faults_at_end(disk.files(url), url, crash_data.references["version 1"]) == []


@pytest.mark.parametrize("pause_at", ["open audit/zarr.json", "open table/"])
def test_the_error_of_an_ingest_names_a_running_audit(crash_data, disk, pause_at):
    url = disk.new(crash_data.stores["version 1"])
    audit = crash_data.driver.start(["audit", url], url, Plan(pause_at=pause_at))
    audit.wait_until_paused()
    code, run = crash_data.driver.run(crash_data.words(url), url)
    assert code in {1, 2}
    assert names_the_other(run, audit), run.output
    audit.resume()
    assert audit.wait() == 1  # random voxels have findings
    code, run = crash_data.driver.run(crash_data.words(url), url)
    assert code == 0, run.output


def test_the_error_of_an_audit_names_a_running_ingest(crash_data, disk):
    url = disk.new(crash_data.stores["version 1"])
    run = crash_data.driver.start(crash_data.words(url), url, Plan(pause_at="open scans/new/image"))
    run.wait_until_paused()
    code, audit = crash_data.driver.run(["audit", url], url)
    assert code in {1, 2}
    assert names_the_other(audit, run), audit.output
    run.resume()
    assert run.wait() == 0, run.output
    assert faults_at_end(disk.files(url), url, crash_data.references["version 1"]) == []
