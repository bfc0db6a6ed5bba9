"""Streams over images that are stored as scaled integers, or hold NaN or infinite voxels."""

import dask
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.geometry import Box
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_table import ScanTable
from spinezarr.stream.read import engine as engine_module
from spinezarr.stream.read.batch_reader import PADDING_HU
from spinezarr.stream.read.box_reader import BoxRead
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.stream.read.resample import resample

SCALED = ["byte", "half", "word", "thin", "down"]
FINITE = [*SCALED, "plain"]
SHAPE = (70, 52, 50)
HOLES = ["holes", "sieve"]


@pytest.fixture(scope="module")
def reader(odd):
    return StoreReader(odd.url)


@pytest.fixture
def store(odd):
    return spinezarr.open(odd.url)


@st.composite
def boxes(draw, shape=(70, 52, 50)):
    starts = [draw(st.integers(0, n - 1)) for n in shape]
    stops = [draw(st.integers(a + 1, n)) for a, n in zip(starts, shape, strict=True)]
    return Box(tuple(starts), tuple(stops))


def cut(values, start_zyx, shape_zyx):
    """Cut a patch out of a volume; what lies outside is air."""
    out = np.full(shape_zyx, PADDING_HU, values.dtype)
    box = Box.at(tuple(start_zyx), tuple(shape_zyx))
    inside = box.intersect(Box((0, 0, 0), values.shape))
    if inside is not None:
        at = inside.shift(tuple(-start for start in box.start_zyx))
        out[at.slices] = values[inside.slices]
    return out


def filled(values, fill):
    return np.where(np.isfinite(values), values, fill)


# The engine


@pytest.mark.parametrize("cache_bytes", [0, 1 << 18, 1 << 26])
@pytest.mark.parametrize("with_kernel", [True, False])
def test_boxes_hold_the_scaled_values(odd, reader, monkeypatch, cache_bytes, with_kernel):
    if not with_kernel:
        monkeypatch.setattr(engine_module, "kernel", lambda: None)
    engine = Engine(fetcher_for(reader.objects), cache_bytes=cache_bytes)
    rng = np.random.default_rng(2)
    for _ in range(3):
        reads, expected = [], []
        for name in [*FINITE, "holes"]:
            start = rng.integers(0, 40, 3)
            box = Box(tuple(start.tolist()), tuple((start + rng.integers(1, 11, 3)).tolist()))
            for dtype in ("float64", "float32", ">f8"):
                out = np.zeros((2, *box.shape_zyx[::-1]), dtype)[1].T
                reads.append(BoxRead(reader.scan(name).image, box, out))
                expected.append(odd.image[name][box.slices].astype(dtype))
        engine.read(reads, threads=2)
        for read, values in zip(reads, expected, strict=True):
            np.testing.assert_array_equal(read.out, values)


@given(box=boxes(), name=st.sampled_from(SCALED))
def test_any_box_equals_the_one_that_numpy_cuts_out(odd, reader, box, name):
    engine = Engine(fetcher_for(reader.objects))
    spec = reader.scan(name).image
    values, numbers = np.empty(box.shape_zyx), np.empty(box.shape_zyx, spec.stored_dtype)
    engine.read_into(spec, box, values)
    engine.read_into(spec.unscaled(), box, numbers)
    np.testing.assert_array_equal(values, odd.image[name][box.slices])
    np.testing.assert_array_equal(values, spec.scaling.values(numbers))


def test_the_cache_keeps_stored_numbers_and_not_scaled_values(odd, reader):
    spec = reader.scan("byte").image
    whole = Box((0, 0, 0), spec.shape_zyx)
    engine = Engine(fetcher_for(reader.objects), cache_bytes=int(np.prod(spec.shape_zyx)))
    for _ in range(2):
        out = np.empty(spec.shape_zyx, np.float32)
        engine.read_into(spec, whole, out)
        np.testing.assert_array_equal(out, odd.image["byte"].astype(np.float32))
    summary = engine.explain([(spec, whole)])
    assert (summary.cached_chunks, summary.decoded_bytes) == (8, 0)


def test_explain_counts_decoded_bytes_and_those_of_the_result(reader):
    spec = reader.scan("byte").image
    summary = Engine(fetcher_for(reader.objects)).explain([(spec, Box((0, 0, 0), (9, 9, 9)))])
    assert summary.decoded_bytes == spec.coding.block_bytes
    assert summary.voxel_bytes == 9**3 * 8


# Streams


@pytest.mark.parametrize("shuffle", ["exact", "window"])
@pytest.mark.parametrize("scans", [SCALED, FINITE])
def test_patches_of_several_types_hold_the_values(odd, store, scans, shuffle):
    stream = store.patches(
        (20, 60, 24), scans=scans, n_samples=30, batch_size=4, foreground=0.5, shuffle=shuffle
    )
    for batch in stream:
        assert batch.image.dtype == np.float64
        for i, name in enumerate(batch.scan_id):
            expected = cut(odd.image[name].astype(float), batch.start_zyx[i], (20, 60, 24))
            np.testing.assert_array_equal(batch.image[i], expected)


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_with_neighbors_hold_the_values(odd, store, plane):
    axis = ("axial", "coronal", "sagittal").index(plane)
    for batch in store.slices(plane, scans=SCALED, neighbors=1, n_samples=12):
        values = odd.image[batch.scan_id[0]]
        middle = batch.start_zyx[0][axis]
        around = np.clip([middle - 1, middle, middle + 1], 0, values.shape[axis] - 1)
        expected = np.moveaxis(values.take(around, axis), axis, 0)
        np.testing.assert_array_equal(batch.image[0], expected)


@pytest.mark.parametrize("name", FINITE)
def test_a_grid_covers_the_values(odd, store, name):
    grid = store.grid(name, 32, batch_size=3)
    merger = grid.merger("crop")
    for batch in grid:
        merger.add(batch, batch.image[:, None])
    np.testing.assert_array_equal(merger.merge()[0], odd.image[name])


SPACING = (2.0, 1.1, 0.8)
PATCH = (16, 20, 24)


def resampled(values, start_zyx):
    """Return a patch of a volume of 2.5 x 0.9 x 0.8 mm, resampled to SPACING."""
    step = np.array(SPACING) / (2.5, 0.9, 0.8)
    axes = zip(start_zyx, PATCH, step, strict=True)
    out = np.empty(PATCH)
    resample(values, tuple((start + np.arange(n)) * s for start, n, s in axes), out, linear=True)
    return out


@pytest.mark.parametrize("name", SCALED)
def test_resampled_patches_interpolate_the_scaled_values(odd, store, name):
    for batch in store.patches(PATCH, spacing_zyx_mm=SPACING, scans=[name], n_samples=4):
        expected = resampled(odd.image[name].astype(np.float64), batch.start_zyx[0])
        # The affine of the file is float32, so positions are off by some 1e-6 of a voxel.
        np.testing.assert_allclose(batch.image[0], expected, atol=5e-6 * np.ptp(expected))


def test_lazy_arrays_hold_the_values(odd, store):
    for name in SCALED:
        image = store.scan(name).image
        assert image.dtype == np.float64
        np.testing.assert_array_equal(image, odd.image[name])
        np.testing.assert_array_equal(image[::-7, 3, ::2], odd.image[name][::-7, 3, ::2])
    stream = store.patches(12, scans=FINITE, n_samples=6, batch_size=4)
    with dask.config.set(scheduler="synchronous"):
        epoch = stream.to_dask().image.to_numpy()
    np.testing.assert_array_equal(epoch, np.concatenate([batch.image for batch in stream]))


@pytest.mark.parametrize("name", ["byte", *HOLES])
def test_previews_are_drawn_of_odd_images(store, name):
    store.figure(name).canvas.draw()


def test_the_audit_checks_the_scaled_values(store):
    assert {f.rule for f in store.audit(scans=["byte"]).findings} >= {"image-type", "image-values"}


# NaN and infinite voxels


def test_nonfinite_voxels_are_counted(odd, store):
    table = store.table
    for name, values in odd.image.items():
        row = table.sel(scan=name)
        assert row.image_nan_voxels.item() == np.isnan(values).sum()
        assert row.image_infinite_voxels.item() == np.isinf(values).sum()
        finite = values[np.isfinite(values)]
        assert (row.image_min_hu.item(), row.image_max_hu.item()) == (finite.min(), finite.max())
    for name in HOLES:
        counts = f"{np.isnan(odd.image[name]).sum()} NaN and {np.isinf(odd.image[name]).sum()} inf"
        assert f"the image has {counts}" in " ".join(odd.notes[name])
        (finding,) = (f for f in store.audit(scans=[name]).findings if f.rule == "not-finite")
        assert finding.severity == "error"
        assert finding.facts["nan_voxels"] == np.isnan(odd.image[name]).sum()


@pytest.mark.parametrize(
    "make",
    [
        lambda store: store.patches(16),
        lambda store: store.patches(16, shuffle="window"),
        lambda store: store.patches(16, scans=["plain", "holes"]),
        lambda store: store.patches(16, spacing_zyx_mm=2, nonfinite="refuse"),
        lambda store: store.slices("axial"),
        lambda store: store.grid("holes", 16),
    ],
)
def test_scans_with_nonfinite_voxels_are_refused_by_name_before_any_is_opened(odd, make):
    store = spinezarr.open(odd.url)
    n_holes = int((~np.isfinite(odd.image["holes"])).sum())
    with pytest.raises(UsageError) as caught:
        make(store)
    said = str(caught.value)
    assert f"scans hold voxels that are NaN or infinite: holes ({n_holes} voxels)" in said
    assert "nonfinite=-1024" in said
    assert "plain" not in said
    assert store._reader._scans.cache_info().misses == 0


def test_an_error_of_many_scans_names_some_and_counts_the_rest(odd):
    store = spinezarr.open(odd.url)
    n = store.table.sizes["scan"]
    table = store.table.assign(image_nan_voxels=("scan", np.arange(n) + 1))
    store._reader.columns = ScanTable.of(table)
    with pytest.raises(UsageError, match=rf"byte \(1 voxels\), .* and {n - 3} more\. Give"):
        store.patches(16)


@pytest.mark.parametrize("nonfinite", ["drop", "", np.nan, np.inf, True, "0"])
@pytest.mark.parametrize("scans", [["plain"], ["holes"]])
def test_other_values_of_nonfinite_are_refused(store, nonfinite, scans):
    with pytest.raises(UsageError, match="give 'refuse', 'keep' or the number to put"):
        store.patches(16, scans=scans, nonfinite=nonfinite)


@pytest.mark.parametrize("shuffle", ["exact", "window"])
@pytest.mark.parametrize("nonfinite", ["keep", -1024, 0.5])
def test_nonfinite_voxels_are_kept_or_replaced(odd, store, nonfinite, shuffle):
    stream = store.patches(
        (20, 24, 60),
        scans=[*HOLES, "plain"],
        n_samples=20,
        batch_size=3,
        shuffle=shuffle,
        foreground=0.5,
        nonfinite=nonfinite,
    )
    for batch in stream:
        for i, name in enumerate(batch.scan_id):
            values = odd.image[name].astype(float)
            if nonfinite != "keep":
                values = filled(values, nonfinite)
            expected = cut(values, batch.start_zyx[i], (20, 24, 60))
            np.testing.assert_array_equal(batch.image[i], expected.astype(batch.image.dtype))


def test_nonfinite_voxels_are_replaced_before_interpolation(odd, store):
    options = {"spacing_zyx_mm": SPACING, "scans": ["sieve"], "n_samples": 4}
    values = filled(odd.image["sieve"], -1024)
    for batch in store.patches(PATCH, **options, nonfinite=-1024):
        assert np.isfinite(batch.image).all()
        np.testing.assert_allclose(batch.image[0], resampled(values, batch.start_zyx[0]), atol=0.01)
    kept = np.stack([batch.image for batch in store.patches(PATCH, **options, nonfinite="keep")])
    assert np.isnan(kept).mean() > np.isnan(values).mean()


def test_slices_grids_and_lazy_epochs_replace_nonfinite_voxels(odd, store):
    batch = store.slices("axial", scans=["holes"], neighbors=1, nonfinite=7.0)[0]
    z = np.clip(batch.start_zyx[0][0] + np.arange(-1, 2), 0, SHAPE[0] - 1)
    np.testing.assert_array_equal(batch.image[0], filled(odd.image["holes"], 7.0)[z])
    grid = store.grid("holes", 32, nonfinite=7.0)
    merger = grid.merger("crop")
    for part in grid:
        merger.add(part, part.image[:, None])
    np.testing.assert_array_equal(merger.merge()[0], filled(odd.image["holes"], 7.0))
    np.testing.assert_array_equal(grid[0].image, next(iter(grid)).image)
    stream = store.patches(12, scans=HOLES, n_samples=6, batch_size=4, nonfinite=7.0)
    with dask.config.set(scheduler="synchronous"):
        epoch = stream.to_dask().image.to_numpy()
    assert np.isfinite(epoch).all()
    np.testing.assert_array_equal(epoch, np.concatenate([batch.image for batch in stream]))


def test_nonfinite_changes_nothing_for_finite_scans(odd, store):
    for nonfinite in ("refuse", "keep", 5):
        batch = store.patches(24, scans=["plain"], seed=3, nonfinite=nonfinite)[0]
        expected = store.patches(24, scans=["plain"], seed=3)[0]
        assert batch.image.dtype == np.int16
        np.testing.assert_array_equal(batch.image, expected.image)


def test_nonfinite_belongs_to_the_state_of_a_stream(store):
    stream = store.patches(12, scans=HOLES, n_samples=6, nonfinite=-1024)
    state = iter(stream).state_dict()
    stream.resume(state)
    with pytest.raises(UsageError, match="nonfinite is -1024 there and keep here"):
        store.patches(12, scans=HOLES, n_samples=6, nonfinite="keep").resume(state)


def test_a_scan_with_nonfinite_voxels_newer_than_the_table_is_refused(odd, store):
    table = store.table.assign(
        image_nan_voxels=store.table.image_nan_voxels * 0,
        image_infinite_voxels=store.table.image_infinite_voxels * 0,
    )
    store._reader.columns = ScanTable.of(table)
    stream = store.patches(12, scans=["holes"])
    with pytest.raises(UsageError, match="'holes' holds voxels that are NaN or infinite since"):
        stream[0]
