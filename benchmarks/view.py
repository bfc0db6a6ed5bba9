"""Measures time and bytes until a browser shows a scan, and the time of a key in the search.

A server in its own process serves a scan, and a scan of 600 slices that is made by repeating it.
Debian's Chromium, without a screen or a GPU, opens the page of each scan with an empty cache. The
page itself marks the times from the navigation until the three planes are drawn, until a volume
replaces them, and until the spine is shown in 3D. The ``.nii.gz`` files are downloaded from the
same server; the time to open them in a viewer is not included.

Then words are typed into the search of long lists, key by key. The time of a key runs from its
event until the browser has painted the rows that it leaves. Compositing on the screen, up to a
frame later, is not included. The busy time is that of the page's main thread.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from common import absolute_path, ingest_pair, machine, phantom_pair, spread
from patches import choose_pair
from playwright.sync_api import Browser, CDPSession, Page, sync_playwright
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from large_table import write_large_table

SLICES = 600
MARKS = {"first_view": "first-view", "volume": "level-", "render": "render"}
"""Marks of the page, by the beginning of their names."""
LIST_SIZES = (1005, 10_000)
WORDS = ("liver_1", "train", "lumbar", "warning")
"""Words of the search; each leaves some rows of every list."""
REST_MS = 400
"""Pause after a key, in which the page requests pictures and changes its address."""
_WAIT_MS = 300_000
_LIST_PHANTOM_ZYX = (16, 32, 32)
_TIME_KEYS = """() => {
  const search = document.querySelector("#search");
  let pressed = 0;
  window.keyTimes = [];
  search.addEventListener("keydown", (event) => { pressed = event.timeStamp; }, true);
  search.addEventListener("input", () => requestAnimationFrame(() => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => window.keyTimes.push(performance.now() - pressed);
    port2.postMessage(null);  // arrives after the frame is painted
  }));
}"""
_FLAGS = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage"]


@dataclass(frozen=True, slots=True)
class Visit:
    """Times and bytes of opening the page once."""

    ms: dict[str, float]
    first_view_bytes: int
    all_bytes: int


@dataclass(frozen=True, slots=True)
class Download:
    """Time and bytes of downloading the two files."""

    ms: float
    n_bytes: int


def make_long_scan(image: Path, label: Path, work: Path, n_slices: int) -> tuple[Path, Path]:
    """Write a scan of ``n_slices`` slices, by repeating the scan and its mirror image."""
    paths = []
    for path, name in ((image, "long_ct.nii.gz"), (label, "long_seg.nii.gz")):
        source = nib.load(path)
        voxels = np.asanyarray(source.dataobj)
        n_repeats = -(-n_slices // voxels.shape[2])
        parts = [voxels[..., ::-1] if i % 2 else voxels for i in range(n_repeats)]
        long_voxels = np.concatenate(parts, axis=2)[..., :n_slices]
        nib.save(nib.Nifti1Image(long_voxels, source.affine), work / name)
        paths.append(work / name)
    return paths[0], paths[1]


@contextmanager
def serve(*stores: Path) -> Iterator[str]:
    """Serve stores in a process of its own; yield the URL."""
    program = (
        "import sys, time\n"
        "from spinezarr.serve.run import BackgroundServer\n"
        "from spinezarr.serve.settings import ServeSettings\n"
        "with BackgroundServer(ServeSettings(paths=tuple(sys.argv[1:]))) as server:\n"
        "    print(server.url, flush=True)\n"
        "    time.sleep(1e6)\n"
    )
    command = [sys.executable, "-c", program, *map(str, stores)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603
    try:
        yield process.stdout.readline().strip()  # type: ignore[union-attr]  # it is a pipe
    finally:
        process.terminate()
        process.wait()


def visit(browser: Browser, url: str) -> Visit:
    """Open the page in a context of its own, and wait until it is complete."""
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    tab = context.new_page()
    tab.set_default_timeout(_WAIT_MS)
    tab.goto(url)
    tab.wait_for_selector("#stage[data-render]")
    marks = tab.evaluate(
        "() => performance.getEntriesByType('mark').map(m => [m.name, m.startTime])"
    )
    transfers = tab.evaluate(
        "() => [...performance.getEntriesByType('navigation'),"
        " ...performance.getEntriesByType('resource')].map(r => [r.responseEnd, r.transferSize])"
    )
    context.close()
    ms = {
        key: next(time_ms for name, time_ms in marks if name.startswith(prefix))
        for key, prefix in MARKS.items()
    }
    first_view_bytes = sum(size for end, size in transfers if end <= ms["first_view"])
    return Visit(ms, first_view_bytes, sum(size for _, size in transfers))


def download(scan_url: str) -> Download:
    """Download image and mask, and discard them."""
    started, n_bytes = time.perf_counter(), 0
    for array in ("image", "label"):
        with urllib.request.urlopen(f"{scan_url}/{array}.nii.gz") as answer:  # noqa: S310
            while part := answer.read(1 << 20):
                n_bytes += len(part)
    return Download(1000 * (time.perf_counter() - started), n_bytes)


def measure(browser: Browser, server: str, store: str, rounds: int) -> dict[str, object]:
    """Open the page several times, then download the files; the first visit is not counted."""
    page, scan = f"{server}/scan/{store}/scan", f"{server}/v1/{store}/scans/scan"
    visits = [visit(browser, page) for _ in range(rounds + 1)][1:]  # the first warms the server up
    downloads = [download(scan) for _ in range(rounds)]
    figures: dict[str, object] = {
        "first_view_bytes": round(statistics.median(v.first_view_bytes for v in visits)),
        "page_bytes": round(statistics.median(v.all_bytes for v in visits)),
        "nii_gz_bytes": downloads[0].n_bytes,
        **spread("nii_gz_ms", [d.ms for d in downloads]),
    }
    for key in MARKS:
        figures |= spread(f"{key}_ms", [v.ms[key] for v in visits])
    return figures


def make_list_store(work: Path, n_scans: int) -> Path:
    """Write a store with one scan, whose table lists many."""
    (work / "list").mkdir()
    pair = phantom_pair(work / "list", _LIST_PHANTOM_ZYX)
    store = ingest_pair(*pair, work / "list").rename(work / f"list{n_scans}.zarr")
    shutil.rmtree(work / "list")
    write_large_table(store, n_scans)
    return store


def busy_ms(session: CDPSession) -> float:
    """Return the time for which the main thread of the page has been busy."""
    metrics = session.send("Performance.getMetrics")["metrics"]
    return 1000 * next(one["value"] for one in metrics if one["name"] == "TaskDuration")


def type_word(tab: Page, word: str) -> tuple[list[float], list[float]]:
    """Type a word into the search; return the time and the busy time of each key in ms."""
    session = tab.context.new_cdp_session(tab)
    session.send("Performance.enable")
    tab.evaluate(_TIME_KEYS)
    tab.locator("#search").focus()
    busy: list[float] = []
    for key in word:
        tab.wait_for_timeout(REST_MS)
        before = busy_ms(session)
        tab.keyboard.press(key)
        tab.wait_for_function("n => window.keyTimes.length === n", arg=len(busy) + 1)
        busy.append(busy_ms(session) - before)
    if not tab.locator(".scans-table tbody tr").count():
        raise SystemExit(f"the search for {word!r} found no scan")
    return tab.evaluate("window.keyTimes"), busy


def measure_keys(browser: Browser, server: str, store: str, rounds: int) -> dict[str, object]:
    """Type each word in new pages; the first round is not counted."""
    times: list[float] = []
    busy: list[float] = []
    for turn in range(rounds + 1):
        for word in WORDS:
            context = browser.new_context(viewport={"width": 1280, "height": 720})
            context.route("**/slice.png*", lambda route: route.abort())  # there are no voxels
            tab = context.new_page()
            tab.goto(f"{server}/?store={store}")
            tab.wait_for_selector("#main[aria-busy=false]")
            of_word = type_word(tab, word)
            if turn:
                times += of_word[0]
                busy += of_word[1]
            context.close()
    return {"keys": len(times), **spread("key_ms", times), **spread("key_busy_ms", busy)}


def make_key_table(results: dict[str, dict[str, object]]) -> Table:
    """Return the figures of the keys as a table."""
    table = Table("list", "key to rows", "main thread", "keys", title="Milliseconds of a key")
    for name, figures in results.items():
        times = (
            f"{figures[f'{key}_median']:.0f} ({figures[f'{key}_min']:.0f} to "
            f"{figures[f'{key}_max']:.0f})"
            for key in ("key_ms", "key_busy_ms")
        )
        table.add_row(name, *times, str(figures["keys"]))
    return table


def make_table(results: dict[str, dict[str, object]]) -> Table:
    """Return the figures as a table."""
    table = Table(title="Milliseconds from the navigation on, and megabytes")
    for column in (
        "scan",
        "first view",
        "volume",
        "3D",
        "MB to first view",
        "MB in all",
        ".nii.gz ms",
        ".nii.gz MB",
    ):
        table.add_column(column, justify="left" if column == "scan" else "right")
    for name, figures in results.items():
        times = [f"{figures[f'{key}_ms_median']:,.0f}" for key in MARKS]
        table.add_row(
            name,
            *times,
            f"{figures['first_view_bytes'] / 1e6:.1f}",  # type: ignore[operator]
            f"{figures['page_bytes'] / 1e6:.1f}",  # type: ignore[operator]
            f"{figures['nii_gz_ms_median']:,.0f}",
            f"{figures['nii_gz_bytes'] / 1e6:.1f}",  # type: ignore[operator]
        )
    return table


def measure_scans(
    browser: Browser, work: Path, options: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """Measure the pages of a scan and of a long scan."""
    image, label = choose_pair(options, work)
    stores = []
    for name, pair in (
        ("short", (image, label)),
        ("long", make_long_scan(image, label, work, options.slices)),
    ):
        (work / name).mkdir()
        stores.append(ingest_pair(*pair, work / name).rename(work / f"{name}.zarr"))
    n_slices = {"short": nib.load(image).shape[2], "long": options.slices}
    with serve(*stores) as server:
        return {
            f"{n} slices": measure(browser, server, name, options.rounds)
            for name, n in n_slices.items()
        }


def measure_lists(
    browser: Browser, work: Path, options: argparse.Namespace
) -> dict[str, dict[str, object]]:
    """Measure keys in lists of several lengths."""
    stores = {n: make_list_store(work, n) for n in options.lists}
    if not stores:
        return {}
    with serve(*stores.values()) as server:
        return {
            f"{n:,} scans": measure_keys(browser, server, store.stem, options.rounds)
            for n, store in stores.items()
        }


def main() -> None:
    """Measure, print tables and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", nargs="*", type=Path, help="image and mask")
    parser.add_argument(
        "--folder", type=absolute_path, help="folder for the data (default: a temporary folder)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument(
        "--lists", type=int, nargs="*", default=LIST_SIZES, help="numbers of scans of the lists"
    )
    parser.add_argument(
        "--only-lists", action="store_true", help="measure no page of a scan and no download"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("Chromium is not installed. On Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder, sync_playwright() as driver:
        work = Path(folder)
        browser = driver.chromium.launch(executable_path=chromium, args=_FLAGS)
        scans = {} if options.only_lists else measure_scans(browser, work, options)
        lists = measure_lists(browser, work, options)
        browser.close()
    for table in [make_table(scans)] * bool(scans) + [make_key_table(lists)] * bool(lists):
        Console().print(table)
    if options.json:
        about = {"machine": machine("playwright"), "rounds": options.rounds}
        figures = {**about, "results": scans, "lists": lists}
        options.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
