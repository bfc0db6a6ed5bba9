"""What stores and scans are, as JSON."""

import json
import shutil
from pathlib import Path

import pytest
from asking import ask

import spinezarr
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield server.url


def told(url):
    status, headers, body = ask(url)
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(body)


def test_stores_are_told_with_their_figures(served, ctspine1k_url):
    (found,) = told(f"{served}/v1/stores")["stores"]
    store = spinezarr.open(ctspine1k_url)
    assert found["name"] == "ctspine1k"
    assert found["scans"] == 6
    assert found["splits"] == store.splits
    assert found["licence"] == store.attrs["licence"]
    assert found["stored_bytes"] == int(store.table.stored_bytes.sum())
    assert told(f"{served}{found['zarr']}/zarr.json")["attributes"]["format"] == "spinezarr"


def test_a_store_says_how_its_patches_are_asked_for(served):
    found = told(f"{served}/v1/ctspine1k")
    (listed,) = told(f"{served}/v1/stores")["stores"]
    assert {name: value for name, value in listed.items() if name in found} == {
        name: value for name, value in found.items() if name != "batch"
    }
    assert found["batch"]["items"] == 8192
    assert found["batch"].keys() == {"protocol", "items", "voxel_bytes", "cores"}


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"split": "train"},
        {"split": "train", "vertebra": "L1"},
        {"vertebra": "T12"},
        {"vertebra": "C1"},
        {"anomaly": "true"},
        {"source": "liver"},
        {"split": "none"},
        {"source": "no such"},
    ],
)
def test_scans_are_told_by_what_they_are(served, ctspine1k_url, filters):
    table = spinezarr.open(ctspine1k_url).table
    fits = table.scan.to_numpy() != ""
    for name in ("split", "source"):
        if name in filters:
            fits &= table[name].to_numpy() == filters[name]
    if "vertebra" in filters:
        fits &= table.voxel_count.sel(vertebra=filters["vertebra"]).to_numpy() > 0
    if "anomaly" in filters:
        fits &= table.anomaly.to_numpy() != ""
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    found = told(f"{served}/v1/ctspine1k/scans?{query.replace(' ', '%20')}")["scans"]
    assert [scan["scan_id"] for scan in found] == table.scan.to_numpy()[fits].tolist()
    for scan in found:
        row = table.sel(scan=scan["scan_id"])
        assert scan["shape_zyx"] == row.shape_zyx.to_numpy().tolist()
        assert scan["spacing_zyx_mm"] == row.spacing_mm.to_numpy().tolist()
        shown = row.vertebra.to_numpy()[row.voxel_count.to_numpy() > 0]
        assert scan["vertebrae"] == shown.tolist()


@pytest.mark.parametrize("query", ["other=1", "vertebra=L9", "vertebra=", "anomaly=yes"])
def test_a_filter_that_is_none_is_refused(served, query):
    assert ask(f"{served}/v1/ctspine1k/scans?{query}")[0] == 400


def test_a_scan_is_told_as_it_is_stored(served, ctspine1k_url):
    scan = spinezarr.open(ctspine1k_url)._reader.scan("liver_0")
    found = told(f"{served}/v1/ctspine1k/scans/liver_0")
    assert found["content_checksum"] == scan.content_checksum
    assert found["affine"] == scan.affine.tolist()
    assert "manifest" not in found


@pytest.mark.parametrize(
    "path",
    ["v1", "v1/", "v1/none", "v1/none/scans", "v1/ctspine1k/scans/none",
     "v1/ctspine1k/scans/..", "v1/ctspine1k/scans/liver_0/x", "v1/stores/scans", "v1/../zarr"],
)  # fmt: skip
def test_what_is_not_there_is_404(served, path):
    assert ask(f"{served}/{path}")[0] == 404


def test_it_is_told_as_it_is_now(ctspine1k_url, tmp_path, bring):
    bring("before", tmp_path / "own.zarr")
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),))) as server:
        assert [s["name"] for s in told(f"{server.url}/v1/stores")["stores"]] == ["own"]
        before = told(f"{server.url}/v1/own/scans")["scans"][0]["content_checksum"]
        bring("after", tmp_path / "own.zarr")
        after = told(f"{server.url}/v1/own/scans")["scans"][0]["content_checksum"]
        assert before != after
        shutil.copytree(ctspine1k_url, tmp_path / "other.zarr")
        (Path(tmp_path) / "own.zarr/table/zarr.json").write_text("{")
        (Path(tmp_path) / "own.zarr/table_bundle/zarr.json").unlink()
        found = {s["name"]: s for s in told(f"{server.url}/v1/stores")["stores"]}
        assert found["own"]["error"] == "it cannot be read"
        assert found["other"]["scans"] == 6
        assert ask(f"{server.url}/v1/own/scans")[0] == 503
