"""``spinezarr doctor`` on real places: a disk, a web server, a bucket, and broken ones."""

import json
import shutil
from pathlib import Path

import pytest

from spinezarr.native_library import NO_KERNEL


@pytest.fixture
def doctor(run):
    """Return a function that runs the command and returns its findings by name."""

    def diagnose(*words, code=0):
        diagnosis = json.loads(run("doctor", *words, "--json", code=code).out)
        assert diagnosis["exit_code"] == code
        findings = diagnosis["findings"]
        for finding in findings:
            assert (finding["status"] == "ok") == (finding["advice"] == ""), finding
        assert any(finding["status"] == "broken" for finding in findings) == bool(code)
        return {finding["name"]: finding for finding in findings}

    return diagnose


def test_a_store_on_disk_is_checked(doctor, ctspine1k_url):
    found = doctor(ctspine1k_url)
    assert {"Python", "zarr", "kernel", "codecs", "memory", "open files"} <= found.keys()
    assert {"shared memory", "start of workers", "free space", "file system"} <= found.keys()
    assert found["kernel"]["found"] == "works"
    assert found["store"]["found"].startswith("6 scans")
    assert found["sequential read"]["figures"]["bytes"] > 0
    assert found["random read"]["figures"]["requests"] > 6


def test_a_folder_is_checked_and_stays_as_it_was(doctor, tmp_path, run):
    found = doctor()
    assert found["write"]["figures"]["bytes"] > 0
    assert list(tmp_path.iterdir()) == []
    said = run("doctor", tmp_path, code=0).out.decode()
    assert "sequential read" in said
    assert "Nothing is broken" in said


def test_a_kernel_that_is_turned_off_is_a_note_that_says_what_it_costs(
    doctor, ctspine1k_url, monkeypatch
):
    monkeypatch.setenv(NO_KERNEL, "1")
    kernel = doctor(ctspine1k_url)["kernel"]
    assert kernel["status"] == "note"
    assert "twice as long" in kernel["advice"]
    assert f"Unset {NO_KERNEL}" in kernel["advice"]


def test_a_web_server_is_checked(doctor, ctspine1k_url, serve):
    base, requests = serve(Path(ctspine1k_url).parent)
    found = doctor(f"{base}/{Path(ctspine1k_url).name}")
    assert "answers after" in found["random read"]["found"]
    assert found["random read"]["figures"]["share_from_disk"] is None
    assert sum(is_range for _, is_range in requests) > 12
    assert "free space" not in found


@pytest.mark.long
def test_a_bucket_is_checked(doctor, ctspine1k_url, s3_server, monkeypatch):
    bucket = s3_server.new_bucket()
    for path in Path(ctspine1k_url).rglob("*"):
        if path.is_file():
            key = f"s.zarr/{path.relative_to(ctspine1k_url)}"
            s3_server.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    for name, text in s3_server.environment.items():
        monkeypatch.setenv(name, text)
    found = doctor(f"s3://{bucket}/s.zarr")
    assert found["sequential read"]["figures"]["bytes"] > 0
    assert found["store"]["found"].startswith("6 scans")


def test_a_damaged_store_is_broken_and_the_machine_is_checked_all_the_same(
    doctor, ctspine1k_url, tmp_path, run
):
    damaged = tmp_path / "damaged.zarr"
    shutil.copytree(ctspine1k_url, damaged)
    (damaged / "zarr.json").write_text("{")
    found = doctor(damaged, code=1)
    assert found["place"]["status"] == "broken"
    assert found["kernel"]["status"] == "ok"
    assert "1 check found something broken" in run("doctor", damaged, code=1).out.decode()


def test_a_server_that_does_not_answer_is_broken(doctor):
    found = doctor("http://127.0.0.1:1/s.zarr", code=1)
    assert "127.0.0.1" in found["place"]["advice"]


def test_a_place_that_does_not_exist_is_wrong_usage(run, tmp_path):
    assert "is not a store" in run("doctor", tmp_path / "nowhere", code=2).err.decode()
