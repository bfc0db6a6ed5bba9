"""A pinch of two fingers zooms a plane, and the point between them keeps its place."""

from urllib.parse import parse_qs, urlsplit

import nibabel as nib
import numpy as np
import pytest
from scan_page import PLANES, picture, wait_for_volume, without_niivue
from timeouts import TIMEOUT_S

from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings

pytestmark = pytest.mark.long
SHAPE_XYZ = (30, 30, 30)
SPOT = (8, 19, 12)
"""First voxel of a bright block of 2 x 2 x 2; left, anterior and inferior of the middle."""
APART_PX = (20, 60)
"""Distance of each finger from the middle of the two: before and after."""
BACK_PX = (60, 15)
"""The same distances on the way back, a little further than to 100 %."""
ERROR_PX = 6
"""Largest error of a position: a pixel or two before the zoom, three times as many after it."""
BRIGHT = 200


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("touch")
    image = np.full(SHAPE_XYZ, -900, np.int16)
    image[tuple(slice(at, at + 2) for at in SPOT)] = 1500
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "a_ct.nii.gz")
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", None, name="touch")
    report = ingest(recipe, discover(recipe, str(folder)), str(folder / "touch.zarr"))
    assert not report.failed, report.failed
    with BackgroundServer(ServeSettings(paths=(str(folder / "touch.zarr"),))) as server:
        yield server.url


@pytest.fixture
def tab(chromium):
    context = chromium.new_context(has_touch=True, viewport={"width": 1280, "height": 720})
    tab = context.new_page()
    tab.set_default_timeout(TIMEOUT_S * 1000)
    yield tab
    context.close()


def spot(tab, plane):
    """Return the middle of the bright spot in a tile, in pixels x, y, and its area."""
    bright = np.argwhere(picture(tab, plane)[..., 0] > BRIGHT)
    return bright.mean(axis=0)[::-1], len(bright)


def touch(client, kind, *points):
    client.send(
        "Input.dispatchTouchEvent",
        {"type": kind, "touchPoints": [{"x": x, "y": y, "id": i} for i, (x, y) in points]},
    )


def pinch(tab, middle, *, moved=(0, 0), apart=APART_PX):
    """Put two fingers around a point of the page, move them, and lift them."""
    client = tab.context.new_cdp_session(tab)
    before, after = apart

    def fingers(distance, share):
        x, y = (m + share * d for m, d in zip(middle, moved, strict=True))
        return (0, (x - distance, y)), (1, (x + distance, y))

    first, second = fingers(before, 0)
    touch(client, "touchStart", first)
    touch(client, "touchStart", first, second)
    for share in np.linspace(0.1, 1, 10):
        touch(client, "touchMove", *fingers(before + share * (after - before), share))
    touch(client, "touchEnd", fingers(after, 1)[1])
    touch(client, "touchMove", (1, (middle[0] - 50, middle[1] - 50)))  # this finger stays
    touch(client, "touchEnd")


def zoom(tab):
    return tab.locator("#zoom-fit").inner_text()


@pytest.mark.parametrize("has_niivue", [True, False])
@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("moved", [(0, 0), (25, 15)])
def test_the_point_between_two_fingers_keeps_its_place(tab, url, plane, has_niivue, moved):
    if not has_niivue:
        without_niivue(tab)
    where = ",".join(f"{at + 0.25}" for at in SPOT)
    tab.goto(f"{url}/scan/touch/a?interpolation=nearest&level=0&at_mm={where}&labels=false")
    tab.wait_for_selector("#stage[data-first]")
    if has_niivue:
        wait_for_volume(tab)
    at, area = spot(tab, plane)
    box = tab.locator(f".tile[data-plane={plane}] .picture").bounding_box()
    corner = np.array([box["x"], box["y"]])
    pinch(tab, at + corner, moved=moved)
    assert zoom(tab) == "300 %"
    now, larger = spot(tab, plane)
    assert np.abs(now - at - moved).max() < ERROR_PX
    assert larger == pytest.approx(9 * area, rel=0.2)
    pinch(tab, now + corner, apart=BACK_PX)
    assert zoom(tab) == "100 %"
    assert np.abs(spot(tab, plane)[0] - at).max() < ERROR_PX


def test_a_pinch_does_not_move_the_planes(tab, url):
    without_niivue(tab)
    tab.goto(f"{url}/scan/touch/a")
    tab.wait_for_selector("#stage[data-first]")
    box = tab.locator(".tile[data-plane=axial] .picture").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    place = _place(tab)
    pinch(tab, middle)
    assert _place(tab) == place
    tab.touchscreen.tap(middle[0] + 30, middle[1])
    assert _place(tab) != place


def _place(tab):
    return parse_qs(urlsplit(tab.url).query)["at_mm"]
