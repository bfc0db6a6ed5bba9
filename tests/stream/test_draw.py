from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spinezarr.errors import UsageError
from spinezarr.geometry import Box
from spinezarr.stream.draw import Sampler

SHAPES = ((4, 3, 5), (2, 6, 3), (3, 3, 3))
COUNTS = np.array([[0, 7, 2], [0, 0, 5], [0, 0, 0]])
"""Voxels of vertebrae a, b and c in scans 0, 1 and 2."""


def sampler_of(
    size=(2, 2, 2), *, shapes=SHAPES, counts=COUNTS, vertebrae="abc", seed=0, foreground=0.0
):
    return Sampler(
        scan_ids=tuple(f"s{i}" for i in range(len(shapes))),
        shapes_zyx=np.array(shapes),
        vertebrae=tuple(vertebrae),
        voxel_count=np.array(counts),
        size_zyx=size,
        seed=seed,
        foreground=foreground,
    )


def no_voxels(scan_id, vertebra, k):
    pytest.fail("a uniform draw needs no voxels")


def numbered_voxel(shape_of_scan):
    """Count voxels in C order, as if a vertebra began at the first one."""

    def find(scan_id, vertebra, k):
        return tuple(int(i) for i in np.unravel_index(k, shape_of_scan[scan_id]))

    return find


FIND = numbered_voxel({f"s{i}": shape for i, shape in enumerate(SHAPES)})


def assert_equally_likely(found, expected):
    """Pearson's test: about 1 in 10^8 fair draws would fail; all seeds here are fixed."""
    assert set(found) <= set(expected)
    mean = sum(found.values()) / len(expected)
    assert mean > 20
    chi_square = sum((found[item] - mean) ** 2 / mean for item in expected)
    freedom = max(len(expected) - 1, 1)
    assert chi_square < freedom + 5.6 * np.sqrt(2 * freedom) + 20


def draw_many(sampler, n, find=FIND, epoch=0):
    return [sampler.draw(epoch, index, find) for index in range(n)]


# Which stream


@given(
    st.integers(0, 2**64), st.integers(0, 2**31), st.integers(0, 2**31), st.sampled_from([0, 0.5])
)
def test_a_draw_is_a_function_of_seed_epoch_and_index(seed, epoch, index, foreground):
    first = sampler_of(seed=seed, foreground=foreground).draw(epoch, index, FIND)
    sampler = sampler_of(seed=seed, foreground=foreground)
    draw_many(sampler, 3)
    assert sampler.draw(epoch, index, FIND) == first
    assert first.index == index


def position_of(seed, epoch, index):
    """A draw out of 10^27 positions: equal ones come of one stream."""
    huge = sampler_of((1, 1, 1), shapes=[(10**9,) * 3], counts=[[0]], vertebrae="a", seed=seed)
    return huge.draw(epoch, index, no_voxels).box.start_zyx


def test_seed_epoch_and_index_each_name_their_own_stream():
    keys = list(product(range(6), repeat=3)) + list(product((0, 255, 256, 2**31), repeat=3))
    assert len({position_of(*key) for key in set(keys)}) == len(set(keys))


triples = st.tuples(st.integers(0, 2**130), *[st.integers(0, 2**64 - 1)] * 2)


@given(triples, triples)
@example((0, 2**32, 5), (0, 0, 1 + 5 * 2**32))
@example((2**32, 0, 0), (0, 1, 0))
@example((2**128, 0, 0), (0, 1, 0))
def test_no_two_keys_share_a_stream(one, other):
    assert (position_of(*one) == position_of(*other)) == (one == other)


# Uniform draws


def test_uniform_draws_are_uniform_over_scans_then_positions():
    sampler = sampler_of()
    drawn = Counter((r.scan_id, r.box.start_zyx) for r in draw_many(sampler, 9000, no_voxels))
    assert_equally_likely(Counter(name for name, _ in drawn.elements()), ["s0", "s1", "s2"])
    for i, shape in enumerate(SHAPES):
        positions = list(product(*(range(n - 2 + 1) for n in shape)))
        of_scan = Counter({at: n for (name, at), n in drawn.items() if name == f"s{i}"})
        assert_equally_likely(of_scan, positions)


def test_uniform_draws_name_no_vertebra():
    assert {request.vertebra for request in draw_many(sampler_of(), 50, no_voxels)} == {None}


@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.integers(0, 1000),
    st.sampled_from([0.0, 1.0]),
)
def test_a_patch_lies_inside_and_a_larger_one_around_the_volume(size, shape, index, foreground):
    count = int(np.prod(shape))
    sampler = sampler_of(
        size, shapes=[shape], counts=[[count]], vertebrae="a", foreground=foreground
    )
    voxel = None

    def find(scan_id, vertebra, k):
        nonlocal voxel
        voxel = tuple(int(i) for i in np.unravel_index(k, shape))
        return voxel

    box = sampler.draw(0, index, find).box
    assert box.shape_zyx == size
    for axis, (start, n, whole) in enumerate(zip(box.start_zyx, size, shape, strict=True)):
        if whole < n:
            before, after = -start, start + n - whole
            assert before + after == n - whole
            assert after - before in (0, 1)
        else:
            assert 0 <= start <= whole - n
            if voxel is not None:
                assert start == min(max(voxel[axis] - n // 2, 0), whole - n)


# Balanced draws


def test_balanced_draws_are_uniform_over_vertebrae_then_scans_then_voxels():
    asked = []

    def find(scan_id, vertebra, k):
        asked.append((vertebra, scan_id, k))
        return FIND(scan_id, vertebra, k)

    requests = draw_many(sampler_of(foreground=1.0), 6000, find)
    assert_equally_likely(Counter(v for v, _, _ in asked), ["b", "c"])
    assert_equally_likely(Counter(s for v, s, _ in asked if v == "c"), ["s0", "s1"])
    assert {s for v, s, _ in asked if v == "b"} == {"s0"}
    assert_equally_likely(Counter(k for v, _, k in asked if v == "b"), range(7))
    for scan_id, count in (("s0", 2), ("s1", 5)):
        voxels = Counter(k for v, s, k in asked if (v, s) == ("c", scan_id))
        assert_equally_likely(voxels, range(count))
    assert [(r.vertebra, r.scan_id) for r in requests] == [(v, s) for v, s, _ in asked]


@pytest.mark.parametrize("foreground", [0.0, 0.1, 1 / 3, 0.9, 1.0])
def test_the_share_of_balanced_draws_is_as_asked(foreground):
    requests = draw_many(sampler_of(foreground=foreground), 4000)
    share = sum(request.vertebra is not None for request in requests) / len(requests)
    assert abs(share - foreground) <= 5 * np.sqrt(foreground * (1 - foreground) / 4000)


def test_the_drawn_voxel_lies_in_the_patch():
    sampler = sampler_of((2, 3, 4), foreground=1.0)
    for index in range(300):
        found = []

        def find(scan_id, vertebra, k, found=found):
            found.append(FIND(scan_id, vertebra, k))
            return found[0]

        box = sampler.draw(0, index, find).box
        voxel = Box.at(found[0], (1, 1, 1))
        assert box.intersect(voxel) == voxel


# Arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (2, 0, 2)}, r"patch size \(2, 0, 2\) \(z, y, x\): every side must be at least 1"),
        ({"size": (2, 2, -1)}, "every side must be at least 1"),
        ({"seed": -1}, "seed -1: must not be negative"),
        ({"foreground": -0.1}, "foreground -0.1: must lie between 0 and 1"),
        ({"foreground": 1.1}, "foreground 1.1: must lie between 0 and 1"),
        ({"foreground": float("nan")}, "foreground nan: must lie between 0 and 1"),
        ({"shapes": []}, "no scan to draw from"),
        ({"foreground": 0.5, "counts": np.zeros((3, 3), int)}, "no chosen scan has a labelled"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change, message):
    with pytest.raises(UsageError, match=message):
        sampler_of(**change)


def test_a_sampler_draws_from_all_rows_of_a_table(store):
    sampler = Sampler.of_table(store.table, size_zyx=(8, 8, 8), seed=3, foreground=0.5)
    assert sampler.scan_ids == tuple(store.table.scan.to_numpy())
    assert sampler.vertebrae == tuple(store.table.vertebra.to_numpy())
    np.testing.assert_array_equal(sampler.shapes_zyx, store.table.shape_zyx)
    np.testing.assert_array_equal(sampler.voxel_count, store.table.voxel_count)
    assert (sampler.size_zyx, sampler.seed, sampler.foreground) == ((8, 8, 8), 3, 0.5)
