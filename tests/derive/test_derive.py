"""Derived stores hold what nibabel, SciPy and streams compute of their sources."""

import shutil

import nibabel.processing
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from scipy import ndimage
from small_scans import SCANS, make_image, make_label, nifti_of

import spinezarr
from spinezarr.derive.derived_array import DerivedArray
from spinezarr.derive.grid import DerivedGrid
from spinezarr.derive.parameters import Derivation
from spinezarr.derive.sampling import FilteredSampling, LabelwiseSampling, PlainSampling
from spinezarr.derive.smoothing import filter_sigma
from spinezarr.errors import UnknownMaskError, UsageError
from spinezarr.store.reader import StoreReader
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.vertebrae import VALUE_OF_NAME

SPACING_MM = st.one_of(st.floats(0.4, 6), st.sampled_from([0.7, 0.8, 1.0, 2.5, 3.0, 5.0, 1.4]))
MANY = settings(max_examples=40, deadline=None)
FEW = settings(
    max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
"""Settings of tests that write a store for each example."""
VERTEBRAE = ("box", "oblique", "plane", "line", "voxel")
"""Scans whose masks show a vertebra."""


def derive(store, folder, **options):
    """Derive a store into an empty folder, and open it."""
    shutil.rmtree(folder / "derived.zarr", ignore_errors=True)
    report = store.derive(out=folder / "derived.zarr", **options)
    assert not report.failed, report.failed
    derived = spinezarr.open(folder / "derived.zarr")
    assert derived.verify().faults == ()
    return derived


def assert_near(found, expected):
    """Compare rounded values with those before rounding, which float32 changes by up to 0.02."""
    assert np.abs(found - expected).max() <= 0.5 + 0.02


@pytest.fixture(scope="module")
def opened(small):
    """Return the store, and a reader and an engine of its files."""
    reader = StoreReader(small.url)
    return spinezarr.open(small.url), reader, Engine(fetcher_for(reader.objects))


def grid_of(reader, name, spacing):
    attributes = reader.scan(name).attributes
    derivation = Derivation(target_zyx_mm=tuple(np.broadcast_to(spacing, 3).tolist()))
    return DerivedGrid.of(attributes, derivation)


@MANY
@given(
    name=st.sampled_from(sorted(SCANS)),
    spacing=st.tuples(SPACING_MM, SPACING_MM, SPACING_MM) | SPACING_MM,
)
def test_without_the_filter_voxels_are_those_of_a_stream_and_of_nibabel(opened, name, spacing):
    store, reader, engine = opened
    scan, grid = reader.scan(name), grid_of(reader, name, spacing)
    image = DerivedArray(PlainSampling(engine, scan.image, linear=True), grid)[:]
    options = {"scans": name, "spacing_zyx_mm": spacing}
    batch = store.patches(grid.shape_zyx, labels=False, **options)[0]
    np.testing.assert_array_equal(image, batch.image[0])
    np.testing.assert_array_equal(grid.affine, batch.affine[0])
    if scan.label is not None:
        label = DerivedArray(PlainSampling(engine, scan.label, linear=False), grid)[:]
        np.testing.assert_array_equal(label, store.patches(grid.shape_zyx, **options)[0].label[0])
    source = nifti_of(store.scan(name).astype(float))
    if min(image.shape) > 1:  # SciPy has no neighbor along an axis of one voxel
        expected = nibabel.processing.resample_from_to(
            source, (image.shape[::-1], grid.affine), order=1, mode="nearest"
        )
        assert_near(image, expected.get_fdata().transpose(2, 1, 0))
    # The last voxel lies in the source, and a further one would not.
    corner = np.array([*image.shape[::-1]])
    for further in (corner - 1, corner):
        index = (np.linalg.inv(source.affine) @ grid.affine @ (*further, 1))[:3]
        inside = (index <= np.array(source.shape) - 1 + 1e-4).all()
        assert inside == (further is not corner) or (further is corner and (index > 0).all())


@MANY
@given(name=st.sampled_from(sorted(SCANS)), spacing=st.tuples(SPACING_MM, SPACING_MM, SPACING_MM))
def test_the_filter_is_the_gaussian_of_scipy(opened, name, spacing):
    _, reader, engine = opened
    grid = grid_of(reader, name, spacing)
    assume(max(grid.step_zyx) > 1)
    array = reader.scan(name).image
    found = DerivedArray(FilteredSampling(engine, array, grid.step_zyx), grid)[:]
    steps = np.array(spacing) / reader.scan(name).attributes.spacing_zyx_mm
    steps[np.abs(steps - 1) < 1e-6] = 1
    sigmas = np.sqrt(np.maximum(steps**2 - 1, 0) / (8 * np.log(2)))
    smooth = ndimage.gaussian_filter(
        make_image(name).astype(float), sigmas, mode="nearest", truncate=4.0
    )
    axes = [
        np.minimum(np.arange(n) * step, size - 1)
        for n, step, size in zip(found.shape, steps, smooth.shape, strict=True)
    ]
    expected = ndimage.map_coordinates(smooth, np.meshgrid(*axes, indexing="ij"), order=1)
    assert_near(found, expected)


@given(step=st.floats(1.0, 20.0))
def test_the_filter_widens_a_gaussian_of_one_voxel_to_the_new_voxel(step):
    width_of_sigma = 2 * np.sqrt(2 * np.log(2))  # full width at half maximum
    sigma = np.hypot(filter_sigma(step), 1 / width_of_sigma)
    np.testing.assert_allclose(sigma * width_of_sigma, step)


def test_an_image_is_filtered_only_where_it_gets_fewer_voxels(small, tmp_path):
    """The derived store chooses the sampling that the tests above compare."""
    store = spinezarr.open(small.url)
    reader = StoreReader(small.url)
    engine, array = Engine(fetcher_for(reader.objects)), reader.scan("box").image
    for spacing, antialias in (((1, 0.8, 0.5), True), ((5, 0.5, 2), True), ((5, 0.5, 2), False)):
        grid = grid_of(reader, "box", spacing)
        sampling = PlainSampling(engine, array, linear=True)
        if antialias and spacing[0] > 2.5:
            sampling = FilteredSampling(engine, array, grid.step_zyx)
        options = {"spacing_mm": spacing, "antialias": antialias, "scans": "box"}
        scan = derive(store, tmp_path, **options).scan("box")
        np.testing.assert_array_equal(scan.image, DerivedArray(sampling, grid)[:])
        found = scan.attrs["derived_from"]["image_filter"]
        assert found == ("gaussian" if antialias else None)


@FEW
@given(
    name=st.sampled_from(sorted(SCANS)),
    spacing=st.none() | SPACING_MM,
    crop=st.none() | st.sampled_from([0, 0.5, 3, 40]),
    linear=st.booleans(),
)
def test_counts_boxes_centroids_and_the_table_follow(small, tmp_path, name, spacing, crop, linear):
    assume(crop is None or name in VERTEBRAE)
    store = spinezarr.open(small.url)
    options = {} if crop is None else {"crop": "spine", "margin_mm": crop}
    if spacing is not None:
        interpolation = "linear" if linear else "nearest"
        options |= {"spacing_mm": spacing, "mask_interpolation": interpolation}
    derived = derive(store, tmp_path, scans=name, **options)
    scan, row = derived.scan(name), derived.table.sel(scan=name)
    facts = scan.attrs
    assert row.shape_zyx.to_numpy().tolist() == list(scan.image.shape) == facts["shape_zyx"]
    lengths = np.linalg.norm(np.array(facts["affine"])[:3, :3], axis=0)[::-1]
    np.testing.assert_allclose(facts["spacing_zyx_mm"], lengths, rtol=1e-6)
    assert spacing is None or np.allclose(lengths, spacing, rtol=1e-5)
    assert (row.image_min_hu, row.image_max_hu) == (scan.image.min(), scan.image.max())
    assert ("label" in scan) == (name != "bare")
    if "label" in scan:
        label = scan.label.to_numpy()
        present = {*np.unique(label).tolist()} - {0}
        values = {VALUE_OF_NAME[n]: v for n, v in facts["vertebrae"].items()}
        assert {*values, *map(int, facts["other_labels"])} == present
        for value, record in values.items():
            indices = np.argwhere(label == value)
            assert record["voxel_count"] == len(indices)
            assert record["start_zyx"] == indices.min(axis=0).tolist()
            assert record["stop_zyx"] == (indices.max(axis=0) + 1).tolist()
            np.testing.assert_allclose(record["centroid_zyx"], indices.mean(axis=0))
        counts = StoreReader(derived.url).label_chunks(name)
        assert counts[:, 4].sum() == np.count_nonzero(label)
    for key in ("patient_id", "split", "split_index", "license", "label_state", "columns"):
        assert facts[key] == store.scan(name).attrs[key]


@FEW
@given(
    name=st.sampled_from(VERTEBRAE),
    spacing=st.none() | SPACING_MM,
    margin=st.floats(0, 30),
    linear=st.booleans(),
)
def test_a_cropped_scan_is_the_part_of_the_whole_one_around_the_spine(
    small, tmp_path, name, spacing, margin, linear
):
    store = spinezarr.open(small.url)
    options = {}
    if spacing is not None:
        options = {"spacing_mm": spacing, "mask_interpolation": "linear" if linear else "nearest"}
    whole = derive(store, tmp_path, scans=name, **options).scan(name).load()
    part = derive(store, tmp_path, scans=name, crop="spine", margin_mm=margin, **options).scan(name)
    start = np.linalg.solve(whole.attrs["affine"], np.array(part.attrs["affine"])[:, 3])[2::-1]
    np.testing.assert_allclose(start, np.rint(start), atol=1e-6)
    box = tuple(
        slice(first, first + n)
        for first, n in zip(np.rint(start).astype(int), part.image.shape, strict=True)
    )
    for variable in whole.data_vars:
        np.testing.assert_array_equal(part[variable], whole[variable].to_numpy()[box])


@MANY
@given(name=st.sampled_from(VERTEBRAE), spacing=st.none() | SPACING_MM, margin_mm=st.floats(0, 30))
def test_a_crop_reaches_as_far_as_the_margin_and_less_than_a_voxel_further(
    opened, name, spacing, margin_mm
):
    _, reader, _ = opened
    scan = reader.scan(name).attributes
    target = None if spacing is None else (spacing,) * 3
    derivation = Derivation(target_zyx_mm=target, crop="spine", margin_mm=margin_mm)
    grid, whole = DerivedGrid.of(scan, derivation), grid_of(reader, name, spacing or (None,) * 3)
    voxels = np.argwhere(np.isin(make_label(name), (19, 20)))
    for axis, mm in enumerate(scan.spacing_zyx_mm):
        along = (np.arange(whole.shape_zyx[axis])) * whole.step_zyx[axis]
        kept = along[grid.box.start_zyx[axis] : grid.box.stop_zyx[axis]]
        low, high = voxels[:, axis].min() - margin_mm / mm, voxels[:, axis].max() + margin_mm / mm
        assert {*along[(along >= low) & (along <= high)]} <= {*kept}
        # The box is rounded outward, or ends with the scan.
        assert kept[0] <= low + 1e-9 or kept[0] == 0
        assert kept[-1] >= high - 1e-9 or kept[-1] == along[-1]
        assert ((kept < low).sum(), (kept > high).sum()) <= (1, 1) or len(kept) == 1


@MANY
@given(data=st.data(), name=st.sampled_from(["box", "oblique", "line"]))
def test_the_size_of_blocks_changes_no_voxel(small, data, name):
    reader = StoreReader(small.url)
    engine, scan = Engine(fetcher_for(reader.objects)), reader.scan(name)
    spacing = data.draw(st.tuples(SPACING_MM, SPACING_MM, SPACING_MM))
    derivation = Derivation(target_zyx_mm=spacing, crop="spine", margin_mm=5.0)
    grid = DerivedGrid.of(scan.attributes, derivation)
    samplings = [PlainSampling(engine, scan.image, linear=True)]
    samplings += [LabelwiseSampling(engine, scan.label)]
    if max(grid.step_zyx) > 1:
        samplings += [FilteredSampling(engine, scan.image, grid.step_zyx)]
    block_bytes = data.draw(st.integers(1, 60_000))
    thickness = data.draw(st.integers(1, grid.shape_zyx[0]))
    for sampling in samplings:
        whole = DerivedArray(sampling, grid)[:]
        parts = DerivedArray(sampling, grid, block_bytes)
        starts = range(0, grid.shape_zyx[0], thickness)
        together = np.concatenate([parts[start : start + thickness] for start in starts])
        np.testing.assert_array_equal(together, whole)


@MANY
@given(data=st.data(), name=st.sampled_from(["box", "oblique"]))
def test_linear_masks_have_the_label_with_the_largest_weight(small, data, name):
    reader = StoreReader(small.url)
    engine, scan = Engine(fetcher_for(reader.objects)), reader.scan(name)
    spacing = data.draw(st.tuples(SPACING_MM, SPACING_MM, SPACING_MM))
    grid = DerivedGrid.of(scan.attributes, Derivation(target_zyx_mm=spacing))
    found = DerivedArray(LabelwiseSampling(engine, scan.label), grid)[:]
    label = make_label(name)
    values = np.unique(label)
    points = np.meshgrid(
        *[
            np.minimum(np.arange(n) * step, size - 1)
            for n, step, size in zip(grid.shape_zyx, grid.step_zyx, label.shape, strict=True)
        ],
        indexing="ij",
    )
    weights = np.array(
        [ndimage.map_coordinates((label == v).astype(float), points, order=1) for v in values]
    )
    ordered = np.sort(weights, axis=0)
    is_clear = ordered[-1] - ordered[-2] > 1e-5
    np.testing.assert_array_equal(found[is_clear], values[weights.argmax(0)][is_clear])


def test_a_copy_has_the_voxels_facts_and_files_of_its_source(small, tmp_path):
    store = spinezarr.open(small.url)
    derived = derive(store, tmp_path)
    for name in SCANS:
        scan, source = derived.scan(name), store.scan(name)
        xr.testing.assert_equal(scan.load(), source.load())
        np.testing.assert_array_equal(scan.image, make_image(name))
        changed = {key for key in source.attrs if scan.attrs[key] != source.attrs[key]}
        assert changed <= {"source_key", "manifest", "metadata_crc32c", "masks"}
        for mask, record in source.attrs["masks"].items():
            assert scan.attrs["masks"][mask] == record
    xr.testing.assert_equal(
        derived.table.drop_vars("stored_bytes"), store.table.drop_vars("stored_bytes")
    )
    assert derived.verify(against=small.raw).faults == ()
    assert derived.attrs["derivation"] == "copied voxel for voxel"
    for folder, opened in (("a", store), ("b", derived)):
        opened.export_nifti(out=tmp_path / folder, compressed=False)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert len(files) == 13
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_scans_and_layers_are_chosen(small, tmp_path):
    store = spinezarr.open(small.url)
    derived = derive(store, tmp_path, split="train", layers=["ribs"])
    assert derived.table.scan.to_numpy().tolist() == ["box", "plane"]
    assert derived.table.masks.to_numpy().tolist() == ["ribs", ""]
    assert derived.scan("box").ribs.flag_meanings == "background left_rib right_rib"
    derived = derive(store, tmp_path, scans=["box", "bare"], layers=[])
    assert derived.table.masks.to_numpy().tolist() == ["", ""]
    bare = tmp_path / "derived.zarr" / "scans" / "bare"
    assert {path.name for path in bare.iterdir()} == {"zarr.json", "image", *"zyx"}
    with pytest.raises(UnknownMaskError, match="'skull'; further masks are: disc, ribs"):
        store.derive(out=tmp_path / "other.zarr", layers=["skull"])
    assert not (tmp_path / "other.zarr").exists()


def test_a_derived_scan_says_what_it_was_made_from(small, tmp_path):
    store = spinezarr.open(small.url)
    derived = derive(store, tmp_path, scans="box", spacing_mm=(5, 1, 1), crop="spine", margin_mm=2)
    source, record = store.table.sel(scan="box"), derived.scan("box").attrs["derived_from"]
    assert record.pop("mask_checksums").keys() == {"disc", "ribs"}
    assert record == {
        "store": small.url,
        "scan_id": "box",
        "content_checksum": source.content_checksum.item(),
        "spacing_zyx_mm": [5, 1, 1],
        "image_filter": "gaussian",
        "mask_interpolation": "nearest",
        "crop": "spine",
        "margin_mm": 2,
        "start_zyx": record["start_zyx"],
        "window_hu": None,
    }
    expected = np.array(derived.scan("box").attrs["affine"])[:3, 3]
    position = np.array(store.scan("box").attrs["affine"]) @ [*record["start_zyx"][::-1], 1]
    np.testing.assert_allclose(position[:3], expected)
    info = derived.info()
    assert info["derived_from"] == small.url
    assert "5 x 1 x 1 mm" in info["derivation"]
    assert "cropped to the spine with a margin of 2 mm" in info["derivation"]
    assert "derivation" not in store.info()
    assert "derived_from" not in store.scan("box").attrs
    with pytest.raises(UsageError, match="was derived from"):
        derived.verify(against=small.raw)


def test_annotated_centroids_keep_their_position(small, tmp_path):
    store = spinezarr.open(small.url)
    for options in ({"spacing_mm": 2}, {"crop": "spine", "margin_mm": 1}):
        derived = derive(store, tmp_path, scans="oblique", **options)
        source, scan = store.scan("oblique").attrs, derived.scan("oblique").attrs
        found = scan["centroids"]["L1"]
        assert found["position_zyx_mm"] == source["centroids"]["L1"]["position_zyx_mm"]
        z, y, x = found["position_zyx_mm"]
        label = derived.scan("oblique").label.to_numpy()
        index = np.linalg.solve(scan["affine"], [x, y, z, 1])[2::-1]
        voxels = np.argwhere(label == VALUE_OF_NAME["L1"])
        gap = np.maximum(np.abs(voxels - index) - 0.5, 0) * scan["spacing_zyx_mm"]
        distance = np.linalg.norm(gap, axis=1).min()
        np.testing.assert_allclose(found["label_distance_mm"], distance, atol=1e-6)
        # That of T12 lies outside of the image, and a crop leaves it out.
        assert ("T12" in scan["centroids"]) == ("crop" not in options)
        left_out = "annotated centroids outside of the new grid were left out: T12"
        assert (left_out in scan["notes"]) == ("crop" in options)


def test_labels_that_vanish_are_noted(small, tmp_path):
    derived = derive(spinezarr.open(small.url), tmp_path, scans="box", spacing_mm=(2.5, 5, 5))
    scan = derived.scan("box")
    assert not (scan.label == 30).any()
    assert "labels without a voxel on the new grid: 30" in scan.attrs["notes"]
    assert scan.attrs["structures"] == {}


@pytest.mark.parametrize("spacing", [None, 2.0])
def test_intensities_become_uint8_that_readers_turn_into_hu(small, tmp_path, spacing):
    store = spinezarr.open(small.url)
    options = {} if spacing is None else {"spacing_mm": spacing}
    plain = derive(store, tmp_path, scans="box", **options).scan("box").image.to_numpy()
    derived = derive(store, tmp_path, scans="box", intensity=(-200, 1000), **options)
    numbers = np.rint(np.clip((plain + 200.0) * (255 / 1200), 0, 255))
    url = f"{derived.url}/scans/box"
    stored = xr.open_zarr(url, mask_and_scale=False).image
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, numbers)
    decoded = xr.open_zarr(url).image
    assert decoded.units == "HU"
    np.testing.assert_array_equal(decoded, numbers * (1200 / 255) - 200)
    np.testing.assert_array_equal(derived.scan("box").image, decoded)
    patch = derived.patches(plain.shape, scans="box", labels=False)[0].image[0]
    np.testing.assert_array_equal(patch, decoded)
    # Rounding moves a value inside the window by at most half a step.
    inside = (plain >= -200) & (plain <= 1000)
    assert np.abs(decoded.to_numpy() - plain)[inside].max() <= 1200 / 255 / 2 + 1e-9
    row = derived.table.sel(scan="box")
    assert (row.image_stored_dtype, row.image_min_hu, row.image_max_hu) == ("uint8", -200, 1000)
    assert derived.scan("box").attrs["derived_from"]["window_hu"] == [-200, 1000]
    derived.export_nifti(out=tmp_path / "nifti")
    exported = nibabel.load(tmp_path / "nifti" / "box_ct.nii.gz").get_fdata().transpose(2, 1, 0)
    np.testing.assert_allclose(exported, decoded, rtol=1e-6)


def test_scaled_and_float_images_keep_their_numbers_or_are_resampled_as_by_streams(odd, tmp_path):
    store = spinezarr.open(odd.url)
    cropped = derive(store, tmp_path, crop="spine", margin_mm=4)
    for name in odd.image:
        scan, source = cropped.scan(name), store.scan(name)
        start = np.rint(scan.attrs["derived_from"]["start_zyx"]).astype(int)
        box = tuple(slice(a, a + n) for a, n in zip(start, scan.image.shape, strict=True))
        np.testing.assert_array_equal(scan.image, odd.image[name][box])
        for key in ("image_dtype", "image_stored_dtype", "image_scaling"):
            assert scan.attrs[key] == source.attrs[key]
    options = {"spacing_mm": (4, 1.5, 1.5), "antialias": False, "scans": ["byte", "thin", "holes"]}
    resampled = derive(store, tmp_path, **options)
    for name in options["scans"]:
        scan = resampled.scan(name)
        stream = store.patches(
            scan.image.shape, scans=name, spacing_zyx_mm=(4, 1.5, 1.5), nonfinite="keep"
        )
        np.testing.assert_array_equal(scan.image, stream[0].image[0])
        assert scan.attrs["image_scaling"] is None
    with pytest.raises(AssertionError, match="NaN, for which uint8 has no number"):
        derive(store, tmp_path, scans="holes", intensity=(0, 100))
