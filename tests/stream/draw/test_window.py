import pickle
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import UsageError
from spinezarr.geometry import SLICE_AXIS
from spinezarr.store.folder import StoreFolder
from spinezarr.stream.draw.sampler import Sampler
from spinezarr.stream.draw.voxel_finder import StoredVoxelFinder
from spinezarr.stream.draw.window import WindowSampler, _Pass, cell_around, spread, window_sampler
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import LocalFetcher
from spinezarr.stream.read.plan import plan_reads
from spinezarr.vertebrae import VALUE_OF_NAME

SHAPES = ((4, 3, 7), (2, 6, 3), (3, 3, 3))
COUNTS = np.array([[0, 7, 2], [0, 0, 5], [0, 0, 0]])
"""Voxels of vertebrae a, b and c in scans 0, 1 and 2."""


def sampler_of(size=(2, 2, 2), *, shapes=SHAPES, counts=COUNTS, seed=0, foreground=0.0, **options):
    return Sampler(
        scan_ids=tuple(f"s{i}" for i in range(len(shapes))),
        shapes_zyx=np.array(shapes),
        spacings_mm=np.ones((len(shapes), 3)),
        vertebrae=("a", "b", "c"),
        voxel_count=np.array(counts),
        annotated=np.zeros((len(shapes), 3), bool),
        size_zyx=size,
        seed=seed,
        foreground=foreground,
        **options,
    )


class Drawn:
    """A random generator whose methods return given numbers."""

    def __init__(self, **numbers):
        for name, number in numbers.items():
            setattr(self, name, lambda *_, number=number: number)


class Counting:
    """Volumes in small chunks; each vertebra has the first voxels of its scan, in C order."""

    def __init__(self, shapes=SHAPES, counts=COUNTS, chunk=(2, 2, 2)):
        self.shapes, self.counts, self.chunk = shapes, counts, chunk
        self.opened = set()

    def prefetch_scans(self, scan_ids):
        self.opened |= set(scan_ids)

    def chunk_shape_zyx(self, scan_id):
        assert scan_id in self.opened
        return self.chunk

    def chunk_voxels(self, scan_id, vertebra, k):
        assert scan_id in self.opened
        scan = int(scan_id[1:])
        n = self.counts[scan]["abc".index(vertebra)]
        voxels = np.stack(np.unravel_index(range(n), self.shapes[scan]), axis=1)
        near = (voxels // self.chunk == voxels[k] // self.chunk).all(axis=1)
        return voxels[near], int(near[:k].sum())


def windows_of(sampler, volumes=None, *, window_scans=2, samples_per_scan=3):
    return WindowSampler(
        sampler,
        volumes or Counting(),
        window_scans=window_scans,
        samples_per_scan=samples_per_scan,
    )


def equal_scans(n, size=(2, 2, 2), **options):
    counts = [[4, 4, 4]] * n
    shapes = [(5, 6, 7)] * n
    sampler = sampler_of(size, shapes=shapes, counts=counts, **options)
    return sampler, Counting(shapes, counts)


def window_at(windows, epoch, number=0):
    first = number * windows.n_samples
    return [windows.draw(epoch, first + i) for i in range(windows.n_samples)]


def assert_as_likely(found, expected):
    """Pearson's test: about 1 in 10^8 fair draws would fail; all seeds here are fixed."""
    total = sum(found.values())
    assert set(found) <= set(expected)
    assert sum(expected.values()) == 1
    assert min(expected.values()) * total > 20
    chi_square = sum((found[x] - total * p) ** 2 / (total * p) for x, p in expected.items())
    freedom = max(len(expected) - 1, 1)
    assert chi_square < freedom + 5.6 * np.sqrt(2 * freedom) + 20


# By enumeration: every sample is as likely as in an exact draw


@pytest.mark.parametrize(("n", "length"), [(1, 4), (2, 3), (3, 2), (3, 4), (4, 2), (4, 3)])
def test_each_spread_number_is_uniform(n, length):
    of_place = [Counter() for _ in range(n)]
    for order in permutations(range(n)):
        for first in range(length):
            rng = Drawn(permutation=np.array(order), integers=first)
            for place, number in enumerate(spread(rng, n, length).tolist()):
                of_place[place][number] += 1
    for found in of_place:
        assert set(found) == set(range(length))
        assert len(set(found.values())) == 1


@given(st.integers(1, 40), st.integers(1, 60), st.integers(0, 2**32))
def test_spread_numbers_differ_while_there_are_enough(n, length, seed):
    found = spread(np.random.default_rng(seed), n, length)
    assert len(set(found.tolist())) == min(n, length)
    gaps = np.diff(sorted(found.tolist()))
    assert set(gaps.tolist()) <= {length // n, -(-length // n)}


@given(st.integers(1, 300), st.integers(1, 70))
def test_cells_divide_the_starts_along_chunk_borders(n_starts, chunk):
    cells = [cell_around(start, n_starts, chunk) for start in range(n_starts)]
    assert all(start in cell for start, cell in enumerate(cells))
    different = sorted(set(cells), key=lambda cell: cell.start)
    assert [start for cell in different for start in cell] == list(range(n_starts))
    assert all(cell.start % chunk == 0 for cell in different)
    assert all(len(cell) == chunk for cell in different[:-1])
    assert len(different[-1]) >= chunk / 2 or len(different) == 1
    assert len(different[-1]) < 1.5 * chunk
    # Drawing a start, then another one of its cell, leaves every start equally likely.
    chance = Counter()
    for cell in cells:
        for start in cell:
            chance[start] += Fraction(1, n_starts * len(cell))
    assert set(chance.values()) == {Fraction(1, n_starts)}


@pytest.mark.parametrize("foreground", [0.0, 0.25, 1.0])
def test_probabilities_of_windows_equal_those_of_exact_draws(foreground):
    expected = np.full((3, 4), 0.0)
    expected[:, 0] = (1 - foreground) / 3
    expected[0, 2] = foreground / 2  # b is one of two vertebrae, and one scan has it
    expected[:2, 3] = foreground / 4
    found = sampler_of(foreground=foreground).probabilities()
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert found.sum() == pytest.approx(1, rel=1e-14)


@pytest.mark.parametrize("window_scans", [1, 2, 3, 5])
def test_windows_take_each_scan_as_often_as_its_probability(window_scans):
    # The lengths are 1 and 1/3, so every border lies between two of the tested offsets.
    windows = windows_of(sampler_of(foreground=1.0), window_scans=window_scans)
    assert windows._scans.tolist() == [0, 1]
    offsets = 3 * 4 * windows.n_neighborhoods * windows._pass_windows
    of_slot = [Counter() for _ in range(windows.n_neighborhoods)]
    for order, first, offset, number in product(
        ([0, 1], [1, 0]),
        range(windows.n_neighborhoods),
        range(offsets),
        range(windows._pass_windows),
    ):
        line = _Pass(
            scans=np.array(order),
            ends=np.cumsum(windows._arc_lengths[order]),
            windows=np.arange(windows._pass_windows),
            offset=(offset + 0.5) / offsets,
        )
        windows._pass = lambda *_, line=line: line
        rng = Drawn(integers=first)
        for slot, scan in enumerate(windows._draw_scans(0, number, rng).tolist()):
            of_slot[slot][scan] += 1
    for found in of_slot:
        assert found[0] == 3 * found[1]  # 1/2 + 1/4 and 1/4


# By drawing: every sample is as likely as in an exact draw


@pytest.mark.parametrize("n_epochs", [2200, pytest.param(6000, marks=pytest.mark.long)])
@pytest.mark.parametrize("samples_per_scan", [1, 3])
def test_every_sample_of_a_window_is_uniform_over_scans_then_positions(samples_per_scan, n_epochs):
    windows = windows_of(sampler_of(), samples_per_scan=samples_per_scan)
    drawn = [Counter() for _ in range(windows.n_samples)]
    for epoch in range(n_epochs):
        for i, request in enumerate(window_at(windows, epoch)):
            drawn[i][request.scan_id, request.box.start_zyx] += 1
            assert request.vertebra is None
    expected = {}
    for scan, shape in enumerate(SHAPES):
        starts = list(product(*(range(n - 2 + 1) for n in shape)))
        for start in starts:
            expected[f"s{scan}", start] = Fraction(1, 3 * len(starts))
    for found in drawn:
        assert_as_likely(found, expected)


@pytest.mark.parametrize("n_epochs", [1200, pytest.param(6000, marks=pytest.mark.long)])
def test_every_balanced_sample_is_uniform_over_vertebrae_then_scans_then_voxels(n_epochs):
    windows = windows_of(sampler_of((1, 1, 1), foreground=0.5), window_scans=3)
    drawn = [Counter() for _ in range(windows.n_samples)]
    for epoch in range(n_epochs):
        for i, request in enumerate(window_at(windows, epoch)):
            where = request.box.start_zyx if request.vertebra else None
            drawn[i][request.vertebra, request.scan_id, where] += 1
    expected = {(None, f"s{scan}", None): Fraction(1, 6) for scan in range(3)}
    for vertebra, scan, share in (("b", 0, 4), ("c", 0, 8), ("c", 1, 8)):
        count = COUNTS[scan]["abc".index(vertebra)]
        for k in range(count):
            voxel = tuple(int(i) for i in np.unravel_index(k, SHAPES[scan]))
            expected[vertebra, f"s{scan}", voxel] = Fraction(1, share * int(count))
    for found in drawn:
        assert_as_likely(found, expected)


def test_weights_apply_in_windows():
    sampler, volumes = equal_scans(4, foreground=1.0, weights={"a": 0, "b": 3})
    windows = windows_of(sampler, volumes)
    drawn = Counter(windows.draw(epoch, 0).vertebra for epoch in range(1000))
    assert_as_likely(drawn, {"b": Fraction(3, 4), "c": Fraction(1, 4)})


@pytest.mark.parametrize("foreground", [1 / 3, 0.5, 0.9])
def test_each_window_has_about_the_same_fraction_of_balanced_draws(foreground):
    sampler, volumes = equal_scans(20, foreground=foreground)
    windows = windows_of(sampler, volumes, window_scans=8, samples_per_scan=2)
    for epoch in range(100):
        balanced = sum(r.vertebra is not None for r in window_at(windows, epoch)[:8])
        assert abs(balanced - 8 * foreground) < 1 + 1e-9


# How windows are mixed


@given(st.integers(1, 20), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**32))
def test_samples_in_a_row_are_of_different_scans(n_scans, window_scans, samples, seed):
    sampler, volumes = equal_scans(n_scans, seed=seed)
    windows = windows_of(sampler, volumes, window_scans=window_scans, samples_per_scan=samples)
    assert window_scans <= windows.n_neighborhoods < window_scans + n_scans
    different = min(n_scans, window_scans)
    seen = Counter()
    for number in range(windows._pass_windows):
        scans = [request.scan_id for request in window_at(windows, 0, number)]
        for i in range(len(scans) - different + 1):
            assert len(set(scans[i : i + different])) == different
        assert scans == scans[: windows.n_neighborhoods] * samples
        seen.update(scans)
    # A pass takes each scan once, except a remainder too small for a window. If there are fewer
    # scans than a window needs, it takes all equally often.
    assert set(seen.values()) == {windows.n_neighborhoods // different * samples}
    assert n_scans - len(seen) < max(window_scans, 1)


def test_each_pass_takes_scans_in_another_order():
    sampler, volumes = equal_scans(6)
    windows = windows_of(sampler, volumes, window_scans=3, samples_per_scan=1)
    passes = [
        tuple(windows.draw(0, first + i).scan_id for i in range(6)) for first in range(0, 120, 6)
    ]
    assert all(len(set(one)) == 6 for one in passes)
    assert len(set(passes)) > 15
    orders = [tuple(windows._pass(0, number).windows.tolist()) for number in range(40)]
    assert set(orders) == {(0, 1), (1, 0)}


@pytest.mark.parametrize("foreground", [0.0, 0.5])
def test_a_draw_is_a_function_of_seed_epoch_and_index(foreground):
    def one(seed, epoch, index, before=()):
        windows = windows_of(sampler_of(seed=seed, foreground=foreground))
        for other in before:
            windows.draw(*other)
        return windows.draw(epoch, index)

    huge = 2**40
    for key in ((0, 0, 0), (1, 0, 7), (0, 3, 100), (2**70, 2**35, huge)):
        first = one(*key)
        assert one(*key, before=[(0, 1), (5, 3), (1, 100)]) == first
        assert first.index == key[2]
    windows = windows_of(sampler_of(foreground=foreground))
    again = pickle.loads(pickle.dumps(windows))  # noqa: S301  our own bytes
    assert [again.draw(1, i) for i in range(50)] == [windows.draw(1, i) for i in range(50)]
    assert (again.window_scans, again.samples_per_scan) == (2, 3)


def test_each_seed_epoch_and_window_has_its_own_random_stream():
    def starts(seed, epoch, window):
        size = [(10**9,) * 3]
        counts = [[0, 0, 0]]
        sampler = sampler_of((1, 1, 1), shapes=size, counts=counts, seed=seed)
        windows = windows_of(sampler, Counting(size, counts), window_scans=1)
        return windows.draw(epoch, window * windows.n_samples).box.start_zyx

    keys = {*product(range(4), repeat=3), *product((0, 255, 2**31, 2**32, 2**33), repeat=3)}
    assert len({starts(*key) for key in keys}) == len(keys)


def test_a_neighborhood_lies_in_few_chunks(store):
    for size, foreground in (((16, 24, 20), 0.0), ((40, 30, 50), 0.0), ((16, 24, 20), 1.0)):
        stream = store.patches(
            size, n_samples=200, shuffle="window", samples_per_scan=5, foreground=foreground
        )
        n = stream.window.n_neighborhoods
        for first in range(0, 200, stream.window.n_samples):
            for slot in range(n):
                requests = [stream.request(first + slot + n * turn) for turn in range(5)]
                (scan_id,) = {request.scan_id for request in requests}
                (vertebra,) = {request.vertebra for request in requests}
                array = store._reader.scan(scan_id).image
                if min(np.subtract(array.shape_zyx, size)) < 0:
                    continue
                starts = np.array([request.box.start_zyx for request in requests])
                if vertebra is None:
                    cells = {
                        tuple(
                            cell_around(at, n - side + 1, chunk)
                            for at, n, side, chunk in zip(
                                start, array.shape_zyx, size, array.chunk_shape_zyx, strict=True
                            )
                        )
                        for start in starts.tolist()
                    }
                    assert len(cells) == 1
                reach = np.ptp(starts, axis=0)
                assert (reach < np.multiply(1.5, array.chunk_shape_zyx)).all()
                chunks = plan_reads([(array, request.box) for request in requests]).chunk_zyx
                of_patch = -(-(np.array(size) - 1) // np.array(array.chunk_shape_zyx))
                assert (np.ptp(chunks, axis=0) <= of_patch + 1).all()


# Streams of windows


def samples_of(batches):
    return {
        int(index): (
            batch.scan_id[i],
            batch.vertebra[i],
            tuple(batch.start_zyx[i]),
            batch.image[i].tobytes(),
            batch.label[i].tobytes(),
        )
        for batch in batches
        for i, index in enumerate(batch.index)
    }


@pytest.mark.parametrize("foreground", [0.0, 0.5])
def test_samples_do_not_depend_on_the_size_of_batches(store, foreground):
    def stream(batch_size):
        return store.patches(
            (16, 24, 20), batch_size=batch_size, n_samples=75, foreground=foreground,
            shuffle="window", window_scans=4, samples_per_scan=3,
        )  # fmt: skip

    expected = samples_of(stream(1))
    assert sorted(expected) == list(range(75))
    for batch_size in (4, 5, 80):  # a divisor of a window, no divisor, and too many
        batches = list(stream(batch_size))
        assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
        assert samples_of(batches) == expected
        again = [stream(batch_size)[number] for number in reversed(range(len(batches)))]
        assert samples_of(again) == expected


def test_batches_of_a_window_are_read_in_one_call(store):
    stream = store.patches(
        8, batch_size=2, n_samples=30, shuffle="window", window_scans=3, samples_per_scan=4
    )
    n = stream.window.n_samples
    assert stream.batches_per_group == n // 2
    calls = []

    class Counted(Engine):
        def read(self, reads, **_):
            calls.append(list(reads))

    engine = Counted(LocalFetcher(StoreFolder.at("/")))
    stream = replace(stream, batch_reader=replace(stream.batch_reader, engine=engine))
    units = [stream.read_group(number) for number in range(-(-30 // n))]
    assert [batch.index.tolist() for unit in units for batch in unit] == [
        [i, i + 1] for i in range(0, 30, 2)
    ]
    assert [len(reads) for reads in calls] == [2 * len(unit) * 2 for unit in units]
    exact = store.patches(8, batch_size=2)
    assert exact.batches_per_group == 1
    assert [batch.index.tolist() for batch in exact.read_group(1)] == [[2, 3]]


def test_epochs_of_windows_differ(store):
    stream = store.patches(8, n_samples=24, shuffle="window")
    assert samples_of(stream) != samples_of(stream.at_epoch(1))
    assert samples_of(stream.at_epoch(1).at_epoch(0)) == samples_of(stream)


def test_batches_are_of_different_scans(store):
    n_scans = store.table.sizes["scan"]
    for batch in store.patches(8, batch_size=n_scans, n_samples=90, shuffle="window"):
        assert len(set(batch.scan_id)) == len(batch)


@pytest.mark.parametrize("plane", SLICE_AXIS)
def test_slices_of_a_neighborhood_differ(store, plane):
    stream = store.slices(plane, n_samples=400, shuffle="window", samples_per_scan=6)
    n, flat = stream.window.n_neighborhoods, SLICE_AXIS[plane]
    for first in range(0, 400 - stream.window.n_samples, stream.window.n_samples):
        for slot in range(n):
            requests = [stream.request(first + slot + n * turn) for turn in range(6)]
            assert len({request.scan_id for request in requests}) == 1
            assert len({request.box.start_zyx[flat] for request in requests}) == 6


def test_balanced_samples_of_windows_show_their_vertebra(store):
    stream = store.patches((7, 8, 9), batch_size=8, n_samples=80, foreground=1.0, shuffle="window")
    for batch in stream:
        for label, vertebra in zip(batch.label, batch.vertebra, strict=True):
            assert (label == VALUE_OF_NAME[vertebra]).any()


def test_resampled_windows_equal_their_batches_read_alone(store):
    stream = store.patches(
        (6, 9, 8), spacing_zyx_mm=(4.0, 3.0, 2.5), batch_size=3, n_samples=24, foreground=0.5,
        shuffle="window",
    )  # fmt: skip
    assert samples_of(stream) == samples_of(stream[number] for number in range(8))


def test_all_voxels_of_a_vertebra_in_a_chunk_are_found(store):
    volumes = StoredVoxelFinder(store._reader, store._engine)
    for scan_id in store.table.scan.to_numpy()[:2]:
        label = store.scan(scan_id).label.to_numpy()
        chunk = volumes.chunk_shape_zyx(scan_id)
        of_chunk = Counter()
        for name in ("L1", "L2"):
            count = int(store.table.voxel_count.sel(scan=scan_id, vertebra=name))
            expected = np.argwhere(label == VALUE_OF_NAME[name])
            for k in range(0, count, max(1, count // 20)):
                voxels, rank = volumes.chunk_voxels(scan_id, name, k)
                near = (expected // chunk == voxels[rank] // chunk).all(axis=1)
                np.testing.assert_array_equal(voxels, expected[near])
                of_chunk[name] += 1
        assert of_chunk


# Arguments


@pytest.mark.parametrize("kind", ["patches", "slices"])
@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"shuffle": "windows"}, "shuffle 'windows': must be exact or window"),
        ({"window_scans": 3}, 'window_scans and samples_per_scan go with shuffle="window"'),
        ({"samples_per_scan": 3}, 'window_scans and samples_per_scan go with shuffle="window"'),
        (
            {"shuffle": "window", "foreground": 1.0, "centers": "centroid"},
            "a vertebra has one centroid in a scan",
        ),
        ({"shuffle": "window", "window_scans": 0}, "window_scans 0: must be at least 1"),
        ({"shuffle": "window", "samples_per_scan": 0}, "samples_per_scan 0: must be at least 1"),
    ],
)
def test_invalid_options_of_a_shuffle_are_refused(store, kind, wanted, message):
    with pytest.raises(UsageError, match=message):
        store.patches(8, **wanted) if kind == "patches" else store.slices("axial", **wanted)


@pytest.mark.parametrize(
    ("size", "scans", "samples"),
    [
        ((128, 128, 128), 8, 4),
        ((96, 96, 96), 8, 4),
        ((64, 64, 64), 8, 8),
        ((16, 16, 16), 8, 16),
        ((1, 512, 512), 8, 16),
        ((160, 160, 160), 8, 2),
        ((192, 192, 192), 4, 2),
        ((512, 512, 512), 1, 1),
    ],
)
def test_default_windows_stay_within_the_memory_limit(size, scans, samples):
    sampler = sampler_of(size, shapes=[(600, 512, 512)] * 20, counts=[[0, 0, 0]] * 20)
    chosen = {"shuffle": "window", "window_scans": None, "samples_per_scan": None}
    windows = window_sampler(sampler, Counting(), **chosen, voxel_bytes=3)
    assert (windows.window_scans, windows.samples_per_scan) == (scans, samples)
    assert windows.n_samples * np.prod(size) * 3 <= 256 << 20 or windows.n_samples == 1
