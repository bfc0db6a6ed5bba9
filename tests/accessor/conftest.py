"""Fixtures: a store of small scans on odd grids, opened in each way."""

import pytest
from opened_scans import WAYS, open_scan
from small_scans import SCANS, make_store


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Write and ingest all scans; no test may change them."""
    return make_store(tmp_path_factory.mktemp("small"), [*SCANS])


@pytest.fixture(scope="session")
def scans(small):
    """Return every scan in every way of opening it, by way and name."""
    return {way: {name: open_scan(small.url, name, way) for name in SCANS} for way in WAYS}
