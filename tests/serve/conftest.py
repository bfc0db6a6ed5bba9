import pytest

from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.recipe import Recipe

RECIPE = Recipe.of_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")


@pytest.fixture
def bring(two_versions):
    """Return what ingests a version of a scan into a store."""

    def bring(version, store):
        found = discover(RECIPE, str(two_versions / version))
        assert not ingest(RECIPE, found, str(store)).failed

    return bring
