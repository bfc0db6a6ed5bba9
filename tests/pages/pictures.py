"""Takes the pictures of the pages that the documentation shows: a browser looks at a server.

``python tests/pages/pictures.py --out docs/pictures`` takes all of them, in a minute. The scans
are phantoms under the names of CTSpine1K; the table names 1,005, of which a dozen have voxels.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path

from many_scans import name_many
from playwright.sync_api import Browser, Page, sync_playwright

from spinezarr.ingest.discover import discover
from spinezarr.ingest.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.serve.run import BackgroundServer
from spinezarr.serve.settings import ServeSettings
from spinezarr.testing import PhantomSpec, ScanPlan, usual_levels, write_ctspine1k

STORE = "ctspine1k"
MANY = 1005
SEED = 3
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
"""Voxels and mm."""
SPLITS = ("train", "train", "validation", "train", "test", "train")


@dataclass(frozen=True)
class Picture:
    """A picture: what is opened, and how large and light the window is."""

    path: str
    ready: str
    """Selector of what is there when the page is."""
    scheme: str = "light"
    size_px: tuple[int, int] = (1280, 720)
    act: Callable[[Page], None] = field(default=lambda _: None)
    """What is done before the picture is taken."""


def _drawn(page: Page) -> None:
    """Wait for the thumbnails that are seen."""
    page.locator(".tile.drawn").nth(8).wait_for()
    page.wait_for_timeout(400)


PICTURES = {
    "list": Picture(f"/?store={STORE}", ".scans-table tbody tr", act=_drawn),
    "list-dark": Picture(
        f"/?store={STORE}&q=50.4.00&vertebra=L4", ".scans-table tbody tr", "dark", act=_drawn
    ),
}
"""By name of the file."""


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
    name_many(store, MANY, seed=SEED)
    return store


def take(browser: Browser, url: str, picture: Picture, file: Path) -> None:
    """Look at a page, and keep what is seen."""
    width, height = picture.size_px
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme=picture.scheme, locale="en-US"
    )
    page = context.new_page()
    page.goto(url + picture.path)
    page.locator(picture.ready).first.wait_for()
    picture.act(page)
    page.screenshot(path=file)
    context.close()


def main() -> None:
    """Take them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--only", nargs="+", choices=PICTURES, default=list(PICTURES))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        BackgroundServer(ServeSettings(paths=(str(make_store(Path(folder)).parent),))) as server,
        sync_playwright() as driver,
    ):
        flags = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=flags)
        for name in options.only:
            file = options.out / f"{name}.png"
            take(browser, server.url, PICTURES[name], file)
            sys.stdout.write(f"{file}: {file.stat().st_size / 1000:.0f} kB\n")
        browser.close()


if __name__ == "__main__":
    main()
