"""A scan in a notebook: the widget gets the voxels of a level, at their positions."""

import base64
import gzip
import io
import shutil
import sys
import threading
from dataclasses import replace
from http import HTTPStatus

import ipyniivue
import nibabel as nib
import numpy as np
import pytest
from PIL import Image

import spinezarr
from spinezarr.errors import SpinezarrError, UnknownMaskError, UnknownScanError, UsageError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve import endpoints
from spinezarr.serve.http import Answer, text_answer
from spinezarr.serve.levels import answer_level
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import new_token
from spinezarr.vertebrae import VALUE_OF_NAME, hex_color
from spinezarr.view import widget as widget_module
from spinezarr.view.levels import LevelReader, levels_of
from spinezarr.view.widget import MAX_BYTES, ScanView, finest_that_fits

SCAN = "liver_0"


def read(volume):
    """Read a file that the widget gets, with nibabel."""
    return nib.Nifti1Image.from_bytes(gzip.decompress(volume.data))


def shown_zyx(volume):
    return np.asanyarray(read(volume).dataobj).transpose(2, 1, 0)


@pytest.mark.parametrize("level", [None, 0])
def test_the_widget_has_the_voxels_and_the_affine(store, level):
    view = store.view(SCAN, level=level)
    scan = store.scan(SCAN)
    image, label = view.widget.volumes
    np.testing.assert_array_equal(shown_zyx(image), scan.image.values)
    np.testing.assert_array_equal(shown_zyx(label), scan.label.values)
    for volume in (image, label):
        np.testing.assert_allclose(read(volume).affine, scan.attrs["affine"], atol=1e-4)
    assert read(image).get_data_dtype() == np.int16
    assert (image.cal_min, image.cal_max) == (-500, 1300)


def test_vertebrae_have_the_colors_and_names_of_the_library(store):
    lut = store.view(SCAN).widget.volumes[1].colormap_label
    names = set(store._reader.scan(SCAN).attributes.vertebrae)
    assert names <= set(lut.labels)
    colors = np.asarray(lut.lut).reshape(-1, 4)
    for name in names:
        value = VALUE_OF_NAME[name] - int(lut.min)
        assert "#" + "".join(f"{part:02x}" for part in colors[value][:3]) == hex_color(
            VALUE_OF_NAME[name]
        )
        assert lut.labels[value] == name
    assert colors[0 - int(lut.min)][3] == 0


def test_the_widget_has_the_radiological_orientation(store):
    opts = store.view(SCAN).widget.opts
    assert opts.is_radiological_convention
    assert opts.sagittal_nose_left


def test_the_planes_cross_in_the_spine(store):
    view = store.view(SCAN)
    shape_xyz = np.array(view.level.shape_zyx[::-1])
    x, y, z = (np.array(view.widget.scene.crosshair_pos) * shape_xyz - 0.5).round().astype(int)
    label = store.scan(SCAN).label.values
    assert label[z, :, x].any()
    described = view._voxel_text(view._middle_mm())
    value = label[z, y, x]
    assert f"{store.scan(SCAN).image.values[z, y, x]} HU" in described
    names = {one.value: one.name for one in view._labels_of(view._masks[0])}
    assert not value or described.endswith(names[value])
    assert "HU" not in view._voxel_text([1e4, 0, 0])


def test_the_options_mask_window_and_level_are_applied_and_checked(store):
    view = store.view(SCAN, mask=None, window="-160,240")
    (image,) = view.widget.volumes
    assert (image.cal_min, image.cal_max) == (-160, 240)
    assert "mask" not in repr(view)
    for wrong in ({"window": "bones"}, {"level": 99}, {"level": -1}):
        with pytest.raises(UsageError):
            store.view(SCAN, **wrong)
    with pytest.raises(UnknownScanError):
        store.view("none")


@pytest.mark.parametrize(
    ("shape_zyx", "factor"),
    [
        ((1, 512, 512), (1, 1, 1)),
        ((64, 512, 512), (1, 1, 1)),
        ((133, 512, 512), (1, 2, 2)),
        ((600, 512, 512), (2, 4, 4)),
    ],
)
def test_the_finest_level_within_the_byte_limit_is_shown(store, shape_zyx, factor):
    scan = store._reader.scan(SCAN)
    affine = ((0.7, 0, 0, 0), (0, 0.7, 0, 0), (0, 0, 1.0 if factor[0] == 2 else 2.5, 0))
    facts = scan.attributes.model_copy(
        update={
            "affine": (*affine, (0, 0, 0, 1)),
            "spacing_zyx_mm": (affine[2][2], 0.7, 0.7),
            "shape_zyx": shape_zyx,
        }
    )
    large = replace(scan, attributes=facts, image=replace(scan.image, shape_zyx=shape_zyx))
    level = finest_that_fits(large)
    assert level.factor_zyx == factor
    assert np.prod(level.shape_zyx) * 2 <= MAX_BYTES


def test_a_coarse_level_in_the_widget_has_its_voxels_and_affine(store):
    scan = store._reader.scan(SCAN)
    coarse = levels_of(scan)[-1]
    if coarse.level == 0:
        coarse = None
    engine = store._engine
    view = ScanView(
        scan,
        engine,
        mask="label",
        outline=None,
        window_hu=(-500, 1300),
        level=None,
        height_px=300,
    )
    if coarse is not None:
        view.level = coarse
        image, label = view.widget.volumes
        levels = LevelReader(engine)
        np.testing.assert_array_equal(shown_zyx(image), levels.read(scan.image, coarse))
        np.testing.assert_array_equal(shown_zyx(label), levels.read(scan.label, coarse))
        np.testing.assert_allclose(read(image).affine, coarse.affine, atol=1e-4)


def test_the_widget_shows_scaled_images_and_served_stores(odd, ctspine1k_url):
    view = spinezarr.open(odd.url).view("byte")
    found = shown_zyx(view.widget.volumes[0])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, odd.image["byte"], rtol=1e-6)
    with BackgroundServer(ServeSettings(paths=(ctspine1k_url,))) as server:
        there = spinezarr.open(f"{server.url}/ctspine1k").view(SCAN)
        here = spinezarr.open(ctspine1k_url).view(SCAN)
        for a, b in zip(there.widget.volumes, here.widget.volumes, strict=True):
            assert a.data == b.data


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Write a store of one scan with several levels."""
    folder, rng = tmp_path_factory.mktemp("large"), np.random.default_rng(4)
    image = rng.integers(-900, 1500, (100, 120, 130)).astype(np.int16)
    label = np.zeros(image.shape, np.uint8)
    label[20:70, 30:90, 40:110] = VALUE_OF_NAME["L1"]
    for name, voxels in (("a_ct", image), ("a_seg", label)):
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / f"{name}.nii.gz")
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="large")
    ingest(recipe, discover(recipe, str(folder)), str(folder / "large.zarr"))
    spinezarr.open(folder / "large.zarr").write_labels("a", "further", label.T[::-1])
    return folder / "large.zarr"


def volumes(view):
    return [volume.data for volume in view.widget.volumes]


@pytest.mark.parametrize("has_token", [False, True])
def test_the_server_of_a_store_computes_the_level(large, tmp_path, monkeypatch, has_token):
    expected = volumes(spinezarr.open(large).view("a", level=1, outline="further"))
    tokens, options = None, {}
    if has_token:
        tokens = str(tmp_path / "tokens")
        token = new_token(tmp_path / "tokens", "reader")
        options = {"headers": {"Authorization": f"Bearer {token}"}}
    with BackgroundServer(ServeSettings(paths=(str(large),), token_file=tokens)) as server:
        there = spinezarr.open(f"{server.url}/large", storage_options=options)
        view = there.view("a", level=1, outline="further")
        with monkeypatch.context() as patched:
            # The server runs in this process, so the thread shows where a level is computed.
            found = _computed_in(patched)
            assert volumes(view) == expected
        assert found == {"server"}


@pytest.mark.parametrize("how", ["no levels", "short", "flipped", "other", "ranges"])
def test_a_level_that_the_server_refuses_is_computed_locally(large, monkeypatch, how):
    expected = volumes(spinezarr.open(large).view("a", level=1))
    change = {
        "short": lambda data: data[:-1],
        "flipped": lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        "other": lambda data: gzip.compress(gzip.decompress(data)[1:]),
    }.get(how)

    def answer(*words, **options):
        if change is None:
            return text_answer(HTTPStatus.NOT_FOUND, "There is nothing here.")
        answered = answer_level(*words, **options)
        return Answer(answered.status, {**answered.headers}, change(answered.body))

    if how != "ranges":
        monkeypatch.setattr(endpoints, "answer_level", answer)
    with BackgroundServer(ServeSettings(paths=(str(large),))) as server:
        transfer = "ranges" if how == "ranges" else "auto"
        there = spinezarr.open(f"{server.url}/large", transfer=transfer)
        found = _computed_in(monkeypatch)
        assert volumes(there.view("a", level=1)) == expected
        assert "here" in found


def _computed_in(patched):
    """Record whether levels are computed in this thread or in one of the server."""
    found, here, read = set(), threading.get_ident(), LevelReader.read

    def noted(*words, **options):
        found.add("here" if threading.get_ident() == here else "server")
        return read(*words, **options)

    patched.setattr(LevelReader, "read", noted)
    return found


@pytest.fixture(scope="module")
def masked(ctspine1k_url, tmp_path_factory):
    """Return a store in which a scan has a shifted copy of ``label``, and an empty mask."""
    folder = tmp_path_factory.mktemp("masked")
    store = spinezarr.open(shutil.copytree(ctspine1k_url, folder / "ctspine1k.zarr"))
    label = store.scan(SCAN).label.values
    store.write_labels(SCAN, "prediction", np.roll(label, 3, axis=2))
    store.write_labels(SCAN, "empty", np.zeros_like(label))
    return spinezarr.open(store.url)


def border_of(label):
    """Return a mask without the voxels whose six neighbors have their value."""
    padded, is_inner = np.pad(label, 1, "edge"), np.ones(label.shape, bool)
    for axis in range(3):
        for shift in (-1, 1):
            is_inner &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1] == label
    return np.where(is_inner, 0, label)


@pytest.mark.parametrize(
    ("mask", "outline"), [("prediction", "label"), ("label", "prediction"), (None, "prediction")]
)
def test_one_mask_is_filled_and_another_outlined(masked, mask, outline):
    view, scan = masked.view(SCAN, mask=mask, outline=outline, level=0), masked.scan(SCAN)
    _, *filled, outlined = view.widget.volumes
    np.testing.assert_array_equal(shown_zyx(outlined), border_of(scan[outline].values))
    assert outlined.opacity == 1
    assert len(filled) == (mask is not None)
    for volume in filled:
        np.testing.assert_array_equal(shown_zyx(volume), scan[mask].values)
        assert volume.opacity < 1
    assert f"outline {outline}" in repr(view)
    assert f"{outline}</b> (outlined)" in view._legend()


def test_the_line_names_the_values_of_both_masks(masked):
    view, scan = masked.view(SCAN, mask="prediction", outline="label", level=0), masked.scan(SCAN)
    names = dict(zip(scan.label.flag_values, scan.label.flag_meanings.split(), strict=True))
    names[0] = "\N{EN DASH}"
    prediction, label = scan.prediction.values, scan.label.values
    both = (prediction != label) & (prediction > 0)
    for z, y, x in np.argwhere(both)[:: both.sum() // 5]:
        position = (scan.attrs["affine"] @ np.array([x, y, z, 1]))[:3].tolist()
        text = view._voxel_text(position)
        expected = f"prediction {names[prediction[z, y, x]]} · label {names[label[z, y, x]]}"
        assert text.endswith(expected)


def test_the_spine_of_the_filled_mask_is_in_the_middle(masked):
    shown = {name: masked.view(SCAN, mask=name) for name in ("label", "prediction", "empty")}
    (x, *yz), (shifted_x, *shifted_yz) = (
        shown[name].widget.scene.crosshair_pos for name in ("label", "prediction")
    )
    assert shifted_x - x == pytest.approx(3 / masked.scan(SCAN).sizes["x"], abs=1e-6)
    assert shifted_yz == pytest.approx(yz)
    assert shown["empty"]._legend() == ""
    assert not shown_zyx(shown["empty"].widget.volumes[1]).any()
    for view in shown.values():
        check_picture(view._repr_mimebundle_())


def test_masks_that_the_scan_lacks_are_refused(masked):
    for wrong in ({"mask": "teeth"}, {"outline": "teeth"}, {"mask": "image"}):
        with pytest.raises(UnknownMaskError, match="it has label, empty, prediction"):
            masked.view(SCAN, **wrong)
    with pytest.raises(UnknownMaskError, match="no mask 'prediction'; it has label"):
        masked.view("HN_P001", outline="prediction")
    with pytest.raises(UsageError, match="filled already"):
        masked.view(SCAN, mask="prediction", outline="prediction")


def test_a_mask_that_was_replaced_on_its_server_is_an_error(large, tmp_path):
    here = spinezarr.open(shutil.copytree(large, tmp_path / "large.zarr"))
    with BackgroundServer(ServeSettings(paths=(here.url,))) as server:
        view = spinezarr.open(f"{server.url}/large").view("a", mask="further", level=1)
        here.write_labels("a", "further", here.scan("a").label.values)
        with pytest.raises(SpinezarrError):
            _ = view.widget


# Forms of the output in a notebook


def check_picture(forms):
    with Image.open(io.BytesIO(base64.b64decode(forms["image/png"]))) as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_a_picture_is_shown_outside_a_notebook(store):
    view = store.view(SCAN)
    forms = view._repr_mimebundle_()
    assert set(forms) == {"text/plain", "image/png"}
    check_picture(forms)
    assert view.figure.axes


def test_a_notebook_shows_a_picture_if_the_package_is_missing(store, monkeypatch):
    monkeypatch.setattr(widget_module, "_is_notebook", lambda: True)
    monkeypatch.setitem(sys.modules, "ipyniivue", None)
    view = store.view(SCAN)
    forms = view._repr_mimebundle_()
    check_picture(forms)
    assert "pip install 'spinezarr[notebook]'" in forms["text/plain"]
    with pytest.raises(UsageError, match="notebook"):
        _ = view.widget


def test_names_of_structures_are_escaped_in_html(store):
    view = store.view(SCAN)
    scan = view._scan
    facts = scan.attributes.model_copy(
        update={"other_labels": {"41": 1}, "structures": {"41": "<script>alert(1)</script>"}}
    )
    view._scan = replace(scan, attributes=facts)
    legend = view._legend()
    assert "<script>" not in legend
    assert "&lt;script&gt;" in legend


def test_the_widget_contains_its_script_and_loads_nothing_from_other_hosts():
    text = ipyniivue.NiiVue._esm
    text = str(text)
    assert len(text) > 1e6
    for host in ("unpkg.com", "jsdelivr", "esm.sh", "googleapis", "cdnjs"):
        assert host not in text


@pytest.mark.long
def test_an_executed_notebook_shows_the_widget(ctspine1k_url):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    code = f"import spinezarr\nspinezarr.open({ctspine1k_url!r}).view({SCAN!r})"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    (output,) = notebook.cells[0].outputs
    forms = output["data"]
    assert "application/vnd.jupyter.widget-view+json" in forms
    check_picture(forms)
