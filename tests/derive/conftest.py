"""Fixtures: a store of small scans on odd grids, with masks, centroids and tables."""

import pytest
from small_scans import SCANS, make_store


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Write and ingest all scans; no test may change them."""
    return make_store(tmp_path_factory.mktemp("small"), [*SCANS])


@pytest.fixture
def own(tmp_path):
    """Write and ingest some scans for one test, which may change them."""
    return make_store(tmp_path, ["box", "oblique", "bare"])
