"""The page of one scan draws the stored voxels, in a browser."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import nibabel as nib
import numpy as np
import pytest
from http_client import fetch
from playwright.sync_api import expect
from scan_page import (
    PLANES,
    SHADE_ERROR,
    assert_drawn,
    picture,
    voxel_pixels,
    wait_for_volume,
    without_niivue,
)
from timeouts import wait_until

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import new_token
from spinezarr.vertebrae import VALUE_OF_NAME, hex_color
from spinezarr.view.windows import WINDOWS_HU, gray_of

pytestmark = pytest.mark.long
SHAPE_XYZ = (24, 30, 20)
AFFINE = np.array([[2.0, 0, 0, -23], [0, 1.5, 0, 10.25], [0, 0, 3.0, -600], [0, 0, 0, 1]])
SPACING = (2.0, 1.5, 3.0)
LABELED = {"T12": np.s_[4:12, 8:18, 11:16], "L1": np.s_[4:12, 8:18, 4:10]}
"""Voxel ranges of labels, to the patient's left of the middle; x of RAS+ grows to the right."""
REAL = Path(__file__).parents[4] / "shared/data/real/lidc-idri"
EDGE = 0.05
"""Part of a voxel at its border that is not compared, because float32 is not more exact."""


@dataclass(frozen=True)
class Shown:
    """A server of a store of three small scans, and their contents."""

    url: str
    image: np.ndarray
    """Voxels (x, y, z) of the scan "b": noise, so that any other order looks different."""
    label: np.ndarray

    def page(self, scan_id="b", **query):
        words = "&".join(f"{name}={value}" for name, value in query.items())
        return f"{self.url}/scan/small/{scan_id}?{words}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a store of scans a, b and c; "b" is noise, "a" and "c" have a bright corner."""
    folder, rng = tmp_path_factory.mktemp("scan-page"), np.random.default_rng(5)
    raw = folder / "raw"
    raw.mkdir()
    label = np.zeros(SHAPE_XYZ, np.uint8)
    for name, box in LABELED.items():
        label[box] = VALUE_OF_NAME[name]
    noise = rng.integers(-900, 1500, SHAPE_XYZ).astype(np.int16)
    corner = np.full(SHAPE_XYZ, -900, np.int16)
    corner[15:, 20:, 13:] = 1200  # right, anterior, superior
    for name in "abc":
        image = noise if name == "b" else corner
        nib.save(nib.Nifti1Image(image, AFFINE), raw / f"{name}_ct.nii.gz")
        nib.save(nib.Nifti1Image(label, AFFINE), raw / f"{name}_seg.nii.gz")
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="small")
    report = ingest(recipe, discover(recipe, str(raw)), str(folder / "small.zarr"))
    assert not report.failed, report.failed
    return folder, noise, label


@pytest.fixture(scope="module")
def small(folder):
    """Serve the store of three small scans."""
    with BackgroundServer(ServeSettings(paths=(str(folder[0] / "small.zarr"),))) as server:
        yield Shown(server.url, folder[1], folder[2])


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """Serve a scan that is shown in a coarse level at first; return the URL of the server."""
    folder = tmp_path_factory.mktemp("large")
    image = np.zeros((160, 160, 160), np.int16)
    image[40:90, 50:120, 60:100] = 700
    nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "a_ct.nii.gz")
    nib.save(nib.Nifti1Image((image > 0).astype(np.uint8) * 20, np.eye(4)), folder / "a_seg.nii.gz")
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="large")
    ingest(recipe, discover(recipe, str(folder)), str(folder / "large.zarr"))
    with BackgroundServer(ServeSettings(paths=(str(folder / "large.zarr"),))) as server:
        yield server.url


@pytest.fixture
def quick(page):
    """Return a tab whose planes the server draws, for tests that do not depend on NiiVue."""
    without_niivue(page)
    return page


def mm(voxel):
    return (AFFINE[:3] @ (*voxel, 1)).tolist()


def at_mm(voxel):
    return ",".join(f"{value:g}" for value in mm(voxel))


def drawn_hash(page, plane="sagittal"):
    return hashlib.sha256(picture(page, plane).tobytes()).hexdigest()


@pytest.mark.parametrize("voxel", [(0, 0, 0), (11, 13, 7), (23, 29, 19)])
def test_the_planes_show_the_stored_voxels(page, small, voxel):
    where = small.page(at_mm=at_mm(voxel), labels="false", interpolation="nearest", level="0")
    page.goto(where)
    wait_for_volume(page)
    assert_drawn(page, small.image, voxel, WINDOWS_HU["bone"], SPACING)
    page.keyboard.press("2")
    assert_drawn(page, small.image, voxel, WINDOWS_HU["soft_tissue"], SPACING)


def test_labels_have_their_colors_in_the_planes(page, small):
    voxel = (8, 12, 7)
    where = small.page(at_mm=at_mm(voxel), interpolation="nearest", outlines="false", opacity="1")
    page.goto(where)
    wait_for_volume(page)
    for plane, (flat, _) in PLANES.items():
        found = voxel_pixels(picture(page, plane), plane, SHAPE_XYZ, SPACING)
        label = np.take(small.label, voxel[flat], axis=flat)
        inner = np.isin(label, [VALUE_OF_NAME[name] for name in LABELED])
        # The renderer softens the borders of labels by the fraction of labeled neighbors.
        for axis in (0, 1):
            for shift in (-1, 1):
                inner &= np.roll(label, shift, axis) == label
        assert inner.any()
        colors = [tuple(bytes.fromhex(hex_color(value)[1:])) for value in label[inner]]
        assert np.abs(found[inner] - np.array(colors)).max() <= SHADE_ERROR, plane


@pytest.mark.parametrize("has_niivue", [True, False])
def test_the_planes_have_the_radiological_orientation(page, small, has_niivue):
    if not has_niivue:
        without_niivue(page)
    page.goto(small.page("a", at_mm=at_mm((18, 24, 16)), labels="false"))
    if has_niivue:
        wait_for_volume(page)
    page.wait_for_selector("#stage[data-first]")
    for plane, sides in {"sagittal": "APSI", "coronal": "RLSI", "axial": "RLAP"}.items():
        pixels = picture(page, plane)[..., 0]
        middle = [n // 2 for n in pixels.shape]
        bright = np.argwhere(pixels > 200)
        # The bright corner is right, anterior and superior: at the upper left of each plane.
        assert (bright < middle).all(), plane
        assert len(bright) > 1000, plane
        assert page.locator(f".tile[data-plane={plane}] .side").all_inner_texts() == list(sides)


def test_a_build_without_niivue_shows_everything_but_3d(quick, small):
    quick.goto(small.page(at_mm=at_mm((8, 12, 7))))
    quick.wait_for_selector("#stage[data-first]")
    assert "npm view @niivue/niivue" in quick.locator(".lacking").inner_text()
    before = drawn_hash(quick)
    quick.locator("#labels").click()
    wait_until(lambda: drawn_hash(quick) != before)
    slider = quick.get_by_role("slider", name="Sagittal plane, x in mm")
    slider.focus()
    quick.keyboard.press("ArrowRight")
    wait_until(lambda: place(quick)[0] == pytest.approx(mm((9, 12, 7))[0]))
    assert "labels=false" in quick.url
    assert quick.locator("#opacity").is_hidden()
    assert quick.locator("#outlines").is_hidden()


def test_a_browser_without_webgl2_gets_an_explanation(page, small):
    page.add_init_script("""
        const get = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
          return kind === "webgl2" ? null : get.call(this, kind, ...rest);
        };
    """)
    page.goto(small.page())
    page.wait_for_selector("#stage[data-first]")
    assert "WebGL 2" in page.locator(".lacking").inner_text()


def place(page):
    """Return the point where the planes cross, x, y, z in mm, from the URL."""
    return [float(part) for part in parse_qs(urlsplit(page.url).query)["at_mm"][0].split(",")]


def status_of(page, voxel):
    """Return the status text of a voxel, once the server has answered."""
    page.wait_for_selector(f"#status[data-voxel='{','.join(map(str, voxel))}']")
    return page.locator("#status").inner_text()


def test_selecting_a_vertebra_moves_the_planes_to_its_centroid(quick, small):
    quick.goto(small.page())
    quick.wait_for_selector("#stage[data-first]")
    quick.get_by_role("button", name="T12", exact=True).or_(
        quick.get_by_role("button", name=re.compile(r"^T12\b"))
    ).first.click()
    facts = json.loads(fetch(f"{small.url}/v1/small/scans/b/view")[2])
    (found,) = [v for v in facts["masks"][0]["vertebrae"] if v["name"] == "T12"]
    assert np.abs(np.array(place(quick)) - found["centroid_xyz_mm"]).max() <= max(SPACING) / 2
    assert "vertebra=T12" in quick.url
    voxel = np.rint(np.linalg.solve(AFFINE[:3, :3], np.array(place(quick)) - AFFINE[:3, 3]))
    assert "T12" in status_of(quick, voxel.astype(int))


@pytest.mark.parametrize("plane", PLANES)
def test_a_click_shows_the_value_and_index_of_the_stored_voxel(quick, small, plane):
    quick.goto(small.page())
    quick.wait_for_selector("#stage[data-first]")
    box = quick.locator(f".tile[data-plane={plane}] .picture").bounding_box()
    u, v = PLANES[plane][1]
    size_mm = [n * s for n, s in zip(SHAPE_XYZ, SPACING, strict=True)]
    scale = min(box["width"] / size_mm[u], box["height"] / size_mm[v])
    wanted = [
        round(i) for i in np.linalg.solve(AFFINE[:3, :3], np.array(place(quick)) - AFFINE[:3, 3])
    ]
    wanted[u], wanted[v] = 5, 9
    x, y = (
        size / 2 + (size_mm[axis] / 2 - (wanted[axis] + 0.5) * SPACING[axis]) * scale
        for axis, size in ((u, box["width"]), (v, box["height"]))
    )
    quick.mouse.click(box["x"] + x, box["y"] + y)
    told = status_of(quick, wanted)
    i, j, k = wanted
    assert f"{small.image[i, j, k]:,} HU" in told
    assert f"voxel k {k}, j {j}, i {i}" in told
    assert place(quick) == pytest.approx(mm(wanted))


def test_labels_can_be_hidden_and_shown(page, small):
    page.goto(small.page(at_mm=at_mm((8, 12, 7)), level="0"))
    wait_for_volume(page)
    shown = drawn_hash(page)
    page.keyboard.press("l")
    hidden = drawn_hash(page)
    assert hidden != shown
    assert "labels=false" in page.url
    page.keyboard.press("l")
    assert drawn_hash(page) == shown
    page.keyboard.press("o")
    assert drawn_hash(page) not in {shown, hidden}
    page.keyboard.press("o")
    page.get_by_role("checkbox", name="Show L1").uncheck()
    assert "labels=T12" in page.url
    without = drawn_hash(page)
    assert without not in {shown, hidden}
    page.locator("#none").click()
    assert drawn_hash(page) == hidden
    page.locator("#all").click()
    assert drawn_hash(page) == shown
    page.get_by_role("button", name="Show T12 only").click()
    assert drawn_hash(page) == without


def test_the_window_is_a_preset_or_two_numbers(page, small):
    page.goto(small.page(level="0", labels="false"))
    wait_for_volume(page)
    hashes = set()
    for key, name in zip("123", WINDOWS_HU, strict=True):
        page.keyboard.press(key)
        assert f"window={name}" in page.url
        assert [page.locator(f"#window-{end}").input_value() for end in ("low", "high")] == [
            f"{value:g}" for value in WINDOWS_HU[name]
        ]
        hashes.add(drawn_hash(page))
    page.locator("#window-low").fill("-100")
    page.locator("#window-low").press("Enter")
    assert "window=-100,150" in page.url
    hashes.add(drawn_hash(page))
    assert len(hashes) == len(WINDOWS_HU) + 1


def test_a_link_restores_the_whole_view(quick, small):
    where = {
        "at_mm": at_mm((3, 4, 5)),
        "window": "-300,700",
        "vertebra": "L1",
        "labels": "T12",
        "opacity": "0.7",
        "outlines": "false",
        "interpolation": "nearest",
        "layout": "coronal",
    }
    quick.goto(small.page(**where))
    quick.wait_for_selector("#stage[data-first]")
    assert {
        name: values[0] for name, values in parse_qs(urlsplit(quick.url).query).items()
    } == where
    assert quick.locator(".tile:visible").count() == 1
    assert quick.locator(".vertebra.chosen").get_attribute("data-name") == "L1"
    assert not quick.get_by_role("checkbox", name="Show L1").is_checked()
    assert quick.get_by_role("slider", name="Coronal plane, y in mm").input_value() == "4"


def test_the_address_can_be_copied(quick, small):
    quick.context.grant_permissions(["clipboard-read", "clipboard-write"])
    quick.goto(small.page(window="lung"))
    quick.wait_for_selector("#stage[data-first]")
    quick.locator("#copy").click()
    quick.get_by_text("Copied").wait_for()
    assert quick.evaluate("() => navigator.clipboard.readText()") == quick.url


def test_the_menu_lists_other_programs(quick, small):
    quick.goto(small.page())
    button = quick.get_by_role("button", name="Open in")
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    message = quick.locator("#open-in-list").inner_text()
    options = json.loads(fetch(f"{small.url}/v1/small/scans/b/open-in")[2])["options"]
    for option in options:
        assert option["name"] in message
        assert option["hint"] in message
    links = quick.locator("#open-in-list a").evaluate_all("all => all.map(a => a.pathname)")
    assert links == [
        urlsplit(option["text"]).path for option in options if option["kind"] == "link"
    ]
    quick.keyboard.press("Escape")
    assert quick.locator("#open-in-list").is_hidden()


def test_sharp_pictures_replace_a_coarse_level_once_the_planes_rest(page, large):
    page.goto(f"{large}/scan/large/a?labels=false")
    wait_for_volume(page)
    assert page.locator("#stage").get_attribute("data-level") != "0"
    sharp = page.locator("img.slice:visible")
    expect(sharp).to_have_count(len(PLANES))
    sagittal = page.locator(".tile[data-plane=sagittal] img.slice")
    before = sagittal.get_attribute("src")
    page.get_by_role("slider", name="Sagittal plane, x in mm").focus()
    page.keyboard.press("ArrowRight")
    expect(sagittal).not_to_have_attribute("src", before)
    expect(sharp).to_have_count(len(PLANES))
    page.keyboard.press("f")
    expect(page.locator("#level")).to_contain_text("All voxels")
    expect(sharp).to_have_count(0)
    expect(page).to_have_url(re.compile("level=0"))


def test_keys_open_the_previous_and_the_next_scan(quick, small):
    quick.goto(small.page(window="lung"))
    quick.wait_for_selector("#stage[data-first]")
    quick.keyboard.press("n")
    quick.wait_for_url("**/scan/small/c?**")
    quick.wait_for_selector("#stage[data-first]")
    assert "window=lung" in quick.url
    assert quick.locator("#next").get_attribute("aria-disabled") == "true"
    quick.keyboard.press("p")
    quick.wait_for_url("**/scan/small/b?**")
    quick.locator("#previous").click()
    quick.wait_for_url("**/scan/small/a?**")


def test_the_next_scan_follows_the_order_of_the_list(quick, small):
    quick.goto(small.page(list="sort%3D-scan"))
    quick.get_by_text("2 of 3").wait_for()
    quick.keyboard.press("n")
    quick.wait_for_url("**/scan/small/a?**")
    quick.get_by_text("3 of 3").wait_for()
    assert quick.locator("#store").get_attribute("href") == "/?store=small&sort=-scan"
    quick.goto(small.page(list="q%3Dx"))
    quick.wait_for_selector("#next:visible")
    assert quick.locator("#next").get_attribute("href").startswith("/scan/small/c?")


def test_keys_move_the_last_used_plane(quick, small):
    voxel = [11, 13, 7]
    quick.goto(small.page(at_mm=at_mm(voxel)))
    quick.wait_for_selector("#stage[data-first]")
    quick.keyboard.press("ArrowUp")
    voxel[0] += 1
    assert place(quick) == pytest.approx(mm(voxel))
    quick.get_by_role("slider", name="Axial plane, z in mm").focus()
    quick.keyboard.press("ArrowDown")
    quick.keyboard.press("PageUp")
    voxel[2] += 9
    assert place(quick) == pytest.approx(mm(voxel))
    quick.mouse.wheel(0, 120)
    quick.keyboard.press("?")
    assert quick.get_by_role("dialog", name="Keys and mouse").is_visible()
    quick.keyboard.press("Escape")
    assert not quick.get_by_role("dialog").is_visible()


def test_the_list_of_vertebrae_can_be_searched_by_keyboard(quick, small):
    quick.goto(small.page())
    quick.wait_for_selector("#stage[data-first]")
    search = quick.get_by_role("searchbox", name="Search the vertebrae")
    search.fill("l")
    assert quick.locator(".vertebra:visible").evaluate_all(
        "rows => rows.map(r => r.dataset.name)"
    ) == ["L1"]
    search.press("Enter")
    assert "vertebra=L1" in quick.url
    search.fill("s9")
    assert quick.get_by_text("No vertebra matches.").is_visible()


def test_the_spine_is_drawn_in_3d_and_turns(page, small):
    page.goto(small.page(layout="render"))
    page.wait_for_selector("#stage[data-render]")
    before = picture(page, "render")
    for name in LABELED:
        red, green, blue = bytes.fromhex(hex_color(VALUE_OF_NAME[name])[1:])
        # Light makes the spine darker in parts, so the brightest part shows its color.
        strongest = int(np.argmax((red, green, blue)))
        lit = before[before.max(axis=2) > 60]
        assert (np.argmax(lit, axis=1) == strongest).any(), name
    page.get_by_role("button", name="Rotate").click()
    wait_until(lambda: not np.array_equal(picture(page, "render"), before))


def test_the_page_names_an_unknown_scan(page, small):
    page.goto(small.page("none"))
    assert "no scan none in small" in page.get_by_role("alert").inner_text()
    assert page.locator("#scan").is_hidden()
    assert all("404" in message for message in page.logged_errors)
    page.logged_errors.clear()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (503, "damaged, or cannot be reached"),
        (410, "The scan was replaced since this page was opened."),
        (None, "connection"),
    ],
)
def test_a_scan_that_cannot_be_read_draws_nothing(page, small, status, message):
    def refuse(route):
        if status is None:
            route.abort()
        else:
            route.fulfill(status=status, body="The scan was replaced.")

    page.route("**/slice.png*", refuse)
    page.route("**/levels/**", refuse)
    page.goto(small.page())
    page.get_by_role("alert").get_by_text(message).wait_for()
    assert page.locator("img.slice:visible").count() == 0
    assert page.locator(".failed:visible").count() == len(PLANES)
    assert picture(page, "render").max() < 200
    page.logged_errors.clear()


def test_a_level_that_cannot_be_read_keeps_the_shown_one(page, small):
    page.route("**/levels/**", lambda route: route.fulfill(status=503, body="no"))
    page.goto(small.page())
    page.get_by_role("alert").get_by_text("damaged").wait_for()
    expect(page.locator("img.slice:visible")).to_have_count(len(PLANES))
    expect(page.locator("#status")).to_contain_text("not read")
    page.logged_errors.clear()


def test_losing_the_webgl_context_shows_pictures_of_the_server(page, small):
    page.goto(small.page(level="0"))
    wait_for_volume(page)
    assert page.locator("img.slice:visible").count() == 0
    page.evaluate(
        """() => document.querySelector("#planes").getContext("webgl2")
        .getExtension("WEBGL_lose_context").loseContext()"""
    )
    page.get_by_role("alert").get_by_text("graphics memory").wait_for()
    page.locator("img.slice:visible").nth(2).wait_for()
    page.logged_errors.clear()


def test_a_token_opens_the_scan_page(page, folder, tmp_path):
    store = str(folder[0] / "small.zarr")
    token = new_token(tmp_path / "tokens", "reader")
    settings = ServeSettings(paths=(store,), token_file=str(tmp_path / "tokens"))
    with BackgroundServer(settings) as server:
        page.goto(f"{server.url}/scan/small/b")
        assert page.locator("img.slice").count() == 0
        page.locator("input[name=token]").fill(token)
        page.keyboard.press("Enter")
        page.wait_for_url("**/scan/small/b**")
        page.wait_for_selector("#stage[data-level]")
        page.goto("about:blank")  # or the page asks a server that has ended
    page.logged_errors.clear()


@pytest.fixture(scope="module")
def lidc(tmp_path_factory):
    """Serve a chest CT from LIDC-IDRI; return the URL of the server and the store."""
    pair = [REAL / f"lidc-idri-0001_{kind}.nii.gz" for kind in ("ct", "seg")]
    if not all(path.exists() for path in pair):
        pytest.skip("needs the LIDC-IDRI pair next to the checkout")
    raw, url = tmp_path_factory.mktemp("raw"), str(tmp_path_factory.mktemp("lidc") / "lidc.zarr")
    for path in pair:
        (raw / path.name).symlink_to(path)
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="lidc")
    ingest(recipe, discover(recipe, str(raw)), url)
    with BackgroundServer(ServeSettings(paths=(url,))) as server:
        yield server.url, spinezarr.open(url)


@pytest.mark.parametrize("plane", PLANES)
def test_a_real_scan_is_drawn_as_it_is_stored(page, lidc, plane):
    url, store = lidc
    scan = store.scan("lidc-idri-0001")
    words = f"labels=false&interpolation=nearest&level=0&layout={plane}&window=soft_tissue"
    page.set_default_timeout(300_000)
    page.goto(f"{url}/scan/lidc/lidc-idri-0001?{words}")
    wait_for_volume(page)
    pixels = picture(page, plane)[..., 0]
    flat, axes = PLANES[plane]
    image = scan.image.values.transpose(2, 1, 0)
    spacing = np.linalg.norm(np.array(scan.attrs["affine"])[:3, :3], axis=0)
    index = int(page.locator(f".tile[data-plane={plane}] input[type=range]").input_value())
    shades = gray_of(np.take(image, index, axis=flat), WINDOWS_HU["soft_tissue"])
    size_mm = [image.shape[axis] * spacing[axis] for axis in axes]
    scale = min(n / mm for n, mm in zip(pixels.shape[::-1], size_mm, strict=True))
    at = []
    for n, mm, axis in zip(pixels.shape[::-1], size_mm, axes, strict=True):
        at.append((mm / 2 - (np.arange(n) + 0.5 - n / 2) / scale) / spacing[axis])
    u, v = np.meshgrid(*at)
    # At the border of two voxels either may be drawn.
    is_sure = (np.abs(u - np.rint(u)) > EDGE) & (np.abs(v - np.rint(v)) > EDGE)
    is_sure &= (u > 0) & (u < shades.shape[0]) & (v > 0) & (v < shades.shape[1])
    assert is_sure.sum() > 100_000
    expected = shades[u[is_sure].astype(int), v[is_sure].astype(int)]
    assert np.abs(pixels[is_sure] - expected).max() <= SHADE_ERROR


def test_twenty_reloads_draw_the_same(page, small):
    page.goto(small.page(at_mm=at_mm((8, 12, 7)), level="0"))
    hashes = set()
    for _ in range(20):
        wait_for_volume(page)
        hashes.add(tuple(drawn_hash(page, plane) for plane in PLANES))
        page.reload()
    assert len(hashes) == 1
