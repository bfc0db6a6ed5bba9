"""Takes the screenshots of the web pages for the documentation.

``python tests/support/pictures.py --out docs/pictures`` takes all of them, in some minutes. The
scans are phantoms under the names of CTSpine1K; the table lists 1,005, of which a dozen have
voxels. ``--pair CT MASK`` chooses the scan for the page of a single scan; the default is a phantom.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path

import numpy as np
from large_table import write_large_table
from playwright.sync_api import Browser, Page, sync_playwright

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.testing import PhantomSpec, ScanPlan, usual_levels, write_ctspine1k
from spinezarr.vertebrae import ANATOMICAL_ORDER, OPTIONAL_LEVELS, VALUE_OF_NAME

STORE = "ctspine1k"
SCAN_PAGE = "/scan/{store}/{scan}"
N_SCANS = 1005
SEED = 3
WITH_PREDICTION = "scan-masks"
"""Picture of a scan that gets a further mask, so it is taken last."""
LEVELS = (
    usual_levels("T9", "L5"),
    usual_levels("T11", "sacrum"),
    (*usual_levels("T10", "L5"), "L6"),
    usual_levels("T8", "L4"),
    usual_levels("T10", "L5"),
    usual_levels("T12", "sacrum"),
    (*usual_levels("T9", "T12"), "T13", *usual_levels("L1", "L4")),
    usual_levels("T7", "L3"),
    usual_levels("T9", "L5"),
    usual_levels("T11", "L5"),
    usual_levels("T10", "sacrum"),
    usual_levels("T9", "L4"),
)
GRIDS = (
    ((192, 208, 208), (1.6, 1.2, 1.2)),
    ((144, 224, 224), (2.0, 1.1, 1.1)),
    ((240, 208, 208), (1.25, 1.25, 1.25)),
    ((128, 192, 192), (2.5, 1.3, 1.3)),
    ((208, 216, 216), (1.5, 1.15, 1.15)),
)
"""Shapes in voxels and spacings in mm."""
SPLITS = ("train", "train", "validation", "train", "test", "train")


@dataclass(frozen=True)
class Picture:
    """A screenshot: the opened path, and the size and color scheme of the window."""

    path: str
    ready: str
    """Selector of an element that is visible once the page is ready."""
    scheme: str = "light"
    size_px: tuple[int, int] = (1280, 720)
    prepare: Callable[[Page], None] = field(default=lambda _: None)
    """Action before the screenshot is taken."""


def _wait_for_thumbnails(page: Page) -> None:
    """Wait for the visible thumbnails."""
    page.locator(".tile.drawn").nth(8).wait_for()
    page.wait_for_timeout(400)


def _rotate_spine(page: Page) -> None:
    """Rotate the spine a little, by dragging it."""
    page.wait_for_selector("#stage[data-render]")
    box = page.locator(".tile[data-plane=render] .picture").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y, steps=4)
    page.mouse.up()
    page.wait_for_timeout(1500)


def _wait_for_tiles(page: Page) -> None:
    """Wait until all four tiles show the scan."""
    page.wait_for_selector("#stage[data-render]")
    page.wait_for_timeout(1500)


PICTURES = {
    "list": Picture(f"/?store={STORE}", ".scans-table tbody tr", prepare=_wait_for_thumbnails),
    "list-dark": Picture(
        f"/?store={STORE}&q=50.4.00&vertebra=L4",
        ".scans-table tbody tr",
        "dark",
        prepare=_wait_for_thumbnails,
    ),
    "scan": Picture(f"{SCAN_PAGE}?vertebra=T8", "#stage[data-first]", prepare=_wait_for_tiles),
    "scan-dark": Picture(
        f"{SCAN_PAGE}?window=soft_tissue&vertebra=L1&layout=sagittal",
        "#stage[data-level]",
        "dark",
        prepare=lambda page: page.wait_for_timeout(1500),
    ),
    "scan-3d": Picture(f"{SCAN_PAGE}?layout=render", "#stage[data-first]", prepare=_rotate_spine),
    WITH_PREDICTION: Picture(
        f"{SCAN_PAGE}?outline=prediction", "#stage[data-first]", prepare=_wait_for_tiles
    ),
}
"""Screenshots by file name."""


def make_store(folder: Path) -> Path:
    """Write a store of phantoms."""
    plans = [
        ScanPlan(
            f"1.3.6.1.4.1.9328.50.4.{at + 1:04}",
            SPLITS[at % len(SPLITS)],
            PhantomSpec(at, shape_zyx, spacing_zyx_mm, levels),
        )
        for at, (levels, (shape_zyx, spacing_zyx_mm)) in enumerate(zip(LEVELS, cycle(GRIDS)))
    ]
    raw, store = folder / "raw", folder / "stores" / f"{STORE}.zarr"
    write_ctspine1k(raw, scans=plans)
    recipe = Recipe.load("ctspine1k")
    report = ingest(recipe, discover(recipe, str(raw)), str(store))
    if report.failed:
        raise SystemExit(str(report.failed))
    write_large_table(store, N_SCANS, seed=SEED)
    return store


def ingest_pair(image: Path, label: Path, folder: Path) -> tuple[str, str]:
    """Ingest a scan into a store next to that of the phantoms; return names of store and scan."""
    scan = image.name.partition("_")[0]
    raw = folder / "pair"
    raw.mkdir()
    (raw / f"{scan}_ct.nii.gz").symlink_to(image.resolve())
    (raw / f"{scan}_seg.nii.gz").symlink_to(label.resolve())
    store = folder / "stores" / f"{scan.rpartition('-')[0] or 'scans'}.zarr"
    recipe = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name=store.stem)
    report = ingest(recipe, discover(recipe, str(raw)), str(store))
    if report.failed:
        raise SystemExit(str(report.failed))
    opened = spinezarr.open(str(store))
    opened.audit()
    return store.stem, scan


def write_prediction(store: Path, scan: str) -> None:
    """Write a mask whose names are wrong by one level, and whose voxels are moved forward."""
    opened = spinezarr.open(str(store))
    lower = np.arange(256, dtype=np.uint8)
    names = [name for name in ANATOMICAL_ORDER if name not in OPTIONAL_LEVELS]
    for upper, name in pairwise(names):
        lower[VALUE_OF_NAME[upper]] = VALUE_OF_NAME[name]
    moved = np.roll(lower[opened.scan(scan).label.values], 4, axis=1)
    opened.write_labels(scan, "prediction", moved, model="net 2")


def take_screenshot(browser: Browser, url: str, picture: Picture, file: Path) -> None:
    """Open a page, and save its screenshot."""
    width, height = picture.size_px
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=picture.scheme, locale="en-US"
    )
    page = context.new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.locator(picture.ready).first.wait_for()
    picture.prepare(page)
    page.screenshot(path=file)
    context.close()


def main() -> None:
    """Take all screenshots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--pair", nargs=2, type=Path, help="image and mask of a scan")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        folder = Path(temporary)
        make_store(folder)
        store, scan = STORE, "1.3.6.1.4.1.9328.50.4.0001"
        if options.pair:
            store, scan = ingest_pair(*options.pair, folder)
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        with BackgroundServer(ServeSettings(paths=(str(folder / "stores"),))) as server:
            for name in sorted(options.only, key=[*PICTURES].index):
                file = options.out / f"{name}.png"
                picture = PICTURES[name]
                if name == WITH_PREDICTION:
                    write_prediction(folder / "stores" / f"{store}.zarr", scan)
                path = picture.path.format(store=store, scan=scan)
                take_screenshot(browser, server.url + path, picture, file)
                sys.stdout.write(f"{file}: {file.stat().st_size / 1000:.0f} kB\n")
        browser.close()


if __name__ == "__main__":
    main()
