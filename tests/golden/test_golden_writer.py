"""The program that writes golden stores: the same bytes each time."""

import hashlib
import tarfile

import pytest
from golden_stores import write_archive


@pytest.mark.long
def test_golden_stores_are_written_the_same_each_time(tmp_path):
    hashes = []
    for name in ("first", "second"):
        path = tmp_path / f"{name}.tar.xz"
        write_archive(path)
        with tarfile.open(path) as archive:
            contents = {
                entry.name: hashlib.sha256(archive.extractfile(entry).read()).hexdigest()
                for entry in archive
            }
        hashes.append((contents, hashlib.sha256(path.read_bytes()).hexdigest()))
    assert hashes[0] == hashes[1]
