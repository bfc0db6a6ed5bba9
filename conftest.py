"""What tests and doctests share: one small ingested dataset."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

import spinezarr
from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import WrittenScan, write_ctspine1k

# No deadline: shared machines pause. CI always draws the same examples; elsewhere they vary.
settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(scope="session")
def ctspine1k_raw(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, tuple[WrittenScan, ...]]:
    """Raw folder in the official layout, and what was written there; not to be changed."""
    raw = tmp_path_factory.mktemp("raw") / "CTSpine1K"
    return raw, write_ctspine1k(raw, scale=0.25)


@pytest.fixture(scope="session")
def ctspine1k_url(
    ctspine1k_raw: tuple[Path, tuple[WrittenScan, ...]], tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Store of that folder; not to be changed."""
    recipe = Recipe.load("ctspine1k")
    url = str(tmp_path_factory.mktemp("store") / "ctspine1k.zarr")
    report = ingest(recipe, discover(recipe, str(ctspine1k_raw[0])), url)
    assert not report.failed, report.failed
    return url


@pytest.fixture
def store(ctspine1k_url: str) -> "spinezarr.Store":
    """Open that store."""
    return spinezarr.open(ctspine1k_url)


@pytest.fixture(autouse=True)
def _doctest_store(doctest_namespace: dict[str, object], request: pytest.FixtureRequest) -> None:
    """Give doctests that ask for it the name ``store``."""
    if isinstance(request.node, pytest.DoctestItem):
        doctest_namespace["store"] = request.getfixturevalue("store")
