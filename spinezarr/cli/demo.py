"""``spinezarr demo``: how do ingest, streams and previews work together on synthetic scans?"""

import shutil
import time
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Annotated

import typer

import spinezarr
from spinezarr.cli.options import command
from spinezarr.progress import ProgressCounter

__all__ = ["demo"]

_MARKER = ".spinezarr-demo"
"""Name of the file that marks the folder of a demo, which a later demo may empty."""


@command
def demo(
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the demo's files.")] = Path(
        "demo"
    ),
    scale: Annotated[
        float, typer.Option(min=0.1, max=2.0, help="Size of the scans; 1 is 256 x 256 voxels.")
    ] = 1.0,
    samples: Annotated[
        int, typer.Option(min=1, help="Number of patches and of slices to stream.")
    ] = 200,
) -> None:
    """Make six synthetic scans in the layout of CTSpine1K, then ingest, stream and draw them.

    Example:  spinezarr demo --out demo
    """
    import xarray as xr

    from spinezarr.cli.console import OUT, print_heading
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.ingest import print_report
    from spinezarr.testing import CTSPINE1K_SCANS, write_ctspine1k
    from spinezarr.text import MultilineText

    _prepare(out)
    raw, store_path = out / "raw", out / "ctspine1k.zarr"
    with show_progress() as on_progress:
        phantoms = ProgressCounter(on_progress, "phantoms", "scans", len(CTSPINE1K_SCANS))
        write_ctspine1k(raw, scale=scale, on_scan=lambda _: phantoms.add())
        report = spinezarr.ingest(
            "ctspine1k", raw=raw, out=store_path, license="CC0-1.0", on_progress=on_progress
        )
    print_report(report, as_json=False)
    first = report.done[0]
    dataset = xr.open_zarr(store_path / "scans" / first)
    OUT.say()
    print_heading(f"xr.open_zarr('{store_path}/scans/{first}')")
    OUT.say(MultilineText(*str(dataset).split("\n"), ""))
    store = spinezarr.open(store_path)
    rates = _rates(store, samples)
    with show_progress() as on_progress:
        previews = store.preview(out=out / "previews", on_progress=on_progress)
    _print_figures(store, rates)
    OUT.say(f"The previews are {previews[0].parent}/*.png. For example: {previews[0]}")
    raise typer.Exit(report.exit_code)


def _prepare(out: Path) -> None:
    """Empty the folder of an earlier demo; refuse any other non-empty folder."""
    from spinezarr.errors import UsageError
    from spinezarr.export.atomic_file import make_folder

    make_folder(out)
    if any(out.iterdir()):
        if not (out / _MARKER).exists():
            raise UsageError(
                f"{out}: is not empty, and is not the folder of a demo. Give --out NEW_FOLDER."
            )
        shutil.rmtree(out)
        make_folder(out)
    (out / _MARKER).touch()


def _rates(store: "spinezarr.Store", samples: int) -> dict[str, float]:
    """Stream random patches and slices; return samples per second by kind."""
    from spinezarr.cli.progress import show_progress

    shortest = int(store.table.shape_zyx.min())
    side = min(128, shortest)
    streams = {
        f"{side} x {side} x {side} patches": store.patches(
            side, batch_size=2, foreground=1 / 3, n_samples=samples
        ),
        "axial slices": store.slices("axial", batch_size=8, n_samples=samples),
    }
    with show_progress() as on_progress:
        return {
            name: _rate(stream, ProgressCounter(on_progress, name, "batches", len(stream)))
            for name, stream in streams.items()
        }


def _rate(batches: Iterable[Sized], counter: ProgressCounter) -> float:
    started = time.perf_counter()
    count = 0
    for batch in batches:
        count += len(batch)
        counter.add()
    return count / (time.perf_counter() - started)


def _print_figures(store: "spinezarr.Store", rates: dict[str, float]) -> None:
    from spinezarr.cli.console import OUT, Table
    from spinezarr.text import megabytes
    from spinezarr.verbs.sizes import arrow_bytes

    table = store.table
    source = int(table.source_bytes.sum())
    figures = Table("The same scans", "", "bytes", "of .nii.gz", right=("bytes", "of .nii.gz"))
    for name, size in (
        (".nii.gz files", source),
        ("Arrow, 8 bytes a voxel", arrow_bytes(table)),
        ("spinezarr store", int(table.stored_bytes.sum())),
    ):
        figures.add_row(name, megabytes(size), f"{size / source:.2f} x")
    for name, rate in rates.items():
        figures.add_row(f"streamed, {name}", f"{rate:,.0f} a second", "")
    OUT.print(figures)
