import math
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, ornt_transform

from spinezarr.formats import SourceFile
from spinezarr.geometry import Grid
from spinezarr.ingest.chunks import ImageEncoder, LabelEncoder
from spinezarr.ingest.encode import Encoded, encode_volume, plan_slabs
from spinezarr.store.layout import BALANCED, chunk_grid, fill_value
from spinezarr.store.sharding import ABSENT, decode_chunk, index_bytes, parse_index
from spinezarr.testing import all_axcodes

CHUNK_SHAPE_ZYX = BALANCED.chunk_shape_zyx


class MemoryVolume:
    """Voxels in memory, turned into file order by nibabel."""

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
    """Collects shards; none may be written twice."""

    def __init__(self, shape_zyx):
        self._shape_zyx = shape_zyx
        self._shards = {}

    def write(self, shard_zyx, data):
        assert shard_zyx not in self._shards, "a shard is written twice"
        self._shards[shard_zyx] = data

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
        """Put all chunks together, padding included."""
        grid = BALANCED.chunk_grid(self._shape_zyx)
        whole = np.full([n * c for n, c in zip(grid, CHUNK_SHAPE_ZYX, strict=True)], fill, dtype)
        for chunk, data in self.chunks():
            out = np.empty(CHUNK_SHAPE_ZYX, dtype)
            decode_chunk(data, out)
            whole[voxels_of(chunk)] = out
        return whole


def voxels_of(chunk_zyx):
    return tuple(slice(i * n, (i + 1) * n) for i, n in zip(chunk_zyx, CHUNK_SHAPE_ZYX, strict=True))


def encode(volume, encoder, *, pool=None, write=None, on_voxels=lambda _: None):
    shards = Shards(volume.grid.shape_zyx)
    options = {"profile": BALANCED, "write_shard": write or shards.write, "on_voxels": on_voxels}
    if pool is not None:
        return encode_volume(volume, volume.grid, encoder, pool=pool, **options), shards
    with ThreadPoolExecutor(3) as threads:
        return encode_volume(volume, volume.grid, encoder, pool=threads, **options), shards


def name_chunk(voxels, chunk_zyx, /):
    """Stand for an encoder: keeps where a chunk is and what it holds, in few bytes."""
    facts = (chunk_zyx, voxels.shape, int(voxels.astype(np.int64).sum()))
    return Encoded(chunk_zyx, repr(facts).encode(), facts)


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


@pytest.mark.parametrize("axcodes", all_axcodes())
@pytest.mark.parametrize("shape", [SHAPE, (1, 1, 1), (64, 48, 48), (3, 97, 145)])
def test_slabs_cover_the_volume_once_in_file_order(axcodes, shape):
    numbers = np.arange(math.prod(shape)).reshape(shape)
    volume = MemoryVolume(numbers, axcodes)
    axis_map = volume.grid.axis_map
    boxes = plan_slabs(volume.grid, CHUNK_SHAPE_ZYX)
    axis = axis_map.source_axis_zyx.index(2)
    slabs = list(volume.slabs([box.shape_zyx[axis] for box in boxes]))
    assert volume.read_to_its_end
    for box, slab in zip(boxes, slabs, strict=True):
        np.testing.assert_array_equal(axis_map.to_zyx(slab), numbers[box.slices])
        assert box.start_zyx[axis] % CHUNK_SHAPE_ZYX[axis] == 0
        assert box.shape_zyx[axis] <= CHUNK_SHAPE_ZYX[axis]
    assert len(boxes) == BALANCED.chunk_grid(shape)[axis]


@pytest.mark.parametrize("axcodes", all_axcodes())
def test_every_chunk_is_encoded_once_and_lies_in_its_place(axcodes):
    array = scattered(SHAPE)
    volume = MemoryVolume(array, axcodes)
    done = []
    facts, shards = encode(volume, name_chunk, on_voxels=done.append)
    assert facts == expected_facts(array), "facts of all chunks, in C order"
    assert dict(shards.chunks()) == {fact[0]: repr(fact).encode() for fact in facts}
    assert shards.keys == {(0, 0, 0), (1, 0, 0)}
    assert volume.read_to_its_end, "the end of the file is checked, too"
    assert sum(done) == array.size
    assert min(done) > 0


@settings(deadline=None, max_examples=40)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 100), st.integers(1, 100)),
    st.sampled_from(all_axcodes()),
)
def test_any_shape_is_encoded_whole(shape, axcodes):
    array = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape)
    facts, shards = encode(MemoryVolume(array, axcodes), name_chunk)
    assert facts == expected_facts(array)
    assert dict(shards.chunks()) == {fact[0]: repr(fact).encode() for fact in facts}


@pytest.mark.parametrize("axcodes", ["LPS", "SRA", "IPL"])
@pytest.mark.parametrize("shape", [(5, 800, 3), (5, 3, 800), (129, 769, 2)])
def test_shards_along_every_axis_are_told_apart(axcodes, shape):
    array = scattered(shape)
    facts, shards = encode(MemoryVolume(array, axcodes), name_chunk)
    assert facts == expected_facts(array)
    grid = chunk_grid(shape, BALANCED.shard_shape_zyx(shape))
    assert shards.keys == set(np.ndindex(grid))
    assert len(shards.keys) > 1
    assert dict(shards.chunks()) == {fact[0]: repr(fact).encode() for fact in facts}


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR", "SAL"])
def test_the_shards_of_an_image_decode_to_the_image(axcodes):
    array = scattered(SHAPE)
    facts, shards = encode(MemoryVolume(array, axcodes), ImageEncoder(BALANCED, np.dtype(np.int16)))
    fill = fill_value("image", np.dtype(np.int16))
    stored = shards.decoded(np.int16, 99)
    np.testing.assert_array_equal(stored[tuple(map(slice, SHAPE))], array)
    stored[tuple(map(slice, SHAPE))] = fill
    assert (stored == fill).all(), "what lies outside the volume is the fill value"
    assert len(facts) == math.prod(BALANCED.chunk_grid(SHAPE))


@pytest.mark.parametrize("axcodes", ["LPS", "RAS", "PIR", "SAL"])
def test_chunks_and_shards_of_a_mask_that_hold_only_background_are_absent(axcodes):
    array = np.zeros(SHAPE, np.float64)
    array[100:128, 49, 97:] = 25
    array[3, 3, 3] = 1
    facts, shards = encode(MemoryVolume(array, axcodes), LabelEncoder(BALANCED))
    assert {chunk for chunk, _ in shards.chunks()} == {(1, 1, 2), (0, 0, 0)}
    assert shards.keys == {(0, 0, 0)}
    np.testing.assert_array_equal(shards.decoded(np.uint8, 0)[tuple(map(slice, SHAPE))], array)
    assert [fact.chunk_zyx for fact in facts] == list(np.ndindex(BALANCED.chunk_grid(SHAPE)))
    counts = {label.value: label.voxel_count for fact in facts for label in fact.labels}
    assert counts == {25: 28 * 1 * 3, 1: 1}


def test_a_mask_without_any_label_writes_nothing():
    facts, shards = encode(MemoryVolume(np.zeros(SHAPE, np.uint8), "LPS"), LabelEncoder(BALANCED))
    assert shards.keys == set()
    assert len(facts) == math.prod(BALANCED.chunk_grid(SHAPE))


class PatientPool(Executor):
    """Runs the first ``ready`` calls at once and leaves all others waiting."""

    def __init__(self, ready):
        self._ready = ready
        self.futures = []

    def submit(self, call, /, *args, **kwargs):
        future = Future()
        self.futures.append(future)
        if len(self.futures) <= self._ready:
            try:
                future.set_result(call(*args, **kwargs))
            except RuntimeError as problem:
                future.set_exception(problem)
        return future


class BrokenVolume(MemoryVolume):
    def slabs(self, thicknesses, /):
        yield from list(super().slabs(thicknesses))[:1]
        raise RuntimeError("broken")


def fail(*_args):
    raise RuntimeError("broken")


@pytest.mark.parametrize("ready", [1, 2, 6, 7, 9])
def test_a_failing_encoder_leaves_no_chunk_waiting(ready):
    pool = PatientPool(ready)

    def encoder(voxels, chunk_zyx, /):
        return fail() if len(pool.futures) == ready else name_chunk(voxels, chunk_zyx)

    with pytest.raises(RuntimeError, match="broken"):
        encode(MemoryVolume(scattered(SHAPE), "RAS"), encoder, pool=pool)
    assert all(future.done() for future in pool.futures)


def test_a_failing_write_leaves_no_chunk_waiting():
    pool = PatientPool(15)
    with pytest.raises(RuntimeError, match="broken"):
        encode(MemoryVolume(scattered((129, 50, 100)), "RSA"), name_chunk, pool=pool, write=fail)
    assert len(pool.futures) > 15
    assert all(future.done() for future in pool.futures)


def test_a_failing_volume_leaves_no_chunk_waiting():
    pool = PatientPool(0)
    volume = BrokenVolume(scattered(SHAPE), "RAS")
    with pytest.raises(RuntimeError, match="broken"):
        encode(volume, name_chunk, pool=pool)
    assert pool.futures
    assert all(future.done() for future in pool.futures)


def test_a_volume_that_ends_early_is_no_volume():
    class ShortVolume(MemoryVolume):
        def slabs(self, thicknesses, /):
            yield from list(super().slabs(thicknesses))[:-1]

    with pytest.raises(ValueError, match="shorter"):
        encode(ShortVolume(scattered(SHAPE), "RAS"), name_chunk)


def test_at_most_two_slabs_are_held():
    held = []

    class CountingVolume(MemoryVolume):
        def slabs(self, thicknesses, /):
            for slab in super().slabs(thicknesses):
                held.append(sum(not future.done() for future in pool.futures))
                yield slab

    class LazyPool(PatientPool):
        """Runs a call when its result is asked for."""

        def submit(self, call, /, *args, **kwargs):
            future = LazyFuture(lambda: call(*args, **kwargs))
            self.futures.append(future)
            return future

    class LazyFuture(Future):
        def __init__(self, call):
            super().__init__()
            self._call = call

        def result(self, timeout=None):
            if not self.done():
                self.set_result(self._call())
            return super().result(timeout)

    pool = LazyPool(0)
    encode(CountingVolume(scattered((400, 40, 40)), "RAS"), name_chunk, pool=pool)
    assert max(held) == 1, "the slab before, while the next one is read"
    assert len(held) == 7
