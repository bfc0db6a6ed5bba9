"""Processes, raw folders and stores that the crash tests share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing.bucket import Bucket, serve_bucket
from killing.driver import Driver
from killing.kills import BucketPlace, FolderPlace, Place, Workshop
from killing.memory import in_memory


@pytest.fixture(scope="session")
def workshop() -> Iterator[Workshop]:
    """Return raw folders of two versions, and their stores, which no test may change."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as name, Driver(Path(name)) as driver:
        yield Workshop.of(Path(name), driver)


@pytest.fixture
def work() -> Iterator[Path]:
    """Return a folder for one test."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as name:
        yield Path(name)


@pytest.fixture(scope="session")
def bucket() -> Iterator[Bucket]:
    """Serve a bucket."""
    with serve_bucket() as served:
        yield served


@pytest.fixture
def disk(work: Path, workshop: Workshop) -> FolderPlace:
    """Return a place for stores on disk."""
    return FolderPlace(work, workshop.driver)


@pytest.fixture(params=["disk", "S3"])
def place(request: pytest.FixtureRequest, work: Path, workshop: Workshop) -> Place:
    """Return a place for stores: on disk, then in a bucket."""
    if request.param == "disk":
        return FolderPlace(work, workshop.driver)
    return BucketPlace(request.getfixturevalue("bucket"), workshop.driver)
