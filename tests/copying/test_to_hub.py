"""Uploads to a hub: one commit makes a store visible, and a second run sends what is missing."""

import numpy as np
import pytest
from hub_server import Fault

import spinezarr
from spinezarr.copying import to_hub
from spinezarr.copying.to_hub import UploadSettings
from spinezarr.errors import StoreNotFoundError, UsageError

# huggingface_hub itself uses an argument of its HTTP client that is going to be renamed.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

URL = "hf://datasets/lab/spine/small.zarr"
SCANS = ("bare", "box", "empty", "oblique")


@pytest.fixture(autouse=True)
def small_commits(monkeypatch):
    """Make commits of few files, so that there are several."""
    settings = UploadSettings(files_per_commit=12, first_wait_s=0.01)
    monkeypatch.setattr(to_hub, "UPLOAD_SETTINGS", settings)


def scans_in(repository):
    return {path.split("/")[2] for path in repository.files if path.startswith("small.zarr/scans/")}


def check_equal(repository, url, read_files):
    scans = {
        path.removeprefix("small.zarr/"): data
        for path, data in repository.files.items()
        if path.startswith("small.zarr/scans/")
    }
    assert scans == {k: d for k, d in read_files(url).items() if k.startswith("scans/")}
    store, copy = spinezarr.open(url), spinezarr.open(URL)
    assert copy.table.identical(store.table)
    assert not copy.verify().faults


def test_the_last_commit_makes_the_store_visible(small, hub, read_files):
    repository = hub.add("lab/spine")
    report = spinezarr.open(small.url).push(URL)
    assert (report.exit_code, report.outcome.copied) == (0, SCANS)
    check_equal(repository, small.url, read_files)
    *earlier, (_, last) = repository.commits
    assert len(earlier) > 3
    groups = {f"small.zarr/scans/{name}/zarr.json" for name in SCANS} | {"small.zarr/zarr.json"}
    assert groups <= set(last)
    assert groups.isdisjoint(path for _, paths in earlier for path in paths)
    for revision in list(repository.revisions)[:-1]:
        with pytest.raises(StoreNotFoundError):
            spinezarr.open(f"hf://datasets/lab/spine@{revision}/small.zarr")
    kinds = [{path.endswith("zarr.json") for path in paths} for _, paths in earlier]
    assert all(len(kind) == 1 for kind in kinds), "voxels and metadata are in different commits"
    assert not hub.leaked, "the token goes to the hub alone"


def test_a_second_upload_sends_nothing(small, hub):
    repository = hub.add("lab/spine")
    store = spinezarr.open(small.url)
    store.push(URL)
    n = len(repository.commits)
    report = store.push(URL)
    assert report.outcome.kept == SCANS
    assert report.work.to_copy.objects == 0
    assert len(repository.commits) == n


def test_an_upload_that_was_cut_off_continues(small, hub, read_files):
    repository = hub.add("lab/spine")
    store = spinezarr.open(small.url)
    hub.faults = [Fault("commit", 400, after=2, times=10)]
    with pytest.raises(ConnectionError, match="Run the same command again"):
        store.push(URL)
    assert len(repository.commits) == 2
    done = {path for _, paths in repository.commits for path in paths}
    hub.faults = []
    report = store.push(URL)
    assert report.exit_code == 0
    later = {path for _, paths in repository.commits[2:] for path in paths}
    assert done.isdisjoint(later)
    check_equal(repository, small.url, read_files)


@pytest.mark.parametrize(
    "headers",
    [{}, {"Retry-After": "0"}, {"RateLimit": '"api";r=0;t=0'}],
    ids=["no header", "Retry-After", "RateLimit"],
)
@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again(small, hub, status, headers, read_files):
    repository = hub.add("lab/spine")
    hub.faults = [Fault("commit", status, headers, times=2, after=1)]
    assert spinezarr.open(small.url).push(URL, scans=["box", "bare"]).exit_code == 0
    assert scans_in(repository) >= {"box", "bare"}


def test_a_change_by_somebody_else_is_noticed(small, hub):
    repository = hub.add("lab/spine")

    def disturb(progress):
        if progress.step == "push" and progress.done and len(repository.commits) == 1:
            repository.commit("theirs", [("README.md", b"hello")])

    with pytest.raises(ConnectionError, match="has changed meanwhile"):
        spinezarr.open(small.url).push(URL, on_progress=disturb)
    assert "small.zarr/zarr.json" not in repository.files
    assert spinezarr.open(small.url).push(URL).exit_code == 0
    assert repository.files["README.md"] == b"hello"


def test_parts_add_up_and_old_files_go(small, hub, tmp_path, read_files):
    repository = hub.add("lab/spine")
    store = spinezarr.open(small.url)
    store.push(URL, split="train")
    assert spinezarr.open(URL).table.scan.to_numpy().tolist() == ["box"]
    repository.commit("old", [("small.zarr/scans/bare/image/c/9/9/9", b"\0old")])
    store.push(URL, split="test")
    assert spinezarr.open(URL).table.scan.to_numpy().tolist() == ["box", "oblique"]
    store.push(URL)
    check_equal(repository, small.url, read_files)


def test_a_repository_that_cannot_be_written_is_wrong_usage(small, hub, monkeypatch, s3_server):
    store = spinezarr.open(small.url)
    with pytest.raises(UsageError, match="no such dataset repository"):
        store.push(URL)
    hub.add("lab/spine")
    with pytest.raises(UsageError, match="Give a folder of the repository"):
        store.push("hf://datasets/lab/spine")
    with pytest.raises(UsageError, match="hf buckets sync"):
        store.push("hf://buckets/lab/spine/small.zarr")
    hub.faults = [Fault("commit", 403, times=9)]
    with pytest.raises(UsageError, match="may not write"):
        store.push(URL)
    hub.faults = []
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    with pytest.raises(UsageError, match="log in with 'hf auth login'"):
        store.push(URL)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    url = f"s3://{s3_server.new_bucket()}/small.zarr"
    store.push(url, scans="bare", storage_options=s3_server.storage_options)
    remote = spinezarr.open(url, storage_options=s3_server.storage_options)
    with pytest.raises(UsageError, match="is not on disk"):
        remote.push(URL, storage_options={})


def test_a_store_comes_back_from_a_hub(small, hub, tmp_path, read_files):
    hub.add("lab/spine")
    spinezarr.open(small.url).push(URL)
    report = spinezarr.open(URL).pull(tmp_path / "back.zarr")
    assert report.exit_code == 0
    copied = read_files(tmp_path / "back.zarr")
    original = read_files(small.url)
    scans = [key for key in original if key.startswith("scans/")]
    assert all(copied[key] == original[key] for key in scans)
    image = spinezarr.open(tmp_path / "back.zarr").scan("box").image
    np.testing.assert_array_equal(image, spinezarr.open(small.url).scan("box").image)
