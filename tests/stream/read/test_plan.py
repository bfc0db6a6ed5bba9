import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spinezarr.geometry import Box
from spinezarr.store.blocks import BlockCoding
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.stream.read.chunk_locations import (
    ShardTable,
    _locate_by_kernel,
    _locate_without_kernel,
)
from spinezarr.stream.read.fetch import StoredShard
from spinezarr.stream.read.native import kernel
from spinezarr.stream.read.plan import _plan_without_kernel, plan_reads

triples = st.tuples(*[st.integers(1, 5)] * 3)
small = st.tuples(*[st.integers(1, 3)] * 3)


def array_of(shape, chunk, per_shard):
    shard = tuple(c * n for c, n in zip(chunk, per_shard, strict=True))
    coding = BlockCoding(2 * math.prod(chunk), 2 * math.prod(chunk[1:]), 2, True, True)
    return ArraySpec("scan", "image", "p", shape, np.dtype("i2"), chunk, shard, {}, "/", coding, {})


arrays = st.builds(array_of, st.tuples(*[st.integers(1, 17)] * 3), triples, triples)


@st.composite
def arrays_and_boxes(draw):
    """Draw arrays and boxes, with several boxes in some arrays."""
    chosen = []
    for array in draw(st.lists(arrays, min_size=1, max_size=3)):
        for _ in range(draw(st.integers(1, 3))):
            starts = [draw(st.integers(0, n - 1)) for n in array.shape_zyx]
            stops = [
                draw(st.integers(a + 1, n)) for a, n in zip(starts, array.shape_zyx, strict=True)
            ]
            chosen.append((array, Box(tuple(starts), tuple(stops))))
    return draw(st.permutations(chosen))


@given(arrays_and_boxes())
@settings(deadline=None)
def test_the_pieces_of_a_box_are_disjoint_and_cover_it(boxes):
    volumes = {
        id(array): np.arange(np.prod(array.shape_zyx)).reshape(array.shape_zyx)
        for array, _ in boxes
    }
    outs = [np.full(box.shape_zyx, -1) for _, box in boxes]
    plan = plan_reads(boxes)
    for chunk in range(len(plan)):
        array = plan.arrays[plan.array[chunk]]
        origin = np.multiply(plan.chunk_index(chunk), array.chunk_shape_zyx)
        stop = origin + array.chunk_shape_zyx
        voxels = volumes[id(array)][tuple(map(slice, origin, stop))]
        for number, within_chunk, within_box in plan.pieces(chunk):
            assert boxes[number][0] is array
            out = outs[number][within_box.slices]
            assert (out == -1).all(), "two pieces write one voxel"
            assert within_box.shape_zyx == within_chunk.shape_zyx
            out[...] = voxels[within_chunk.slices]
    for (array, box), out in zip(boxes, outs, strict=True):
        np.testing.assert_array_equal(out, volumes[id(array)][box.slices])


@given(arrays_and_boxes())
@settings(deadline=None)
def test_each_chunk_that_a_box_meets_is_read_once_in_file_order(boxes):
    met = set()
    for array, box in boxes:
        number = next(i for i, (other, _) in enumerate(boxes) if other is array)
        for voxel in product(*map(range, box.start_zyx, box.stop_zyx)):
            chunk = tuple(i // c for i, c in zip(voxel, array.chunk_shape_zyx, strict=True))
            shard = tuple(i // n for i, n in zip(chunk, array.chunks_per_shard_zyx, strict=True))
            within = tuple(i % n for i, n in zip(chunk, array.chunks_per_shard_zyx, strict=True))
            met.add((number, shard, within, chunk))
    plan = plan_reads(boxes)
    firsts = [
        next(i for i, (other, _) in enumerate(boxes) if other is array) for array in plan.arrays
    ]
    assert firsts == sorted(firsts)
    planned = [
        (firsts[plan.array[i]], plan.shard_index(i), plan.chunk_index(i)) for i in range(len(plan))
    ]
    assert planned == [(number, shard, chunk) for number, shard, _, chunk in sorted(met)]


@given(triples, small, small)
@settings(deadline=None)
def test_each_chunk_has_its_position_in_its_shard(chunk, per_shard, shards):
    shape = tuple(np.multiply(np.multiply(chunk, per_shard), shards).tolist())
    place_of = {}
    for shard in product(*map(range, shards)):
        for position, within in enumerate(product(*map(range, per_shard))):
            place_of[tuple((np.multiply(shard, per_shard) + within).tolist())] = shard, position
    plan = plan_reads([(array_of(shape, chunk, per_shard), Box((0, 0, 0), shape))])
    found = {plan.chunk_index(i): (plan.shard_index(i), plan.position[i]) for i in range(len(plan))}
    assert found == place_of
    assert len(plan) == len(place_of)


@pytest.fixture
def needs_kernel():
    if kernel() is None:
        pytest.skip("spinezarr was built without its kernel")


@given(arrays_and_boxes())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_plans_with_and_without_the_kernel_are_equal(needs_kernel, boxes):
    plan = plan_reads(boxes)
    number = {array: i for i, array in enumerate(plan.arrays)}
    rows = [(number[array], *box.start_zyx, *box.stop_zyx) for array, box in boxes]
    places, pieces = _plan_without_kernel(plan.arrays, rows)
    np.testing.assert_array_equal(plan.places, places)
    np.testing.assert_array_equal(plan.piece_rows, pieces)


def tables_of(draw, plan):
    """Draw a table for each run of a plan; some shards and some chunks are not stored."""
    found = []
    for (array, _), _ in plan.shard_runs:
        n_positions = math.prod(array.chunks_per_shard_zyx)
        row = draw(st.permutations([*range(n_positions // 2), *[-1] * -(-n_positions // 2)]))
        n_rows = max(row) + 1
        size = (n_rows, array.coding.n_blocks + 1)
        starts = np.random.default_rng(n_rows).integers(1, 99, size).cumsum(axis=1)
        shard = StoredShard("p", 1, "")
        checksums = np.arange(n_rows, dtype=np.uint32) + 7
        table = ShardTable(shard, np.array(row, np.int32), starts, checksums)
        found.append(draw(st.sampled_from([table, None])))
    return found


@given(arrays_and_boxes(), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_chunks_are_located_alike_with_and_without_the_kernel(needs_kernel, boxes, data):
    plan = plan_reads(boxes)
    tables = tables_of(data.draw, plan)
    stops = [stop for _, stop in plan.shard_runs]
    n_columns = max(array.coding.n_blocks for array in plan.arrays) + 1
    expected = _locate_without_kernel(plan, tables, stops, n_columns)
    for found, right in zip(
        _locate_by_kernel(kernel(), plan, tables, stops, n_columns), expected, strict=True
    ):
        np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize(
    ("column", "number"),
    [(0, 0), (3, 0), (3, -1), (6, 2**62), (0, 2**62), (9, 0), (9, 2**62), (10, 0), (6, -(2**63))],
)
def test_numbers_that_no_array_has_are_refused(needs_kernel, column, number):
    arrays = np.array([[8, 8, 8, 4, 4, 4, 2, 2, 2, 2, 64, 1]], np.int64)
    box = np.array([[0, 0, 0, 0, 8, 8, 8]], np.int64)
    assert len(kernel().plan(arrays, box)[0]) == 8
    arrays[0, column] = number
    boxes = np.array([[0, 0, 0, 0, 8, 8, 8], [2, 0, 0, 0, 8, 8, 8]], np.int64)
    with pytest.raises(ValueError, match=r"is not valid|too many chunks"):
        kernel().plan(np.repeat(arrays, 3, axis=0), boxes)


@pytest.mark.parametrize(
    ("column", "number"), [(0, 1), (0, -1), (1, -1), (4, 0), (4, 9), (6, 2**62)]
)
def test_a_box_of_no_array_is_refused(needs_kernel, column, number):
    arrays = np.array([[8, 8, 8, 4, 4, 4, 2, 2, 2, 2, 64, 1]], np.int64)
    box = np.array([[0, 0, 0, 0, 8, 8, 8]], np.int64)
    box[0, column] = number
    with pytest.raises(ValueError, match="box 0, or its array, is not valid"):
        kernel().plan(arrays, box)


def test_no_boxes_need_no_chunks():
    assert len(plan_reads([])) == 0
    assert plan_reads([]).shard_runs == []


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
        plan_reads([(array, Box((0, 0, 0), (1, 1, 1))), (array, Box(start, stop))])


@given(arrays_and_boxes(), st.data())
@settings(deadline=None)
def test_the_blocks_of_a_chunk_are_those_that_hold_wanted_planes(boxes, data):
    arrays, chosen = {}, []
    for array, box in boxes:
        if id(array) not in arrays:
            voxels = math.prod(array.chunk_shape_zyx)
            per_block = data.draw(
                st.sampled_from([n for n in range(1, voxels + 1) if voxels % n == 0])
            )
            coding = replace(array.coding, block_bytes=2 * per_block)
            arrays[id(array)] = replace(array, coding=coding)
        chosen.append((arrays[id(array)], box))
    plan = plan_reads(chosen)
    first, stop = plan.blocks
    for chunk in range(len(plan)):
        array = plan.arrays[plan.array[chunk]]
        planes = np.zeros(array.chunk_shape_zyx, bool)
        voxels = np.zeros(array.chunk_shape_zyx, bool)
        for _, within_chunk, _ in plan.pieces(chunk):
            planes[within_chunk.slices[0]] = True
            voxels[within_chunk.slices] = True
        per_block = array.coding.block_bytes // 2
        needed = np.flatnonzero(planes.reshape(-1, per_block).any(axis=1))
        assert (first[chunk], stop[chunk]) == (needed[0], needed[-1] + 1)
        assert not voxels.reshape(-1, per_block)[: first[chunk]].any()
        assert not voxels.reshape(-1, per_block)[stop[chunk] :].any()


def test_a_plan_of_nothing_has_no_blocks():
    assert [len(numbers) for numbers in plan_reads([]).blocks] == [0, 0]
