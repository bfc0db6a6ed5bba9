"""Tests of the page that lists stores and their scans, in a browser."""

import json
import shutil
import struct
import zlib
from math import prod
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from http_client import fetch
from hypothesis import given, settings
from hypothesis import strategies as st
from large_table import write_large_table
from list_page import CONTRASTS, CUT

from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.serve.tokens import make_key, new_token
from spinezarr.vertebrae import ANATOMICAL_ORDER, VALUE_OF_NAME, hex_color

pytestmark = pytest.mark.long
MANY = 1005
MOST_NODES = 3000
"""Largest number of DOM nodes of a page that lists any number of scans."""


def png(color):
    """Return a picture of one pixel."""
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0" + bytes(color))),
        (b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.fixture(scope="module")
def folder(ctspine1k_url, tmp_path_factory):
    """Return a folder of stores of many scans, of one and of none, and one that cannot be read."""
    folder = tmp_path_factory.mktemp("stores")
    for name, n in (("many", MANY), ("one", 1), ("none", 0)):
        shutil.copytree(ctspine1k_url, folder / f"{name}.zarr")
        write_large_table(folder / f"{name}.zarr", n)
    shutil.copytree(ctspine1k_url, folder / "torn.zarr")
    metadata = folder / "torn.zarr" / "zarr.json"
    metadata.write_bytes(metadata.read_bytes()[:-20])
    return folder


@pytest.fixture(scope="module")
def stores(folder):
    """Serve the stores; return the URL of the server."""
    with BackgroundServer(ServeSettings(paths=(str(folder),))) as server:
        yield server.url


@pytest.fixture(scope="module")
def rows(stores):
    """Return the rows of the long table, as the server lists them."""
    return json.loads(fetch(f"{stores}/v1/many/scans")[2])["scans"]


@pytest.fixture
def tab(page):
    """Return a tab with stubs for pictures and scan pages: most scans exist only in the table."""
    page.route("**/slice.png*", lambda route: route.fulfill(body=png((90, 90, 90))))
    page.route("**/scan/**", lambda route: route.fulfill(body="A scan.", content_type="text/html"))
    return page


def shown(tab):
    """Return the ids of the first rows of the list, as far as the page holds them."""
    return tab.locator(".scans-table tbody tr").evaluate_all(
        "rows => rows.map(row => row.querySelector('a').getAttribute('aria-label'))"
    )


def count(tab):
    return tab.locator(".shown").inner_text()


def open_list(tab, url):
    tab.goto(url)
    tab.wait_for_selector("#main[aria-busy=false]")


def of_all(n, total=MANY):
    return f"{total:,} scans" if n == total else f"{n:,} of {total:,} scans"


def test_a_single_store_is_selected_and_its_scans_are_listed(page, served):
    open_list(page, served)
    rows = json.loads(fetch(f"{served}/v1/ctspine1k/scans")[2])["scans"]
    assert shown(page) == [row["scan_id"] for row in rows]
    assert count(page) == f"{len(rows)} scans"
    table = page.get_by_role("table", name="Scans")
    for at, row in enumerate(rows):
        cells = table.get_by_role("row").nth(at + 1).get_by_role("cell").all_inner_texts()
        assert row["source"] in cells
        assert row["split"] in cells
        assert "\u2009\u00d7\u2009".join(map(str, row["shape_zyx"])) in cells
        strip = table.locator("tbody tr").nth(at).locator(".strip rect")
        colors = [hex_color(VALUE_OF_NAME[name]) for name in row["vertebrae"]]
        assert strip.evaluate_all("all => all.map(one => one.getAttribute('fill'))") == colors
    page.locator(".tile.drawn").nth(5).wait_for()
    widths = page.locator(".tile img").evaluate_all("all => all.map(one => one.naturalWidth)")
    assert min(widths) > 20


def test_names_and_colors_of_vertebrae_equal_those_of_the_library(page, served):
    open_list(page, served)
    names, colors, texts = page.evaluate(
        """async (cases) => {
          const { VERTEBRAE, colorOf, rangesText } = await import("/page/vertebrae.js");
          return [VERTEBRAE, VERTEBRAE.map(colorOf), cases.map(rangesText)];
        }""",
        [
            [],
            ["L1"],
            ["T12", "L1"],
            ["T11", "T12", "T13", "L1"],
            ["C2", "C3", "T1"],
            ["L5", "sacrum"],
            ["L4", "L5", "L6", "sacrum"],
            ["T13"],
        ],
    )
    assert tuple(names) == ANATOMICAL_ORDER
    assert colors == [hex_color(VALUE_OF_NAME[name]) for name in ANATOMICAL_ORDER]
    assert texts == [
        "",
        "L1",
        "T12\u2013L1",
        "T11\u2013L1 + T13",
        "C2\u2013C3, T1",
        "L5\u2013sacrum",
        "L4\u2013sacrum + L6",
        "T13",
    ]


def test_one_of_several_stores_can_be_selected(tab, stores):
    open_list(tab, stores)
    cards = tab.locator(".card")
    assert cards.count() == 4
    assert tab.locator(".card", has_text="1,005 scans").locator("a.homepage").get_attribute("rel")
    torn = tab.locator(".card", has_text="torn")
    assert "This store is not shown: it cannot be read." in torn.inner_text()
    assert torn.get_by_role("link").count() == 0
    tab.locator(".card", has_text="1,005 scans").get_by_role("link", name="CTSpine1K").click()
    tab.wait_for_url("**/?store=many")
    tab.wait_for_selector("#main[aria-busy=false]")
    assert count(tab) == "1,005 scans"
    tab.get_by_role("link", name="All 4 stores").click()
    tab.wait_for_selector(".card")


def test_a_citation_is_copied(tab, stores):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=stores)
    open_list(tab, f"{stores}/?store=many")
    tab.get_by_text("Citation", exact=True).click()
    tab.get_by_role("button", name="Copy citation").click()
    tab.get_by_role("button", name="Copied").wait_for()
    stored = {one["name"]: one for one in json.loads(fetch(f"{stores}/v1/stores")[2])["stores"]}
    assert tab.evaluate("navigator.clipboard.readText()") == stored["many"]["citation"]
    tab.keyboard.press("Escape")
    assert not tab.locator("details.cite[open]").count()


FILTERS = {
    "split": ("test", lambda row: row["split"] == "test"),
    "source": ("MSD-T10", lambda row: row["source"] == "MSD-T10"),
    "vertebra": ("L6", lambda row: "L6" in row["vertebrae"]),
    "anomaly": ("true", lambda row: row["anomaly"] != ""),
    "erratum": ("false", lambda row: row["erratum"] == ""),
    "audit": ("error", lambda row: row["audit"] == "error"),
}


def test_filters_choose_scans_and_appear_in_the_url(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many")
    for name, (value, fits) in FILTERS.items():
        expected = [row["scan_id"] for row in rows if fits(row)]
        assert 0 < len(expected) < MANY
        tab.locator(f"select[name={name}]").select_option(value)
        assert count(tab) == of_all(len(expected)), name
        found = shown(tab)
        assert found == expected[: len(found)]
        tab.wait_for_url(lambda url, wanted=f"store=many&{name}={value}": url.endswith(wanted))
        tab.get_by_role("button", name="Clear").click()
        assert count(tab) == "1,005 scans"


def test_the_search_follows_the_typed_words(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many")
    tab.locator("#search").press_sequentially("LIVER 9 tra")
    expected = [
        row["scan_id"]
        for row in rows
        if all(
            any(word in str(row[key]).lower() for key in ("scan_id", "source", "split"))
            for word in ("liver", "9", "tra")
        )
    ]
    assert expected
    assert count(tab) == of_all(len(expected))
    assert shown(tab) == expected[: len(shown(tab))]


ORDER = {name: at for at, name in enumerate(ANATOMICAL_ORDER)}
SORTS = {
    "Scan": None,
    "Source": lambda row: row["source"],
    "Split": lambda row: row["split"],
    "Vertebrae": lambda row: (len(row["vertebrae"]), -ORDER[row["vertebrae"][0]]),
    "Shape zyx": lambda row: prod(row["shape_zyx"]),
    "Spacing mm, zyx": lambda row: row["spacing_zyx_mm"],
    "Size": lambda row: row["stored_bytes"],
    "Anomaly": lambda row: (row["anomaly"] == "", row["anomaly"]),
    "Erratum": lambda row: (row["erratum"] == "", row["erratum"]),
    "Audit": lambda row: ["", "ok", "info", "warning", "error"].index(row["audit"]),
}


def test_each_column_sorts_in_both_directions(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many")
    for name, key in SORTS.items():
        head = tab.get_by_role("columnheader", name=name)
        ids = [row["scan_id"] for row in (sorted(rows, key=key) if key else rows)]
        head.get_by_role("button").click()
        found = shown(tab)
        assert found == ids[: len(found)], name
        assert head.get_attribute("aria-sort") == "ascending"
    head.get_by_role("button").click()  # the second click reverses the order
    assert shown(tab)[0] == max(rows, key=key)["scan_id"]
    assert head.get_attribute("aria-sort") == "descending"
    assert tab.locator("th[aria-sort]").count() == 1
    head.get_by_role("button").click()
    assert shown(tab)[0] == rows[0]["scan_id"]
    assert not tab.locator("th[aria-sort]").count()


VALUES = {
    "split": ["train", "test", "none such"],
    "source": ["COLONOG", "HNSCC-3DCT-RT"],
    "vertebra": ["C1", "T12", "L5", "L6", "X9"],
    "anomaly": ["true", "false", "lumbarisation"],
    "erratum": ["true", "false"],
    "audit": ["ok", "error", "false"],
}
COLUMNS = {name.split()[0].lower(): key for name, key in SORTS.items()}
STATES = st.fixed_dictionaries(
    {},
    optional={
        "q": st.lists(
            st.sampled_from(["1", "liver", "50.4", "A", "warn", "&=", "é"]), max_size=3
        ).map(" ".join),
        **{name: st.sampled_from(values) for name, values in VALUES.items()},
        "sort": st.builds(str.__add__, st.sampled_from(["", "-"]), st.sampled_from([*COLUMNS])),
    },
)
SEARCHED = ("scan_id", "source", "split", "anomaly", "erratum", "label_state", "audit")


def fits(row, name, wanted):
    """Return whether a row meets a filter."""
    if name == "vertebra":
        return wanted in row["vertebrae"]
    if wanted in {"true", "false"}:
        return (row[name] != "") == (wanted == "true")
    return row[name] == wanted


def chosen(rows, state):
    """Choose and order rows as the list does, in Python."""
    words = state.get("q", "").lower().split()
    found = [
        row
        for row in rows
        if all(any(word in row[name].lower() for name in SEARCHED) for word in words)
        and all(fits(row, name, state[name]) for name in VALUES if name in state)
    ]
    column = state.get("sort", "").removeprefix("-")
    is_descending = state.get("sort", "").startswith("-")
    key = COLUMNS.get(column)
    if key is None:
        return found[::-1] if is_descending else found
    if column in {"anomaly", "erratum"}:
        some = [row for row in found if row[column]]
        some.sort(key=lambda row: row[column], reverse=is_descending)
        return some + [row for row in found if not row[column]]
    return sorted(found, key=key, reverse=is_descending)


def test_any_link_shows_the_rows_of_its_filters_in_its_order(tab, stores, rows):
    open_list(tab, f"{stores}/?store=one")
    select = """async (search) => {
      const { ScanIndex, formatState, parseState } = await import("/page/list_state.js");
      window.index ??= new ScanIndex((await (await fetch("/v1/many/scans")).json()).scans);
      const state = parseState(search);
      return [window.index.select(state), formatState(state)];
    }"""

    @given(STATES)
    @settings(max_examples=50, deadline=None)
    def check(state):
        asked = urlencode({name: text for name, text in state.items() if text})
        found, said = tab.evaluate(select, asked)
        assert [rows[at]["scan_id"] for at in found] == [
            row["scan_id"] for row in chosen(rows, state)
        ]
        assert parse_qs(said) == parse_qs(asked)

    check()


def test_a_link_restores_every_filter_and_rows_pass_it_to_scan_pages(tab, stores, rows):
    asked = "q=50.4&split=train&vertebra=L5&sort=-size"
    open_list(tab, f"{stores}/?store=many&{asked}")
    fits = [
        row
        for row in rows
        if "50.4" in row["scan_id"] and row["split"] == "train" and "L5" in row["vertebrae"]
    ]
    fits.sort(key=lambda row: -row["stored_bytes"])
    assert count(tab) == of_all(len(fits))
    assert shown(tab) == [row["scan_id"] for row in fits][: len(shown(tab))]
    link = tab.locator(".scans-table tbody a").first.get_attribute("href")
    place = urlsplit(link)
    assert place.path == f"/scan/many/{fits[0]['scan_id']}"
    assert parse_qs(place.query)["list"] == [asked]


def test_going_back_from_a_scan_restores_the_scroll_position(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many&sort=size")
    tab.locator(".scans").evaluate("list => { list.scrollTop = 480 * 48; }")
    by_size = sorted(rows, key=lambda row: row["stored_bytes"])
    wanted = by_size[484]["scan_id"]
    tab.locator(f'a[aria-label="{wanted}"]').click()
    tab.wait_for_url("**/scan/many/**")
    tab.go_back()
    tab.wait_for_selector("#main[aria-busy=false]")
    assert tab.locator(".scans").evaluate("list => list.scrollTop") == 480 * 48
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == wanted
    assert urlsplit(tab.url).query == "store=many&sort=size"


def test_keys_move_through_the_list_and_open_a_scan(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many")

    def focused():
        return tab.evaluate("document.activeElement.getAttribute('aria-label')")

    ids = [row["scan_id"] for row in rows]
    tab.keyboard.press("/")
    assert tab.evaluate("document.activeElement.id") == "search"
    assert tab.locator("#search").input_value() == ""
    tab.keyboard.press("ArrowDown")
    assert focused() == ids[0]
    for key, at in (
        ("ArrowDown", 1),
        ("ArrowDown", 2),
        ("ArrowUp", 1),
        ("End", MANY - 1),
        ("ArrowDown", MANY - 1),
        ("ArrowUp", MANY - 2),
        ("Home", 0),
        ("ArrowUp", 0),
    ):
        tab.keyboard.press(key)
        assert focused() == ids[at]
        box = tab.locator(f'a[aria-label="{ids[at]}"]').bounding_box()
        assert 150 < box["y"] < 720
    tab.keyboard.press("PageDown")
    assert ids.index(focused()) > 5
    focused_id = focused()
    tab.keyboard.press("Enter")
    tab.wait_for_url(f"**/scan/many/{focused_id}")


def test_the_skip_link_moves_the_focus_to_the_list(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the scans"
    assert tab.locator(".skip").bounding_box()["y"] >= 0
    tab.keyboard.press("Enter")
    focused = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == rows[0]["scan_id"]


def test_the_page_holds_only_a_few_rows_with_their_row_numbers(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many")
    table = tab.get_by_role("table", name="Scans")
    assert table.get_attribute("aria-rowcount") == str(MANY + 1)
    tab.locator(".scans-table tbody a").nth(3).focus()
    tab.locator(".scans").evaluate("list => { list.scrollTop = 700 * 48; }")
    tab.wait_for_selector("[aria-rowindex='710']")
    indices = tab.locator("tbody [role=row]").evaluate_all(
        "rows => rows.map(row => Number(row.getAttribute('aria-rowindex')))"
    )
    assert indices == sorted(indices)
    assert indices[0] == 5  # the focused row stays in the page
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == rows[3]["scan_id"]
    assert len(indices) < 40
    assert tab.evaluate("document.querySelectorAll('*').length") < MOST_NODES
    tab.keyboard.press("ArrowDown")
    focused = tab.evaluate("document.activeElement.getAttribute('aria-label')")
    assert focused == rows[4]["scan_id"]


def test_figures_follow_the_filters_and_clicking_a_bar_adds_one(tab, stores, rows):
    open_list(tab, f"{stores}/?store=many&source=MSD-T10")
    fits = [row for row in rows if row["source"] == "MSD-T10"]
    bar = tab.locator("[data-vertebra=L4]")
    n = sum("L4" in row["vertebrae"] for row in fits)
    assert f"{100 * n / len(fits):.0f} %" in bar.inner_text()
    bar.click()
    assert count(tab) == of_all(n)
    assert bar.get_attribute("aria-pressed") == "true"
    assert tab.locator("select[name=vertebra]").input_value() == "L4"
    tab.locator("#spacing-z summary").click()
    tab.wait_for_selector("#spacing-z tbody tr")
    figures = tab.locator("#spacing-z tbody tr td:nth-of-type(1)").all_inner_texts()
    assert sum(map(int, figures)) == n
    bar.click()
    assert count(tab) == of_all(len(fits))


def test_empty_lists_are_explained(tab, stores):
    open_list(tab, f"{stores}/?store=none")
    assert "No scans yet" in tab.locator(".empty").inner_text()
    open_list(tab, f"{stores}/?store=one")
    assert count(tab) == "1 scan"
    assert len(shown(tab)) == 1
    open_list(tab, f"{stores}/?store=many&q=nowhere")
    assert "No scan fits" in tab.locator(".empty").inner_text()
    assert count(tab) == "0 of 1,005 scans"
    tab.get_by_role("button", name="Clear").click()
    assert count(tab) == "1,005 scans"
    open_list(tab, f"{stores}/?store=nowhere")
    assert "No store is named nowhere" in tab.locator("#main").inner_text()
    tab.logged_errors = [text for text in tab.logged_errors if "404" not in text]


def test_a_server_without_stores_is_explained(page, tmp_path):
    with BackgroundServer(ServeSettings(paths=(str(tmp_path),))) as server:
        open_list(page, server.url)
        assert "This server serves no store now" in page.locator("#main").inner_text()


def test_an_error_of_the_server_is_shown_with_a_button_to_retry(tab, stores):
    said = "The store cannot be read."
    tab.route("**/v1/many/scans", lambda route: route.fulfill(status=503, body=said))
    open_list(tab, f"{stores}/?store=many")
    assert said in tab.get_by_role("alert").inner_text()
    tab.unroute("**/v1/many/scans")
    tab.get_by_role("button", name="Try again").click()
    tab.wait_for_selector(".scans-table tbody tr")
    tab.route("**/v1/stores", lambda route: route.abort())
    open_list(tab, f"{stores}/?store=many")
    assert "The server does not answer" in tab.get_by_role("alert").inner_text()
    assert all("Failed to load resource" in text for text in tab.logged_errors)
    tab.logged_errors.clear()


def test_signing_in_leads_to_the_requested_list(tab, folder, tmp_path):
    file = tmp_path / "tokens"
    token = new_token(file, "anna")
    make_key(file)
    paths = (str(folder / "many.zarr"),)
    with BackgroundServer(ServeSettings(paths=paths, token_file=str(file))) as server:
        tab.goto(f"{server.url}/?split=test")
        tab.get_by_label("Token").fill(token)
        tab.get_by_role("button", name="Sign in").click()
        tab.wait_for_selector(".scans-table tbody tr")
        assert tab.locator("select[name=split]").input_value() == "test"
        assert urlsplit(tab.url).query == "split=test"
        tab.context.clear_cookies()
        tab.evaluate(
            "import('/page/common.js').then(m => m.requestJson('/v1/stores')).catch(() => 0)"
        )
        tab.wait_for_url("**/login?next=*")
        assert parse_qs(urlsplit(tab.url).query)["next"] == ["/?split=test"]
    tab.logged_errors = [text for text in tab.logged_errors if "401" not in text]


def test_a_picture_that_cannot_be_loaded_leaves_a_tile(page, stores):
    page.route("**/slice.png*", lambda route: route.abort())
    open_list(page, f"{stores}/?store=many")
    page.wait_for_selector(".tile.failed")
    tile = page.locator(".tile.failed").first
    assert tile.locator("img").evaluate("image => getComputedStyle(image).opacity") == "0"
    page.logged_errors = [text for text in page.logged_errors if "Failed to load" not in text]


@pytest.mark.parametrize("path", ["/", "/?store=many&sort=-audit&vertebra=L5", "/?store=none"])
def test_texts_have_enough_contrast_and_nothing_overflows(tab, stores, path):
    open_list(tab, stores + path)
    for width in (1920, 1280, 800):
        tab.set_viewport_size({"width": width, "height": 720})
        assert not tab.evaluate(CUT), width
    for scheme in ("light", "dark"):
        tab.emulate_media(color_scheme=scheme)
        contrasts = tab.evaluate(CONTRASTS)
        assert len(contrasts) > 8
        assert not {name: c for name, c in contrasts.items() if c < 4.5}, scheme


def test_the_layout_does_not_shift_while_the_page_loads(tab, stores):
    open_list(tab, f"{stores}/?store=many")
    tab.wait_for_selector(".tile.drawn")
    moved = tab.evaluate(
        """() => new Promise((done) => {
          let sum = 0;
          new PerformanceObserver((list) => {
            for (const entry of list.getEntries()) sum += entry.value;
          }).observe({ type: "layout-shift", buffered: true });
          setTimeout(() => done(sum), 300);
        })"""
    )
    assert moved < 0.01


def test_ten_thousand_scans_are_listed_and_filtered(tab, ctspine1k_url, tmp_path):
    shutil.copytree(ctspine1k_url, tmp_path / "large.zarr")
    write_large_table(tmp_path / "large.zarr", 10_000)
    with BackgroundServer(ServeSettings(paths=(str(tmp_path / "large.zarr"),))) as server:
        listed = json.loads(fetch(f"{server.url}/v1/large/scans")[2])["scans"]
        open_list(tab, f"{server.url}/?sort=-spacing")
        assert count(tab) == "10,000 scans"
        tab.locator(".scans").evaluate("list => { list.scrollTop = list.scrollHeight; }")
        tab.wait_for_selector("[aria-rowindex='10001']")
        assert tab.evaluate("document.querySelectorAll('*').length") < MOST_NODES
        tab.locator("#search").fill(".99")
        fits = [row for row in listed if ".99" in row["scan_id"]]
        tab.wait_for_function("() => document.querySelector('.shown').innerText.includes(' of ')")
        assert count(tab) == f"{len(fits):,} of 10,000 scans"
