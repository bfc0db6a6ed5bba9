import time
from contextlib import ExitStack

import pytest

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve import bucket, served_files
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings

RECIPE = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")


class Clock:
    """A monotonic clock that a test can advance."""

    def __init__(self):
        self._advance_s = 0.0

    def advance(self, seconds):
        self._advance_s += seconds

    def monotonic(self):
        return time.monotonic() + self._advance_s


@pytest.fixture
def clock(monkeypatch):
    """Return the clock by which servers in this process check stores again."""
    clock = Clock()
    for module in (bucket, served_files):
        monkeypatch.setattr(module, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def ingest_version(two_versions):
    """Return a function that ingests a version of a scan into a store."""

    def ingest_version(version, store):
        found = discover(RECIPE, str(two_versions / version))
        assert not ingest(RECIPE, found, str(store)).failed

    return ingest_version


@pytest.fixture
def ingest_version_into_bucket(two_versions, s3_server):
    """Return a function that ingests a version of a scan into a store in a bucket."""

    def ingest_version(version, place):
        found = discover(RECIPE, str(two_versions / version))
        options = s3_server.storage_options
        assert not ingest(RECIPE, found, f"s3://{place}", out_options=options).failed

    return ingest_version


@pytest.fixture
def serve_within(ctspine1k_url):
    """Return a function that serves the dataset with given limits and returns the server's URL."""
    with ExitStack() as running:

        def serve(**limits):
            settings = ServeSettings(paths=(ctspine1k_url,), limits=ServeLimits(**limits))
            return running.enter_context(BackgroundServer(settings)).url

        yield serve
