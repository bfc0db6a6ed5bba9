"""Every third-party client reads the stored voxels, with a token and without."""

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from obstore.store import HTTPStore
from timeouts import TIMEOUT_S
from zarr.storage import FsspecStore, ObjectStore

import spinezarr
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import new_token

SCRIPT = Path(__file__).with_name("zarrita.mjs")
SCAN = "liver_0"
ARRAYS = ("image", "label")


def digest(values):
    return hashlib.sha256(np.ascontiguousarray(values)).hexdigest()


@pytest.fixture(scope="module", params=["open", "token"])
def server(request, ctspine1k_url, tmp_path_factory):
    """Return the server's URL, and the headers and the token that it requires."""
    token = file = None
    if request.param == "token":
        file = tmp_path_factory.mktemp("tokens") / "tokens"
        token = new_token(file, "client")
    settings = ServeSettings(paths=(ctspine1k_url,), token_file=file and str(file))
    headers = {"authorization": f"Bearer {token}"} if token else {}
    with BackgroundServer(settings) as running:
        yield running.url, headers, token


@pytest.fixture(scope="module")
def expected(ctspine1k_url):
    scan = spinezarr.open(ctspine1k_url).scan(SCAN)
    return {name: digest(scan[name].values) for name in ARRAYS}


def by_xarray(url, headers):
    options = {"headers": headers} if headers else None
    scan = xr.open_zarr(url, zarr_format=3, consolidated=True, storage_options=options)
    return {name: digest(scan[name].values) for name in ARRAYS}


def by_zarr(store):
    group = zarr.open_group(store, mode="r", zarr_format=3)
    return {name: digest(group[name][:]) for name in ARRAYS}


def by_fsspec(url, headers):
    options = {"headers": headers} if headers else None
    return by_zarr(FsspecStore.from_url(url, storage_options=options, read_only=True))


def by_obstore(url, headers):
    options = {"allow_http": True, "default_headers": headers}
    return by_zarr(ObjectStore(HTTPStore.from_url(url, client_options=options), read_only=True))


def by_tensorstore(url, headers):
    sent = [f"{name}: {value}" for name, value in headers.items()]
    found = {}
    for name in ARRAYS:
        place = {"driver": "http", "base_url": f"{url}/{name}/", "headers": sent}
        array = tensorstore.open({"driver": "zarr3", "kvstore": place}).result()
        found[name] = digest(array.read().result())
    return found


CLIENTS = [by_xarray, by_fsspec, by_obstore, by_tensorstore]


@pytest.mark.parametrize("tree", ["zarr", "flat"])
@pytest.mark.parametrize("read", CLIENTS)
def test_every_client_reads_the_voxels(server, expected, read, tree):
    url, headers, token = server
    assert read(f"{url}/{tree}/ctspine1k/scans/{SCAN}", headers) == expected
    if token:
        wrong = {"authorization": f"Bearer {token}x"}
        with pytest.raises(Exception, match=r"401|[Uu]nauthorized"):
            read(f"{url}/{tree}/ctspine1k/scans/{SCAN}", wrong)


@pytest.fixture(scope="module")
def zarrita(tmp_path_factory):
    """Return a function that reads arrays with zarrita under node, as web pages do."""
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "zarrita@0.7"]
    subprocess.run(command, check=True, cwd=folder, capture_output=True)
    script = shutil.copy(SCRIPT, folder)

    def read(urls, token=None, *, suffix=False):
        asked = json.dumps({"urls": urls, "token": token, "suffix": suffix})
        command = ["node", script, asked]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=TIMEOUT_S
        )

    return read


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("npm"), reason="needs node and npm, and their registry")
def test_zarrita_reads_the_voxels(server, expected, zarrita):
    url, _, token = server
    places = {
        f"{url}/{tree}/ctspine1k/scans/{SCAN}/{name}": expected[name]
        for tree in ("zarr", "flat")
        for name in ARRAYS
    }
    for suffix in (False, True):
        done = zarrita(list(places), token, suffix=suffix)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == places
    if token:
        refused = zarrita(list(places), f"{token}x")
        assert refused.returncode != 0
        assert "401" in refused.stderr
