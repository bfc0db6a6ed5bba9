"""Processes, raw folders and stores that the crash tests share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from killing.bucket import Bucket, serve_bucket
from killing.derived import DeriveData
from killing.driver import Driver
from killing.kills import BucketPlace, CrashData, FolderPlace, Place
from killing.memory import in_memory


@pytest.fixture(scope="session")
def crash_data() -> Iterator[CrashData]:
    """Return raw folders of two versions, and their stores, which no test may change."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as name, Driver(Path(name)) as driver:
        yield CrashData.create(Path(name), driver)


@pytest.fixture(scope="session")
def derive_data(crash_data: CrashData) -> DeriveData:
    """Return a source store of two versions and stores that are derived from it."""
    return DeriveData.create(crash_data.folder / "derive", crash_data.driver)


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
def disk(work: Path, crash_data: CrashData) -> FolderPlace:
    """Return a place for stores on disk."""
    return FolderPlace(work, crash_data.driver)


@pytest.fixture(params=["disk", "S3"])
def place(request: pytest.FixtureRequest, work: Path, crash_data: CrashData) -> Place:
    """Return a place for stores: on disk, then in a bucket."""
    if request.param == "disk":
        return FolderPlace(work, crash_data.driver)
    return BucketPlace(request.getfixturevalue("bucket"), crash_data.driver)
