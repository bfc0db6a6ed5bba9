"""Stores on a hub: no fault of the hub or of its content network ever becomes voxels."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hub_server import Fault, HubServer
from hypothesis import given
from hypothesis import strategies as st
from small_scans import make_store

import spinezarr
from spinezarr.errors import CorruptStoreError, StoreNotFoundError, UsageError
from spinezarr.remote.errors import retry_after_s
from spinezarr.remote.hub import HubLocation, hub_token, web_location

URL = "hf://datasets/lab/spine/small.zarr"
TOKEN = "hf_secret"  # noqa: S105  of the hub of the tests
QUICK = spinezarr.RemoteSettings(
    first_backoff_s=0.01, longest_backoff_s=0.02, patience_s=0.5, opening_patience_s=0.5
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("small"), ("box", "line"))


@pytest.fixture
def hub(monkeypatch, small):
    with HubServer(token=TOKEN) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        server.add("lab/spine", Path(small.url), "small.zarr/")
        yield server
        assert not server.leaked, "the token goes to the hub alone"


def by_xarray(hub):
    """Read a scan as a user of plain xarray does, through huggingface_hub."""
    options = {"endpoint": hub.url, "token": hub.token}
    scan = xr.open_zarr(f"{URL}/scans/box", storage_options=options, chunks=None)
    return scan.image.to_numpy(), scan.label.to_numpy()


def by_store(_):
    scan = spinezarr.open(URL, remote=QUICK).scan("box")
    return scan.image.to_numpy(), scan.label.to_numpy()


def by_patches(_):
    """Read a scan as one patch."""
    stream = spinezarr.open(URL, remote=QUICK).patches((26, 21, 24), scans="box", n_samples=1)
    batch = next(iter(stream))
    return batch.image[0], batch.label[0]


READERS = (by_xarray, by_store, by_patches)
ONCE = {
    "429": Fault("resolve", 429, {"Retry-After": "0"}),
    "429 without a time": Fault("resolve", 429),
    "429 of a hub": Fault("resolve", 429, {"RateLimit": '"resolvers";r=0;t=0'}),
    "503": Fault("resolve", 503),
    "500 of the content network": Fault("content", 500),
    "429 of the content network": Fault("content", 429),
}


@pytest.fixture(scope="module")
def truth(small):
    scan = spinezarr.open(small.url).scan("box")
    return scan.image.to_numpy(), scan.label.to_numpy()


def check_equal(found, truth):
    for values, expected in zip(found, truth, strict=True):
        np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("read", READERS)
def test_a_scan_is_read_through_redirects(hub, read, truth):
    check_equal(read(hub), truth)
    assert hub.requests["content"] >= 2
    # The API of a hub allows few requests. Only huggingface_hub uses it to read.
    assert bool(hub.requests["api"]) == (read is by_xarray)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize("name", ONCE)
def test_a_passing_fault_changes_no_voxel(hub, read, name, after, truth):
    fault = ONCE[name]
    hub.faults = [Fault(fault.kind, fault.status, fault.headers, 1, after)]
    check_equal(read(hub), truth)


@pytest.mark.parametrize("read", [by_store, by_patches])
def test_an_address_that_has_just_expired_is_asked_for_again(hub, read, truth):
    hub.faults = [Fault("content", 403, body=b"<Error><Code>AccessDenied</Code></Error>")]
    check_equal(read(hub), truth)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("kind", "status"),
    [("content", 403), ("content", 404), ("resolve", 401), ("resolve", 403)],
)
def test_a_lasting_fault_is_an_error_and_never_a_fill_value(hub, read, kind, status):
    hub.faults = [Fault(kind, status, times=10_000, after=0 if kind == "content" else 2)]
    with pytest.raises((OSError, CorruptStoreError)):
        read(hub)


@pytest.mark.long
@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(("kind", "status"), [("content", 500), ("resolve", 429)])
def test_a_hub_that_stays_busy_is_an_error(hub, read, kind, status):
    hub.faults = [Fault(kind, status, times=10_000, after=0 if kind == "content" else 2)]
    with pytest.raises((OSError, CorruptStoreError)):
        read(hub)


@pytest.mark.parametrize("read", READERS)
def test_addresses_that_are_always_expired_are_an_error(hub, read):
    hub.valid_s = -1.0
    with pytest.raises((OSError, CorruptStoreError)):
        read(hub)


@pytest.mark.parametrize("read", READERS)
def test_a_short_answer_is_no_voxels(hub, read, truth):
    hub.faults = [Fault("content", 206, {"Content-Range": "bytes 0-3/4"}, body=b"abcd", times=1)]
    try:
        found = read(hub)
    except Exception:  # noqa: BLE001  any error is right
        return
    check_equal(found, truth)


def test_a_token_that_ends_while_a_scan_is_read_is_an_error(hub, truth):
    options = {"endpoint": hub.url, "token": TOKEN}
    scan = xr.open_zarr(f"{URL}/scans/box", storage_options=options, chunks=None)
    opened = spinezarr.open(URL, remote=QUICK)
    lazy = opened.scan("box")
    hub.token = "hf_new"  # noqa: S105
    for read in (
        scan.image.to_numpy,
        scan.label.to_numpy,
        lazy.image.to_numpy,
        lazy.label.to_numpy,
    ):
        with pytest.raises(OSError, match="401"):
            read()


def test_a_file_that_is_missing_on_the_hub_is_an_error(hub):
    repository = hub.repositories["lab/spine"]
    for key in [k for k in repository.files if "/box/label/c" in k or "/box/image/c" in k]:
        del repository.files[key]
    for read in (by_store, by_patches):
        with pytest.raises(CorruptStoreError):
            read(hub)


def test_a_private_or_absent_dataset_says_what_to_do(hub, monkeypatch):
    with pytest.raises(StoreNotFoundError, match="there is no store"):
        spinezarr.open("hf://datasets/lab/spine/other.zarr", remote=QUICK)
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(PermissionError, match="hf auth login"):
        spinezarr.open(URL, remote=QUICK)


def test_a_revision_is_read_as_it_was(hub, small, truth):
    repository = hub.repositories["lab/spine"]
    before = repository.head
    repository.commit("gone", [("small.zarr/zarr.json", None)])
    with pytest.raises(CorruptStoreError):
        spinezarr.open(URL, remote=QUICK)
    scan = spinezarr.open(f"hf://datasets/lab/spine@{before}/small.zarr").scan("box")
    check_equal((scan.image.to_numpy(), scan.label.to_numpy()), truth)


NAME = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,9}\Z")
REVISION = st.none() | st.from_regex(r"\A[A-Za-z0-9_.-]{1,9}\Z")


@given(NAME, NAME, REVISION, st.lists(NAME, max_size=3))
def test_a_url_of_a_dataset_and_its_parts(user, name, revision, parts):
    at = "" if revision is None else f"@{revision}"
    url = "/".join([f"hf://datasets/{user}/{name}{at}", *parts])
    location = HubLocation.parse(url, "https://hub.example/")
    assert location.repository == f"{user}/{name}"
    assert location.path == "/".join(parts)
    resolve = f"https://hub.example/datasets/{user}/{name}/resolve/{revision or 'main'}"
    assert location.web_url == "/".join([resolve, *parts])
    assert HubLocation.parse(location.url, "https://hub.example") == location


@pytest.mark.parametrize(
    "url",
    ["hf://", "hf://datasets/a", "hf://user/model/x", "hf://datasets/a/b@/x", "hf://spaces/a/b"],
)
def test_other_urls_of_a_hub_are_refused(url):
    with pytest.raises(UsageError, match="hf://datasets/USER/NAME/PATH"):
        web_location(url)


def test_the_token_is_found_as_huggingface_hub_finds_it(tmp_path, monkeypatch):
    from huggingface_hub import constants, get_token  # noqa: PLC0415  slow

    for name in ("HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert hub_token() == get_token() is None
    (tmp_path / "token").write_text("hf_saved\n")
    assert hub_token() == get_token() == "hf_saved"
    monkeypatch.setenv("HF_TOKEN", " hf_set\n")
    assert hub_token() == get_token() == "hf_set"
    assert hub_token(token=False) is None
    assert hub_token("hf_given") == "hf_given"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert hub_token() is None
    assert hub_token(token=True) == "hf_set"


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"ratelimit": '"resolvers";r=0;t=55'}, 55),
        ({"ratelimit": '"api"; r=0; t=7, "x";r=3;t=9'}, 7),
        ({"ratelimit": '"resolvers";r=2;t=55'}, None),
        ({"ratelimit": '"resolvers";r=0;t=55', "retry-after": "3"}, 3),
        ({"ratelimit": "r=0;t=5"}, None),
        ({"ratelimit": '"a";r=0;t=99999999'}, 3600),
    ],
)
def test_the_time_until_a_limit_is_renewed(headers, seconds):
    assert retry_after_s(headers) == seconds
