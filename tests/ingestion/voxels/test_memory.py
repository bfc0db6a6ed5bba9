import subprocess
import sys

import pytest

from spinezarr.errors import UsageError
from spinezarr.ingestion.voxels.memory import Allowance, MemoryBudget, ScratchFile

INGEST = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from spinezarr.geometry import Grid
from spinezarr.ingestion.voxels.chunks import ImageEncoder
from spinezarr.ingestion.voxels.encode import encode_volume
from spinezarr.ingestion.voxels.memory import MemoryBudget, Workspace
from spinezarr.store.layout import BALANCED


class Planes:
    # 96 planes of 1024 x 1024, made when they are read; the slowest axis runs along x.
    dtype = np.dtype(np.float32)
    grid = Grid((1024, 1024, 96), np.eye(4)[[2, 1, 0, 3]])

    def slabs(self, thicknesses):
        noise = np.random.default_rng(0).integers(0, 999, 1 << 20).astype(np.float32)
        for thickness in thicknesses:
            yield np.stack([noise] * thickness).reshape(thickness, 1024, 1024).T


def drain(shard_zyx, parts):
    for _ in parts:
        pass


unit = 1 if sys.platform == "darwin" else 1024
def peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


before = peak_mib()
budget = MemoryBudget(voxel_bytes=32 << 20, encoded_bytes=16 << 20)
with ThreadPoolExecutor(2) as pool:
    encode_volume(
        Planes(), Planes.grid, ImageEncoder(BALANCED, np.dtype(np.int16)), profile=BALANCED,
        write_shard=drain, pool=pool,
        on_voxels=lambda _: None, workspace=Workspace(budget, sys.argv[1]),
    )
print(peak_mib() - before)
"""


@pytest.mark.long
def test_a_process_stays_within_the_budget(tmp_path):
    """The image takes 384 MiB in the file, 192 MiB as int16, and 150 MiB in one row of shards."""
    command = [sys.executable, "-c", INGEST, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 32 + 16 + 4 * 8


def test_an_allowance_grants_bytes_up_to_its_limit():
    allowance = Allowance(10)
    assert allowance.try_reserve(10)
    assert not allowance.try_reserve(1)
    allowance.reserve(5)
    assert allowance._held_bytes == 15
    allowance.release(6)
    assert not allowance.try_reserve(2)
    assert allowance.try_reserve(1)


def test_parts_of_a_budget_sum_to_no_more_than_the_budget():
    budget = MemoryBudget()
    shares = budget.share(2, 3), budget.share(1, 3)
    for field in MemoryBudget.__dataclass_fields__:
        parts = [getattr(share, field) for share in shares]
        assert min(parts) > 0
        assert sum(parts) <= getattr(budget, field)


def test_a_scratch_file_returns_the_written_bytes(tmp_path):
    with ScratchFile(str(tmp_path)) as file:
        file.write_at(100, b"later")
        file.write_at(0, b"first")
        out = bytearray(5)
        file.read_at(100, out)
        assert out == b"later"
        file.read_at(0, out)
        assert out == b"first"
        with pytest.raises(RuntimeError, match="shorter"):
            file.read_at(103, out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_the_error_of_a_full_disk_names_the_folder(tmp_path):
    with ScratchFile(str(tmp_path)) as file:
        file.close()
        file._file = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
        with pytest.raises(UsageError, match="cannot hold scratch files: No space left on device"):
            file.write_at(0, b"data")
