import math
import os

import numpy as np
import pytest
from shards import assemble_shard

from spinezarr.ingestion.voxels.memory import MemoryBudget, Workspace
from spinezarr.ingestion.voxels.shards import ShardCollector
from spinezarr.store.layout import BALANCED

SHAPE = (1000, 60, 100)
"""Shape of a volume of eight shards of up to 2 x 2 x 4 chunks; some are half empty."""
GRID, PER_SHARD = BALANCED.chunk_grid(SHAPE), BALANCED.chunk_grid(BALANCED.shard_shape_zyx(SHAPE))


def data_of(chunk):
    return repr(chunk).encode() * 10


def expected(absent):
    """Return every shard, assembled from all its chunks at once."""
    shards = {}
    for chunk in np.ndindex(GRID):
        shard = tuple(i // n for i, n in zip(chunk, PER_SHARD, strict=True))
        within = tuple(i % n for i, n in zip(chunk, PER_SHARD, strict=True))
        if chunk not in absent:
            position = int(np.ravel_multi_index(within, PER_SHARD))
            shards.setdefault(shard, {})[position] = data_of(chunk)
    return {s: assemble_shard(chunks, math.prod(PER_SHARD)) for s, chunks in shards.items()}


@pytest.mark.parametrize("encoded_bytes", [0, 300, 1 << 20])
def test_shards_are_complete_for_any_order_of_their_chunks(tmp_path, encoded_bytes):
    rng = np.random.default_rng(0)
    chunks = [tuple(chunk) for chunk in rng.permutation(list(np.ndindex(GRID))).tolist()]
    absent = {*chunks[:20], *((15, y, x) for y in range(2) for x in range(4))}
    absent |= {(14, y, x) for y in range(2) for x in range(3)}
    written = {}
    workspace = Workspace(MemoryBudget(encoded_bytes=encoded_bytes), str(tmp_path))
    collector = ShardCollector(
        SHAPE, BALANCED, lambda shard, parts: written.update({shard: b"".join(parts)}), workspace
    )
    for chunk in chunks:
        collector.add(chunk, None if chunk in absent else data_of(chunk))
        assert workspace.encoded._held_bytes <= encoded_bytes
    collector.close()
    assert written == expected(absent)
    assert (7, 0, 0) not in written, "no file for a shard of absent chunks"
    assert workspace.encoded._held_bytes == 0


def test_scratch_space_is_reused(tmp_path):
    workspace = Workspace(MemoryBudget(encoded_bytes=0), str(tmp_path))
    sizes = []

    def write(shard, parts):
        sizes.append(len(b"".join(parts)))

    collector = ShardCollector(SHAPE, BALANCED, write, workspace)
    for chunk in np.ndindex(GRID):
        collector.add(chunk, data_of(chunk))
    held = os.fstat(collector._file._file.fileno()).st_size
    collector.close()
    assert len(sizes) == 8
    assert held <= max(sizes)
