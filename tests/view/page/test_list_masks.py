"""The list names the further masks of scans, and can be filtered by them, in a browser."""

import shutil

import numpy as np
import pytest
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
