import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import CorruptStoreError, UnknownScanError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.stream.epoch.merger import Merger
from spinezarr.stream.epoch.tiling import Tiling
from spinezarr.stream.read.engine import Engine
from spinezarr.testing import NiftiForm, write_nifti

SCAN = "liver_0"
SHAPE = (150, 70, 100)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Return a store of one scan with several layers of chunks, and the scan's arrays."""
    rng, raw = np.random.default_rng(5), tmp_path_factory.mktemp("several")
    image = rng.integers(-1024, 3072, SHAPE).astype(np.int16)
    label = rng.integers(0, 29, SHAPE).astype(np.uint8)
    write_nifti(raw / "one_ct.nii", image, np.eye(4), NiftiForm("RAS"))
    write_nifti(raw / "one_seg.nii", label, np.eye(4), NiftiForm("RAS", "uint8"))
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="several")
    url = str(tmp_path_factory.mktemp("several-store") / "several.zarr")
    report = ingest(recipe, discover(recipe, str(raw)), url)
    assert not report.failed, report.failed
    return spinezarr.open(url), image, label


@st.composite
def tilings(draw, longest=14):
    shape = tuple(draw(st.integers(1, longest)) for _ in range(3))
    size = tuple(draw(st.integers(1, longest)) for _ in range(3))
    overlap = tuple(draw(st.integers(0, n - 1)) for n in size)
    return Tiling.cover(shape, size, overlap), overlap


def patches_of(volume, tiling):
    """Cut the patches (n, c, z, y, x) of a grid out of a volume (c, z, y, x), with 0 outside."""
    around = [(0, 0), *((n, n) for n in tiling.size_zyx)]
    wide = np.pad(volume, around)
    starts = [tiling.start(index) for index in range(len(tiling))]
    cut = [
        wide[:, *(slice(a + n, a + 2 * n) for a, n in zip(start, tiling.size_zyx, strict=True))]
        for start in starts
    ]
    return np.array(starts), np.stack(cut)


# Where patches lie


@given(tilings(longest=40))
def test_the_fewest_patches_cover_each_axis_with_the_minimum_overlap(drawn):
    tiling, overlap = drawn
    for n, size, starts, least in zip(
        tiling.shape_zyx, tiling.size_zyx, tiling.starts_zyx, overlap, strict=True
    ):
        if n <= size:
            assert starts == (-((size - n) // 2),)
            continue
        assert (starts[0], starts[-1]) == (0, n - size)
        gaps = np.diff(starts)
        assert gaps.max() <= size - least
        assert gaps.max() - gaps.min() <= 1
        # One fewer could not cover the axis.
        assert (len(starts) - 2) * (size - least) + size < n


@given(tilings())
def test_patches_are_ordered_by_z_then_y_then_x(drawn):
    tiling, _ = drawn
    starts = [tiling.start(index) for index in range(len(tiling))]
    assert starts == list(product(*tiling.starts_zyx))


@pytest.mark.parametrize(
    ("size", "overlap", "message"),
    [
        ((0, 4, 4), 0, "every side must be at least 1"),
        ((4, 4, 4), 4, "smaller than the patch"),
        ((4, 4, 4), -1, "at least 0"),
        ((4, 4), 0, "three whole numbers"),
        (4, 0.5, "overlap 0.5: give three whole numbers"),
    ],
)
def test_invalid_sizes_and_overlaps_of_a_grid_are_refused(store, size, overlap, message):
    with pytest.raises(UsageError, match=message):
        store.grid(SCAN, size, overlap_zyx=overlap)


def test_a_grid_of_an_unknown_scan_is_refused(store):
    with pytest.raises(UnknownScanError, match="has no scan 'absent'"):
        store.grid("absent", 8)


# What a grid reads


@pytest.mark.parametrize(
    ("size", "overlap", "batch_size"),
    [
        pytest.param(*tiles, batch_size, marks=() if (i + j) % 3 == 0 else pytest.mark.long)
        for i, tiles in enumerate(
            [
                ((64, 32, 32), 0),
                ((40, 70, 30), (25, 0, 10)),
                ((3, 60, 100), 1),
                (160, None),
                (60, None),
            ]
        )
        for j, batch_size in enumerate([1, 3, 100])
    ],
)
def test_batches_of_a_grid_equal_patches_cut_out_of_the_volume(several, size, overlap, batch_size):
    store, image, label = several
    grid = store.grid("one", size, overlap_zyx=overlap, batch_size=batch_size, labels=True)
    batches = list(grid)
    assert len(batches) == len(grid)
    assert [i for batch in batches for i in batch.index] == list(range(len(grid.tiling)))
    starts, expected = patches_of(np.stack([image, label]), grid.tiling)
    padded = patches_of(np.ones((1, *SHAPE), bool), grid.tiling)[1][:, 0]
    np.testing.assert_array_equal(np.concatenate([b.start_zyx for b in batches]), starts)
    found = np.concatenate([b.image for b in batches])
    np.testing.assert_array_equal(found, np.where(padded, expected[:, 0], -1024))
    np.testing.assert_array_equal(np.concatenate([b.label for b in batches]), expected[:, 1])
    for number in (0, len(grid) - 1):
        np.testing.assert_array_equal(grid[number].image, batches[number].image)
        np.testing.assert_array_equal(grid[number].affine, batches[number].affine)
    with pytest.raises(IndexError, match="of a grid of"):
        grid[len(grid)]


def test_a_grid_reads_each_chunk_once(several, recording_fetcher):
    store, _, _ = several
    fetch = recording_fetcher()
    grid = store.grid("one", (50, 40, 40), overlap_zyx=(30, 20, 20), labels=True)
    for _ in replace(grid, batch_reader=replace(grid.batch_reader, engine=Engine(fetch))):
        pass
    assert len(fetch.fetched) == len(set(fetch.fetched)) == 3 * 3 * 4 * 2


def test_a_grid_reads_only_images(store):
    (batch,) = store.grid(SCAN, 64)
    assert batch.label is None


def test_a_grid_left_early_stops_reading(several):
    store, _, _ = several
    grid = iter(store.grid("one", 20))
    next(grid)
    grid.close()


def test_a_damaged_chunk_of_a_grid_is_an_error(ctspine1k_url, tmp_path):
    copied = Path(shutil.copytree(ctspine1k_url, tmp_path / "copied.zarr"))
    path = copied / "scans" / SCAN / "image" / "c/0/0/0"
    data = bytearray(path.read_bytes())
    data[100] ^= 255
    path.write_bytes(data)
    with pytest.raises(CorruptStoreError) as problem:
        list(spinezarr.open(copied).grid(SCAN, 20))
    where = rf"scan '{SCAN}', image chunk \(0, 0, 0\) in \S+/{SCAN}/image/c/0/0/0 "
    assert re.match(where, str(problem.value))


# Merging


@given(tilings(), st.integers(1, 3), st.integers(1, 5), st.randoms(use_true_random=False))
@settings(max_examples=150)
@pytest.mark.parametrize("weights", ["average", "gaussian", "crop"])
def test_merging_the_patches_themselves_restores_the_volume(weights, drawn, channels, n, random):
    tiling, _ = drawn
    rng = np.random.default_rng(random.getrandbits(32))
    volume = rng.integers(-1024, 3072, (channels, *tiling.shape_zyx)).astype(np.int16)
    merger = Merger(tiling, weights)
    starts, patches = patches_of(volume, tiling)
    for first in range(0, len(starts), n):
        merger.add(starts[first : first + n], patches[first : first + n])
    merged = merger.merge()
    if weights == "gaussian":
        np.testing.assert_allclose(merged, volume, rtol=1e-5)
    else:
        np.testing.assert_array_equal(merged, volume)
    assert merged.dtype == (np.int16 if weights == "crop" else np.float32)
    np.testing.assert_array_equal(merger.merge(), merged)


@given(tilings(longest=9), st.randoms(use_true_random=False))
@pytest.mark.parametrize("weights", ["average", "gaussian"])
def test_overlapping_predictions_are_averaged_by_their_weights(weights, drawn, random):
    tiling, _ = drawn
    rng = np.random.default_rng(random.getrandbits(32))
    values = rng.random((len(tiling), 2, *tiling.size_zyx))
    weight = np.ones(tiling.size_zyx)
    if weights == "gaussian":
        for axis, n in enumerate(tiling.size_zyx):
            at = np.arange(n) - (n - 1) / 2
            bell = np.exp(-(at**2) / (2 * (n / 8) ** 2))
            weight *= bell.reshape([-1 if i == axis else 1 for i in range(3)])
    inner = tuple(slice(n, n + m) for n, m in zip(tiling.size_zyx, tiling.shape_zyx, strict=True))
    outer = [m + 2 * n for n, m in zip(tiling.size_zyx, tiling.shape_zyx, strict=True)]
    sums, total = np.zeros((2, *outer)), np.zeros(outer)
    merger = Merger(tiling, weights)
    for index, value in enumerate(values):
        start = tiling.start(index)
        at = tuple(slice(a + n, a + 2 * n) for a, n in zip(start, tiling.size_zyx, strict=True))
        sums[:, *at] += weight * value
        total[at] += weight
        merger.add([start], value[None])
    expected = sums[:, *inner] / total[inner]
    np.testing.assert_allclose(merger.merge(), expected, rtol=1e-9)


@given(tilings())
def test_a_voxel_is_cropped_from_the_patch_whose_middle_is_nearest(drawn):
    tiling, _ = drawn
    merger = Merger(tiling, "crop")
    shape = (1, 1, *tiling.size_zyx)
    for index in range(len(tiling)):
        merger.add([tiling.start(index)], np.full(shape, index))
    taken = merger.merge()[0]
    for axis, (n, size, starts) in enumerate(
        zip(tiling.shape_zyx, tiling.size_zyx, tiling.starts_zyx, strict=True)
    ):
        middle = np.array(starts) + (size - 1) / 2
        distance = np.abs(np.arange(n)[:, None] - middle)
        place = np.unravel_index(taken, [len(s) for s in tiling.starts_zyx])[axis]
        along = np.moveaxis(place, axis, 0).reshape(n, -1)
        chosen = np.take_along_axis(distance, along, axis=1)
        assert (chosen == distance.min(axis=1, keepdims=True)).all()


@pytest.mark.parametrize("weights", ["average", "gaussian", "crop"])
def test_finished_planes_are_handed_over_slab_by_slab(weights):
    tiling = Tiling.cover((40, 9, 11), (8, 5, 6), (4, 2, 3))
    volume = np.random.default_rng(1).random((5, 40, 9, 11)).astype(np.float32)
    slabs = []

    def finish(planes):
        slabs.append(planes.shape[1])
        return planes.argmax(axis=0).astype(np.uint8)

    merger = Merger(tiling, weights, finish)
    starts, patches = patches_of(volume, tiling)
    for start, patch in zip(starts, patches, strict=True):
        merger.add([start], patch[None])
        assert merger._sums.shape == (5, 8, 9, 11)
    merged = merger.merge()
    assert merged.dtype == np.uint8
    np.testing.assert_array_equal(merged, volume.argmax(axis=0))
    assert sum(slabs) == 40
    assert max(slabs) <= 8


@pytest.mark.parametrize(
    ("dtype", "sums"),
    [("float16", "float32"), ("uint8", "float32"), ("int32", "float64"), ("float64", "float64")],
)
def test_sums_of_predictions_have_a_wide_enough_type(dtype, sums):
    tiling = Tiling.cover((3, 3, 3), (2, 2, 2), (0, 0, 0))
    merger = Merger(tiling, "average")
    starts, patches = patches_of(np.ones((1, 3, 3, 3), dtype), tiling)
    merger.add(starts, patches)
    assert merger.merge().dtype == sums


def test_predictions_in_another_order_or_shape_are_refused(store):
    grid = store.grid(SCAN, 24, batch_size=2)
    merger = grid.merger()
    batches = list(grid)
    values = [batch.image[:, None] for batch in batches]
    with pytest.raises(UsageError, match=r"the next patch starts at \(0, 0, 0\)"):
        merger.add(batches[1], values[1])
    merger.add(batches[0], values[0])
    with pytest.raises(UsageError, match="in the order of the grid, each once"):
        merger.add(batches[0], values[0])
    with pytest.raises(UsageError, match=r"predictions of shape \(2, 24, 24, 24\)"):
        merger.add(batches[1], values[1][:, 0])
    with pytest.raises(UsageError, match=r"expected \(n, channels, z, y, x\), here \(2, 1, 24"):
        merger.add(batches[1], np.repeat(values[1], 2, axis=1))
    with pytest.raises(UsageError, match=f"2 of {len(grid.tiling)} patches have predictions"):
        merger.merge()
    for batch, value in zip(batches[1:], values[1:], strict=True):
        merger.add(batch.start_zyx, value)
    with pytest.raises(UsageError, match="all patches have predictions"):
        merger.add(batches[0], values[0])
    with pytest.raises(UsageError, match="weights 'mean': must be one of average, gaussian, crop"):
        grid.merger("mean")


def test_a_finish_function_that_changes_the_number_of_planes_is_refused(store):
    grid = store.grid(SCAN, 64)
    merger = grid.merger(finish=lambda planes: planes[:, ::2])
    for batch in grid:
        merger.add(batch, batch.image[:, None])
    with pytest.raises(UsageError, match="the last three axes must stay"):
        merger.merge()
