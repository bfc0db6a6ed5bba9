"""Fixtures of tests that read chunks."""

import pytest

from spinezarr.stream.read import native


@pytest.fixture(scope="session")
def kernel():
    """Return the loaded kernel, which must be built."""
    loaded = native.kernel()
    assert loaded is not None, "the kernel is not built, or does not work"
    return loaded
