"""Unusual scans are drawn as stored: no mask, an empty mask, a single slice, a single voxel."""

import gzip

import nibabel as nib
import numpy as np
import pytest
from scan_page import PLANES, SHADE_ERROR, assert_drawn, picture, wait_for_volume, without_niivue
from timeouts import TIMEOUT_S, wait_until

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.vertebrae import VALUE_OF_NAME
from spinezarr.view.windows import WINDOWS_HU

pytestmark = pytest.mark.long
SPACING_XYZ = (2.0, 2.0, 5.0)
SMOOTH_ERROR = 40
"""Largest difference of shades in the middle of a voxel; pictures of the server are smoothed."""
SHAPES_XYZ = {"bare": (12, 14, 10), "empty": (12, 14, 10), "slice": (14, 14, 1), "voxel": (1, 1, 1)}
BRIGHT = 60
LABEL = VALUE_OF_NAME["L1"]
_MOVES = """() => [...document.querySelectorAll("*")].filter(e => {
  const { animationName, transitionDuration, scrollBehavior } = getComputedStyle(e);
  return animationName !== "none" || transitionDuration.split(",").some(s => parseFloat(s) > 0)
    || scrollBehavior === "smooth";
}).map(e => e.outerHTML.slice(0, 80)).concat(document.getAnimations().map(a => String(a)))"""
"""Script that finds elements that are animated, or would be when they change."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Write a store of each scan; return its URL and the voxels of each, x, y, z."""
    folder, rng = tmp_path_factory.mktemp("unusual"), np.random.default_rng(3)
    affine = np.diag([*SPACING_XYZ, 1])
    images = {}
    for name, shape in SHAPES_XYZ.items():
        raw = folder / name
        raw.mkdir()
        images[name] = rng.integers(-300, 1200, shape).astype(np.int16)
        nib.save(nib.Nifti1Image(images[name], affine), raw / f"{name}_ct.nii.gz")
        label = np.full(shape, LABEL, np.uint8)
        label[3:, 3:] = 0
        label *= name != "empty"
        nib.save(nib.Nifti1Image(label, affine), raw / f"{name}_seg.nii.gz")
        mask = None if name == "bare" else "{scan}_seg.nii.gz"
        recipe = Recipe.from_pairs("{scan}_ct.nii.gz", mask, name=name)
        report = ingest(recipe, discover(recipe, str(raw)), str(folder / f"{name}.zarr"))
        assert not report.failed, report.failed
    return folder, images


@pytest.fixture(scope="module")
def url(images):
    with BackgroundServer(ServeSettings(paths=(str(images[0]),))) as server:
        yield server.url


@pytest.mark.parametrize("has_niivue", [True, False])
def test_the_page_says_that_a_scan_has_no_mask(page, url, images, has_niivue):
    if not has_niivue:
        without_niivue(page)
    page.goto(f"{url}/scan/bare/bare?interpolation=nearest&level=0&at_mm=10,12,25")
    if has_niivue:
        wait_for_volume(page)
    page.wait_for_selector("#stage[data-first]")
    error = SHADE_ERROR if has_niivue else SMOOTH_ERROR
    assert_drawn(page, images[1]["bare"], (5, 6, 5), WINDOWS_HU["bone"], SPACING_XYZ, error)
    lacking = page.locator(".tile[data-plane=render] .lacking")
    assert "This scan has no vertebra mask" in lacking.inner_text()
    assert "This scan has no mask." in page.locator("#panel").inner_text()
    assert page.get_by_role("button", name="Rotate").count() == 0
    assert page.get_by_role("searchbox", name="Search the vertebrae").count() == 0
    page.wait_for_selector("#status[data-voxel='5,6,5']")
    assert f"{images[1]['bare'][5, 6, 5]:,} HU" in page.locator("#status").inner_text()
    for key in "lo12":  # keys for the mask cause no error
        page.keyboard.press(key)
    assert page.get_by_role("alert").is_hidden()


def test_the_3d_tile_says_that_a_mask_is_empty(page, url, images):
    page.goto(f"{url}/scan/empty/empty?interpolation=nearest&level=0&at_mm=10,12,25")
    page.wait_for_selector("#stage[data-render]")
    assert_drawn(page, images[1]["empty"], (5, 6, 5), WINDOWS_HU["bone"], SPACING_XYZ)
    page.get_by_text("The mask of this scan is empty").wait_for()
    assert page.get_by_role("button", name="Rotate").is_disabled()


@pytest.mark.parametrize("has_niivue", [True, False])
@pytest.mark.parametrize("name", ["slice", "voxel"])
def test_scans_of_one_slice_or_one_voxel_are_drawn(page, url, images, name, has_niivue):
    if not has_niivue:
        without_niivue(page)
    image = images[1][name]
    words = "interpolation=nearest&labels=false&level=0&at_mm=0,0,0"
    page.goto(f"{url}/scan/{name}/{name}?{words}")
    if has_niivue:
        wait_for_volume(page)
        page.wait_for_selector("#stage[data-render]")
    page.wait_for_selector("#stage[data-first]")
    error = SHADE_ERROR if has_niivue else SMOOTH_ERROR
    assert_drawn(page, image, (0, 0, 0), WINDOWS_HU["bone"], SPACING_XYZ, error)
    shades = {plane: picture(page, plane) for plane in PLANES}
    page.keyboard.press("l")
    for plane, before in shades.items():
        wait_until(lambda plane=plane, before=before: (picture(page, plane) != before).any())
    slider = page.get_by_role("slider", name="Axial plane, z in mm")
    slider.focus()
    page.keyboard.press("ArrowUp")
    assert slider.input_value() == "0"
    if has_niivue and name == "slice":  # NiiVue leaves a mask of one voxel dark
        assert picture(page, "render").max() > BRIGHT
    assert page.get_by_role("alert").is_hidden()


@pytest.mark.parametrize("name", ["slice", "voxel"])
def test_a_notebook_shows_scans_of_one_slice_or_one_voxel(images, name):
    folder, voxels = images
    view = spinezarr.open(folder / f"{name}.zarr").view(name)
    image, label = (
        nib.Nifti1Image.from_bytes(gzip.decompress(volume.data)) for volume in view.widget.volumes
    )
    assert image.shape == label.shape == voxels[name].shape
    np.testing.assert_array_equal(np.asanyarray(image.dataobj), voxels[name])
    assert np.asanyarray(label.dataobj)[0, 0, 0] == LABEL
    np.testing.assert_allclose(image.affine, np.diag([*SPACING_XYZ, 1]))
    assert f"{voxels[name][0, 0, 0]} HU · L1" in view._voxel_text([0, 0, 0])
    assert len(view.figure.axes) >= len(PLANES)


def test_nothing_is_animated_if_reduced_motion_is_preferred(chromium, url):
    context = chromium.new_context(reduced_motion="reduce", viewport={"width": 1280, "height": 720})
    tab = context.new_page()
    tab.set_default_timeout(TIMEOUT_S * 1000)
    tab.goto(f"{url}/scan/slice/slice")
    tab.wait_for_selector("#stage[data-render]")
    still = picture(tab, "render")
    tab.wait_for_timeout(500)
    assert (picture(tab, "render") == still).all()
    rotate = tab.get_by_role("button", name="Rotate")
    rotate.click()
    turned = picture(tab, "render")
    assert (turned != still).any()  # each click makes one step
    assert rotate.get_attribute("aria-pressed") == "false"
    tab.wait_for_timeout(500)
    assert (picture(tab, "render") == turned).all()
    assert tab.evaluate(_MOVES) == []
    tab.goto(f"{url}/?store=slice")
    tab.locator(".scans-table tbody tr").first.wait_for()
    assert tab.evaluate(_MOVES) == []
    context.close()
