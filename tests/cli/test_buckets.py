"""The command line on buckets of moto's server, in a process of its own where needed."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

import spinezarr
from spinezarr.cli.main import app
from spinezarr.errors import StoreNotFoundError, UsageError
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_ctspine1k, write_nifti

pytestmark = pytest.mark.long

COMMAND = [sys.executable, "-c", "from spinezarr.cli.main import main; main()"]
SCANS = 6
HUSH = "hush-hush"


@pytest.fixture
def bucket(s3_server):
    return s3_server.new_bucket()


@pytest.fixture
def cli(s3_server, tmp_path, monkeypatch):
    """Return a function that runs a command in this process, without the user's AWS settings."""

    def run(*words, code=0, **variables):
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, text in {**s3_server.environment, **variables}.items():
                if text is None:
                    patch.delenv(name, raising=False)
                else:
                    patch.setenv(name, text)
            result = CliRunner().invoke(app, [str(word) for word in words])
        assert result.exit_code == code, result.output + repr(result.exception)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert "Please report" not in result.output
        return result.stdout if code == 0 or result.stdout else result.stderr

    return run


def objects(s3_server, bucket, prefix=""):
    """Return all objects below a prefix, by the rest of their keys."""
    pages = s3_server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [found["Key"] for page in pages for found in page.get("Contents", [])]
    client = s3_server.client
    return {
        key.removeprefix(prefix): client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
    }


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def upload(s3_server, bucket, folder, prefix=""):
    for key, data in files(folder).items():
        s3_server.client.put_object(Bucket=bucket, Key=f"{prefix}{key}", Body=data)


def same_store(found, expected):
    """Return whether two stores hold the same bytes; only the ledger has times of source files."""
    for store in (found, expected):
        store.pop("ingest/zarr.json", None)
    assert found == expected


@pytest.fixture(scope="module")
def ingested(s3_server, ctspine1k_raw):
    """Return a bucket with a store ``store/ct.zarr``, which no test may change, and the output."""
    bucket = s3_server.new_bucket()
    url = f"s3://{bucket}/store/ct.zarr"
    done = subprocess.run(
        [*COMMAND, "ingest", "ctspine1k", "--raw", ctspine1k_raw[0], "--out", url, "--json"],
        env=s3_server.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return bucket, url, json.loads(done.stdout)


def test_a_store_in_a_bucket_has_the_bytes_of_one_on_disk(ingested, s3_server, ctspine1k_url):
    bucket, _, report = ingested
    assert len(report["done"]) == SCANS
    same_store(objects(s3_server, bucket, "store/ct.zarr/"), files(ctspine1k_url))


def test_a_repeated_ingest_into_a_bucket_writes_nothing(ingested, s3_server, cli, ctspine1k_raw):
    bucket, url, _ = ingested
    before = objects(s3_server, bucket)
    out = cli("ingest", "ctspine1k", "--raw", ctspine1k_raw[0], "--out", url, "--json")
    assert len(json.loads(out)["skipped"]) == SCANS
    assert objects(s3_server, bucket) == before


def test_plain_xarray_opens_a_store_in_a_bucket(ingested, s3_server, ctspine1k_url):
    _, url, _ = ingested
    options = s3_server.storage_options
    for path in ("table", "scans/liver_0"):
        there = xr.open_zarr(f"{url}/{path}", storage_options=options)
        here = xr.open_zarr(f"{ctspine1k_url}/{path}")
        xr.testing.assert_identical(there.load(), here.load())
    mine = spinezarr.open(url, storage_options=options)
    xr.testing.assert_identical(
        mine.scan("liver_0").load(), spinezarr.open(ctspine1k_url).scan("liver_0").load()
    )


def test_patches_from_a_bucket_equal_those_from_disk(ingested, s3_server, ctspine1k_url):
    remote = spinezarr.open(ingested[1], storage_options=s3_server.storage_options)
    options = {"batch_size": 3, "foreground": 0.5, "n_samples": 6}
    pairs = zip(
        remote.patches((16, 24, 24), **options),
        spinezarr.open(ctspine1k_url).patches((16, 24, 24), **options),
        strict=True,
    )
    for there, here in pairs:
        np.testing.assert_array_equal(there.image, here.image)
        np.testing.assert_array_equal(there.label, here.label)


def test_every_command_works_on_a_bucket(ingested, cli, ctspine1k_url, tmp_path):
    url = ingested[1]
    there = json.loads(cli("info", url, "--json"))
    here = json.loads(cli("info", ctspine1k_url, "--json"))
    assert {**there, "url": ""} == {**here, "url": ""}
    assert cli("stats", url, "--format", "csv") == cli("stats", ctspine1k_url, "--format", "csv")
    cli("preview", url, "--scan", "liver_0", "--out", tmp_path / "pictures")
    assert (tmp_path / "pictures" / "liver_0.png").stat().st_size > 1000


def test_s3_options_are_named_as_in_the_aws_command_line(ingested, s3_server, cli, tmp_path):
    bucket, url, _ = ingested
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {s3_server.endpoint_url}\n")
    (tmp_path / "keys").write_text(
        f"[lab]\naws_access_key_id = {s3_server.access_key}\n"
        f"aws_secret_access_key = {s3_server.secret_key}\n"
    )
    nothing = {"AWS_ENDPOINT_URL": None, "AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}
    lab = {
        **nothing,
        "AWS_CONFIG_FILE": str(tmp_path / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "keys"),
    }
    assert "6 scans" in cli("info", url, "--profile", "lab", **lab)
    assert "6 scans" in cli("info", url, **lab, AWS_PROFILE="lab")
    assert "no such" not in cli(
        "info", url, "--endpoint-url", s3_server.endpoint_url, AWS_ENDPOINT_URL=None
    )
    # First a private bucket, then a public one.
    asked = ("info", url, "--endpoint-url", s3_server.endpoint_url, "--no-sign-request")
    assert "access is denied" in cli(*asked, code=1, **nothing)
    everybody = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
    policy = {
        "Version": "2012-10-17",
        "Statement": [{**everybody, "Resource": [f"arn:aws:s3:::{bucket}/*"]}],
    }
    s3_server.client.put_bucket_policy(Bucket=bucket, Policy=json.dumps(policy))
    try:
        assert "6 scans" in cli(*asked, **nothing)
    finally:
        s3_server.client.delete_bucket_policy(Bucket=bucket)


def test_a_catalog_may_hold_the_options_of_a_bucket(
    ingested, s3_server, cli, tmp_path, monkeypatch
):
    text = (
        "datasets:\n  ct:\n    recipe: ctspine1k\n"
        f"    store: {ingested[1]}\n"
        "    storage_options: {endpoint_url: " + s3_server.endpoint_url + "}\n"
    )
    (tmp_path / "catalog.yaml").write_text(text)
    assert "6 scans" in cli("info", "ct", "--catalog", "catalog.yaml", AWS_ENDPOINT_URL=None)
    assert "name it: --catalog" in cli("info", "ct", code=2)
    monkeypatch.chdir(tmp_path)
    keys = s3_server.storage_options
    opened = spinezarr.open("ct", catalog="catalog.yaml", storage_options=keys)
    assert opened.table.sizes["scan"] == SCANS
    (tmp_path / "catalog.yaml").write_text(text.replace("endpoint_url", "secret"))
    assert "secret" in cli("info", "ct", code=2)


def test_an_audit_is_kept_in_the_bucket(s3_server, bucket, cli, ctspine1k_url):
    upload(s3_server, bucket, ctspine1k_url, "ct.zarr/")
    url = f"s3://{bucket}/ct.zarr"
    cli("audit", url, "--json")
    store = spinezarr.open(url, storage_options=s3_server.storage_options)
    assert (store.table.audit != "").all()


def test_a_raw_folder_in_a_bucket_is_ingested_into_a_bucket_and_to_disk(
    s3_server, bucket, cli, ctspine1k_raw, ctspine1k_url
):
    upload(s3_server, bucket, ctspine1k_raw[0], "raw/CTSpine1K/")
    raw = f"s3://{bucket}/raw/CTSpine1K"
    cli("ingest", "ctspine1k", "--raw", raw, "--out", f"s3://{bucket}/ct.zarr")
    same_store(objects(s3_server, bucket, "ct.zarr/"), files(ctspine1k_url))


def test_the_raw_folder_may_have_its_own_s3_options(
    s3_server, bucket, cli, ctspine1k_raw, tmp_path
):
    upload(s3_server, bucket, ctspine1k_raw[0])
    ours = ("--raw-endpoint-url", s3_server.endpoint_url)
    raw = ("ingest", "ctspine1k", "--raw", f"s3://{bucket}", *ours)
    cli(*raw, "--out", tmp_path / "ct.zarr", AWS_ENDPOINT_URL=None)
    with pytest.raises(UsageError, match="is a path"):
        spinezarr.open(tmp_path / "ct.zarr", storage_options={"anon": True})
    words = ("--raw", ctspine1k_raw[0], "--out", tmp_path / "x.zarr", "--profile", "lab")
    assert "is a path" in cli("ingest", "ctspine1k", *words, code=2)


@pytest.fixture
def pairs(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    spec = PhantomSpec(shape_zyx=(96, 160, 160), spacing_zyx_mm=(3.0, 2.0, 2.0))
    phantom = make_phantom(spec)
    for name in "abcd":
        image, label = raw / f"{name}_ct.nii.gz", raw / f"{name}_seg.nii.gz"
        write_nifti(image, phantom.image, phantom.affine_xyz, NiftiForm())
        write_nifti(label, phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    patterns = ("--image", "{scan}_ct.nii.gz", "--label", "{scan}_seg.nii.gz")
    return raw, ("ingest", "pairs", "--raw", raw, *patterns)


def test_a_killed_ingest_into_a_bucket_can_be_continued(s3_server, bucket, cli, pairs, tmp_path):
    url = f"s3://{bucket}/mine.zarr"
    words = [*COMMAND, *map(str, pairs[1]), "--out", url]
    with subprocess.Popen(
        words, env=s3_server.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        done = "mine.zarr/scans/a/zarr.json"
        until = time.monotonic() + 60
        while not s3_server.client.list_objects_v2(Bucket=bucket, Prefix=done)["KeyCount"]:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert "mine.zarr/ingest.lock" in objects(s3_server, bucket)
    report = json.loads(cli(*pairs[1], "--out", url, "--json"))
    assert "a" in report["skipped"]
    assert sorted(report["skipped"] + report["done"]) == list("abcd")
    cli(*pairs[1], "--out", tmp_path / "mine.zarr")
    same_store(objects(s3_server, bucket, "mine.zarr/"), files(tmp_path / "mine.zarr"))


def test_a_changed_source_in_a_bucket_is_read_again(s3_server, bucket, cli, tmp_path):
    raw = tmp_path / "raw"
    written = write_ctspine1k(raw, scale=0.25)
    url = f"s3://{bucket}/ct.zarr"
    cli("ingest", "ctspine1k", "--raw", raw, "--out", url)
    first, second = (next(raw.rglob(f"{scan.scan_id}.nii.gz")) for scan in written[:2])
    assert first.stat().st_size != second.stat().st_size
    phantom = make_phantom(PhantomSpec(shape_zyx=(30, 20, 25), spacing_zyx_mm=(9.0, 9.0, 9.0)))
    write_nifti(first, phantom.image, phantom.affine_xyz, NiftiForm())
    label = next(path for path in raw.rglob(f"{written[0].scan_id}_seg.nii.gz"))
    write_nifti(label, phantom.label, phantom.affine_xyz, NiftiForm(dtype="uint8"))
    report = json.loads(cli("ingest", "ctspine1k", "--raw", raw, "--out", url, "--json"))
    assert report["done"] == [written[0].scan_id]
    store = spinezarr.open(url, storage_options=s3_server.storage_options)
    np.testing.assert_array_equal(store.scan(written[0].scan_id).image, phantom.image)
    assert tuple(store.table.shape_zyx.sel(scan=written[0].scan_id)) == phantom.image.shape


def test_a_refused_write_fails_one_scan_and_the_others_are_stored(s3_server, bucket, cli, pairs):
    deny = {
        "Effect": "Deny",
        "Principal": "*",
        "Action": "s3:PutObject",
        "Resource": f"arn:aws:s3:::{bucket}/mine.zarr/scans/b/*",
    }
    s3_server.client.put_bucket_policy(
        Bucket=bucket, Policy=json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    )
    words = (*pairs[1], "--out", f"s3://{bucket}/mine.zarr", "--json")
    report = json.loads(cli(*words, code=1))
    assert report["done"] == ["a", "c", "d"]
    ((failed),) = report["failed"]
    assert failed["scan_id"] == "b"
    assert failed["reason"].startswith(f"s3://{bucket}/mine.zarr/scans/b/")
    assert "access is denied" in failed["reason"]
    s3_server.client.delete_bucket_policy(Bucket=bucket)
    assert json.loads(cli(*words))["done"] == ["b"]


def test_the_error_of_an_absent_bucket_is_one_clear_message(cli, pairs):
    url = "s3://bucket-that-is-not/mine.zarr"
    assert "no such bucket" in cli(*pairs[1], "--out", url, code=2)
    assert "no such bucket" in cli("info", url, code=2)
    raw = ("--raw", "s3://bucket-that-is-not/raw", "--out", "x.zarr")
    assert "does not exist" in cli("ingest", "ctspine1k", *raw, code=2)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, "http://127.0.0.1:9"),
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "--profile"),
    ],
)
def test_errors_of_missing_server_or_credentials_are_one_clear_message(
    cli, pairs, variables, message
):
    url = "s3://some-bucket/mine.zarr"
    for words, code in (((*pairs[1], "--out", url), 2), (("info", url), 1)):
        text = cli(*words, code=code, **variables)
        assert message in text
        assert text.count("Error:") == 1


def test_a_process_with_a_wrong_bucket_exits_without_traceback(s3_server):
    environment = {**s3_server.environment, "AWS_MAX_ATTEMPTS": "1"}
    words = [*COMMAND, "info", "s3://some-bucket/x.zarr", "--endpoint-url", "http://127.0.0.1:9"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: s3://some-bucket/x.zarr")
    assert len(done.stderr.splitlines()) == 1


def test_the_error_of_a_bucket_without_a_store_says_so(s3_server, bucket):
    with pytest.raises(StoreNotFoundError, match="there is no store"):
        spinezarr.open(f"s3://{bucket}/x.zarr", storage_options=s3_server.storage_options)


def test_no_s3_secret_is_printed(s3_server, bucket, cli, ctspine1k_raw):
    words = ("ingest", "ctspine1k", "--raw", ctspine1k_raw[0], "--out", f"s3://{bucket}/ct.zarr")
    out = cli(*words, "--json", AWS_SECRET_ACCESS_KEY=HUSH)
    stored = b"".join(objects(s3_server, bucket).values())
    assert HUSH not in out
    assert HUSH.encode() not in stored
    options = {**s3_server.storage_options, "secret": HUSH}
    store = spinezarr.open(f"s3://{bucket}/ct.zarr", storage_options=options)
    assert HUSH not in repr(store) + repr(store.attrs) + repr(vars(store))
