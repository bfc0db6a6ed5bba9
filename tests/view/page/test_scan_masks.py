"""The page of a scan shows any of its masks, and two at once, in a browser."""

import json
import shutil
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

import nibabel as nib
import numpy as np
import pytest
from http_client import fetch
from playwright.sync_api import expect
from scan_page import PLANES, SHADE_ERROR, picture, voxel_pixels, wait_for_volume, without_niivue
from timeouts import wait_until

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.vertebrae import VALUE_OF_NAME, hex_of, label_color, structure_color

pytestmark = pytest.mark.long
SHAPE_XYZ = (24, 30, 20)
SPACING = (2.0, 1.5, 3.0)
AFFINE = np.array([[2.0, 0, 0, -23], [0, 1.5, 0, 10.25], [0, 0, 3.0, -600], [0, 0, 0, 1]])
VOXEL = (8, 12, 7)
PARTS = {40: "arch", 77: "body, front", 78: ""}
COLORS = {
    "label": {value: label_color(value) for value in (19, 20)},
    "prediction": {value: label_color(value) for value in (20, 21)},
    "parts": {value: structure_color(value) for value in PARTS},
}


@dataclass(frozen=True)
class Masked:
    """A server of a store of the scans a, b and c, and the masks ``(x, y, z)`` of "b"."""

    url: str
    store: spinezarr.Store
    masks: dict[str, np.ndarray]

    def page(self, scan_id="b", **query):
        words = "&".join(f"{name}={value}" for name, value in query.items())
        return f"{self.url}/scan/masked/{scan_id}?{words}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a store in which "b" has two further masks; "a" has none, and "c" one and no label."""
    folder, rng = tmp_path_factory.mktemp("scan-masks"), np.random.default_rng(5)
    raw = folder / "raw"
    raw.mkdir()
    label, prediction, parts = (np.zeros(SHAPE_XYZ, np.uint8) for _ in range(3))
    label[4:12, 8:18, 11:16], label[4:12, 8:18, 4:10] = VALUE_OF_NAME["T12"], VALUE_OF_NAME["L1"]
    # The prediction lies one voxel beside, with names that are wrong by one level.
    prediction[5:13, 8:18, 11:16], prediction[5:13, 8:18, 4:10] = 20, 21
    for value, y in zip(PARTS, (8, 11, 14), strict=True):
        parts[2:12, y : y + 3, 2:16] = value
    image = rng.integers(-900, 1500, SHAPE_XYZ).astype(np.int16)
    for names, pattern in (("c", None), ("abc", "{scan}_seg.nii.gz")):
        for name in names:
            nib.save(nib.Nifti1Image(image, AFFINE), raw / f"{name}_ct.nii.gz")
            if pattern and name != "c":
                nib.save(nib.Nifti1Image(label, AFFINE), raw / f"{name}_seg.nii.gz")
        recipe = Recipe.from_pairs("{scan}_ct.nii.gz", pattern, name="masked")
        report = ingest(recipe, discover(recipe, str(raw)), str(folder / "masked.zarr"))
        assert len(report.done) == len(set(names) - {"c"} or {"c"})
    store = spinezarr.open(folder / "masked.zarr")
    store.write_labels("b", "prediction", prediction.T, model="net 2", license="MIT")
    scheme = {value: name for value, name in PARTS.items() if name}
    store.write_labels("b", "parts", parts.T, scheme=scheme)
    store.write_labels("c", "parts", parts.T, scheme=scheme)
    masks = {"label": label, "prediction": prediction, "parts": parts}
    return spinezarr.open(folder / "masked.zarr"), masks


@pytest.fixture(scope="module")
def masked(folder):
    store, masks = folder
    with BackgroundServer(ServeSettings(paths=(store.url,))) as server:
        yield Masked(server.url, store, masks)


@pytest.fixture
def quick(page):
    """Return a tab whose planes the server draws, for tests that do not depend on NiiVue."""
    without_niivue(page)
    return page


def at_mm(voxel):
    return ",".join(f"{value:g}" for value in AFFINE[:3] @ (*voxel, 1))


def query_of(page):
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def slice_of(mask, plane):
    flat, _ = PLANES[plane]
    return np.take(mask, VOXEL[flat], axis=flat)


def inner_and_edge(mask, plane):
    """Return which voxels of a plane lie inside a label in 3D, and which at its border."""
    padded = np.pad(mask, 1, "edge")
    same = np.ones(mask.shape, bool)
    for axis in range(3):
        for shift in (-1, 1):
            same &= np.roll(padded, shift, axis)[1:-1, 1:-1, 1:-1] == mask
    return slice_of(same & (mask > 0), plane), slice_of(~same & (mask > 0), plane)


def rgb(name, values):
    return 255 * np.array([COLORS[name][int(value)] for value in values.flat])


def shown_planes(page):
    return {
        plane: voxel_pixels(picture(page, plane), plane, SHAPE_XYZ, SPACING) for plane in PLANES
    }


def colors_are(page, name, masked):
    for plane, found in shown_planes(page).items():
        inner, _ = inner_and_edge(masked.masks[name], plane)
        expected = rgb(name, slice_of(masked.masks[name], plane)[inner])
        assert len(expected)
        if np.abs(found[inner] - expected).max() > SHADE_ERROR:
            return False
    return True


def test_each_mask_has_the_colors_of_its_names(page, masked):
    style = {"at_mm": at_mm(VOXEL), "interpolation": "nearest", "outlines": "false"}
    page.goto(masked.page(**style, opacity=1, mask="parts"))
    wait_for_volume(page)
    assert colors_are(page, "parts", masked)
    page.wait_for_selector("#stage[data-render=parts]")
    for name in ("prediction", "label", "parts"):
        page.locator("#mask").select_option(name)
        page.wait_for_selector(f"#stage[data-render={name}]")
        assert colors_are(page, name, masked)
        assert query_of(page).get("mask") == (None if name == "label" else name)
    shown = dict(
        page.locator(".vertebra").evaluate_all(
            "rows => rows.map(row => [row.dataset.name,"
            " row.querySelector('.swatch').style.backgroundColor])"
        )
    )
    names = ["arch", "body, front", "value 78"]
    assert list(shown) == names
    for name, value in zip(names, PARTS, strict=True):
        red, green, blue = bytes.fromhex(hex_of(structure_color(value))[1:])
        assert shown[name] == f"rgb({red}, {green}, {blue})"


@pytest.mark.parametrize(("mask", "outline"), [("label", "prediction"), ("parts", "label")])
def test_niivue_fills_one_mask_and_outlines_another(page, masked, mask, outline):
    page.goto(
        masked.page(
            at_mm=at_mm(VOXEL), interpolation="nearest", opacity=1, mask=mask, outline=outline
        )
    )
    wait_for_volume(page)
    page.wait_for_function("() => document.querySelector('#stage').dataset.level === '0'")
    for plane, found in shown_planes(page).items():
        filled, outlined = (slice_of(masked.masks[name], plane) for name in (mask, outline))
        _, edge = inner_and_edge(masked.masks[outline], plane)
        assert edge.any()
        difference = np.abs(found[edge] - rgb(outline, outlined[edge])).max()
        assert difference <= SHADE_ERROR, plane
        inner, _ = inner_and_edge(masked.masks[mask], plane)
        inner &= ~edge
        assert inner.any()
        difference = np.abs(found[inner] - rgb(mask, filled[inner])).max()
        assert difference <= SHADE_ERROR, plane
    before = {plane: pixels.copy() for plane, pixels in shown_planes(page).items()}
    page.keyboard.press("o")
    for plane, found in shown_planes(page).items():
        _, edge = inner_and_edge(masked.masks[outline], plane)
        assert (found[edge] != before[plane][edge]).any(), plane
        inner, _ = inner_and_edge(masked.masks[mask], plane)
        filled = slice_of(masked.masks[mask], plane)
        assert np.abs(found[inner] - rgb(mask, filled[inner])).max() <= SHADE_ERROR, plane


def test_a_link_keeps_both_masks_and_the_hidden_labels(quick, masked):
    where = {
        "at_mm": at_mm(VOXEL),
        "window": "bone",
        "mask": "prediction",
        "outline": "parts",
        "labels": "L2,body  front",
    }
    quick.goto(masked.page(**where))
    quick.wait_for_selector("#stage[data-first]")
    assert query_of(quick) == where
    assert quick.locator("#mask").input_value() == "prediction"
    assert quick.locator("#outline").input_value() == "parts"
    assert quick.locator("#about-mask").inner_text() == "net 2, MIT"
    names = quick.locator(".vertebra").evaluate_all("rows => rows.map(r => r.dataset.name)")
    assert names == ["L1", "L2", "arch", "body, front", "value 78"]
    shown = quick.locator(".vertebra:not(.off)").evaluate_all(
        "rows => rows.map(r => r.dataset.name)"
    )
    assert shown == ["L2", "body, front"]
    quick.locator("#all").click()
    assert "labels" not in query_of(quick)
    assert "mask=prediction&outline=parts" in quick.locator("#next").get_attribute("href")


def test_the_vertebrae_of_both_masks_are_listed_from_head_to_tail(quick, masked):
    for mask, outline in (("prediction", "label"), ("label", "prediction")):
        quick.goto(masked.page(mask=mask, outline=outline))
        quick.wait_for_selector("#stage[data-first]")
        names = quick.locator(".vertebra").evaluate_all("rows => rows.map(r => r.dataset.name)")
        assert names == ["T12", "L1", "L2"]


def test_the_server_draws_the_chosen_masks(quick, masked):
    facts = json.loads(fetch(f"{masked.url}/v1/masked/scans/b/view")[2])
    checksums = {mask["name"]: mask["checksum"] for mask in facts["masks"]}
    assert list(checksums) == ["label", "parts", "prediction"]
    quick.goto(masked.page(at_mm=at_mm(VOXEL)))
    quick.wait_for_selector("#stage[data-first]")
    drawn = [picture(quick, "sagittal")]
    with quick.expect_response(lambda answer: "plane=sagittal" in answer.url) as answered:
        quick.keyboard.press("m")
    assert f"&mask=parts&mask_checksum={checksums['parts']}" in answered.value.url
    wait_until(lambda: not np.array_equal(picture(quick, "sagittal"), drawn[0]))
    drawn.append(picture(quick, "sagittal"))
    with quick.expect_response(lambda answer: "plane=sagittal" in answer.url) as answered:
        quick.locator("#outline").select_option("label")
    assert f"&outline=label&outline_checksum={checksums['label']}" in answered.value.url
    wait_until(lambda: not np.array_equal(picture(quick, "sagittal"), drawn[1]))


def test_two_masks_change_places_if_the_outlined_one_is_filled(quick, masked):
    quick.goto(masked.page(outline="prediction"))
    quick.wait_for_selector("#stage[data-first]")
    assert quick.locator("#outline option[value=label]").is_disabled()
    quick.locator("#mask").select_option("prediction")
    found = query_of(quick)
    assert (found["mask"], found["outline"]) == ("prediction", "label")
    quick.locator("#outline").select_option("")
    assert "outline" not in query_of(quick)


def test_the_status_names_the_values_of_both_masks(quick, masked):
    quick.goto(masked.page(at_mm=at_mm(VOXEL), outline="prediction"))
    selector = f"#status[data-voxel='{','.join(map(str, VOXEL))}']"
    quick.wait_for_selector(selector)
    expect(quick.locator(selector)).to_contain_text("label L1")
    expect(quick.locator(selector)).to_contain_text("prediction L2")


def test_scans_with_one_mask_or_without_label_have_no_choice(quick, masked):
    quick.goto(masked.page("a", mask="parts", outline="prediction"))
    quick.wait_for_selector("#stage[data-first]")
    assert quick.locator("#mask").count() == 0
    assert not {"mask", "outline"} & query_of(quick).keys()
    quick.goto(masked.page("c"))
    quick.wait_for_selector("#stage[data-first]")
    assert quick.locator("#mask").count() == 0
    assert quick.locator(".vertebra").count() == len(PARTS)


@pytest.mark.parametrize("has_niivue", [True, False])
@pytest.mark.parametrize("change", ["replaced by another version", "removed"])
def test_a_mask_that_changed_is_named_and_no_longer_drawn(
    page, folder, tmp_path, change, has_niivue
):
    store, masks = folder
    copy = spinezarr.open(shutil.copytree(store.url, tmp_path / "masked.zarr"))
    if not has_niivue:
        without_niivue(page)
    with BackgroundServer(ServeSettings(paths=(copy.url,))) as server:
        page.goto(f"{server.url}/scan/masked/b?outline=prediction")
        page.wait_for_selector("#status[data-voxel]")
        if has_niivue:
            page.wait_for_selector("#stage[data-render]")
        if change == "removed":
            copy.remove_labels("parts")
        else:
            copy.write_labels("b", "parts", masks["parts"].T[::-1], scheme={40: "arch"})
        page.locator("#mask").select_option("parts")
        text = f"The mask parts was {change}"
        expect(page.locator("#notice")).to_contain_text(f"{text} since this page was opened.")
        if not has_niivue:  # the volume is still there, without the mask
            expect(page.locator(".tile .failed").first).to_have_text(f"{text}.")
        broken = "all => all.filter(one => one.checkVisibility() && !one.naturalWidth).length"
        assert page.locator("img").evaluate_all(broken) == 0
        page.get_by_role("button", name="Reload").click()
        page.wait_for_selector("#status[data-voxel]")
        assert page.locator("#notice").is_hidden()
        if change == "removed":
            expect(page.locator(".missing-mask")).to_have_text("This scan has no mask parts.")
            assert page.locator("#mask").input_value() == "label"
        else:
            assert page.locator("#mask").input_value() == "parts"
        page.goto("about:blank")  # pictures of other planes may still be on their way
    page.logged_errors[:] = [text for text in page.logged_errors if "410" not in text]


def test_a_link_to_a_mask_that_the_scan_lacks_says_so(quick, masked):
    quick.goto(masked.page("a", mask="parts", outline="prediction"))
    quick.wait_for_selector("#stage[data-first]")
    assert quick.locator(".missing-mask").all_inner_texts() == [
        "This scan has no mask parts.",
        "This scan has no mask prediction.",
    ]
    quick.goto(masked.page("b", mask="parts", outline="label"))
    quick.wait_for_selector("#stage[data-first]")
    assert not quick.locator(".missing-mask").count()
