"""A served store, and the browser that opens its pages."""

import pytest
from browser import chromium, page

from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings

__all__ = ["chromium", "page", "served"]


@pytest.fixture(scope="module")
def served(ctspine1k_url):
    """Serve a small store to all tests of a module; return the URL of the server."""
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        yield server.url
