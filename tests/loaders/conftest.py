import re
import shutil
from pathlib import Path

import pytest

import spinezarr
from spinezarr.errors import CorruptStoreError

SHARD = "scans/liver_0/image/c/0/0/0"


@pytest.fixture
def damaged(ctspine1k_url, tmp_path):
    """Return a store in which one byte of an image chunk of liver_0 is flipped."""
    copied = Path(shutil.copytree(ctspine1k_url, tmp_path / "copied.zarr"))
    data = bytearray((copied / SHARD).read_bytes())
    data[100] ^= 255
    (copied / SHARD).write_bytes(data)
    return spinezarr.open(copied)


@pytest.fixture
def refused():
    """Return a context that expects the error of that chunk, with scan, array, chunk and shard."""
    where = rf"scan 'liver_0', image chunk \(0, 0, 0\) in \S+/{re.escape(SHARD)} "
    return pytest.raises(CorruptStoreError, match=where)
