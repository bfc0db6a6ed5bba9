"""Structures, windows, plots, the widget, and how the accessor comes to xarray."""

import copy
import pickle
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from opened_scans import WAYS
from small_scans import SCANS, make_label

import spinezarr
from spinezarr.errors import UsageError
from spinezarr.vertebrae import vertebra_color
from spinezarr.view.windows import WINDOWS_HU


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Registration


@pytest.mark.parametrize(
    "imports",
    ["import spinezarr.errors, xarray", "import xarray, spinezarr"],
)
def test_importing_spinezarr_registers_the_accessor_in_any_order(imports):
    code = (
        "import warnings; warnings.simplefilter('error'); "
        f"{imports}; import sys, importlib.resources as resources; "
        "axes = {axis: [0.0, 2.0] for axis in 'zyx'}; "
        "rows = [[2, 0, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]]; "
        "scan = xarray.Dataset(coords=axes, attrs={'affine': [*rows, [0, 0, 0, 1]]}); "
        "print(scan.spine.affine.shape, type(xarray.__loader__).__name__, "
        "xarray.__spec__.loader is xarray.__loader__, "
        "[f for f in sys.meta_path if 'spinezarr' in type(f).__module__], "
        "resources.files('xarray').joinpath('py.typed').is_file())"
    )
    assert run_python(code) == "(4, 4) SourceFileLoader True [] True\n"


def test_importing_spinezarr_does_not_import_xarray_or_numpy():
    code = "import sys, spinezarr; print({'xarray', 'numpy'} & {*sys.modules})"
    assert run_python(code) == "set()\n"


def test_a_missing_xarray_is_still_an_import_error():
    code = (
        "import sys, spinezarr; sys.path[:] = []\n"
        "try: import xarray\n"
        "except ModuleNotFoundError as problem: print(problem)"
    )
    assert "No module named 'xarray'" in run_python(code)


# Structures


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from(WAYS),
    name=st.sampled_from(["box", "oblique"]),
    start=st.tuples(*[st.integers(0, 4)] * 3),
    step=st.sampled_from([1, 1, 2, -1]),
    margin=st.floats(0, 30),
)
def test_the_box_of_a_vertebra_is_that_of_its_voxels(scans, way, name, start, step, margin):
    z, y, x = (slice(first, None) for first in start)
    part = scans[way][name].isel(z=z, y=y, x=x).isel(y=slice(None, None, step))
    is_l1 = make_label(name)[z, y, x][:, ::step] == 20
    positions = [part[axis].to_numpy() for axis in "zyx"]
    spacing = np.multiply(part.attrs["spacing_zyx_mm"], (1, abs(step), 1))
    expected = []
    for axis, voxels in enumerate(np.nonzero(is_l1)):
        reach = margin / spacing[axis]
        low, high = voxels.min() - reach, voxels.max() + reach
        first, last = max(int(np.floor(low)), 0), min(int(np.ceil(high)), is_l1.shape[axis] - 1)
        expected.append(slice(first, last + 1))
    found = part.spine.sel_vertebra("L1", margin_mm=margin)
    for axis, along, wanted in zip("zyx", positions, expected, strict=True):
        np.testing.assert_array_equal(found[axis], along[wanted])
    np.testing.assert_array_equal(found.label, part.label.to_numpy()[tuple(expected)])


def test_structures_of_any_mask_are_found_by_name(scans):
    scan = scans["plain xarray"]["box"]
    assert (scan.spine.sel_vertebra("left_hip", margin_mm=0).label == 30).all()
    for name in ("left rib", "left_rib"):
        ribs = scan.spine.sel_vertebra(name, layer="ribs", margin_mm=0).ribs
        assert (ribs == 1).any("y").any("x").all("z") or ribs.sizes["z"] == scan.sizes["z"]
    without_flags = scan.assign(mine=(("z", "y", "x"), make_label("box")))
    found = without_flags.spine.sel_vertebra("T12", layer="mine", margin_mm=0)
    xr.testing.assert_equal(found.image, scan.spine.sel_vertebra("T12", margin_mm=0).image)


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_structure_names_those_that_are_shown(scans, way):
    box = scans[way]["box"]
    with pytest.raises(UsageError, match=r"'label' does not show 'L4'.*shows T12, L1, left hip\."):
        box.spine.sel_vertebra("L4")
    with pytest.raises(UsageError, match=r"'label' does not show 'T12'.*shows L1, left hip\."):
        box.isel(z=slice(10)).spine.sel_vertebra("T12")
    with pytest.raises(UsageError, match="it shows no structure"):
        box.spine.sel_vertebra("L1", layer="disc")
    with pytest.raises(UsageError, match="it shows no structure"):
        scans[way]["empty"].spine.sel_vertebra("L1")
    with pytest.raises(UsageError, match=r"has no variable 'label' over .*; it has image, ribs"):
        scans[way]["bare"].spine.sel_vertebra("L1")
    for margin in (-1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="margin"):
            box.spine.sel_vertebra("L1", margin_mm=margin)


def test_a_changed_mask_is_believed_and_not_the_stored_records(scans):
    scan = scans["loaded"]["box"].copy(deep=True)
    scan.label[...] = 0
    scan.label[2:4, 5:6, 7:9] = 21
    found = scan.spine.sel_vertebra("L2", margin_mm=0)
    assert found.label.shape == (2, 1, 2)
    with xr.set_options(keep_attrs=True):
        halves = scan.assign(label=scan.label / 2)
    with pytest.raises(UsageError, match=r"'label' has the value 10\.5"):
        halves.spine.sel_vertebra("L1")


# Windows


@pytest.mark.parametrize("window", [*WINDOWS_HU, "-100,100.5"])
def test_a_window_maps_hu_to_shades(scans, window):
    low, high = WINDOWS_HU.get(window, (-100, 100.5))
    for way in WAYS:
        scan = scans[way]["box"].isel(z=slice(3, 9))
        shades = scan.spine.window(window)
        expected = np.rint((np.clip(scan.image, low, high) - low) / (high - low) * 255)
        np.testing.assert_array_equal(shades, expected)
        assert shades.dtype == np.uint8
        assert shades.attrs["window_hu"] == [low, high]
        assert (shades.chunks is None) == (way in {"without dask", "loaded"})
        np.testing.assert_array_equal(shades.z, scan.z)


def test_an_unknown_window_is_refused(scans):
    with pytest.raises(UsageError, match="window: must be bone, soft_tissue, lung"):
        scans["spinezarr"]["box"].spine.window("brain")


# Plots


@pytest.fixture
def axes():
    """Close all figures at the end."""
    yield
    plt.close("all")


def texts(axes):
    return {text.get_text() for text in axes.texts}


@pytest.mark.parametrize("plane", ["sagittal", "coronal", "axial"])
@pytest.mark.parametrize("name", SCANS)
def test_the_slice_of_a_whole_scan_is_that_of_the_preview(small, scans, axes, plane, name):
    figure = spinezarr.open(small.url).figure(name)
    (preview,) = (panel for panel in figure.axes if panel.get_label() == plane)
    for way in WAYS:
        plotted = scans[way][name].spine.plot(plane, window="-400,1100")
        assert texts(plotted) == texts(preview)
        np.testing.assert_array_equal(plotted.images[0].get_array(), preview.images[0].get_array())
        np.testing.assert_allclose(plotted.images[0].get_extent(), preview.images[0].get_extent())


@pytest.mark.parametrize(("plane", "axis"), [("sagittal", "x"), ("coronal", "y"), ("axial", "z")])
def test_a_slice_is_drawn_at_its_position_and_in_mm(scans, axes, plane, axis):
    part = scans["plain xarray"]["oblique"].isel(z=slice(3, 15), y=slice(2, None), x=slice(4, 20))
    at_mm = float(part[axis][5])
    step_mm = part.attrs["spacing_zyx_mm"]["zyx".index(axis)]
    ax = part.spine.plot(plane, position_mm=at_mm + 0.4 * step_mm, window="-1000,2000")
    image = ax.images[0]
    np.testing.assert_array_equal(image.get_array(), part.image.isel({axis: 5}))
    rows, columns = (other for other in "zyx" if other != axis)
    left, right, bottom, top = image.get_extent()
    spacing = dict(zip("zyx", part.attrs["spacing_zyx_mm"], strict=True))
    assert left == pytest.approx(float(part[columns][0]) - spacing[columns] / 2)
    assert right == pytest.approx(float(part[columns][-1]) + spacing[columns] / 2)
    assert bottom == pytest.approx(float(part[rows][0]) - spacing[rows] / 2)
    assert top == pytest.approx(float(part[rows][-1]) + spacing[rows] / 2)
    assert ax.get_xlim()[0] > right > left > ax.get_xlim()[1]
    assert ax.get_ylim()[0] < bottom < top < ax.get_ylim()[1]
    for outside in (part[axis][0] - step_mm, part[axis][-1] + step_mm, np.nan):
        with pytest.raises(UsageError, match=f"{axis} = .* mm lies outside of the dataset"):
            part.spine.plot(plane, position_mm=float(outside))


def test_a_reversed_dataset_is_drawn_the_right_way_up(scans, axes):
    scan = scans["spinezarr"]["box"]
    turned = scan.isel(dict.fromkeys("zyx", slice(None, None, -1)))
    plots = [dataset.spine.plot("coronal") for dataset in (scan, turned)]
    np.testing.assert_array_equal(*(ax.images[0].get_array() for ax in plots))
    np.testing.assert_allclose(*(ax.images[0].get_extent() for ax in plots))
    assert texts(plots[0]) == texts(plots[1])


def test_masks_have_the_colors_and_names_of_all_pictures(scans, axes):
    scan = scans["spinezarr"]["box"]
    shown = texts(scan.spine.plot("sagittal"))
    assert {"L1", "T12"} <= shown
    drawn = scan.spine.plot("sagittal").collections
    colors = {tuple(np.round(color[:3], 6)) for part in drawn for color in part.get_edgecolor()}
    assert {tuple(np.round(vertebra_color(value), 6)) for value in (19, 20)} <= colors
    assert "left rib" in texts(scan.spine.plot("axial", layer="ribs"))
    assert not {"L1", "T12"} & texts(scan.isel(z=slice(15, 20)).spine.plot("sagittal"))
    assert scan.spine.plot("sagittal", layer=None).collections[:] == []
    with pytest.raises(UsageError, match=r"no variable 'discs'.*disc, image, label, ribs"):
        scan.spine.plot(layer="discs")
    with pytest.raises(UsageError, match="plane 'oblique': must be axial, coronal, sagittal"):
        scan.spine.plot("oblique")


def test_axes_of_a_caller_keep_their_place(scans, axes):
    figure = Figure((9, 3))
    many = figure.subplots(1, 3)
    boxes = [ax.get_position().bounds for ax in many]
    for ax, plane in zip(many, ("sagittal", "coronal", "axial"), strict=True):
        assert scans["spinezarr"]["box"].spine.plot(plane, ax=ax) is ax
    figure.canvas.draw()
    np.testing.assert_allclose([ax.get_position().bounds for ax in many], boxes, atol=1e-6)
    for ax in many:  # all texts are inside of their axes
        for text in ax.texts:
            box = text.get_window_extent()
            assert ax.bbox.x0 - 1 <= box.x0 <= box.x1 <= ax.bbox.x1 + 1
            assert ax.bbox.y0 - 1 <= box.y0 <= box.y1 <= ax.bbox.y1 + 1
    assert not plt.get_fignums()


# The widget


def test_a_dataset_shows_the_widget_of_its_store(small, scans):
    for way in WAYS:
        view = scans[way]["box"].isel(z=slice(5)).spine.view(window="lung", level=0)
        assert repr(view) == repr(spinezarr.open(small.url).view("box", level=0))
    store = spinezarr.open(small.url)
    resampled = store.scan("box").spine.resample(2)
    assert repr(resampled.spine.view()) == repr(store.view("box"))


def test_a_dataset_without_a_store_says_what_to_do(scans, tmp_path):
    scan = scans["loaded"]["box"]
    advice = r"Show it by spinezarr\.open\(store, storage_options=\.\.\.\)\.view\('box'\)"
    with pytest.raises(UsageError, match=f"does not know its store. {advice}"):
        scan.drop_encoding().spine.view()
    lost = scan.copy()
    lost.encoding = {"source": str(tmp_path / "gone.zarr")}
    with pytest.raises(UsageError, match=f"its store does not open .*gone.*{advice}"):
        lost.spine.view()


def test_datasets_of_a_store_are_copied_pickled_and_written(small, tmp_path):
    store = spinezarr.open(small.url)
    scan = store.scan("box")
    assert copy.deepcopy(store) is store
    for again in (scan.copy(deep=True), pickle.loads(pickle.dumps(scan))):  # noqa: S301  ours
        xr.testing.assert_identical(again, scan)
        assert repr(again.spine.view()) == repr(store.view("box"))
    scan.to_zarr(tmp_path / "copy.zarr", zarr_format=3, consolidated=False)
    again = xr.open_zarr(tmp_path / "copy.zarr", consolidated=False)
    xr.testing.assert_equal(again, scan)
    np.testing.assert_array_equal(again.spine.affine, scan.spine.affine)
