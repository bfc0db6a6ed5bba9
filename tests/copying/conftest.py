"""Fixtures: a hub, a small store with further masks, and helpers that compare stores."""

from pathlib import Path

import pytest
from hub_server import HubServer
from small_scans import make_store


@pytest.fixture
def hub(monkeypatch):
    """Run a hub, and set up its address and a token of the user."""
    with HubServer("hf_secret") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        yield server


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Make a store of small scans; no test may change it."""
    return make_store(tmp_path_factory.mktemp("small"), ("bare", "box", "empty", "oblique"))


def files_of(folder):
    """Return the content of all files below a folder, by key."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="session")
def read_files():
    """Return a function that reads all files below a folder."""
    return files_of
