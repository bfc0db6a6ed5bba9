"""mlcroissant and intake accept the descriptions, and read records and scans through them.

They run in an environment of their own: make test-catalogs.
"""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from small_scans import make_store

import spinezarr

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:rdflib"),
    pytest.mark.filterwarnings(
        "ignore:.*(ConjunctiveGraph|Dataset.default_context):DeprecationWarning"
    ),
]

mlcroissant = pytest.importorskip("mlcroissant", reason="run make test-catalogs")
intake = pytest.importorskip("intake", reason="run make test-catalogs")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_store(tmp_path_factory.mktemp("small"), ("box", "empty", "line"))


@pytest.fixture
def described(small, serve, tmp_path):
    """Serve the store, and describe it at its URL."""
    url, _ = serve(Path(small.url).parent)
    spinezarr.open(f"{url}/small.zarr").export_card(out=tmp_path / "card")
    return tmp_path / "card", spinezarr.open(small.url)


def test_croissant_is_valid_and_its_records_lead_to_scans(described):
    folder, store = described
    dataset = mlcroissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    records = list(dataset.records(record_set="scans"))
    assert [record["scans/scan"].decode() for record in records] == store.table.scan.values.tolist()
    for record in records:
        scan_id = record["scans/scan"].decode()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scan = xr.open_zarr(record["scans/url"].decode(), chunks=None, zarr_format=3)
        np.testing.assert_array_equal(scan.image, store.scan(scan_id).image)
        np.testing.assert_array_equal(scan.label, store.scan(scan_id).label)
        assert record["scans/size_z"] == scan.sizes["z"]


def test_a_broken_description_is_not_valid(described):
    folder, _ = described
    text = json.loads((folder / "croissant.json").read_text())
    text["recordSet"][0]["field"][0]["source"]["extract"] = {"column": "nothing"}
    (folder / "broken.json").write_text(json.dumps(text))
    with pytest.raises(Exception, match="Read"):
        list(mlcroissant.Dataset(jsonld=str(folder / "broken.json")).records(record_set="scans"))


def test_intake_reads_the_table_and_the_scans(described):
    folder, store = described
    catalog = intake.open_catalog(str(folder / "intake.yaml"))
    assert sorted(catalog) == ["scans/box", "scans/empty", "scans/line", "table"]
    table = catalog["table"].read()
    assert table.scan.to_numpy().tolist() == store.table.scan.to_numpy().tolist()
    scan = catalog["scans/box"].read()
    np.testing.assert_array_equal(scan.image, store.scan("box").image)
    np.testing.assert_array_equal(scan.label, store.scan("box").label)
