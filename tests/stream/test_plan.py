from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinezarr.geometry import Box
from spinezarr.store.reader import ArraySpec
from spinezarr.stream.plan import plan_reads

triples = st.tuples(*[st.integers(1, 5)] * 3)
small = st.tuples(*[st.integers(1, 3)] * 3)


def array_of(shape, chunk, per_shard):
    shard = tuple(c * n for c, n in zip(chunk, per_shard, strict=True))
    return ArraySpec("scan", "image", "p", shape, np.dtype("i2"), chunk, shard, {}, "/", {})


@st.composite
def arrays_and_boxes(draw):
    shape = draw(st.tuples(*[st.integers(1, 17)] * 3))
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    return array_of(shape, draw(triples), draw(triples)), Box(tuple(starts), tuple(stops))


@given(arrays_and_boxes())
@settings(deadline=None)
def test_shares_are_disjoint_and_cover_the_box(case):
    array, box = case
    volume = np.arange(np.prod(array.shape_zyx)).reshape(array.shape_zyx)
    out = np.full(box.shape_zyx, -1)
    for read in plan_reads(box, array):
        origin = np.multiply(read.chunk_zyx, array.chunk_shape_zyx)
        stop = origin + array.chunk_shape_zyx
        chunk = volume[tuple(map(slice, origin, stop))]
        assert (out[read.within_box.slices] == -1).all(), "two reads write one voxel"
        assert read.within_box.shape_zyx == read.within_chunk.shape_zyx
        out[read.within_box.slices] = chunk[read.within_chunk.slices]
    np.testing.assert_array_equal(out, volume[box.slices])


@given(arrays_and_boxes())
@settings(deadline=None)
def test_exactly_the_chunks_that_the_box_meets_are_read(case):
    array, box = case
    met = {
        tuple(i // c for i, c in zip(voxel, array.chunk_shape_zyx, strict=True))
        for voxel in product(*map(range, box.start_zyx, box.stop_zyx))
    }
    chunks = [read.chunk_zyx for read in plan_reads(box, array)]
    assert chunks == sorted(met)


@given(triples, small, small)
@settings(deadline=None)
def test_each_chunk_has_its_place_in_its_shard(chunk, per_shard, shards):
    shape = tuple(np.multiply(np.multiply(chunk, per_shard), shards).tolist())
    place_of = {}
    for shard in product(*map(range, shards)):
        for position, within in enumerate(product(*map(range, per_shard))):
            place_of[tuple((np.multiply(shard, per_shard) + within).tolist())] = shard, position
    array = array_of(shape, chunk, per_shard)
    reads = list(plan_reads(Box((0, 0, 0), shape), array))
    assert {read.chunk_zyx: (read.shard_zyx, read.position) for read in reads} == place_of
    assert len(reads) == len(place_of)


@pytest.mark.parametrize(
    ("start", "stop"),
    [
        ((-1, 0, 0), (1, 1, 1)),
        ((0, 0, 0), (9, 4, 4)),
        ((0, 3, 0), (1, 5, 1)),
        ((20, 20, 20), (21, 21, 21)),
    ],
)
def test_a_box_that_leaves_the_array_is_refused(start, stop):
    array = array_of((8, 4, 4), (2, 2, 2), (2, 2, 2))
    with pytest.raises(ValueError, match=r"leaves the array of shape \(8, 4, 4\)"):
        list(plan_reads(Box(start, stop), array))
