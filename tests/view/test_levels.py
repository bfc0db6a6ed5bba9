"""Levels hold means and modes of blocks, at the positions of these blocks."""

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from threading import Barrier

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import spinezarr
from spinezarr.errors import CorruptStoreError
from spinezarr.geometry import Box
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.view import levels
from spinezarr.view.levels import LevelCache, LevelReader, levels_of, plan_levels

FACTORS = st.tuples(*[st.sampled_from([1, 2, 4])] * 3)
MODELED = ((1, 2, 2), (2, 2, 2), (1, 4, 4), (2, 8, 4))
SHAPES = st.tuples(*[st.integers(1, 9)] * 3)


def blocks(voxels, factor_zyx):
    """Yield the index of each block, and its voxels as Python numbers."""
    grid = [-(-n // f) for n, f in zip(voxels.shape, factor_zyx, strict=True)]
    for index in product(*map(range, grid)):
        box = tuple(slice(i * f, i * f + f) for i, f in zip(index, factor_zyx, strict=True))
        yield index, voxels[box].ravel().tolist()


def mean_model(voxels, factor_zyx):
    grid = [-(-n // f) for n, f in zip(voxels.shape, factor_zyx, strict=True)]
    means = np.empty(grid, voxels.dtype)
    for index, values in blocks(voxels, factor_zyx):
        if voxels.dtype.kind == "f":
            finite = [v for v in values if np.isfinite(v)]
            means[index] = np.mean(finite) if finite else np.nan
        else:
            means[index] = (2 * sum(values) + len(values)) // (2 * len(values))
    return means


def mode_model(voxels, factor_zyx):
    grid = [-(-n // f) for n, f in zip(voxels.shape, factor_zyx, strict=True)]
    modes = np.empty(grid, np.uint8)
    for index, values in blocks(voxels, factor_zyx):
        counts = Counter(values)
        modes[index] = min(counts, key=lambda v: (-counts[v], v == 0, v))
    return modes


@settings(max_examples=80)
@given(
    st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]),
    SHAPES,
    FACTORS,
    st.data(),
)
def test_levels_of_integers_are_rounded_means(dtype, shape, factor, data):
    voxels = data.draw(hnp.arrays(dtype, shape))
    found = levels._means(voxels, factor)
    assert found.dtype == voxels.dtype
    assert found.tolist() == mean_model(voxels, factor).tolist()


@pytest.mark.parametrize("dtype", ["int16", "uint16", "int32", "uint64"])
@pytest.mark.parametrize("end", ["min", "max"])
def test_sums_do_not_overflow(dtype, end):
    value = getattr(np.iinfo(dtype), end)
    voxels = np.full((32, 17, 16), value, dtype)
    assert (levels._means(voxels, (16, 16, 16)) == value).all()


@settings(max_examples=60)
@given(SHAPES, FACTORS, st.sampled_from(["float32", "float64"]), st.data())
def test_means_are_taken_over_finite_values(shape, factor, dtype, data):
    numbers = st.one_of(st.floats(-1e4, 1e4, width=32), st.sampled_from([np.nan, np.inf, -np.inf]))
    voxels = data.draw(hnp.arrays(dtype, shape, elements=numbers))
    found = levels._means(voxels, factor)
    assert found.dtype == voxels.dtype
    np.testing.assert_allclose(found, mean_model(voxels, factor), rtol=1e-5, atol=1e-2)


@settings(max_examples=80)
@given(SHAPES, FACTORS, st.sampled_from([1, 2, 4, 256]), st.data())
def test_labels_become_modes(shape, factor, n_values, data):
    voxels = data.draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, n_values - 1)))
    expected = mode_model(voxels, factor)
    assert levels._modes(voxels, factor).tolist() == expected.tolist()


def test_many_mixed_blocks_are_counted_in_parts():
    voxels = np.random.default_rng(0).integers(0, 5, (16, 18, 22), np.uint8)
    whole = levels._modes(voxels, (2, 2, 2))
    assert (levels._modes(voxels, (2, 2, 2), voxels_at_once=64) == whole).all()


@given(
    st.tuples(*[st.integers(1, 2000)] * 3),
    st.tuples(*[st.floats(0.1, 10)] * 3),
    st.lists(st.floats(-1, 1), min_size=12, max_size=12),
)
def test_levels_have_the_expected_factors_and_shapes(shape, spacing, numbers):
    affine = np.eye(4)
    affine[:3] = np.reshape(numbers, (3, 4))
    plan = plan_levels(shape, spacing, affine)
    assert plan[0].factor_zyx == (1, 1, 1)
    assert (plan[0].affine == affine).all()
    for number, level in enumerate(plan):
        assert level.level == number
        for n, f, m in zip(shape, level.factor_zyx, level.shape_zyx, strict=True):
            assert (m - 1) * f < n <= m * f
        assert level.spacing_zyx_mm == tuple(
            s * f for s, f in zip(spacing, level.factor_zyx, strict=True)
        )
    for finer, coarser in pairwise(plan):
        assert set(np.divide(coarser.factor_zyx, finer.factor_zyx)) <= {1.0, 2.0}
        assert coarser.factor_zyx != finer.factor_zyx
        assert np.prod(finer.shape_zyx) > 96**3
    last = plan[-1]
    assert (
        np.prod(last.shape_zyx) <= 96**3
        or max(f for f, n in zip(last.factor_zyx, shape, strict=True) if f < n) == 16
    )


@given(FACTORS, st.lists(st.floats(-2, 2), min_size=12, max_size=12), SHAPES)
def test_voxels_of_levels_keep_their_positions_in_mm(factor, numbers, index_zyx):
    """A voxel of a level lies at the mean position of its block, also in oblique scans."""
    affine = np.eye(4)
    affine[:3] = np.reshape(numbers, (3, 4))
    level = levels._level(1, factor, (64, 64, 64), (1.0, 1.0, 1.0), affine)
    stored = [
        [*(i * f + o for i, f, o in zip(index_zyx, factor, offset, strict=True))][::-1]
        for offset in product(*map(range, factor))
    ]
    expected = affine @ [*np.mean(stored, axis=0), 1]
    np.testing.assert_allclose(level.affine @ [*index_zyx[::-1], 1], expected, atol=1e-9)


@pytest.fixture(scope="module")
def opened(odd):
    reader = StoreReader(odd.url)
    return reader, Engine(fetcher_for(reader.objects))


@pytest.fixture(scope="module")
def models(odd):
    return {
        factor: (mean_model(odd.image["plain"], factor), mode_model(odd.label, factor))
        for factor in MODELED
    }


def coarse(scan, factor):
    return levels._level(
        1, factor, scan.image.shape_zyx, scan.attributes.spacing_zyx_mm, scan.affine
    )


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(MODELED), st.integers(1, 3), st.booleans(), st.data())
def test_a_box_equals_the_same_box_of_the_whole_level(opened, models, factor, threads, keeps, data):
    reader, engine = opened
    scan = reader.scan("plain")
    level = coarse(scan, factor)
    start, stop = [], []
    for n in level.shape_zyx:
        a, b = sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))
        start.append(min(a, n - 1))
        stop.append(max(b, a + 1) if a < n else n)
    box = Box(tuple(start), tuple(stop))
    made = LevelReader(engine, "odd", LevelCache(1 << 20) if keeps else None)
    for _ in range(2):
        image = made.read(scan.image, level, box, threads=threads)
        label = made.read(scan.label, level, box, threads=threads)
        assert (image == models[factor][0][box.slices]).all()
        assert (label == models[factor][1][box.slices]).all()


@pytest.mark.parametrize("name", ["byte", "half", "word", "thin", "down", "holes", "sieve"])
def test_levels_of_odd_images_are_means_of_their_values(odd, opened, name):
    reader, engine = opened
    scan = reader.scan(name)
    level = coarse(scan, (1, 2, 4))
    found = LevelReader(engine).read(scan.image, level)
    expected = mean_model(odd.image[name].astype(np.float64), (1, 2, 4))
    assert found.dtype.kind == "f"
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-2)
    numbers = LevelReader(engine).read(scan.image.unscaled(), level)
    assert numbers.dtype == scan.image.stored_dtype


def test_large_levels_are_computed_in_parts(odd, opened, monkeypatch):
    reader, engine = opened
    scan = reader.scan("plain")
    level = coarse(scan, (2, 2, 2))
    whole = LevelReader(engine).read(scan.image, level)
    read = engine.read
    sizes = []

    def watched(reads, **options):
        sizes.extend(np.prod(one.box.shape_zyx) for one in reads)
        return read(reads, **options)

    monkeypatch.setattr(engine, "read", watched)
    assert (LevelReader(engine, tile_voxels=5000).read(scan.image, level) == whole).all()
    assert max(sizes) <= 5000 < sum(sizes) == np.prod(scan.image.shape_zyx)


def test_cached_pieces_belong_to_one_version_of_a_scan(two_versions, tmp_path):
    store = tmp_path / "own.zarr"
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")
    kept = LevelCache(1 << 20)
    seen = []
    for version in ("before", "after"):
        found = discover(recipe, str(two_versions / version))
        assert not ingest(recipe, found, str(store)).failed
        opened = spinezarr.open(store)
        scan = opened._reader.scan("a")
        made = LevelReader(opened._engine, "own", kept)
        level = coarse(scan, (1, 1, 2))
        seen.append(made.read(scan.image, level))
        assert made.read(scan.image, level).tolist() == seen[-1].tolist()
    assert (seen[0] != seen[1]).sum() <= 1
    assert len(kept._pieces._items) == 2


def test_threads_that_request_the_same_piece_compute_it_once(odd, monkeypatch):
    reader = StoreReader(odd.url)
    scan = reader.scan("plain")
    engine = Engine(fetcher_for(reader.objects))
    level, kept, made = coarse(scan, (2, 2, 2)), LevelCache(1 << 22), []
    together, real = Barrier(4), LevelReader._compute

    def count(self, *parts):
        made.append(parts[2])
        real(self, *parts)

    def read(_):
        together.wait()
        return LevelReader(engine, "odd", kept).read(scan.image, level)

    monkeypatch.setattr(LevelReader, "_compute", count)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(read, range(4))
    assert all((other == first).all() for other in others)
    assert len(set(made)) == len(made), "a piece was computed twice"


def test_a_damaged_shard_is_an_error_of_its_level(odd, tmp_path):
    copy = shutil.copytree(odd.url, tmp_path / "odd.zarr")
    shard = copy / "scans/plain/image/c/0/0/0"
    shard.write_bytes(bytes(shard.stat().st_size))
    reader = StoreReader(str(copy))
    scan = reader.scan("plain")
    made = LevelReader(Engine(fetcher_for(reader.objects)))
    with pytest.raises(CorruptStoreError, match="plain"):
        made.read(scan.image, coarse(scan, (2, 2, 2)), threads=2)
    with pytest.raises(ValueError, match="not inside"):
        made.read(scan.label, levels_of(scan)[0], Box((0, 0, 0), (71, 1, 1)))
