"""``spinezarr derive``: how does a store become another store?"""

import math
from typing import Annotated, Final, Literal

import typer

from spinezarr.cli.completion import complete_masks
from spinezarr.cli.ingest import WorkerOptions
from spinezarr.cli.options import (
    AsJson,
    Codec,
    IncludeRestricted,
    OpenOptions,
    Repair,
    ScanOptions,
    Scratch,
    StoreUrl,
    command,
)
from spinezarr.errors import UsageError

__all__ = ["derive"]

_SPACING: Final = "one number of at least 0.001 mm, or three for z, y and x, such as 3,1,1"
_WINDOW: Final = "two numbers in HU, such as -200,1000"


@command
def derive(
    store: StoreUrl,
    *,
    out: Annotated[str, typer.Option(metavar="URL", help="Path or URL of the store to write.")],
    scan_options: ScanOptions,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="NAME",
            help="Carry over only this mask beside 'label'; may be repeated. 'none' for none of "
            "them; by default all.",
            autocompletion=complete_masks,
        ),
    ] = None,
    spacing_mm: Annotated[
        str | None,
        typer.Option(
            metavar="MM", help="Resample to voxels of this size: 1 for all axes, or z,y,x: 3,1,1."
        ),
    ] = None,
    no_antialias: Annotated[
        bool,
        typer.Option(
            "--no-antialias",
            help="Do not filter images before they get fewer voxels, as streams do not.",
        ),
    ] = False,
    mask_interpolation: Annotated[
        Literal["nearest", "linear"] | None,
        typer.Option(
            help="How masks are resampled: the nearest voxel, which is the default, or the label "
            "with the largest linear weight."
        ),
    ] = None,
    crop: Annotated[
        Literal["spine"] | None,
        typer.Option(help="Keep the box around all vertebrae and a margin."),
    ] = None,
    margin_mm: Annotated[
        float | None,
        typer.Option(
            metavar="MM", min=0, help="With --crop: margin around the box; 10 by default."
        ),
    ] = None,
    intensity: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH",
            help="Store images as uint8: LOW and HIGH are the HU of 0 and 255, such as -200,1000.",
        ),
    ] = None,
    codec: Codec = None,
    scratch: Scratch = None,
    worker: WorkerOptions,
    repair: Repair = False,
    include_restricted: IncludeRestricted = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Make a store from a store: fewer scans or masks, another spacing, or the spine alone.

    Run it again to bring the derived store up to date. Scans that are done are skipped, and those
    whose source has changed are made again. Each scan says what it was made from.

    Exit code 0: every chosen scan is in the derived store, except those whose license forbids it.

    Exit code 1: some scans failed, such as scans without a vertebra with --crop. All others are in
    the derived store.

    Exit code 2: wrong usage.

    Example:  spinezarr derive ctspine1k.zarr --out 1mm.zarr --spacing-mm 1 --crop spine

    Both stores may be in buckets. The S3 options then apply to both. If only the derived store is
    in a bucket, they apply to it.
    """
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.derive import print_derived
    from spinezarr.stream.spacing import MIN_MM

    window = _numbers("--intensity", intensity, (2,), _WINDOW)
    opened_store = open_options.open_source(store, out)
    with show_progress() as on_progress:
        report = opened_store.derive(
            out=out,
            **scan_options.names,
            layers=() if layers == ["none"] else layers,
            spacing_mm=_numbers("--spacing-mm", spacing_mm, (1, 3), _SPACING, MIN_MM),
            antialias=not no_antialias,
            mask_interpolation=mask_interpolation,
            crop=crop,
            margin_mm=margin_mm,
            intensity=None if window is None else (window[0], window[1]),
            codec=codec,
            workers=worker.workers,
            scheduler=worker.scheduler,
            scratch=scratch,
            repair=repair,
            include_restricted=include_restricted,
            storage_options=open_options.storage_options or None,
            on_progress=on_progress,
        )
    print_derived(report, as_json=as_json)
    raise typer.Exit(report.exit_code)


def _numbers(
    option: str,
    text: str | None,
    counts: tuple[int, ...],
    expected: str,
    least: float = -math.inf,
) -> tuple[float, ...] | None:
    """Return the numbers of an option, such as ``3,1,1``."""
    if text is None:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) not in counts or not min(numbers) >= least:
        raise UsageError(f"{option} {text!r}: give {expected}.")
    return numbers
