"""The neuroglancer client and state that the server sends draw the stored voxels of a scan."""

import gzip
import io
import json
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nibabel as nib
import numpy as np
import pytest
from http_client import fetch
from PIL import Image
from timeouts import wait_until

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve import neuroglancer
from spinezarr.serve.neuroglancer import CLIENT
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import new_token
from spinezarr.vertebrae import hex_color
from spinezarr.view.neuroglancer_state import state_fragment

HERE = "/neuroglancer/ctspine1k/liver_0"
SHAPE_XYZ = (60, 50, 40)
LEFT, RIGHT = 20, 21
"""Labels of the patient's left and right side; the left side is bright, the right dark."""


def state_at(url, **headers):
    """Return the path of the client, and the state that it gets."""
    status, fields, _ = fetch(url, **headers)
    assert status == 303
    assert fields["cache-control"] == "no-store"
    path, _, fragment = fields["location"].partition("#!")
    return path, json.loads(unquote(fragment))


def test_the_state_refers_to_the_voxels_of_one_version(served, ctspine1k_url):
    path, state = state_at(f"{served}{HERE}")
    status, fields, body = fetch(f"{served}{path}")
    assert (status, fields["content-type"]) == (200, "text/html; charset=utf-8")
    assert body.index(b"alone.js") < body.index(b"main.")
    checksum = spinezarr.open(ctspine1k_url)._reader.scan("liver_0").content_checksum
    image, label = state["layers"]
    arrays = f"{served}/flat/ctspine1k/@{checksum}/scans/liver_0"
    assert image["source"]["url"] == f"{arrays}/image/|zarr3:"
    assert label["source"][0]["url"] == f"{arrays}/label/|zarr3:"
    assert fetch(f"{arrays}/label/zarr.json")[0] == 200
    place, _, kind = label["source"][1].partition("|")
    assert kind == "neuroglancer-precomputed:"
    info = json.loads(fetch(f"{place}info")[2])
    assert info["@type"] == "neuroglancer_segment_properties"
    assert set(label["segments"]) <= set(info["inline"]["ids"])


def test_urls_of_the_state_name_the_server_by_the_requested_host(ctspine1k_url, tmp_path):
    token = new_token(tmp_path / "tokens", "anna")
    settings = ServeSettings(paths=(ctspine1k_url,), token_file=str(tmp_path / "tokens"))
    with BackgroundServer(settings) as server:
        asked = {"authorization": f"Bearer {token}", "host": "data.example.org"}
        _, state = state_at(f"{server.url}{HERE}", **asked, x_forwarded_proto="https")
        assert state["layers"][0]["source"]["url"].startswith("https://data.example.org/flat/")
        _, state = state_at(f"{server.url}{HERE}", **asked)
        assert state["layers"][0]["source"]["url"].startswith("http://data.example.org/flat/")
        for host in ("a b", "x/y", "u@h", "h:1:2", "h?", ""):
            status, fields, _ = fetch(f"{server.url}{HERE}", **{**asked, "host": host})
            assert status == 400
            assert "location" not in fields
        assert fetch(f"{server.url}{HERE}")[0] == 401
        assert fetch(f"{server.url}{CLIENT}/1/index.html")[0] == 401


def test_the_files_of_the_client_equal_those_of_the_package(served):
    path = state_at(f"{served}{HERE}")[0]
    base = path.rpartition("/")[0]
    folder = Path(neuroglancer.__file__).parents[
        2
    ]  # folder of the package, without further imports
    assert folder.is_dir()
    client = neuroglancer._Client.installed()
    assert {"index.html"} < set(client.files)
    for name, place in client.files.items():
        status, fields, body = fetch(f"{served}{base}/{name}")
        packed = fetch(f"{served}{base}/{name}", accept_encoding="gzip")
        assert status == 200
        is_packed = "content-encoding" in packed[1]
        assert is_packed == (len(body) >= 1024)
        assert (gzip.decompress(packed[2]) if is_packed else packed[2]) == body
        assert fields["x-content-type-options"] == "nosniff"
        if name == "index.html":
            assert fields["cache-control"] == "no-cache"
            assert "'unsafe-eval'" not in fields["content-security-policy"]
        else:
            assert "immutable" in fields["cache-control"]
            assert body == place.read_bytes()
        policy = fields["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "http" not in policy
        assert "*" not in policy


@pytest.mark.parametrize(
    "name",
    [
        "none.js",
        "main.js.map",
        "..%2f..%2f..%2f__init__.py",
        "%2e%2e/index.html",
        "../../../etc/passwd",
        "index.html%00.js",
        "%2fetc%2fpasswd",
        "",
    ],
)
def test_no_other_file_of_the_machine_is_sent(served, name):
    base = state_at(f"{served}{HERE}")[0].rpartition("/")[0]
    assert fetch(f"{served}{base}/{name}")[0] == 404


def test_a_view_of_an_old_version_opens_in_the_current_one(served):
    path = state_at(f"{served}{HERE}")[0]
    status, fields, _ = fetch(f"{served}{CLIENT}/0.0/index.html")
    assert (status, fields["location"]) == (303, path)
    assert fetch(f"{served}{CLIENT}/0.0/main.js")[0] == 404


@pytest.mark.parametrize("found", [None, "no client"])
def test_a_page_names_the_package_to_install_if_neuroglancer_is_missing(
    served, monkeypatch, tmp_path, found
):
    class Spec:
        origin = str(tmp_path / "__init__.py")

    monkeypatch.setattr(neuroglancer, "find_spec", lambda _: None if found is None else Spec)
    neuroglancer._Client.installed.cache_clear()
    try:
        status, fields, body = fetch(f"{served}{HERE}")
        assert (status, fields["content-type"]) == (501, "text/html; charset=utf-8")
        assert b"pip install 'spinezarr[neuroglancer]'" in body
        assert fetch(f"{served}{CLIENT}/1/index.html")[0] == 404
        assert fetch(f"{served}/neuroglancer/ctspine1k/none")[0] == 404
    finally:
        neuroglancer._Client.installed.cache_clear()


def test_an_image_that_neuroglancer_cannot_draw_is_refused(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    values = np.random.default_rng(1).normal(size=(8, 8, 8))
    nib.save(nib.Nifti1Image(values, np.eye(4)), raw / "a_ct.nii.gz")
    with serving(raw, tmp_path / "own.zarr", label=None) as server:
        status, _, body = fetch(f"{server.url}/neuroglancer/own/a")
    assert status == 422
    assert b"float64" in body


def serving(raw, place, label="{scan}_seg.nii.gz"):
    """Ingest a folder of files and serve it."""
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", label, name="own")
    report = ingest(recipe, discover(recipe, str(raw)), str(place))
    assert not report.failed, report.failed
    return BackgroundServer(ServeSettings(paths=(str(place),)))


# In a browser


def affines():
    """Return affines of scans: along the axes, and oblique."""
    straight = np.diag([-0.8, -0.9, 2.5, 1])
    straight[:3, 3] = 20, 30, -50
    a, b = np.radians([20, -15])
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    oblique = straight.copy()
    oblique[:3, :3] = about_z @ about_x @ straight[:3, :3]
    return {"straight": straight, "oblique": oblique}


@pytest.fixture(scope="module")
def asymmetric(tmp_path_factory):
    """Serve scans in which neighboring voxels differ, and so do all sides."""
    folder = tmp_path_factory.mktemp("asymmetric")
    raw = folder / "raw"
    raw.mkdir()
    for seed, (name, affine) in enumerate(affines().items()):
        values = np.random.default_rng(seed).integers(-1024, 3071, SHAPE_XYZ).astype(np.int16)
        mask = np.zeros(SHAPE_XYZ, np.uint8)
        mask[35:50, 10:25, 22:34] = LEFT  # the files' first axis runs to the left
        mask[8:20, 10:30, 6:16] = RIGHT
        nib.save(nib.Nifti1Image(values, affine), raw / f"{name}_ct.nii.gz")
        nib.save(nib.Nifti1Image(mask, affine), raw / f"{name}_seg.nii.gz")
    place = folder / "own.zarr"
    with serving(raw, place) as server:
        yield server.url, spinezarr.open(place)


NUMBERS = """
void main() {
  highp int n = int(toRaw(getDataValue())) + 32768;
  emitRGB(vec3(float(n / 256) / 255.0, float(n % 256) / 255.0, 0.5));
}
"""
"""A shader that draws the numbers themselves: high byte red, low byte green."""
DIRECTIONS = {
    "axial": ((-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, -1, 0), (0, 0, -1)),
    "coronal": ((-1, 0, 0), (0, 0, -1)),
}
"""Directions to the right and downward in each plane: x, y, z of the patient (RAS+)."""
CELLS = {"axial": (0, 0), "sagittal": (1, 0), "coronal": (1, 1)}
MM_PER_PX = 0.25


def single_plane(state, plane, scan, index_xyz):
    """Return a state that shows one plane through the center of a voxel, without overlays."""
    column, row = CELLS[plane]
    view = state["layout"]["children"][column]["children"][row]
    return {
        **state,
        "layout": {"type": "row", "children": [view]},
        "position": (np.array(scan.attrs["affine"])[:3] @ (*index_xyz, 1)).tolist(),
        "crossSectionScale": MM_PER_PX,
        "selectedLayer": {"visible": False},
        "showAxisLines": False,
        "showScaleBar": False,
        "showDefaultAnnotations": False,
    }


def single_layer(state, layer):
    """Return a state of one plane with one layer."""
    (view,) = state["layout"]["children"]
    layout = {"type": "row", "children": [{**view, "layers": [layer["name"]]}]}
    return {**state, "layers": [layer], "layout": layout}


def middle_of(scan, label):
    """Return a voxel in the middle of a label."""
    z, y, x = (int(np.median(index)) for index in np.nonzero(scan.label.values == label))
    return x, y, z


def wait_for_chunks(page):
    """Wait until neuroglancer has all that it shows."""
    # By a call, because the page's policy does not allow text to become a function.
    is_ready = "() => window.viewer !== undefined && viewer.isReady()"
    wait_until(lambda: page.wait_for_timeout(100) or page.evaluate(is_ready))


def drawn(page, url, path, state):
    """Return the pixels of the plane, and the position of its middle."""
    page.goto("about:blank")
    page.goto(f"{url}{path}#{state_fragment(state)}")
    wait_for_chunks(page)
    page.wait_for_timeout(500)
    page.evaluate("() => new Promise(done => requestAnimationFrame(done))")
    box = page.locator(".neuroglancer-rendered-data-panel").first.bounding_box()
    with Image.open(io.BytesIO(page.screenshot())) as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    # Only the inside: a panel has a border, and buttons at its top.
    left, top = round(box["x"]), round(box["y"])
    width, height = round(box["width"]), round(box["height"])
    rows, columns = np.mgrid[top + 40 : top + height - 5, left + 40 : left + width - 60]
    found = pixels[rows, columns]
    return (
        found,
        columns + 0.5 - (box["x"] + box["width"] / 2),
        rows + 0.5 - (box["y"] + box["height"] / 2),
    )


def expected_index(scan, state, plane, across, down):
    """Return the voxel under each pixel, and the distance of the pixel's center to its border."""
    right, downward = (np.array(direction) for direction in DIRECTIONS[plane])
    mm = (
        np.array(state["position"])
        + across[..., None] * MM_PER_PX * right
        + down[..., None] * MM_PER_PX * downward
    )
    affine = np.array(scan.attrs["affine"])
    exact = (mm - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    return np.rint(exact).astype(int), np.abs(exact - np.rint(exact)).max(axis=-1) < 0.4


def forgive_absent_chunks(page):
    """Remove Chromium's messages about absent background chunks, and about its own drawing."""
    page.logged_errors[:] = [
        text for text in page.logged_errors if "404" not in text and "GL Driver Message" not in text
    ]


@pytest.mark.long
@pytest.mark.parametrize("plane", DIRECTIONS)
@pytest.mark.parametrize("name", affines())
def test_the_planes_show_the_stored_voxels_in_place(page, asymmetric, name, plane):
    url, store = asymmetric
    scan = store.scan(name)
    path, state = state_at(f"{url}/neuroglancer/own/{name}")
    image, label = state["layers"]
    state = single_plane(state, plane, scan, middle_of(scan, LEFT))

    shown = single_layer(state, {**image, "shader": NUMBERS, "shaderControls": {}})
    pixels, across, down = drawn(page, url, path, shown)
    index, is_clear = expected_index(scan, state, plane, across, down)
    inside = is_clear & np.all((index >= 0) & (index < SHAPE_XYZ), axis=-1)
    x, y, z = index[inside].T
    assert len(x) > 4000
    found = pixels[..., 0] * 256 + pixels[..., 1] - 32768
    np.testing.assert_array_equal(found[inside], scan.image.values[z, y, x])

    pixels, _, _ = drawn(page, url, path, single_layer(state, {**label, "selectedAlpha": 1}))
    labels = scan.label.values[z, y, x]
    for value in (LEFT, RIGHT):
        assert np.all(near(pixels[inside], value) == (labels == value))
    assert (labels == LEFT).any()
    forgive_absent_chunks(page)


@pytest.mark.long
@pytest.mark.parametrize("plane", DIRECTIONS)
def test_ome_images_are_drawn_in_place(page, asymmetric, plane):
    """The places follow from the scales and translations of OME-Zarr alone."""
    url, store = asymmetric
    scan = store.scan("straight")
    path, state = state_at(f"{url}/neuroglancer/own/straight")
    image, label = state["layers"]
    root = f"{url}/ome/own/straight.ome.zarr"
    image = {**image, "source": f"{root}/|zarr3:"}
    label = {**label, "source": [f"{root}/labels/vertebrae/|zarr3:", label["source"][1]]}
    state = single_plane(state, plane, scan, middle_of(scan, LEFT))

    shown = single_layer(state, {**image, "shader": NUMBERS, "shaderControls": {}})
    pixels, across, down = drawn(page, url, path, shown)
    index, is_clear = expected_index(scan, state, plane, across, down)
    inside = is_clear & np.all((index >= 0) & (index < SHAPE_XYZ), axis=-1)
    x, y, z = index[inside].T
    found = pixels[..., 0] * 256 + pixels[..., 1] - 32768
    np.testing.assert_array_equal(found[inside], scan.image.values[z, y, x])

    pixels, _, _ = drawn(page, url, path, single_layer(state, {**label, "selectedAlpha": 1}))
    labels = scan.label.values[z, y, x]
    for value in (LEFT, RIGHT):
        assert np.all(near(pixels[inside], value) == (labels == value))
    forgive_absent_chunks(page)


def near(pixels, value):
    """Return whether pixels have a color, up to rounding."""
    color = [int(hex_color(value)[at : at + 2], 16) for at in (1, 3, 5)]
    return np.abs(pixels - color).max(axis=-1) <= 1


@pytest.mark.long
def test_the_left_side_is_on_the_right_of_the_picture(page, asymmetric):
    """Radiologists look at a patient from the front."""
    url, store = asymmetric
    scan, across = store.scan("straight"), {}
    path, state = state_at(f"{url}/neuroglancer/own/straight")
    layer = {**state["layers"][1], "selectedAlpha": 1}
    for value in (LEFT, RIGHT):
        middle = (SHAPE_XYZ[0] // 2, *middle_of(scan, value)[1:])
        shown = single_layer(single_plane(state, "coronal", scan, middle), layer)
        pixels, px, _ = drawn(page, url, path, shown)
        across[value] = px[near(pixels, value)].mean()
    assert across[LEFT] > 0 > across[RIGHT]
    forgive_absent_chunks(page)


@pytest.mark.long
def test_the_vertebrae_have_names_and_colors(page, served, store):
    page.goto(f"{served}{HERE}")
    names = store._reader.scan("liver_0").attributes.vertebrae
    listed = page.locator(".neuroglancer-segment-list-entry-name")
    listed.first.wait_for()
    assert set(names) <= set(listed.all_inner_texts())
    assert urlsplit(page.url).path.startswith(CLIENT)
    forgive_absent_chunks(page)


@pytest.mark.long
def test_a_browser_session_gives_access_to_neuroglancer(page, ctspine1k_url, tmp_path):
    token = new_token(tmp_path / "tokens", "anna")
    settings = ServeSettings(paths=(ctspine1k_url,), token_file=str(tmp_path / "tokens"))
    with BackgroundServer(settings) as server:
        page.goto(f"{server.url}{HERE}")
        assert any("401" in text for text in page.logged_errors)
        page.logged_errors.clear()
        page.get_by_label("Token").fill(token)
        page.get_by_role("button", name="Sign in").click()
        page.locator(".neuroglancer-segment-list-entry-name").first.wait_for()
        wait_for_chunks(page)
        assert not [text for text in page.logged_errors if "401" in text]
        forgive_absent_chunks(page)
