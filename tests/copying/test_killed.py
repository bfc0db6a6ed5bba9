"""A push that is killed in a process of its own continues, and leaves no store."""

import json
import signal
import subprocess
import sys
import time

import pytest

import spinezarr
from spinezarr.errors import StoreNotFoundError

pytestmark = pytest.mark.long

COMMAND = [sys.executable, "-c", "from spinezarr.cli.main import main; main()"]


def keys_in(server, bucket):
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    return {found["Key"] for page in pages for found in page.get("Contents", [])}


def run(words, environment):
    done = subprocess.run(
        [*COMMAND, *words], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("objects", [1, 14])
def test_a_killed_push_to_a_bucket_continues(small, s3_server, tmp_path, objects, read_files):
    bucket = s3_server.new_bucket()
    url = f"s3://{bucket}/small.zarr"
    environment = s3_server.environment
    words = ["push", small.url, url]
    with subprocess.Popen(
        [*COMMAND, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        limit_s = time.monotonic() + 60
        while len(keys_in(s3_server, bucket)) < objects and process.poll() is None:
            assert time.monotonic() < limit_s
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    keys = keys_in(s3_server, bucket)
    if "small.zarr/zarr.json" not in keys:
        with pytest.raises(StoreNotFoundError):
            spinezarr.open(url, storage_options=s3_server.storage_options)
    s3_server.client.delete_object(
        Bucket=bucket, Key="small.zarr/ingest.lock"
    )  # its minute is over
    code, out, err = run([*words, "--json"], environment)
    assert code == 0, out + err
    report = json.loads(out)
    before = {key for key in keys if "/scans/" in key}
    assert report["objects_written"] <= report["objects"] - len(before) + 8
    remote = spinezarr.open(url, storage_options=s3_server.storage_options)
    remote.pull(tmp_path / "back.zarr")
    found, expected = read_files(tmp_path / "back.zarr"), read_files(small.url)
    assert all(found[key] == expected[key] for key in expected if key.startswith("scans/"))


def test_exit_codes_and_messages(small, s3_server, tmp_path):
    environment = s3_server.environment
    url = f"s3://{s3_server.new_bucket()}/small.zarr"
    code, out, _ = run(["push", small.url, url, "--dry-run"], environment)
    assert code == 0
    assert "4 scans: " in out
    assert "sets no limit" in out
    code, out, _ = run(["push", small.url, url], environment)
    assert code == 0
    assert "Copied 4 scans" in out
    code, out, _ = run(["pull", url, str(tmp_path / "back.zarr"), "--split", "train"], environment)
    assert code == 0
    assert "Copied 1 scan " in out
    for words in (
        ["push", small.url, small.url],
        ["push", small.url, url, "--split", "nowhere"],
        ["push", str(tmp_path / "nothing.zarr"), url],
        ["pull", url, url],
        ["push", small.url],
    ):
        code, out, err = run(words, environment)
        assert code == 2, out + err
        assert "Traceback" not in err
