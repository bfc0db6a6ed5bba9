import pickle
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from spinezarr.errors import UsageError
from spinezarr.geometry import Box
from spinezarr.stream.draw.sampler import Sampler, _RandomNumbers

SHAPES = ((4, 3, 5), (2, 6, 3), (3, 3, 3))
COUNTS = np.array([[0, 7, 2], [0, 0, 5], [0, 0, 0]])
"""Voxels of vertebrae a, b and c in scans 0, 1 and 2."""


def sampler_of(
    size=(2, 2, 2),
    *,
    shapes=SHAPES,
    counts=COUNTS,
    vertebrae="abc",
    seed=0,
    foreground=0.0,
    annotated=False,
    spacings=(1, 1, 1),
    **options,
):
    return Sampler(
        scan_ids=tuple(f"s{i}" for i in range(len(shapes))),
        shapes_zyx=np.array(shapes),
        spacings_mm=np.broadcast_to(spacings, (len(shapes), 3)),
        vertebrae=tuple(vertebrae),
        voxel_count=np.array(counts),
        annotated=np.broadcast_to(annotated, np.shape(counts)),
        size_zyx=size,
        seed=seed,
        foreground=foreground,
        **options,
    )


def no_voxels(scan_id, vertebra, k):
    pytest.fail("a uniform draw needs no voxels")


def numbered_voxel(shape_of_scan):
    """Return a function that finds voxels in C order, as if every vertebra began at the first."""

    def find(scan_id, vertebra, k):
        return CENTROID if k is None else at_rank(shape_of_scan[scan_id])(k)

    return find


CENTROID = (1, 1, 2)
FIND = numbered_voxel({f"s{i}": shape for i, shape in enumerate(SHAPES)})


def assert_equally_likely(found, expected):
    """Pearson's test: about 1 in 10^8 fair draws would fail; all seeds here are fixed."""
    assert set(found) <= set(expected)
    mean = sum(found.values()) / len(expected)
    assert mean > 20
    chi_square = sum((found[item] - mean) ** 2 / mean for item in expected)
    freedom = max(len(expected) - 1, 1)
    assert chi_square < freedom + 5.6 * np.sqrt(2 * freedom) + 20


def assert_as_likely(found, chances):
    """Pearson's test as above, for chances that differ."""
    n = found.total()
    assert sum(chances.values()) == pytest.approx(1, abs=1e-12)
    assert set(found) <= {item for item, chance in chances.items() if chance}
    expected = {item: n * chance for item, chance in chances.items() if chance}
    assert min(expected.values()) > 10
    chi_square = sum((found[item] - mean) ** 2 / mean for item, mean in expected.items())
    freedom = max(len(expected) - 1, 1)
    assert chi_square < freedom + 5.6 * np.sqrt(2 * freedom) + 20


def enumerate_draws(
    size, *, foreground=0.0, weights=None, centers="voxel", shapes=SHAPES, counts=COUNTS
):
    """Return the chance of every (scan, vertebra, start), by enumerating all outcomes."""
    chances = Counter()

    def clipped(at, shape):
        return tuple(
            min(max(a - s // 2, 0), n - s) for a, s, n in zip(at, size, shape, strict=True)
        )

    for i, shape in enumerate(shapes):
        starts = list(product(*(range(n - s + 1) for n, s in zip(shape, size, strict=True))))
        for start in starts:
            chances[f"s{i}", None, start] += (1 - foreground) / len(shapes) / len(starts)
    weight = {v: (weights or {}).get(name, 1) for v, name in enumerate("abc") if counts[:, v].any()}
    for v, own in weight.items():
        showing = [i for i in range(len(shapes)) if counts[i, v]]
        chance = foreground * own / sum(weight.values()) / len(showing)
        for i in showing:
            count = counts[i, v]
            voxels = [CENTROID] if centers == "centroid" else map(at_rank(shapes[i]), range(count))
            for voxel in voxels:
                of_voxel = chance if centers == "centroid" else chance / count
                chances[f"s{i}", "abc"[v], clipped(voxel, shapes[i])] += of_voxel
    return chances


def at_rank(shape):
    return lambda k: tuple(int(n) for n in np.unravel_index(k, shape))


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
    """Draw one of 10^27 positions, so that equal positions mean equal random streams."""
    huge = sampler_of((1, 1, 1), shapes=[(10**9,) * 3], counts=[[0]], vertebrae="a", seed=seed)
    return huge.draw(epoch, index, no_voxels).box.start_zyx


def test_each_seed_epoch_and_index_has_its_own_random_stream():
    keys = list(product(range(6), repeat=3)) + list(product((0, 255, 256, 2**31), repeat=3))
    assert len({position_of(*key) for key in set(keys)}) == len(set(keys))


triples = st.tuples(st.integers(0, 2**130), *[st.integers(0, 2**64 - 1)] * 2)


@given(triples, triples)
@example((0, 2**32, 5), (0, 0, 1 + 5 * 2**32))
@example((2**32, 0, 0), (0, 1, 0))
@example((2**128, 0, 0), (0, 1, 0))
def test_different_keys_have_different_random_streams(one, other):
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
def test_a_patch_lies_inside_the_volume_or_a_larger_one_around_it(size, shape, index, foreground):
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
def test_the_fraction_of_balanced_draws_is_the_foreground_option(foreground):
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


@pytest.mark.parametrize(
    ("foreground", "weights", "centers"),
    [
        (0.0, None, "voxel"),
        *(
            pytest.param(foreground, weights, centers, marks=() if i % 2 else pytest.mark.long)
            for i, weights in enumerate([None, {"b": 5.0}, {"c": 0.25, "a": 3}, {"b": 0}])
            for i, foreground in enumerate([0.4, 1.0], start=i)
            for i, centers in enumerate(["voxel", "centroid"], start=i)
        ),
    ],
)
def test_the_chance_of_every_draw_equals_the_enumerated_one(foreground, weights, centers):
    options = {"foreground": foreground, "weights": weights, "centers": centers}
    chances = enumerate_draws((2, 2, 2), **options)
    sampler = sampler_of((2, 2, 2), **{**options, "weights": weights or {}}, seed=3)
    found = Counter((r.scan_id, r.vertebra, r.box.start_zyx) for r in draw_many(sampler, 6000))
    assert_as_likely(found, chances)
    of_kind = sampler.probabilities()
    for i in range(3):
        for column, vertebra in enumerate((None, "a", "b", "c")):
            expected = sum(
                chance for (s, v, _), chance in chances.items() if (s, v) == (f"s{i}", vertebra)
            )
            assert of_kind[i, column] == pytest.approx(expected, abs=1e-12)


def test_weights_of_extreme_ratios_are_respected():
    sampler = sampler_of(foreground=1.0, weights={"b": 1e308, "a": 1e308, "c": 1e-300})
    assert {request.vertebra for request in draw_many(sampler, 200)} == {"b"}
    sampler = sampler_of(foreground=1.0, weights={"b": 1.7e308, "c": 10**308})
    assert {request.vertebra for request in draw_many(sampler, 200)} == {"b", "c"}
    sampler = sampler_of(foreground=1.0, weights={"b": 10**308, "c": np.float32(0)})
    assert {request.vertebra for request in draw_many(sampler, 20)} == {"b"}


def test_a_number_on_the_border_of_two_vertebrae_belongs_to_the_second():
    balance = sampler_of(foreground=1.0)._balance
    below = 1 - 2**-53
    found = [balance.vertebra_at(share) for share in (0.0, 0.5 - 2**-53, 0.5, below)]
    assert found == [1, 1, 2, 2]


def test_different_samples_draw_different_random_numbers():
    key = np.array([5, 6], np.uint64)
    words = [
        numbers._word()
        for epoch, index in product(range(3), repeat=2)
        for numbers in [_RandomNumbers(key, epoch, index)]
        for _ in range(100)
    ]
    assert len(set(words)) == 900


def test_random_integers_below_a_bound_have_no_bias():
    # Scaling 64 bits to three quarters of their range without rejection would make a third of
    # the numbers twice as likely as the others.
    numbers = _RandomNumbers(np.array([1, 2], np.uint64), 0, 0)
    found = Counter(numbers.below(3 << 62) % 3 for _ in range(3000))
    assert_equally_likely(found, range(3))
    assert {numbers.below(1) for _ in range(20)} == {0}
    assert max(numbers.below(2**64) for _ in range(50)) > 2**62


@given(
    st.lists(st.floats(0.5, 40), min_size=3, max_size=3),
    st.tuples(*[st.integers(1, 9)] * 3),
    st.sampled_from([1.0, 0.5, 2.0, 0.7]),
)
def test_a_patch_is_centered_to_half_a_voxel(center, size, step):
    shapes = [(60, 60, 60)]
    sampler = sampler_of(
        size,
        shapes=shapes,
        counts=[[1]],
        vertebrae="a",
        foreground=1.0,
        centers="centroid",
        spacing_zyx_mm=(step,) * 3,
    )
    box = sampler.draw(0, 0, lambda *_: tuple(center)).box
    room = sampler.max_start_zyx(0)
    for at, start, n, most in zip(center, box.start_zyx, size, room, strict=True):
        middle = start + (n - 1) / 2
        if 0 < start < most:
            assert abs(middle - at / step) <= 0.5 + 1e-9
        else:
            assert start in (0, most)


@pytest.mark.parametrize("step", [0.5, 2.0, 0.75, 3.0])
def test_positions_in_a_resampled_scan_follow_its_new_shape(step):
    shapes = ((7, 5, 6), (4, 4, 9))
    sampler = sampler_of((2, 1, 2), shapes=shapes, counts=np.zeros((2, 3)), spacings=(1, 2, 1),
                         spacing_zyx_mm=(step, None, 1.0))  # fmt: skip
    drawn = Counter((r.scan_id, r.box.start_zyx) for r in draw_many(sampler, 9000, no_voxels))
    expected = {}
    for i, (z, y, x) in enumerate(shapes):
        in_z = sum(k * step <= z - 1 for k in range(100))
        starts = list(product(range(max(in_z - 1, 1)), range(y), range(x - 1)))
        if in_z < 2:
            starts = [(0, *rest) for _, *rest in starts]
        expected |= {(f"s{i}", start): 0.5 / len(starts) for start in starts}
    assert_as_likely(drawn, expected)


def test_annotated_centroids_are_drawn_only_with_centers_centroid():
    annotated = np.array([[0, 0, 0], [0, 0, 0], [1, 0, 1]], bool)
    around = sampler_of(foreground=1.0, centers="centroid", annotated=annotated)
    shown = Counter((r.scan_id, r.vertebra) for r in draw_many(around, 3000))
    each = {("s2", "a"): 1 / 3, ("s0", "b"): 1 / 3}
    assert_as_likely(shown, each | {(f"s{i}", "c"): 1 / 9 for i in range(3)})
    on_voxels = sampler_of(foreground=1.0, annotated=annotated)
    assert {r.scan_id for r in draw_many(on_voxels, 100)} == {"s0", "s1"}
    bare = np.zeros((3, 3), int)
    assert sampler_of(foreground=1.0, centers="centroid", annotated=annotated, counts=bare)
    with pytest.raises(UsageError, match="no chosen scan has a vertebra with a centroid"):
        sampler_of(foreground=1.0, centers="centroid", counts=bare)


def test_a_pickled_sampler_draws_the_same():
    sampler = sampler_of(foreground=0.5, weights={"b": 3})
    before = draw_many(sampler, 20)
    assert draw_many(pickle.loads(pickle.dumps(sampler)), 20) == before  # noqa: S301  our own


# Arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (2, 0, 2)}, r"patch size \(2, 0, 2\) \(z, y, x\): every side must be at least 1"),
        ({"size": (2, 2, -1)}, "every side must be at least 1"),
        ({"seed": -1}, "seed -1: must be at least 0"),
        ({"foreground": -0.1}, "foreground -0.1: must lie between 0 and 1"),
        ({"foreground": 1.1}, "foreground 1.1: must lie between 0 and 1"),
        ({"foreground": float("nan")}, "foreground nan: must lie between 0 and 1"),
        ({"shapes": []}, "no scan to draw from"),
        ({"foreground": 0.5, "counts": np.zeros((3, 3), int)}, "no chosen scan has a labeled"),
        ({"foreground": 1, "weights": {"d": 1}}, "there is no vertebra 'd'; known are a, b, c"),
        ({"foreground": 1, "weights": {"b": -1}}, "weights: b has -1; give a number of 0"),
        ({"foreground": 1, "weights": {"b": float("nan")}}, "weights: b has nan"),
        ({"foreground": 1, "weights": {"b": float("inf")}}, "weights: b has inf"),
        ({"foreground": 1, "weights": {"b": 10**400}}, "weights: b has 1000"),
        ({"foreground": 1, "weights": {"b": "5"}}, "weights: b has '5'"),
        ({"foreground": 1, "weights": {"b": None}}, "weights: b has None"),
        (
            {"foreground": 1, "weights": {"b": 0, "c": 0}},
            "the chosen scans show have weight 0",
        ),
        ({"weights": {"b": 2}}, "weights: only balanced draws have them, and foreground is 0"),
        ({"weights": {"d": 2}}, "there is no vertebra 'd'"),
        ({"centers": "centroid"}, "centers: only balanced draws have them"),
        ({"foreground": 1, "centers": "center"}, "'center': must be 'voxel' or 'centroid'"),
    ],
)
def test_invalid_options_of_a_sampler_are_refused(change, message):
    with pytest.raises(UsageError, match=message):
        sampler_of(**change)


def test_a_sampler_draws_from_all_rows_of_a_table(store):
    sampler = Sampler.of_table(store.table, size_zyx=(8, 8, 8), seed=3, foreground=0.5)
    assert sampler.scan_ids == tuple(store.table.scan.to_numpy())
    assert sampler.vertebrae == tuple(store.table.vertebra.to_numpy())
    np.testing.assert_array_equal(sampler.shapes_zyx, store.table.shape_zyx)
    np.testing.assert_array_equal(sampler.voxel_count, store.table.voxel_count)
    assert (sampler.size_zyx, sampler.seed, sampler.foreground) == ((8, 8, 8), 3, 0.5)
