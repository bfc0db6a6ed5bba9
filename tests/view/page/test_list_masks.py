"""The list names the further masks of scans, and can be filtered by them, in a browser."""

import io
import shutil
from urllib.parse import urlsplit

import numpy as np
import pytest
from http_client import fetch
from list_page import CONTRASTS, CUT
from PIL import Image
from playwright.sync_api import expect

import spinezarr
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings

pytestmark = pytest.mark.long
MASKS = {"liver_0": ["parts", "prediction"], "HN_P001": ["prediction"]}


@pytest.fixture(scope="module")
def masked(ctspine1k_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("list-masks")
    store = spinezarr.open(shutil.copytree(ctspine1k_url, folder / "ctspine1k.zarr"))
    for scan_id, names in MASKS.items():
        for name in names:
            store.write_labels(scan_id, name, np.ones(store.scan(scan_id).image.shape, np.uint8))
    with BackgroundServer(ServeSettings(paths=(store.url,))) as server:
        yield server.url, spinezarr.open(store.url).table


def open_list(page, url):
    page.goto(url)
    page.wait_for_selector("#main[aria-busy=false]")


def shown(page):
    page.wait_for_selector("#main[aria-busy=false]")
    return page.locator(".scans-table tbody tr a").evaluate_all("all => all.map(a => a.title)")


def test_the_list_says_which_masks_a_scan_has(page, masked):
    url, table = masked
    page.goto(url)
    assert shown(page) == [
        f"{scan}, masks {', '.join(['label', *MASKS[scan]])}" if scan in MASKS else scan
        for scan in table.scan.values.tolist()
    ]
    texts = page.locator(".scans-table th.scan .masks").all_inner_texts()
    assert texts == [", ".join(["label", *MASKS[s]]) for s in table.scan.values if s in MASKS]
    options = page.locator("select[name=mask] option").all_inner_texts()
    n = table.sizes["scan"]
    assert options == ["Mask", f"label ({n})", "parts (1)", "prediction (2)"]


def test_the_list_is_filtered_by_masks(page, masked):
    url, table = masked
    page.goto(f"{url}/?mask=parts")
    assert len(shown(page)) == 1
    page.locator("select[name=mask]").select_option("prediction")
    expect(page.locator(".shown")).to_have_text(f"2 of {table.sizes['scan']} scans")
    page.wait_for_url("**/?mask=prediction")
    page.locator("#clear").click()
    page.locator("#search").fill("parts")
    expect(page.locator(".shown")).to_have_text(f"1 of {table.sizes['scan']} scans")


def test_stores_without_further_masks_have_no_such_filter(page, served):
    page.goto(served)
    page.wait_for_selector("#main[aria-busy=false]")
    assert page.locator("select[name=mask]").is_hidden()
    assert page.locator(".masks").count() == 0


def colors_of(page):
    """Wait for all pictures; return the name of each scan and whether its picture has colors."""
    expect(page.locator(".tile.drawn")).to_have_count(page.locator(".tile").count())
    rows = page.locator(".scans-table tbody tr").evaluate_all(
        "all => all.map(row => [row.querySelector('a').href, row.querySelector('img').src])"
    )
    found = {}
    for link, source in rows:
        pixels = np.asarray(Image.open(io.BytesIO(fetch(source)[2])))
        found[urlsplit(link).path.rpartition("/")[2]] = pixels.ndim == 3
    return found


def test_the_pictures_show_the_chosen_mask_and_say_which_scans_lack_it(page, masked):
    url, table = masked
    names = table.scan.values.tolist()
    open_list(page, url)
    choice = page.get_by_role("combobox", name="Mask in the pictures")
    options = choice.locator("option").all_inner_texts()
    assert options == ["Pictures: label", "Pictures: parts", "Pictures: prediction"]
    assert all(colors_of(page).values())
    assert not page.locator(".tile .note").count()
    choice.focus()
    page.keyboard.press("End")
    page.wait_for_url("**/?picture=prediction")
    assert colors_of(page) == {name: name in MASKS for name in names}
    cells = page.get_by_role("cell", name="no mask prediction", exact=True)
    expect(cells).to_have_count(len(names) - len(MASKS))
    page.keyboard.press("Home")
    page.wait_for_url(lambda text: not urlsplit(text).query)
    assert all(colors_of(page).values())


def test_a_link_keeps_the_mask_of_the_pictures(page, masked):
    url, table = masked
    open_list(page, f"{url}/?mask=prediction&picture=parts")
    assert colors_of(page) == {"liver_0": True, "HN_P001": False}
    page.get_by_role("button", name="Clear").click()
    page.wait_for_url("**/?picture=parts")
    expect(page.locator(".tile.drawn")).to_have_count(table.sizes["scan"])
    page.get_by_role("link", name="liver_0").click()
    page.wait_for_selector("#stage[data-first]")
    assert page.locator("#mask").input_value() == "parts"
    page.go_back()
    page.wait_for_selector("#main[aria-busy=false]")
    assert page.locator("select[name=picture]").input_value() == "parts"


def test_a_mask_that_no_scan_has_is_drawn_nowhere(page, served):
    open_list(page, f"{served}/?picture=teeth")
    assert not any(colors_of(page).values())
    assert page.locator(".tile .note").count() == page.locator(".tile").count()
    page.locator("select[name=picture]").select_option("")
    assert all(colors_of(page).values())
    open_list(page, served)
    assert page.locator("select[name=picture]").is_hidden()
    assert not page.locator(".tile .note").count()


def test_the_list_says_that_a_mask_was_removed_and_draws_one_that_was_replaced(
    page, ctspine1k_url, tmp_path
):
    store = spinezarr.open(shutil.copytree(ctspine1k_url, tmp_path / "ctspine1k.zarr"))
    full = np.ones(store.scan("liver_0").image.shape, np.uint8)
    for name in ("parts", "prediction"):
        store.write_labels("liver_0", name, full)
    with BackgroundServer(ServeSettings(paths=(store.url,))) as server:
        open_list(page, server.url)
        colors_of(page)
        store.write_labels("liver_0", "parts", 0 * full)
        store.remove_labels("prediction")
        page.locator("select[name=picture]").select_option("parts")
        assert not any(colors_of(page).values())
        assert page.locator(".notice").is_hidden()
        page.locator("select[name=picture]").select_option("prediction")
        expect(page.get_by_role("alert")).to_contain_text(
            "The store has changed since this list was opened. liver_0: The scan has no mask "
            "prediction; it has label, parts."
        )
        failed = page.locator(".tile.failed")
        expect(failed).to_have_count(1)
        assert failed.inner_text().startswith("no picture")
        assert failed.locator("img").evaluate("image => getComputedStyle(image).opacity") == "0"
        page.get_by_role("button", name="Reload").click()
        expect(page.locator(".tile.drawn")).to_have_count(page.locator(".tile").count())
        assert page.locator(".notice").is_hidden()
        page.goto("about:blank")
    page.logged_errors = [text for text in page.logged_errors if "422" not in text]


@pytest.mark.parametrize("path", ["/?picture=prediction", "/?picture=teeth&sort=-scan"])
def test_notes_on_pictures_have_enough_contrast_and_nothing_overflows(page, masked, path):
    url, _ = masked
    open_list(page, url + path)
    page.wait_for_selector(".tile .note")
    for width in (1920, 1280, 800, 400):
        page.set_viewport_size({"width": width, "height": 720})
        assert not page.evaluate(CUT), width
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        contrasts = page.evaluate(CONTRASTS)
        assert not {name: c for name, c in contrasts.items() if c < 4.5}, scheme
