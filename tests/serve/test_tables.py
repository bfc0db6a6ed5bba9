"""Tests of the JSON that describes stores and scans."""

import gzip
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from http_client import fetch

import spinezarr
from spinezarr.serve import tables
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.statistics import _statistics_model
from spinezarr.serve.tables import RowModel, ServedTable
from spinezarr.stats.statistics import compute_statistics
from spinezarr.store.table import with_audit_results
from spinezarr.store.writer import StoreWriter
from spinezarr.vertebrae import LEVELS


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield server.url


def get_json(url):
    status, headers, body = fetch(url)
    assert (status, headers["content-type"]) == (200, "application/json")
    return json.loads(body)


def test_stores_are_listed_with_their_figures(served, ctspine1k_url):
    (found,) = get_json(f"{served}/v1/stores")["stores"]
    store = spinezarr.open(ctspine1k_url)
    assert found["name"] == "ctspine1k"
    assert found["scans"] == 6
    assert found["splits"] == store.splits
    assert found["license"] == store.attrs["license"]
    assert found["stored_bytes"] == int(store.table.stored_bytes.sum())
    assert get_json(f"{served}{found['zarr']}/zarr.json")["attributes"]["format"] == "spinezarr"


def test_a_store_describes_how_to_request_its_patches(served):
    found = get_json(f"{served}/v1/ctspine1k")
    (listed,) = get_json(f"{served}/v1/stores")["stores"]
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
        {"source": "MSD-T10"},
        {"split": "none"},
        {"source": "no such"},
        {"erratum": "true"},
        {"audit": "none"},
        {"audit": "ok"},
    ],
)
def test_scans_are_listed_with_their_facts(served, ctspine1k_url, filters):
    table = spinezarr.open(ctspine1k_url).table
    fits = table.scan.to_numpy() != ""
    for name in ("split", "source"):
        if name in filters:
            fits &= table[name].to_numpy() == filters[name]
    if "vertebra" in filters:
        fits &= table.voxel_count.sel(vertebra=filters["vertebra"]).to_numpy() > 0
    for name in ("anomaly", "erratum"):
        if name in filters:
            fits &= table[name].to_numpy() != ""
    if "audit" in filters:
        fits &= table.audit.to_numpy() == {"none": ""}.get(filters["audit"], filters["audit"])
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    found = get_json(f"{served}/v1/ctspine1k/scans?{query.replace(' ', '%20')}")["scans"]
    assert [scan["scan_id"] for scan in found] == table.scan.to_numpy()[fits].tolist()
    for scan in found:
        row = table.sel(scan=scan["scan_id"])
        assert scan["shape_zyx"] == row.shape_zyx.to_numpy().tolist()
        assert scan["spacing_zyx_mm"] == row.spacing_zyx_mm.to_numpy().tolist()
        shown = row.vertebra.to_numpy()[row.voxel_count.to_numpy() > 0]
        assert scan["vertebrae"] == shown.tolist()


@pytest.fixture(scope="module")
def unusual(ctspine1k_url, tmp_path_factory):
    """Serve a store whose table has more facts about its scans."""
    url = tmp_path_factory.mktemp("unusual") / "own.zarr"
    shutil.copytree(ctspine1k_url, url)
    reader = spinezarr.open(url)._reader
    words = {"anomaly": ["L6", "", "", "L6", "", ""], "erratum": ["", "T12", "", "T12", "", ""]}
    words["audit"] = ["ok", "info", "warning", "error", "", "error"]
    strings = np.dtypes.StringDType()
    rows = {name: ("scan", np.array(text, strings)) for name, text in words.items()}
    writer = StoreWriter(str(url), reader.root, None)
    with writer.lock("a test") as _, writer._files.changing():
        writer.registry.publish_table(
            with_audit_results(reader.table.assign(rows), {}).assign(rows)
        )
    with BackgroundServer(ServeSettings(paths=(str(url),))) as server:
        yield f"{server.url}/v1/own/scans", words, reader.table.scan.to_numpy().tolist()


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        ({"anomaly": "true"}, [0, 3]),
        ({"erratum": "true"}, [1, 3]),
        ({"erratum": "true", "anomaly": "true"}, [3]),
        ({"audit": "ok"}, [0]),
        ({"audit": "info"}, [1]),
        ({"audit": "warning"}, [2]),
        ({"audit": "error"}, [3, 5]),
        ({"audit": "none"}, [4]),
        ({"audit": "error", "anomaly": "true"}, [3]),
    ],
)
def test_filters_find_unusual_scans(unusual, filters, shown):
    url, words, names = unusual
    query = "&".join(f"{name}={value}" for name, value in filters.items())
    found = get_json(f"{url}?{query}")["scans"]
    assert [scan["scan_id"] for scan in found] == [names[at] for at in shown]
    for name, texts in words.items():
        assert [scan[name] for scan in found] == [texts[at] for at in shown]


@pytest.mark.parametrize(
    "query",
    ["audit=bad", "audit=", "erratum=yes", "other=1", "vertebra=L9", "vertebra=", "anomaly=yes"],
)
def test_invalid_filters_are_refused(served, query):
    assert fetch(f"{served}/v1/ctspine1k/scans?{query}")[0] == 400


def test_rows_follow_the_description(served):
    for row in get_json(f"{served}/v1/ctspine1k/scans")["scans"]:
        found = RowModel.model_validate_json(json.dumps(row), strict=True)
        assert found.model_dump(mode="json") == row


def test_a_list_is_compressed_and_not_sent_again_while_unchanged(served):
    url = f"{served}/v1/ctspine1k/scans"
    _, headers, body = fetch(url)
    _, packed, data = fetch(url, accept_encoding="gzip")
    assert (packed["content-encoding"], gzip.decompress(data)) == ("gzip", body)
    assert len(data) < len(body) / 2
    for fields in ({}, {"accept_encoding": "gzip"}):
        tag = fetch(url, **fields)[1]["etag"]
        assert fetch(url, if_none_match=tag, **fields)[::2] == (304, b"")
        assert fetch(f"{url}?split=train", if_none_match=tag, **fields)[0] == 200
    assert headers["etag"] != packed["etag"]
    assert headers["cache-control"] == "no-cache"


def test_a_list_is_built_once_for_each_version(tmp_path, ingest_version, monkeypatch):
    made = []
    real = tables._rows
    monkeypatch.setattr(tables, "_rows", lambda table: made.append(0) or real(table))
    ingest_version("before", tmp_path / "own.zarr")
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),))) as server:
        url = f"{server.url}/v1/own/scans"
        before = [fetch(url)[1]["etag"] for _ in range(3)]
        assert len(made) == 1
        fetch(f"{url}?split=x")
        assert len(made) == 2
        ingest_version("after", tmp_path / "own.zarr")
        after = [fetch(url)[1]["etag"] for _ in range(3)]
        assert len(made) == 3
        assert len({*before, *after}) == 2


def test_ten_thousand_scans_are_listed(ctspine1k_url, monkeypatch):
    real = ServedTable.body

    def many(self, what, make):
        return real(self, what, lambda table: make(table.isel(scan=np.arange(10_000) % 6)))

    monkeypatch.setattr(ServedTable, "body", many)
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        url = f"{server.url}/v1/ctspine1k/scans"
        _, headers, data = fetch(url, accept_encoding="gzip")
        assert len(json.loads(gzip.decompress(data))["scans"]) == 10_000
        assert len(data) < 1_000_000
        assert fetch(url, accept_encoding="gzip", if_none_match=headers["etag"])[::2] == (304, b"")


def test_the_facts_of_a_scan_equal_the_stored_ones(served, ctspine1k_url):
    scan = spinezarr.open(ctspine1k_url)._reader.scan("liver_0")
    found = get_json(f"{served}/v1/ctspine1k/scans/liver_0")
    assert found["content_checksum"] == scan.content_checksum
    assert found["affine"] == scan.affine.tolist()
    assert "manifest" not in found


@pytest.mark.parametrize(
    "path",
    ["v1", "v1/", "v1/none", "v1/none/scans", "v1/ctspine1k/scans/none",
     "v1/ctspine1k/scans/..", "v1/ctspine1k/scans/liver_0/x", "v1/stores/scans", "v1/../zarr"],
)  # fmt: skip
def test_facts_of_unknown_stores_and_scans_are_404(served, path):
    assert fetch(f"{served}/{path}")[0] == 404


def test_the_facts_of_a_replaced_scan_are_the_new_ones(ctspine1k_url, tmp_path, ingest_version):
    ingest_version("before", tmp_path / "own.zarr")
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),))) as server:
        assert [s["name"] for s in get_json(f"{server.url}/v1/stores")["stores"]] == ["own"]
        before = get_json(f"{server.url}/v1/own/scans")["scans"][0]["content_checksum"]
        ingest_version("after", tmp_path / "own.zarr")
        after = get_json(f"{server.url}/v1/own/scans")["scans"][0]["content_checksum"]
        assert before != after
        shutil.copytree(ctspine1k_url, tmp_path / "other.zarr")
        (Path(tmp_path) / "own.zarr/table/zarr.json").write_text("{")
        (Path(tmp_path) / "own.zarr/table_bundle/zarr.json").unlink()
        found = {s["name"]: s for s in get_json(f"{server.url}/v1/stores")["stores"]}
        assert found["own"]["error"] == "it cannot be read"
        assert found["other"]["scans"] == 6
        assert fetch(f"{server.url}/v1/own/scans")[0] == 503


# Statistics


@pytest.mark.parametrize(
    "chosen",
    [{}, {"split": "train"}, {"source": "MSD-T10"}, {"split": "train", "source": "MSD-T10"}],
)
def test_statistics_equal_those_of_the_store(served, ctspine1k_url, chosen):
    store = spinezarr.open(ctspine1k_url)
    query = "&".join(f"{name}={value}" for name, value in chosen.items())
    found = get_json(f"{served}/v1/ctspine1k/statistics?{query}")
    expected, table = store.stats(**chosen), store.table
    for name in ("scans", "scans_with_mask", "patients", "scans_by_split", "scans_by_source"):
        assert found[name] == getattr(expected, name)
    for column, wanted in chosen.items():
        table = table.isel(scan=np.flatnonzero(table[column].to_numpy() == wanted))
    order = [name for name in LEVELS if table.voxel_count.sel(vertebra=name).to_numpy().any()]
    assert [one["name"] for one in found["vertebrae"]] == order
    for one in found["vertebrae"]:
        shows = (table.voxel_count.sel(vertebra=one["name"]).to_numpy() > 0).mean()
        assert one["detection_percent"] == pytest.approx(100 * shows)
        assert one["scans"] == round(shows * table.sizes["scan"])
    for at, axis in enumerate("zyx"):
        spacing, histogram = table.spacing_zyx_mm.to_numpy()[:, at], found["spacing_mm"][axis]
        assert sum(histogram["scans"]) == table.sizes["scan"]
        assert histogram["edges_mm"][0] - 1e-6 <= spacing.min()
        assert spacing.max() <= histogram["edges_mm"][-1]


def test_statistics_of_no_scan_are_empty(served):
    for query in ("split=none", "source=none", "split=none&source=liver"):
        found = get_json(f"{served}/v1/ctspine1k/statistics?{query}")
        assert (found["scans"], found["vertebrae"], found["scans_by_split"]) == (0, [], {})
        assert found["spacing_mm"]["z"] == {"edges_mm": [], "scans": []}
    assert fetch(f"{served}/v1/ctspine1k/statistics?vertebra=L1")[0] == 400
    assert fetch(f"{served}/v1/none/statistics")[0] == 404
    _, headers, _ = fetch(f"{served}/v1/ctspine1k/statistics")
    tag = headers["etag"]
    assert fetch(f"{served}/v1/ctspine1k/statistics", if_none_match=tag)[::2] == (304, b"")


def test_statistics_leave_out_levels_named_only_by_points(ctspine1k_url):
    table = spinezarr.open(ctspine1k_url).table.copy(deep=True)
    before = _statistics_model(table)
    table.annotated_centroid_zyx_mm.loc[{"vertebra": "S1"}] = 1.0
    assert "S1" in compute_statistics(table).vertebrae
    assert _statistics_model(table) == before


def test_a_process_that_ends_while_it_prepares_tables_prints_no_error():
    code = "from spinezarr.serve.tables import prepare_tables; prepare_tables()"
    process = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")
