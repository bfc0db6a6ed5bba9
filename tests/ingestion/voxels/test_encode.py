import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform
from orientations import AXCODES
from timeouts import TIMEOUT_S

from spinezarr.errors import UsageError
from spinezarr.formats.source_file import SourceFile
from spinezarr.geometry import Grid
from spinezarr.ingestion.voxels.chunks import DoesNotFitError, ImageEncoder, LabelEncoder
from spinezarr.ingestion.voxels.encode import Encoded, encode_volume
from spinezarr.ingestion.voxels.memory import Allowance, MemoryBudget, Workspace
from spinezarr.store.layout import BALANCED, chunk_grid, fill_value
from spinezarr.store.sharding import ABSENT, decode_chunk, index_bytes, parse_index
from spinezarr.testing import all_axcodes


class MemoryVolume:
    """Voxels in memory, reordered into file order with nibabel."""

    notes = ()

    def __init__(self, array_zyx, axcodes):
        array_xyz = array_zyx.transpose(2, 1, 0)
        turn = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(axcodes))
        array_ijk = self._array = apply_orientation(array_xyz, turn)
        self.grid = Grid(array_ijk.shape, inv_ornt_aff(turn, array_xyz.shape))
        self.dtype = array_ijk.dtype
        self.read_to_its_end = False

    def slabs(self, thicknesses, /):
        start = 0
        for thickness in thicknesses:
            assert thickness > 0
            yield self._array[:, :, start : start + thickness]
            start += thickness
        assert start == self._array.shape[2]
        self.read_to_its_end = True

    def source_file(self):
        return SourceFile(0, "")


class Shards:
    """Collects shards, each of which may be written only once."""

    def __init__(self, shape_zyx):
        self._shape_zyx = shape_zyx
        self._shards = {}

    def write(self, shard_zyx, data):
        assert shard_zyx not in self._shards, "a shard is written twice"
        self._shards[shard_zyx] = b"".join(data)

    @property
    def data(self):
        return dict(self._shards)

    @property
    def keys(self):
        return set(self._shards)

    def chunks(self):
        """Yield the index of each chunk that is stored, and its bytes."""
        per_shard = BALANCED.chunk_grid(BALANCED.shard_shape_zyx(self._shape_zyx))
        n_chunks = math.prod(per_shard)
        for shard, data in self._shards.items():
            index = parse_index(data[-index_bytes(n_chunks) :], n_chunks, len(data))
            for step, (offset, size) in zip(np.ndindex(per_shard), index.tolist(), strict=True):
                if offset != ABSENT:
                    chunk = tuple(s * n + i for s, n, i in zip(shard, per_shard, step, strict=True))
                    yield chunk, data[offset : offset + size]

    def decoded(self, dtype, fill):
        """Join all chunks, with their padding, into one array."""
        grid = BALANCED.chunk_grid(self._shape_zyx)
        whole = np.full(
            [n * c for n, c in zip(grid, BALANCED.chunk_shape_zyx, strict=True)], fill, dtype
        )
        for chunk, data in self.chunks():
            out = np.empty(BALANCED.chunk_shape_zyx, dtype)
            decode_chunk(data, out)
            whole[voxels_of(chunk)] = out
        return whole


def voxels_of(chunk_zyx):
    return tuple(
        slice(i * n, (i + 1) * n) for i, n in zip(chunk_zyx, BALANCED.chunk_shape_zyx, strict=True)
    )


class MeteredAllowance(Allowance):
    """An allowance that records the most bytes held at once."""

    def __init__(self, limit_bytes):
        super().__init__(limit_bytes)
        self.peak_bytes = 0

    def try_reserve(self, size_bytes):
        reserved = super().try_reserve(size_bytes)
        self.peak_bytes = max(self.peak_bytes, self._held_bytes)
        return reserved

    def reserve(self, size_bytes):
        super().reserve(size_bytes)
        self.peak_bytes = max(self.peak_bytes, self._held_bytes)


class MeteredWorkspace(Workspace):
    def __init__(self, budget=None, scratch=None):
        super().__init__(budget, scratch)
        self.voxels = MeteredAllowance(self.voxels.limit_bytes)
        self.encoded = MeteredAllowance(self.encoded.limit_bytes)


def encode(volume, encoder, *, pool=None, write=None, on_voxels=lambda _: None, workspace=None):
    shards = Shards(volume.grid.shape_zyx)
    options = {
        "write_shard": write or shards.write,
        "on_voxels": on_voxels,
        "workspace": workspace or Workspace(),
    }
    if pool is not None:
        return encode_volume(
            volume, volume.grid, encoder, profile=BALANCED, pool=pool, **options
        ), shards
    with ThreadPoolExecutor(3) as threads:
        return encode_volume(
            volume, volume.grid, encoder, profile=BALANCED, pool=threads, **options
        ), shards


class NameChunk:
    """An encoder for tests: encodes position and contents of a chunk in a few bytes."""

    def cast(self, values, /):
        return values

    def __call__(self, voxels, chunk_zyx, /):
        facts = (chunk_zyx, voxels.shape, int(voxels.astype(np.int64).sum()))
        return Encoded(chunk_zyx, repr(facts).encode(), facts)


name_chunk = NameChunk()

BUDGETS = {
    "all in memory": MemoryBudget(),
    "planes one by one": MemoryBudget(strip_bytes=1),
    "voxels on disk": MemoryBudget(strip_bytes=9999, voxel_bytes=6 * 64 * 48 * 48 * 2),
    "one chunk at once": MemoryBudget(strip_bytes=9999, voxel_bytes=1),
    "encoded chunks on disk": MemoryBudget(encoded_bytes=50),
    "all on disk": MemoryBudget(strip_bytes=1, voxel_bytes=1, encoded_bytes=0),
}
budgets = pytest.mark.parametrize("budget", BUDGETS.values(), ids=BUDGETS)


SHAPE = (130, 50, 100)
"""Two shards along z, the second with one chunk; two chunks along y, three along x."""


def scattered(shape, dtype=np.int16):
    return np.random.default_rng(0).integers(-1000, 3000, shape).astype(dtype)


def expected_facts(array_zyx):
    facts = []
    for chunk in product(*map(range, BALANCED.chunk_grid(array_zyx.shape))):
        voxels = array_zyx[voxels_of(chunk)]
        facts.append((chunk, voxels.shape, int(voxels.astype(np.int64).sum())))
    return facts


@pytest.mark.parametrize("budget", [BUDGETS["all in memory"], BUDGETS["voxels on disk"]])
@pytest.mark.parametrize("axcodes", AXCODES)
def test_every_chunk_is_encoded_once_at_its_position(axcodes, budget):
    array = scattered(SHAPE)
    volume = MemoryVolume(array, axcodes)
    done = []
    workspace = MeteredWorkspace(budget)
    facts, shards = encode(volume, name_chunk, on_voxels=done.append, workspace=workspace)
    assert facts == expected_facts(array), "facts of all chunks, in C order"
    assert dict(shards.chunks()) == {fact[0]: repr(fact).encode() for fact in facts}
    assert shards.keys == {(0, 0, 0), (1, 0, 0)}
    assert volume.read_to_its_end, "the end of the file is checked, too"
    assert sum(done) == array.size
    assert min(done) > 0
    one_chunk = math.prod(BALANCED.chunk_shape_zyx) * array.itemsize
    # A chunk above the budget is held alone, but for layers below it that wait to be encoded.
    most_bytes = budget.voxel_bytes + (one_chunk if budget.voxel_bytes < one_chunk else 0)
    assert workspace.voxels.peak_bytes <= most_bytes
    assert workspace.encoded.peak_bytes <= budget.encoded_bytes
    assert workspace.voxels._held_bytes == workspace.encoded._held_bytes == 0


@settings(deadline=None, max_examples=60)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 100), st.integers(1, 100)),
    st.sampled_from(all_axcodes()),
    st.builds(
        MemoryBudget,
        strip_bytes=st.integers(0, 1 << 16),
        voxel_bytes=st.integers(0, 1 << 23),
        encoded_bytes=st.integers(0, 1 << 9),
    ),
)
def test_any_shape_is_encoded_completely_within_any_budget(shape, axcodes, budget):
    array = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    workspace = MeteredWorkspace(budget)
    facts, shards = encode(MemoryVolume(array, axcodes), name_chunk, workspace=workspace)
    one_chunk = math.prod(BALANCED.chunk_shape_zyx) * array.itemsize
    # A chunk above the budget is held alone, but for layers below it that wait to be encoded.
    most_bytes = budget.voxel_bytes + (one_chunk if budget.voxel_bytes < one_chunk else 0)
    assert workspace.voxels.peak_bytes <= most_bytes
    assert workspace.encoded.peak_bytes <= budget.encoded_bytes
    assert facts == expected_facts(array)
    assert dict(shards.chunks()) == {fact[0]: repr(fact).encode() for fact in facts}


@pytest.mark.parametrize("axcodes", ["LPS", "SRA", "IPL"])
@pytest.mark.parametrize("shape", [(5, 800, 3), (5, 3, 800), (129, 769, 2)])
def test_shards_along_every_axis_have_their_own_keys(axcodes, shape):
    array = scattered(shape)
    facts, shards = encode(MemoryVolume(array, axcodes), name_chunk)
    assert facts == expected_facts(array)
    grid = chunk_grid(shape, BALANCED.shard_shape_zyx(shape))
    assert shards.keys == set(np.ndindex(grid))
    assert len(shards.keys) > 1
    assert dict(shards.chunks()) == {fact[0]: repr(fact).encode() for fact in facts}


@budgets
@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR", "SAL"])
def test_the_shards_of_an_image_decode_to_the_image(axcodes, budget):
    array = scattered(SHAPE)
    encoder = ImageEncoder(BALANCED, np.dtype(np.int16))
    volume = MemoryVolume(array.astype(np.float64), axcodes)
    facts, shards = encode(volume, encoder, workspace=Workspace(budget))
    fill = fill_value("image", np.dtype(np.int16))
    stored = shards.decoded(np.int16, 99)
    np.testing.assert_array_equal(stored[tuple(map(slice, SHAPE))], array)
    stored[tuple(map(slice, SHAPE))] = fill
    assert (stored == fill).all(), "voxels outside the volume must have the fill value"
    assert len(facts) == math.prod(BALANCED.chunk_grid(SHAPE))


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR", "SAL"])
def test_background_chunks_and_shards_of_a_mask_are_absent(axcodes):
    array = np.zeros(SHAPE, np.float64)
    array[100:128, 49, 97:] = 25
    array[3, 3, 3] = 1
    facts, shards = encode(MemoryVolume(array, axcodes), LabelEncoder(BALANCED))
    assert {chunk for chunk, _ in shards.chunks()} == {(1, 1, 3), (0, 0, 0)}
    assert shards.keys == {(0, 0, 0)}
    np.testing.assert_array_equal(shards.decoded(np.uint8, 0)[tuple(map(slice, SHAPE))], array)
    assert [fact.chunk_zyx for fact in facts] == list(np.ndindex(BALANCED.chunk_grid(SHAPE)))
    counts = {label.value: label.voxel_count for fact in facts for label in fact.labels}
    assert counts == {25: 28 * 1 * 3, 1: 1}


def test_a_mask_without_any_label_writes_nothing():
    facts, shards = encode(MemoryVolume(np.zeros(SHAPE, np.uint8), "LPS"), LabelEncoder(BALANCED))
    assert shards.keys == set()
    assert len(facts) == math.prod(BALANCED.chunk_grid(SHAPE))


@pytest.mark.parametrize("axcodes", ["LPS", "RAI", "PIR", "SAL"])
def test_the_memory_budget_changes_no_encoded_byte(axcodes):
    array = scattered(SHAPE)
    encoder = ImageEncoder(BALANCED, np.dtype(np.int16))
    stored = []
    for budget in BUDGETS.values():
        _, shards = encode(MemoryVolume(array, axcodes), encoder, workspace=Workspace(budget))
        stored.append(shards.data)
    assert all(data == stored[0] for data in stored)


@pytest.mark.parametrize("axcodes", AXCODES)
def test_memory_stays_within_the_budget_in_any_orientation(axcodes):
    """Two layers of voxels and the chunks of a row of shards do not fit: disk takes the rest."""
    array = np.zeros((130, 66, 400), np.int16)
    array[::7] = 5
    budget = MemoryBudget(strip_bytes=1 << 16, voxel_bytes=1 << 21, encoded_bytes=1 << 14)
    workspace = MeteredWorkspace(budget)
    volume = MemoryVolume(array, axcodes)
    _, shards = encode(volume, ImageEncoder(BALANCED, np.dtype(np.int16)), workspace=workspace)
    at = tuple(map(slice, array.shape))
    np.testing.assert_array_equal(shards.decoded(np.int16, 99)[at], array)
    assert 0 < workspace.voxels.peak_bytes <= budget.voxel_bytes
    assert 0 < workspace.encoded.peak_bytes <= budget.encoded_bytes


@budgets
def test_a_value_that_does_not_fit_ends_the_encoding(budget):
    array = scattered(SHAPE, np.float64)
    array[-1, -1, -1] = 0.5
    with pytest.raises(DoesNotFitError):
        encode(
            MemoryVolume(array, "RAS"),
            ImageEncoder(BALANCED, np.dtype(np.int16)),
            workspace=Workspace(budget),
        )


@pytest.mark.parametrize("budget", ["all on disk", "encoded chunks on disk"])
def test_the_error_names_a_folder_that_cannot_hold_scratch_files(tmp_path, budget):
    workspace = Workspace(BUDGETS[budget], str(tmp_path / "none"))
    with pytest.raises(UsageError, match=r"none: cannot hold scratch files: .* --scratch"):
        encode(MemoryVolume(scattered(SHAPE), "RAS"), name_chunk, workspace=workspace)


def test_scratch_files_leave_nothing_behind(tmp_path):
    workspace = Workspace(BUDGETS["all on disk"], str(tmp_path))
    seen = []

    def write(shard_zyx, parts):
        seen.extend(tmp_path.iterdir())
        return b"".join(parts)

    encode(MemoryVolume(scattered(SHAPE), "PIR"), name_chunk, workspace=workspace, write=write)
    assert seen == []
    assert list(tmp_path.iterdir()) == []


class RecordingPool(ThreadPoolExecutor):
    """A pool that records its submitted tasks."""

    def __init__(self):
        super().__init__(2)
        self.futures = []

    def submit(self, call, /, *args, **kwargs):
        self.futures.append(super().submit(call, *args, **kwargs))
        return self.futures[-1]


class BrokenVolume(MemoryVolume):
    def slabs(self, thicknesses, /):
        yield from list(super().slabs(thicknesses))[:1]
        raise RuntimeError("broken")


class SlowChunk(NameChunk):
    """An encoder that is slow, and fails at one call."""

    def __init__(self, fails_at=None):
        self._fails_at = fails_at
        self.begun = 0
        self.ended = 0

    def __call__(self, voxels, chunk_zyx, /):
        self.begun += 1
        if self.begun == self._fails_at:
            self.ended += 1
            raise RuntimeError("broken")
        time.sleep(0.01)
        self.ended += 1
        return super().__call__(voxels, chunk_zyx)


def fail(*_args):
    raise RuntimeError("broken")


@budgets
@pytest.mark.parametrize("broken", ["1st chunk", "9th chunk", "last chunk", "write", "volume"])
def test_a_failure_leaves_no_thread_running(broken, budget, tmp_path):
    encoder = SlowChunk({"1st chunk": 1, "9th chunk": 9, "last chunk": 18}.get(broken))
    volume = (BrokenVolume if broken == "volume" else MemoryVolume)(scattered(SHAPE), "RAS")
    with RecordingPool() as pool:
        with pytest.raises(RuntimeError, match="broken"):
            encode(
                volume,
                encoder,
                pool=pool,
                write=fail if broken == "write" else None,
                workspace=Workspace(budget, str(tmp_path)),
            )
        ended = encoder.ended
        assert all(future.done() for future in pool.futures)
    assert encoder.begun == encoder.ended == ended


def test_a_volume_that_ends_early_is_an_error():
    class ShortVolume(MemoryVolume):
        def slabs(self, thicknesses, /):
            yield from list(super().slabs(thicknesses))[:-1]

    with pytest.raises(ValueError, match="shorter"):
        encode(ShortVolume(scattered(SHAPE), "RAS"), name_chunk)


def test_a_layer_is_encoded_while_the_next_one_is_read():
    """The reader waits at its third layer until a chunk of the first one is encoded."""
    first_chunk = threading.Event()

    class WaitingVolume(MemoryVolume):
        def slabs(self, thicknesses, /):
            for number, slab in enumerate(super().slabs(thicknesses)):
                assert number < 2 or first_chunk.wait(TIMEOUT_S)
                yield slab

    class TellingChunk(NameChunk):
        def __call__(self, voxels, chunk_zyx, /):
            first_chunk.set()
            return super().__call__(voxels, chunk_zyx)

    for name in ("all in memory", "voxels on disk"):
        first_chunk.clear()
        budget = replace(BUDGETS[name], strip_bytes=64 * 50 * 100 * 2)
        encode(
            WaitingVolume(scattered((400, 50, 100)), "RAS"),
            TellingChunk(),
            workspace=Workspace(budget),
        )
