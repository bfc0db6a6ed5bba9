import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise, product
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK
from hypothesis import example, given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.geometry import SLICE_AXIS, Box
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.stream.read.batch_reader import _Work
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.buffer_pool import BufferPool
from spinezarr.stream.read.native import DONE, NOT_TRIED, RESAMPLINGS, resampling_table
from spinezarr.stream.read.resample import Resampling, SourceRegion, resample, resample_all
from spinezarr.stream.spacing import grid_shape_zyx, step_zyx
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.vertebrae import VALUE_OF_NAME

PADDING = -1024
TURN = np.linalg.qr(np.random.default_rng(7).normal(size=(3, 3)) * 0.2 + np.eye(3))[0]
TURN *= np.sign(np.diag(TURN))


def affine_of(spacing_xyz, origin):
    affine = np.eye(4)
    affine[:3, :3] = TURN * spacing_xyz
    affine[:3, 3] = origin
    return affine


def volumes():
    """Return image, mask and affine of scans that differ in spacing, direction, type and size."""
    rng = np.random.default_rng(5)
    found = {}
    for name, shape, spacing_xyz, dtype in (
        ("thick", (14, 30, 26), (0.7, 0.8, 2.5), np.int16),
        ("fine", (40, 22, 24), (1.0, 1.0, 0.5), np.int16),
        ("tiny", (4, 5, 3), (1.5, 1.5, 1.5), np.int16),
        ("flat", (1, 40, 9), (1.2, 0.6, 3.0), np.int16),
        ("real", (12, 11, 13), (0.9, 1.1, 2.0), np.float32),
        ("wide", (12, 11, 13), (0.9, 1.1, 2.0), np.int32),
    ):
        span = 10**9 if dtype == np.int32 else 3000
        image = rng.integers(-span, span, shape).astype(dtype)
        if dtype == np.float32:
            image = (image / 7).astype(np.float32)
        label = rng.integers(18, 22, shape).astype(np.uint8)
        found[name] = image, label, affine_of(spacing_xyz, rng.normal(size=3) * 100)
    return found


@pytest.fixture(scope="module")
def spaced(tmp_path_factory):
    """Return a store of :func:`volumes`, and the volumes with their stored affines."""
    raw, stored = tmp_path_factory.mktemp("spaced"), volumes()
    for name, (image, label, affine) in stored.items():
        write_nifti(raw / f"{name}_ct.nii", image, affine, NiftiForm("RAS", str(image.dtype)))
        write_nifti(raw / f"{name}_seg.nii", label, affine, NiftiForm("RAS", "uint8"))
    url = str(tmp_path_factory.mktemp("spaced-store") / "spaced.zarr")
    recipe = Recipe.from_pairs("{scan}_ct.nii", "{scan}_seg.nii", name="spaced")
    report = ingest(recipe, discover(recipe, str(raw)), url)
    assert not report.failed, report.failed
    store = spinezarr.open(url)
    return store, {
        name: (image, label, np.array(store.scan(name).attrs["affine"]))
        for name, (image, label, _) in stored.items()
    }


# Values


def trilinear(volume, z, y, x):
    """Interpolate from the eight corners, in float64; positions broadcast."""
    found = 0.0
    low = [np.floor(np.asarray(at)).astype(int) for at in (z, y, x)]
    for corner in product((0, 1), repeat=3):
        weight = 1.0
        index = []
        for at, first, side, n in zip((z, y, x), low, corner, volume.shape, strict=True):
            weight = weight * (at - first if side else 1 - (at - first))
            index.append(np.minimum(first + side, n - 1))
        found = found + weight * volume[tuple(index)].astype(float)
    return found


def positions_in(n):
    """Draw rising positions between the first and the last of ``n`` voxels, some on voxels."""
    place = st.floats(0, n - 1) | st.integers(0, n - 1).map(float)
    return st.lists(place, min_size=1, max_size=9).map(lambda found: np.array(sorted(found)))


@given(
    st.data(),
    st.tuples(*[st.integers(1, 7)] * 3),
    st.sampled_from(["int16", "uint8", "int32", "float32", "float64"]),
    st.sampled_from([1, 20, 1 << 18]),
    st.integers(0, 2**32),
)
@settings(max_examples=150)
def test_values_between_voxels_are_interpolated_from_the_eight_around(
    data, shape, dtype, block, seed
):
    rng = np.random.default_rng(seed)
    low, high = (0, 255) if dtype == "uint8" else (-30000, 30000)
    volume = rng.integers(low, high, shape).astype(dtype)
    positions = tuple(data.draw(positions_in(n)) for n in shape)
    grid = np.ix_(*positions)
    sizes = [len(at) for at in positions]
    for out_dtype in {volume.dtype, np.result_type(volume.dtype, np.float32)}:
        wide = np.full((*sizes, 2), 77, out_dtype)
        resample(volume, positions, wide[..., 0], linear=True, block_values=block)
        rounding = 0.5 if out_dtype.kind in "iu" else 0
        found = wide[..., 0].astype(float)
        assert np.abs(found - trilinear(volume, *grid)).max() <= rounding + 0.01
        assert (wide[..., 1] == 77).all()
    nearest = np.empty(sizes, volume.dtype)
    resample(volume, positions, nearest, linear=False, block_values=block)
    at = np.ix_(*(np.floor(along + 0.5).astype(int) for along in positions))
    np.testing.assert_array_equal(nearest, volume[at])


def test_large_numbers_are_interpolated_in_double_precision():
    volume = np.array([2**31 - 2, -(2**31)], np.int32).reshape(1, 1, 2)
    out = np.empty((1, 1, 3), np.int32)
    at = (np.zeros(1), np.zeros(1), np.array([0, 0.5, 1]))
    resample(volume, at, out, linear=True)
    assert out.ravel().tolist() == [2**31 - 2, -1, -(2**31)]


def test_positions_on_voxels_give_the_voxels_themselves():
    volume = np.array([np.inf, 1.5, -np.inf, np.nan, 2**24 + 1], np.float64).reshape(5, 1, 1)
    at = (np.array([0.0, 0, 1, 2, 3, 4]), np.zeros(1), np.zeros(1))
    out = np.empty((6, 1, 1))
    resample(volume, at, out, linear=True)
    np.testing.assert_array_equal(out, volume[[0, 0, 1, 2, 3, 4]])


# The kernel

KERNEL_DTYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")


def source_of(rng, shape, dtype):
    """Return voxels of any value, of which few are NaN or infinite."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        source = (rng.normal(0, 1, shape) * 10.0 ** rng.integers(-3, 5, shape)).astype(dtype)
        for odd in (np.nan, np.inf, -np.inf, -0.0, 1e-42):
            source[rng.random(shape) < rng.choice([0, 0.02])] = odd
        return source
    limits = np.iinfo(dtype)
    low, high = (limits.min, limits.max) if rng.random() < 0.5 else (0, 100)
    return rng.integers(low, high, shape, dtype, endpoint=True)


def positions_of(rng, n, side):
    """Return rising positions: between voxels, on all of them, or on some."""
    at = np.sort(rng.random(n)) * (side - 1)
    kind = rng.integers(4)
    if kind == 0:
        return np.rint(at)
    if kind == 1:
        return np.minimum(rng.integers(side) + np.arange(n, dtype=float), side - 1)
    if kind == 2:
        return np.rint(2 * at) / 2
    return at


def view_of(rng, shape, dtype):
    """Return an array of a shape with any order of its axes, and the memory that it is part of."""
    order = rng.permutation(3)
    steps = rng.integers(1, 3, 3) if rng.random() < 0.5 else np.ones(3, int)
    whole = np.zeros([shape[axis] * steps[axis] for axis in order], dtype)
    view = whole.transpose(np.argsort(order))[tuple(slice(None, None, step) for step in steps)]
    if rng.random() < 0.3:
        view = view[:, ::-1]
    if rng.random() < 0.3:
        view = view[:, :, ::-1]
    return view, whole


def assert_same_bits(found, expected):
    """Check that values have the same bits, or are both NaN."""
    number = f"u{expected.itemsize}"
    same = np.ascontiguousarray(found).view(number) == np.ascontiguousarray(expected).view(number)
    if expected.dtype.kind == "f":
        same |= np.isnan(found) & np.isnan(expected)
    assert same.all()


def numpy_values(source, positions, dtype, *, linear):
    out = np.empty([len(along) for along in positions], dtype)
    with np.errstate(invalid="ignore"):
        resample(source, positions, out, linear=linear)
    return out


@given(
    st.sampled_from(KERNEL_DTYPES),
    st.sampled_from([None, *KERNEL_DTYPES]),
    st.tuples(st.integers(1, 6), st.integers(1, 9), st.sampled_from([1, 2, 7, 40, 67])),
    st.tuples(st.integers(1, 7), st.integers(1, 9), st.sampled_from([1, 3, 8, 33, 70, 3000])),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**32),
)
@settings(max_examples=400, deadline=None)
def test_the_kernel_computes_the_values_of_numpy(
    kernel, dtype, other, shape, size, linear, baseline, seed
):
    rng = np.random.default_rng(seed)
    source = source_of(rng, shape, dtype)
    wanted = np.result_type(dtype, other or dtype) if linear else source.dtype
    wanted = wanted if wanted.name in KERNEL_DTYPES else source.dtype
    positions = tuple(positions_of(rng, n, side) for n, side in zip(size, shape, strict=True))
    expected = numpy_values(source, positions, wanted, linear=linear)
    out, whole = view_of(rng, size, wanted)
    apart, _ = view_of(rng, shape, dtype)
    apart[...] = source
    table = resampling_table([(apart, positions, out, linear)])
    borders = [0, *np.sort(rng.integers(0, size[0] + 1, 2)).tolist(), size[0]]
    for first, last in pairwise(borders):
        kernel.resample(table, first, last, baseline=baseline)
    assert table["status"][0] == DONE
    assert_same_bits(out, expected)
    out[...] = 0
    assert not whole.any()


def resampling_of(rng, dtype, size, *, linear):
    """Return a resampling of random voxels, which are in memory, and the values of NumPy."""
    shape = tuple(rng.integers(1, 30, 3).tolist())
    source = source_of(rng, shape, dtype)
    positions = tuple(positions_of(rng, n, side) for n, side in zip(size, shape, strict=True))
    read = BoxRead(None, Box((0, 0, 0), shape), source)
    resampling = Resampling(read, positions, np.empty(size, dtype), linear)
    return resampling, numpy_values(source, positions, dtype, linear=linear)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("with_kernel", [True, False])
def test_any_number_of_threads_gives_the_same_values(kernel, monkeypatch, threads, with_kernel):
    if not with_kernel:
        monkeypatch.setattr("spinezarr.stream.read.resample.kernel", lambda: None)
    rng = np.random.default_rng(threads)
    cases = [
        resampling_of(rng, dtype, tuple(rng.integers(1, 30, 3).tolist()), linear=linear)
        for dtype in (*KERNEL_DTYPES, "int64", "uint64")
        for linear in (True, False)
    ]
    resample_all([resampling for resampling, _ in cases], threads=threads)
    for resampling, expected in cases:
        assert_same_bits(resampling.out, expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_patches_are_divided_among_threads(kernel, monkeypatch, threads):
    rng, parts = np.random.default_rng(0), []

    def resample_part(table, first, last):
        parts.append((first, last))
        kernel.resample(table, first, last)

    spy = SimpleNamespace(resample=resample_part)
    monkeypatch.setattr("spinezarr.stream.read.resample.kernel", lambda: spy)
    cases = [resampling_of(rng, np.int16, (80, 170, 170), linear=True) for _ in range(2)]
    cases.append(resampling_of(rng, np.uint8, (80, 170, 170), linear=False))
    resample_all([resampling for resampling, _ in cases], threads=threads)
    for resampling, expected in cases:
        assert_same_bits(resampling.out, expected)
    parts.sort()
    assert len(parts) == threads
    assert [first for first, _ in parts] == [0, *(last for _, last in parts[:-1])]
    assert parts[-1][1] == 240


def test_small_patches_are_not_divided(kernel, monkeypatch):
    monkeypatch.setattr("spinezarr.stream.read.parallel.ThreadPoolExecutor", None)
    rng = np.random.default_rng(0)
    cases = [resampling_of(rng, np.int16, (32, 32, 32), linear=True) for _ in range(2)]
    resample_all([resampling for resampling, _ in cases], threads=8)
    for resampling, expected in cases:
        assert_same_bits(resampling.out, expected)


@pytest.mark.parametrize(
    ("size", "whole_x", "order", "thin"),
    [
        ((40, 40, 16), False, "zyx", False),
        ((40, 40, 15), False, "zyx", True),
        ((40, 40, 15), True, "zyx", True),
        ((40, 40, 15), True, "xzy", False),
        ((40, 40, 15), False, "xzy", True),
        ((10, 10, 1), False, "zyx", False),
    ],
)
@pytest.mark.parametrize("linear", [True, False])
def test_many_short_rows_are_left_to_numpy(kernel, monkeypatch, size, whole_x, order, thin, linear):
    tables = []

    def resample_part(table, first, last):
        tables.append(table)
        kernel.resample(table, first, last)

    spy = SimpleNamespace(resample=resample_part)
    monkeypatch.setattr("spinezarr.stream.read.resample.kernel", lambda: spy)
    source = source_of(np.random.default_rng(0), (30, 30, 30), "float32")
    positions = tuple(np.linspace(0, 29, n) for n in size)
    if whole_x:
        positions = (*positions[:2], np.floor(positions[2]))
    axes = ["zyx".index(name) for name in order]
    whole = np.empty([size[axis] for axis in axes], np.float32)
    read = BoxRead(None, Box((0, 0, 0), (30, 30, 30)), source)
    out = whole.transpose(np.argsort(axes))
    resample_all([Resampling(read, positions, out, linear)], threads=1)
    assert_same_bits(out, numpy_values(source, positions, np.float32, linear=linear))
    assert len(tables) == (not (thin and linear))


def test_voxels_to_resample_take_memory_of_the_pool():
    buffers, along = BufferPool(), np.arange(0, 60, 1.5)
    region = SourceRegion.of((along, along, along))
    array = SimpleNamespace(dtype=np.dtype(np.int16))
    planned = region.plan(array, np.empty((40,) * 3, np.int16), linear=True, buffers=buffers)
    assert planned.read.out.shape == region.box.shape_zyx
    n_bytes = planned.read.out.nbytes
    del planned
    assert buffers.free_bytes >= n_bytes


def test_no_resampling_is_nothing_to_do():
    resample_all([], threads=2)


@pytest.mark.parametrize("dtype", ["int64", "uint64", ">i2", "float16"])
def test_dtypes_that_the_kernel_does_not_know_are_left_to_numpy(kernel, dtype):
    rng = np.random.default_rng(0)
    resampling, _ = resampling_of(rng, "int16", (3, 4, 5), linear=True)
    source = resampling.read.out.astype(dtype)
    out = np.full((3, 4, 5), 7, dtype)
    table = resampling_table([(source, resampling.positions_zyx, out, True)])
    kernel.resample(table, 0, 3)
    assert table["status"][0] != DONE
    assert (out == 7).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("odd", [-0.001, 4.001, 5.0, 1e300, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("linear", [True, False])
def test_positions_outside_of_the_voxels_are_refused(kernel, axis, odd, linear):
    source, out = np.ones((5, 5, 5), np.int16), np.full((3, 3, 3), 7, np.int16)
    positions = [np.array([0.0, 1.5, 4.0]) for _ in range(3)]
    positions[axis][1] = odd
    table = resampling_table([(source, positions, out, linear)])
    kernel.resample(table, 0, 3)
    assert table["status"][0] not in {DONE, NOT_TRIED}
    assert (out == 7).all()


def test_positions_that_do_not_fit_the_output_are_refused():
    source, out = np.ones((5, 5, 5)), np.ones((3, 3, 3))
    good = np.zeros(3)
    for wrong in (np.zeros(2), np.zeros(4), np.zeros(3, np.float32), np.zeros(6)[::2]):
        with pytest.raises(ValueError, match="positions"):
            resampling_table([(source, (good, wrong, good), out, True)])
    read_only = np.ones((3, 3, 3))
    read_only.flags.writeable = False
    with pytest.raises(ValueError, match="is read-only"):
        resampling_table([(source, (good,) * 3, read_only, True)])


def test_a_table_of_another_form_is_not_resampled(kernel):
    table = np.zeros(4, RESAMPLINGS)
    for wrong in (table[::2], table.view(np.uint8), table.reshape(2, 2)):
        with pytest.raises(ValueError, match="expected one of"):
            kernel.resample(wrong, 0, 1)


# Where voxels lie


@given(st.integers(1, 700), st.floats(0.05, 6), st.floats(0.05, 6))
def test_a_grid_ends_with_the_last_voxel_inside(n, own_mm, target_mm):
    step, *_ = step_zyx((own_mm,) * 3, (target_mm, None, None))
    length, same, _ = grid_shape_zyx((n, n, n), (step, 1.0, 1.0))
    assert same == n
    assert (length - 1) * step <= n - 1 + 1e-5
    assert length * step > n - 1


def test_equal_spacings_are_not_resampled(spaced):
    store, _ = spaced
    own = store.table.spacing_zyx_mm.sel(scan="thick").to_numpy()
    plain = store.patches((5, 9, 11), scans=["thick"], n_samples=6, batch_size=6)
    for target in (own, own * (1 + 9e-7)):
        stream = store.patches(
            (5, 9, 11), scans=["thick"], n_samples=6, batch_size=6, spacing_zyx_mm=tuple(target)
        )
        (expected,), (found,) = plain, stream
        for name in ("image", "label", "affine", "start_zyx", "spacing_zyx_mm", "padding_zyx"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def assert_is_resampled(batch, stored, spacing_zyx):
    """Check a batch against interpolation from its own affines, for image and mask."""
    for i, scan_id in enumerate(batch.scan_id):
        image, label, affine = stored[scan_id]
        sides = np.linalg.norm(affine[:3, :3], axis=0)
        wanted = np.broadcast_to(spacing_zyx, 3)
        spacing = np.where(np.abs(wanted / sides[::-1] - 1) < 1e-6, sides[::-1], wanted)
        np.testing.assert_allclose(batch.spacing_zyx_mm[i], spacing, rtol=1e-12)
        expected = affine.copy()
        expected[:3, :3] = affine[:3, :3] / sides * spacing[::-1]
        expected[:3, 3] += expected[:3, :3] @ batch.start_zyx[i][::-1]
        np.testing.assert_allclose(batch.affine[i], expected, atol=1e-9)
        size = batch.image[i].shape
        zyx = np.indices(size).reshape(3, -1)
        world = batch.affine[i] @ np.vstack([zyx[::-1], np.ones(zyx.shape[1])])
        at = (np.linalg.inv(affine) @ world)[2::-1]
        last = np.array(image.shape)[:, np.newaxis] - 1
        # The grid ends where the scan does, to a millionth of its own step.
        step = (spacing / sides[::-1])[:, np.newaxis]
        inside = ((at > -1e-6) & (at < last + 1.01e-6 * step + 1e-9)).all(axis=0)
        at = np.clip(at, 0, last)
        values = np.where(inside, trilinear(image, *at), PADDING)
        rounding = 0.5 if batch.image.dtype.kind == "i" else 0
        scale = 1e-6 * np.abs(image.astype(float)).max()
        assert np.abs(batch.image[i].ravel() - values).max() <= rounding + 0.01 + scale
        # Of two voxels about equally near, either will do.
        exact = np.abs(at % 1 - 0.5).min(axis=0) > 1e-6
        nearest = np.where(inside, label[tuple(np.rint(at).astype(int))], 0)
        np.testing.assert_array_equal(batch.label[i].ravel()[exact], nearest[exact])
        outside = ~inside.reshape(size)
        for axis, (before, after) in enumerate(batch.padding_zyx[i].tolist()):
            others = tuple(a for a in range(3) if a != axis)
            padded = outside.all(axis=others)
            assert padded[:before].all()
            assert padded[size[axis] - after :].all()
            assert not padded[before : size[axis] - after].any()


@given(
    st.sampled_from(["thick", "fine", "tiny", "flat", "real", "wide"]),
    st.tuples(*[st.integers(1, 30)] * 3),
    st.tuples(*[st.floats(0.3, 6)] * 3) | st.sampled_from([0.5, 1.0, 2.5]),
    st.integers(0, 2**40),
)
@example("flat", (1, 1, 1), (1.0, 1.3, 1.0), 0)  # ends 1.3e-6 voxels behind the last one
@settings(max_examples=60)
def test_a_patch_equals_the_same_box_of_the_resampled_scan(spaced, scan_id, size, spacing, seed):
    store, stored = spaced
    (batch,) = store.patches(
        size, spacing_zyx_mm=spacing, scans=[scan_id], n_samples=2, batch_size=2, seed=seed,
        foreground=0.5,
    )  # fmt: skip
    assert batch.image.shape == batch.label.shape == (2, *size)
    assert batch.image.dtype == stored[scan_id][0].dtype
    assert_is_resampled(batch, stored, spacing)


@pytest.mark.parametrize("scan_id", ["thick", "fine", "real"])
@pytest.mark.parametrize("spacing", [0.5, 1.25, (3.1, 0.9, 1.7)])
def test_simpleitk_resamples_to_the_same_values(spaced, scan_id, spacing):
    store, stored = spaced
    (batch,) = store.patches(
        (12, 20, 16), spacing_zyx_mm=spacing, scans=[scan_id], n_samples=5, batch_size=5
    )
    image, label, affine = stored[scan_id]
    for i in range(5):
        grid = SimpleITK.Image(16, 20, 12, SimpleITK.sitkFloat64)
        place(grid, batch.affine[i])
        found = []
        for volume, how in ((image, SimpleITK.sitkLinear), (label, SimpleITK.sitkNearestNeighbor)):
            source = SimpleITK.GetImageFromArray(volume.astype(float))
            place(source, affine)
            whole = SimpleITK.Resample(source, grid, SimpleITK.Transform(), how, np.nan)
            found.append(SimpleITK.GetArrayFromImage(whole))
        inside = np.zeros((12, 20, 16), bool)
        (z0, z1), (y0, y1), (x0, x1) = batch.padding_zyx[i]
        inside[z0 : 12 - z1, y0 : 20 - y1, x0 : 16 - x1] = True
        assert inside.any()
        assert np.abs(batch.image[i] - found[0])[inside].max() <= 0.51
        assert (batch.image[i][~inside] == PADDING).all()
        assert (batch.label[i][~inside] == 0).all()
        same = batch.label[i] == found[1]
        # Of two voxels about equally near, ITK may take the other.
        assert same[inside].mean() > (0.4 if spacing in (0.5, 1.25) else 0.999)


def place(image, affine_xyz):
    """Set the position of an ITK image, whose frame is LPS, from an affine to RAS+."""
    lps = np.diag([-1, -1, 1]) @ affine_xyz[:3]
    sides = np.linalg.norm(lps[:, :3], axis=0)
    image.SetSpacing(sides.tolist())
    image.SetDirection((lps[:, :3] / sides).ravel().tolist())
    image.SetOrigin(lps[:, 3].tolist())


def test_only_the_voxels_around_a_patch_are_read(spaced):
    store, stored = spaced
    stream = store.patches(4, spacing_zyx_mm=1.3, scans=["thick", "fine"], n_samples=40)
    for index in range(40):
        request = stream.request(index)
        work = _Work([], [], [])
        stream.batch_reader._plan([request], work)
        reads = work.reads
        assert [read.array.name for read in reads] == ["image", "label"]
        for read in reads:
            shape = stored[request.scan_id][0].shape
            step = 1.3 / store.table.spacing_zyx_mm.sel(scan=request.scan_id).to_numpy()
            for axis in range(3):
                first = request.box.start_zyx[axis] * step[axis]
                last = min(first + 3 * step[axis], shape[axis] - 1)
                assert read.box.start_zyx[axis] == math.floor(max(first, 0) + 1e-9)
                assert read.box.stop_zyx[axis] == math.ceil(last - 1e-9) + 1


def test_samples_of_a_resampled_stream_do_not_depend_on_the_batch(spaced):
    store, _ = spaced
    one = store.patches((6, 7, 8), spacing_zyx_mm=1.1, n_samples=9, foreground=0.5)
    (whole,) = store.patches(
        (6, 7, 8), spacing_zyx_mm=1.1, n_samples=9, foreground=0.5, batch_size=9
    )
    np.testing.assert_array_equal(np.concatenate([batch.image for batch in one]), whole.image)
    np.testing.assert_array_equal(np.concatenate([batch.label for batch in one]), whole.label)


# Slices


@pytest.mark.parametrize("plane", list(SLICE_AXIS))
def test_slices_are_resampled_within_their_plane(spaced, plane):
    store, stored = spaced
    flat = SLICE_AXIS[plane]
    spacing = (1.3, 0.8)
    stream = store.slices(
        plane, size=(17, 21), spacing_mm=spacing, n_samples=12, batch_size=12, foreground=0.5,
        scans=["thick", "fine", "tiny", "flat"],
    )  # fmt: skip
    (batch,) = stream
    assert batch.image.shape == batch.label.shape == (12, 17, 21)
    for i, scan_id in enumerate(batch.scan_id):
        whole = list(spacing)
        whole.insert(flat, float(store.table.spacing_zyx_mm.sel(scan=scan_id)[flat]))
        size = [17, 21]
        size.insert(flat, 1)
        patches = store.patches(tuple(size), spacing_zyx_mm=tuple(whole), scans=[scan_id])
        again = patches.read([stream.request(i)])
        np.testing.assert_array_equal(batch.image[i], again.image[0].squeeze(flat))
        np.testing.assert_array_equal(batch.label[i], again.label[0].squeeze(flat))
        assert_is_resampled(again, stored, whole)


def test_resampled_slices_are_as_large_as_the_largest_scan(spaced):
    store, _ = spaced
    thick = store.slices("sagittal", spacing_mm=1.0, scans=["thick"])
    assert thick[0].image.shape == (1, 33, 24)  # 13 * 2.5 and 29 * 0.8 mm
    both = store.slices("sagittal", spacing_mm=(1.0, 0.5), scans=["thick", "flat"])
    assert both[0].image.shape == (1, 33, 47)


@given(
    st.sampled_from(list(SLICE_AXIS)),
    st.integers(1, 5),
    st.sampled_from([(None, None), (1.0, None), (0.4, 1.1), (2.5, 1.1), (None, 1.1), (100, None)]),
    st.integers(0, 2**40),
)
@settings(max_examples=60)
def test_neighbors_are_the_adjacent_slices_or_repeat_the_outermost(spaced, plane, k, steps, seed):
    step, spacing = steps
    store, stored = spaced
    flat = SLICE_AXIS[plane]
    wanted = {"size": (15, 18), "spacing_mm": spacing, "n_samples": 4, "batch_size": 4}
    wanted |= {"seed": seed, "scans": ["thick", "fine", "tiny"]}
    (single,) = store.slices(plane, **wanted)
    (batch,) = store.slices(plane, neighbors=k, neighbor_step_mm=step, **wanted)
    assert batch.dims == ("slice", *single.dims)
    assert batch.image.shape == (4, 2 * k + 1, 15, 18)
    np.testing.assert_array_equal(batch.image[:, k], single.image)
    for name in ("label", "affine", "start_zyx", "padding_zyx", "spacing_zyx_mm"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(single, name))
    stream = store.slices(plane, **wanted)
    table = store.table
    spacing_of = dict(zip(table.scan.values, table.spacing_zyx_mm.values[:, flat], strict=True))
    for i, scan_id in enumerate(batch.scan_id):
        n, own, requests = stored[scan_id][0].shape[flat], spacing_of[scan_id], []
        box = stream.request(i).box
        for offset in range(-k, k + 1):
            moved = [0, 0, 0]
            away = offset if step is None else np.rint(offset * step / own)
            moved[flat] = int(np.clip(box.start_zyx[flat] + away, 0, n - 1)) - box.start_zyx[flat]
            requests.append(replace(stream.request(i), box=box.shift(tuple(moved))))
        np.testing.assert_array_equal(batch.image[i], stream.read(requests).image)


def test_slices_with_neighbors_are_read_directly_into_the_batch(spaced):
    stream = spaced[0].slices("coronal", neighbors=2, scans=["fine"], n_samples=40)
    direct = Counter()
    for index in range(40):
        work = _Work([], [], [])
        request = stream.request(index)
        batch = stream.batch_reader._plan([request], work)
        inside = 2 <= request.box.start_zyx[1] < 20
        assert (work.resamplings == []) == inside
        assert np.shares_memory(work.reads[0].out, batch.image) == inside
        direct[inside] += 1
    assert len(direct) == 2


# Sizes in mm


def test_sizes_in_mm_are_rounded_to_voxels(spaced):
    store, _ = spaced
    for size_zyx_mm, spacing, size in (
        (20, 2, (10, 10, 10)),
        ((20, 30, 41), (3, 1, 2), (7, 30, 20)),
        (0.2, 1, (1, 1, 1)),
        (5.4, 0.5, (11, 11, 11)),
    ):
        stream = store.patches(size_zyx_mm=size_zyx_mm, spacing_zyx_mm=spacing)
        assert stream.sampler.size_zyx == size
    own = store.patches(size_zyx_mm=20, scans=["thick"])
    assert own[0].image.shape == (1, 8, 25, 29)
    alike = store.patches(size_zyx_mm=(20, 10, 10), scans=["real", "wide"])
    assert alike.sampler.size_zyx == (10, 9, 11)
    coarse = store.patches(
        size_zyx_mm=1, scans=["thick", "tiny"]
    )  # one voxel along each axis for any spacing
    assert coarse.sampler.size_zyx == (1, 1, 1)
    sagittal = store.slices("sagittal", size_mm=(20, 30), spacing_mm=2)
    assert sagittal[0].image.shape == (1, 10, 15)
    assert store.slices("axial", size_mm=(8, 7), scans=["thick"])[0].image.shape == (1, 10, 10)


def test_sizes_in_mm_of_scans_that_differ_need_a_spacing(spaced):
    store, _ = spaced
    with pytest.raises(
        UsageError,
        match=r"size_zyx_mm \(20, 20, 20\): the chosen scans have voxels of 0\.5 x 0\.8 x 0\.7 to "
        r"2\.5 x 1 x 1 mm \(z, y, x\), so patches would differ in shape\. Give spacing_zyx_mm too",
    ):
        store.patches(size_zyx_mm=20, scans=["thick", "fine"])
    with pytest.raises(UsageError, match=r"voxels of .* mm \(z, y\)"):
        store.slices("sagittal", size_mm=(20, 20), scans=["thick", "fine"])


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({}, "patch size: none is given; give size_zyx in voxels, or size_zyx_mm"),
        ({"size_zyx": 8, "size_zyx_mm": 8}, "patch size 8, size_zyx_mm 8: give one of the two"),
        (
            {"size_zyx_mm": (8, 8)},
            r"size_zyx_mm \(8, 8\): give three numbers of at least 0.001 \(z, y, x\), or one",
        ),
        ({"size_zyx_mm": 0}, "size_zyx_mm 0: give three numbers of at least 0.001"),
        ({"size_zyx_mm": "8"}, "size_zyx_mm 8: give three numbers"),
        ({"size_zyx_mm": ((1, 2), 3)}, "give three numbers"),
        ({"size_zyx_mm": float("nan")}, "size_zyx_mm nan"),
        (
            {"size_zyx": 8, "spacing_zyx_mm": 0},
            "spacing_zyx_mm 0: give three numbers of at least 0.001",
        ),
        ({"size_zyx": 8, "spacing_zyx_mm": -1.0}, "spacing_zyx_mm -1.0"),
        ({"size_zyx": 8, "spacing_zyx_mm": 1e-320}, "spacing_zyx_mm 1e-320"),
        ({"size_zyx": 8, "spacing_zyx_mm": float("inf")}, "spacing_zyx_mm inf"),
        (
            {"size_zyx": 8, "spacing_zyx_mm": (1, 2)},
            r"spacing_zyx_mm \(1, 2\): give three numbers of at least",
        ),
        ({"size_zyx": 8, "spacing_zyx_mm": True}, "spacing_zyx_mm True"),
    ],
)
def test_invalid_sizes_and_spacings_are_refused(spaced, wanted, message):
    with pytest.raises(UsageError, match=message):
        spaced[0].patches(**wanted)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"size": (8, 8), "size_mm": (8, 8)}, "give one of the two"),
        (
            {"size_mm": (8, 8, 8), "spacing_mm": 1},
            r"give two numbers of at least 0.001 \(y, x\), or one",
        ),
        (
            {"spacing_mm": (1, 2, 3)},
            r"spacing_mm \(1, 2, 3\): give two numbers of at least 0.001 \(y, x\)",
        ),
        ({"size": 8}, r"slice size 8: give two whole numbers \(y, x\)\."),
        ({"size": (8.5, 8)}, "give two whole numbers"),
        ({"neighbors": -1}, "neighbors -1: must not be negative"),
        (
            {"neighbor_step_mm": 1},
            "neighbor_step_mm 1: must be at least 0.001, and needs neighbors of 1",
        ),
        ({"neighbors": 1, "neighbor_step_mm": 0}, "neighbor_step_mm 0: must be at least 0.001"),
        ({"neighbors": 1, "neighbor_step_mm": 1e-320}, "neighbor_step_mm 1e-320"),
        ({"neighbors": 1, "neighbor_step_mm": float("nan")}, "neighbor_step_mm nan"),
        ({"neighbors": 1, "neighbor_step_mm": float("inf")}, "neighbor_step_mm inf"),
    ],
)
def test_invalid_options_of_slices_are_refused(spaced, wanted, message):
    with pytest.raises(UsageError, match=message):
        spaced[0].slices("axial", **wanted)


# Draws of whole streams


def test_streams_draw_each_voxel_with_its_enumerated_chance(spaced):
    """A chi-square test covers every voxel of small scans, resampled, weighted, half balanced."""
    store, stored = spaced
    names = ["tiny", "flat", "thick"]
    size, target, weights = (1, 12, 1), (3.0, 2.0, 6.0), {"T11": 4.0, "L1": 0.5}
    chances = Counter()
    values = {name: VALUE_OF_NAME[name] for name in ("T11", "T12", "L1", "L2")}
    weight = {name: weights.get(name, 1.0) for name in values}
    for scan_id in names:
        _, label, affine = stored[scan_id]
        spacing = np.linalg.norm(affine[:3, :3], axis=0)[::-1]
        grid = [int((n - 1) * own / mm + 1e-9) + 1
                for n, own, mm in zip(label.shape, spacing, target, strict=True)]  # fmt: skip
        room = [max(n - s, 0) for n, s in zip(grid, size, strict=True)]
        before = [max(s - n, 0) // 2 for n, s in zip(grid, size, strict=True)]
        starts = list(product(*(range(n + 1) for n in room)))
        for start in starts:
            at = tuple(np.subtract(start, before).tolist())
            chances[scan_id, None, at] += 0.5 / len(names) / len(starts)
        for name, value in values.items():
            voxels = np.argwhere(label == value)
            for voxel in voxels:
                wanted = np.ceil(voxel * spacing / target - np.array(size) / 2)
                at = tuple((np.clip(wanted, 0, room) - before).astype(int).tolist())
                share = weight[name] / sum(weight.values()) / len(names) / len(voxels)
                chances[scan_id, name, at] += 0.5 * share
    stream = store.patches(
        size, spacing_zyx_mm=target, weights=weights, foreground=0.5, scans=names, seed=2
    )
    n = 8000
    found = Counter()
    for index in range(n):
        request = stream.request(index)
        found[request.scan_id, request.vertebra, request.box.start_zyx] += 1
    assert set(found) <= set(chances)
    assert sum(chances.values()) == pytest.approx(1)
    # Rare outcomes are merged, because Pearson's test needs some of each.
    rare = {item for item, chance in chances.items() if chance * n < 10}
    cells = [(found[item], chance * n) for item, chance in chances.items() if item not in rare]
    cells.append((sum(found[item] for item in rare), sum(chances[item] for item in rare) * n))
    chi_square = sum((seen - mean) ** 2 / mean for seen, mean in cells if mean)
    assert len(cells) > 60
    assert chi_square < len(cells) + 5.6 * np.sqrt(2 * len(cells)) + 20
