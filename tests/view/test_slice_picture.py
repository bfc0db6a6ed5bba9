"""Pictures of slices have the shades that NumPy computes, the right orientation and colors."""

import io
import math
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, PhantomSpec, make_phantom, write_nifti
from spinezarr.vertebrae import label_color, structure_color
from spinezarr.view.slice_picture import (
    LARGEST_PX,
    SliceRequest,
    draw_slice,
    label_names,
    parse_labels,
    slice_at,
    slice_png,
)
from spinezarr.view.windows import WINDOWS_HU, gray_of, parse_window

FLAT = {"sagittal": 2, "coronal": 1, "axial": 0}
COORDINATE = {"sagittal": "x", "coronal": "y", "axial": "z"}
WIDE = (-1000.0, 3000.0)


@pytest.fixture(scope="module")
def phantom():
    """Return a volume with bright blocks at the front, on the right and at the top."""
    spec = PhantomSpec(shape_zyx=(48, 40, 44), spacing_zyx_mm=(4.0, 4.0, 4.0))
    made = make_phantom(spec)
    for block in np.s_[:, -5:-2, :], np.s_[:, :, -8:-4], np.s_[-3:, :, :]:
        made.image[block] = 2800
    return made


def stored(folder, images, mask):
    recipe = Recipe.from_pairs(
        "{scan}_ct.nii", None if mask is None else "{scan}_seg.nii", name="x"
    )
    for name, (voxels, affine, form) in images.items():
        write_nifti(folder / "raw" / f"{name}_ct.nii", voxels, affine, form)
        if mask is not None:
            write_nifti(
                folder / "raw" / f"{name}_seg.nii",
                mask,
                affine,
                NiftiForm(form.orientation, "uint8", oblique_deg=form.oblique_deg),
            )
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "x.zarr"))
    assert not report.failed, report.failed
    return spinezarr.open(folder / "x.zarr")


@pytest.fixture(scope="module")
def labeled(phantom, tmp_path_factory):
    rng, shape = np.random.default_rng(5), phantom.image.shape
    floats = rng.normal(0, 900, shape)
    floats[20, 20, 20:23] = np.nan, np.inf, -np.inf
    images = {
        "phantom": (phantom.image, phantom.affine_xyz, NiftiForm("LPS")),
        "oblique": (phantom.image, phantom.affine_xyz, NiftiForm("PIR", oblique_deg=20.0)),
        "float": (floats, phantom.affine_xyz, NiftiForm("RAS", "float32")),
        "scaled": (
            rng.integers(0, 255, shape) * 7.5 - 500,
            phantom.affine_xyz,
            NiftiForm("LAS", "uint8", slope=7.5, inter=-500),
        ),
        "thick": (
            rng.integers(-1000, 3000, shape),
            np.diag([0.9, 1.1, 5.0, 1.0]),
            NiftiForm("LPS"),
        ),
    }
    return stored(tmp_path_factory.mktemp("labeled"), images, phantom.label)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    rng = np.random.default_rng(6)
    images = {
        "z1": (rng.integers(-999, 999, (1, 20, 24)), np.diag([1.0, 1, 3, 1]), NiftiForm("LPS")),
        "y1": (rng.integers(-999, 999, (20, 1, 24)), np.diag([1.0, 1, 3, 1]), NiftiForm("LPS")),
        "x1": (rng.integers(-999, 999, (20, 24, 1)), np.diag([1.0, 1, 3, 1]), NiftiForm("LPS")),
        "long": (rng.integers(-999, 999, (9, 9, 9)), np.diag([0.01, 1, 900, 1]), NiftiForm("LPS")),
    }
    return stored(tmp_path_factory.mktemp("bare"), images, None)


def drawn(store, scan_id, plane, index, **asked):
    scan = store._reader.scan(scan_id)
    return draw_slice(scan, store._engine, SliceRequest(plane, index, **asked))


def turned(store, scan_id, plane, index, array="image"):
    """Return the voxels of a slice from xarray, in the orientation of the picture."""
    voxels = store.scan(scan_id)[array].values
    return voxels.take(index, FLAT[plane])[::-1, ::-1]


def shades(values, low, high):
    """Return the shades of values under a window."""
    shown = np.where(np.isnan(values), low, np.clip(values.astype(float), low, high))
    return np.round((shown - low) * 255 / (high - low))


@pytest.mark.parametrize("plane", FLAT)
@pytest.mark.parametrize("scan_id", ["phantom", "oblique", "float", "scaled"])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_shades_follow_the_window(labeled, scan_id, plane, data):
    index = data.draw(st.integers(0, (48, 40, 44)[FLAT[plane]] - 1))
    low = data.draw(st.integers(-2000, 2000))
    window = low, low + data.draw(st.sampled_from([1, 255, 400, 1800, 2500]))
    found = drawn(labeled, scan_id, plane, index, window_hu=window, labels=frozenset())
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, shades(turned(labeled, scan_id, plane, index), *window))


def test_a_png_file_holds_the_drawn_pixels(labeled):
    for labels in (None, frozenset()):
        request = SliceRequest("sagittal", 22, labels=labels)
        scan = labeled._reader.scan("phantom")
        with Image.open(io.BytesIO(slice_png(scan, labeled._engine, request))) as picture:
            assert picture.format == "PNG"
            np.testing.assert_array_equal(picture, draw_slice(scan, labeled._engine, request))


@pytest.mark.parametrize("scan_id", ["phantom", "oblique"])
def test_pictures_have_the_radiological_orientation(labeled, scan_id):
    """The front is on the left or on top, the patient's right on the left, the head on top."""

    def edges(plane, index):
        found = drawn(labeled, scan_id, plane, index, window_hu=WIDE, labels=frozenset()) > 200
        rows, columns = found.mean(axis=1) > 0.9, found.mean(axis=0) > 0.9
        return np.flatnonzero(rows).tolist(), np.flatnonzero(columns).tolist()

    assert edges("sagittal", 10) == ([0, 1, 2], [2, 3, 4])
    assert edges("coronal", 10) == ([0, 1, 2], [4, 5, 6, 7])
    assert edges("axial", 10) == ([2, 3, 4], [4, 5, 6, 7])


def test_pictures_have_square_pixels(labeled, bare):
    mm = {"sagittal": (48 * 5, 40 * 1.1), "coronal": (48 * 5, 44 * 0.9), "axial": (44, 39.6)}
    for plane, (high, wide) in mm.items():
        fine = 0.9 if plane != "sagittal" else 1.1
        found = drawn(labeled, "thick", plane, 3, labels=frozenset())
        assert found.shape == (round(high / fine), round(wide / fine))
        for size in (1, 17, 96, 480):
            found = drawn(labeled, "thick", plane, 3, labels=frozenset(), size_px=size)
            scale = size / max(high, wide)
            assert found.shape == (max(1, round(high * scale)), max(1, round(wide * scale)))
    assert drawn(bare, "long", "coronal", 3).shape == (LARGEST_PX, 1)


def test_larger_voxels_are_interpolated_and_smaller_ones_averaged(labeled):
    values = turned(labeled, "thick", "axial", 7)
    window = (-1000.0, 3000.0)
    gray = shades(values, *window)
    found = drawn(labeled, "thick", "axial", 7, window_hu=window, labels=frozenset(), size_px=4)
    assert found.shape == (4, 4)
    assert abs(found.mean() - gray.mean()) < 3
    tall = drawn(labeled, "thick", "coronal", 7, window_hu=window, labels=frozenset())
    high = shades(turned(labeled, "thick", "coronal", 7), *window)
    at = (np.arange(len(tall)) + 0.5) * 48 / len(tall) - 0.5
    model = np.array([np.interp(at, np.arange(48), column) for column in high.T]).T
    assert np.abs(tall - model)[3:-3].max() <= 1.5


@pytest.mark.parametrize("plane", FLAT)
@pytest.mark.parametrize("size_px", [None, 40, 191, 192])
def test_vertebrae_have_their_colors(labeled, plane, size_px):
    index = {"sagittal": 22, "coronal": 18, "axial": 30}[plane]
    found = drawn(labeled, "thick", plane, index, size_px=size_px)
    plain = drawn(labeled, "thick", plane, index, size_px=size_px, labels=frozenset())
    label = turned(labeled, "thick", plane, index, "label")
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * size / n).astype(int), size - 1)
        for n, size in zip(plain.shape, label.shape, strict=True)
    )
    near = label[np.ix_(rows, columns)]
    assert near.any()
    framed = np.pad(near, 1, "edge")
    others = [framed[1:-1, :-2], framed[1:-1, 2:], framed[:-2, 1:-1], framed[2:, 1:-1]]
    border = np.any([other != near for other in others], axis=0)
    opacity = np.where(near > 0, 0.4, 0.0)
    opacity[(near > 0) & border & (max(near.shape) >= 192)] = 1.0
    colors = 255 * np.array([label_color(int(value)) for value in near.flat])
    colors = colors.reshape(*near.shape, 3)
    opacity = opacity[..., None]
    model = np.round(plain[..., None] * (1 - opacity) + colors * opacity)
    np.testing.assert_array_equal(found, model)


def test_only_the_chosen_vertebrae_are_colored(labeled):
    everything = drawn(labeled, "phantom", "sagittal", 22)
    plain = drawn(labeled, "phantom", "sagittal", 22, labels=frozenset())
    label = turned(labeled, "phantom", "sagittal", 22, "label")
    some = parse_labels("L1,L3")
    found = drawn(labeled, "phantom", "sagittal", 22, labels=some)
    inside = np.isin(label, [20, 22])
    assert inside.any()
    np.testing.assert_array_equal(found[inside], everything[inside])
    np.testing.assert_array_equal(found[~inside], plain[~inside][:, None].repeat(3, 1))
    assert drawn(labeled, "phantom", "sagittal", 22, labels=parse_labels("C1")).ndim == 2


@pytest.mark.parametrize("plane", FLAT)
@pytest.mark.parametrize("scan_id", ["phantom", "oblique"])
def test_the_slice_nearest_to_a_position_in_mm_is_drawn(labeled, scan_id, plane):
    scan, at_mm = labeled._reader.scan(scan_id), labeled.scan(scan_id)[COORDINATE[plane]].values
    for index, mm in enumerate(at_mm):
        for off in (-1.9, 0, 1.9):
            assert slice_at(scan, labeled._engine, plane, mm + off) == index
    for mm in (at_mm[0] - 2.1, at_mm[-1] + 2.1, 1e9, -1e9):
        first, last = at_mm[0] - 2, at_mm[-1] + 2
        text = f"^mm: {COORDINATE[plane]} of this scan is between {first:.2f} and {last:.2f} mm.$"
        with pytest.raises(UsageError, match=text):
            slice_at(scan, labeled._engine, plane, mm)


def test_the_default_slice_passes_through_the_middle_of_the_spine(labeled, bare):
    scan = labeled._reader.scan("phantom")
    label = labeled.scan("phantom").label.values
    for plane, axis in FLAT.items():
        index = slice_at(scan, labeled._engine, plane, None)
        assert label.take(index, axis).any()
    middles = [np.argwhere(label == value)[:, 2].mean() for value in np.unique(label[label > 0])]
    assert slice_at(scan, None, "sagittal", None) == round(np.median(middles))  # reads nothing
    for scan_id, sizes in {"z1": (0, 10, 12), "x1": (10, 12, 0), "long": (4, 4, 4)}.items():
        scan = bare._reader.scan(scan_id)
        for plane, axis in FLAT.items():
            assert slice_at(scan, bare._engine, plane, None) == sizes[axis]


@pytest.mark.parametrize("scan_id", ["z1", "y1", "x1"])
@pytest.mark.parametrize("plane", FLAT)
def test_axes_of_one_voxel_are_drawn(bare, scan_id, plane):
    for size in (None, 1, 50):
        found = drawn(bare, scan_id, plane, 0, size_px=size)
        assert found.ndim == 2
        assert size is None or max(found.shape) == size
    np.testing.assert_array_equal(
        drawn(bare, "z1", "axial", 0), shades(turned(bare, "z1", "axial", 0), -500, 1300)
    )


@given(
    st.lists(st.floats(width=32), min_size=1),
    st.floats(-3000, 3000),
    st.floats(1, 5000),
)
def test_windows_of_any_values_equal_those_of_numpy(values, low, width):
    found = np.array(values, np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gray = gray_of(found, (low, low + width))
    np.testing.assert_array_equal(gray, shades(found, low, low + width))


def test_a_window_is_a_name_or_two_numbers():
    assert {parse_window(name) for name in WINDOWS_HU} == set(WINDOWS_HU.values())
    assert parse_window("-1350,150") == WINDOWS_HU["lung"] == (-600 - 750, -600 + 750)
    assert parse_window("-500,1300") == WINDOWS_HU["bone"] == (400 - 900, 400 + 900)
    assert parse_window("-160.0,+240.00") == WINDOWS_HU["soft_tissue"] == (40 - 200, 40 + 200)
    for text in ("", "Bone", "1", "1,", "2,1", "1,1", "1,2,3", "nan,1", "-inf,1", "1e3,1e4", "a,b"):
        with pytest.raises(UsageError, match=r"^window: .*[.]$"):
            parse_window(text)


def test_labels_are_chosen_by_name():
    assert parse_labels("T13,C1,coccyx") == {"T13", "C1", "coccyx"}
    assert parse_labels("left rib,C1", ["left rib"]) == {"left rib", "C1"}
    for text in ("", "L1,", "L9", "l1", "20", "L1, L2", "True", "true,L1"):
        with pytest.raises(
            UsageError,
            match=r"^labels: must be true, false, or names ",
        ):
            parse_labels(text)


@pytest.fixture(scope="module")
def two_masks(labeled, tmp_path_factory):
    """Return a copy of the store in which "phantom" has a further mask, and that mask."""
    folder = tmp_path_factory.mktemp("two-masks")
    store = spinezarr.open(shutil.copytree(labeled.url, folder / "x.zarr"))
    parts = np.zeros(store.scan("phantom").label.shape, np.uint8)
    parts[10:30, 10:30, 15:30] = 7
    parts[30:40, 10:30, 15:30] = 9
    parts[40:45, 10:30, 15:30] = 11
    scheme = {7: "L1", 9: "left, upper rib"}
    store.write_labels("phantom", "parts", parts, scheme=scheme)
    return store, parts


RIB, NAMELESS = structure_color(9), structure_color(11)
NAMES = ["L1", "left  upper rib", "value 11"]


@pytest.mark.parametrize(
    ("names", "colors"),
    [
        (None, {7: label_color(20), 9: RIB, 11: NAMELESS}),
        (frozenset(NAMES[:1]), {7: label_color(20)}),
        (frozenset(NAMES[1:]), {9: RIB, 11: NAMELESS}),
    ],
)
def test_a_further_mask_has_its_own_names_and_colors(two_masks, names, colors):
    store, parts = two_masks
    scan = store._reader.scan("phantom")
    assert label_names(scan.attributes, "parts") == NAMES
    found = drawn(store, "phantom", "sagittal", 22, mask="parts", labels=names)
    plain = drawn(store, "phantom", "sagittal", 22, labels=frozenset())[..., None]
    slice_zy = parts[..., 22][::-1, ::-1]
    model = np.repeat(plain, 3, 2).astype(float)
    for value, color in colors.items():
        inside = slice_zy == value
        assert inside.any()
        model[inside] = np.round(plain[inside] * 0.6 + 255 * np.array(color) * 0.4)
    np.testing.assert_array_equal(found, model)


@pytest.mark.parametrize(("mask", "outline"), [("label", "parts"), ("parts", "label")])
def test_one_mask_is_filled_and_the_other_is_outlined(two_masks, mask, outline):
    store, parts = two_masks
    slices = {"parts": parts[..., 22], "label": store.scan("phantom").label.values[..., 22]}
    found = drawn(store, "phantom", "sagittal", 22, mask=mask, outline=outline, size_px=480)
    filled = drawn(store, "phantom", "sagittal", 22, mask=mask, outline=outline, size_px=48)
    alone = drawn(store, "phantom", "sagittal", 22, mask=mask, size_px=48)
    scale = 480 // len(slices[mask])
    label = slices[outline][::-1, ::-1].repeat(scale, 0).repeat(scale, 1)
    framed = np.pad(label, 1, "edge")
    others = [framed[1:-1, :-2], framed[1:-1, 2:], framed[:-2, 1:-1], framed[2:, 1:-1]]
    edge = np.any([other != label for other in others], axis=0) & (label > 0)
    assert edge.any()
    of_parts = {7: label_color(20), 9: RIB, 11: NAMELESS}
    color_of = of_parts.get if outline == "parts" else label_color
    colors = np.array([color_of(int(value)) for value in label[edge]])
    np.testing.assert_array_equal(found[edge], np.rint(255 * colors))
    # Inside the outline, and outside of it, the picture is that of the filled mask alone.
    inner = slices[outline][::-1, ::-1]
    framed = np.pad(inner, 1, "edge")
    others = [framed[1:-1, :-2], framed[1:-1, 2:], framed[:-2, 1:-1], framed[2:, 1:-1]]
    same = np.all([other == inner for other in others], axis=0) | (inner == 0)
    np.testing.assert_array_equal(filled[same], alone[same])


def test_mask_values_of_other_structures_are_gray(labeled):
    assert math.isclose(len({label_color(value) for value in range(1, 29)}), 28)
    assert {label_color(value) for value in (0, 29, 255)} == {(0.85, 0.85, 0.85)}
