"""``spinezarr pull``: how does a store get to a disk?"""

from typing import Annotated

import typer

from spinezarr.cli.options import (
    AsJson,
    DryRun,
    OpenOptions,
    Repair,
    ScanOptions,
    StoreUrl,
    command,
)

__all__ = ["pull"]


@command
def pull(
    store: StoreUrl,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder of the copy.")],
    *,
    scan_options: ScanOptions,
    dry_run: DryRun = False,
    repair: Repair = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Copy a store from a bucket, a web server or a hub to a folder on disk.

    The command first counts objects and bytes. Run it again at any time: it fetches only what is
    missing or differs. The root of the copy is written last, so an unfinished copy is no store. At
    the end, the copy is compared with the manifests. All licenses stay in the copy.

    Exit code 0: all chosen scans are in the copy; 1: a scan is damaged or the copy differs; 2:
    wrong usage.

    Example:  spinezarr pull hf://datasets/lab/ctspine1k/ctspine1k.zarr ctspine1k.zarr
    """
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.copy import print_copy

    opened_store = open_options.open(store)
    with show_progress() as on_progress:
        report = opened_store.pull(
            folder,
            **scan_options.names,
            dry_run=dry_run,
            repair=repair,
            on_progress=on_progress,
        )
    print_copy(report, as_json=as_json)
    raise typer.Exit(report.exit_code)
