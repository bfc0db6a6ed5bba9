"""``spinezarr push``: how does a store get to a bucket or a hub?"""

from typing import Annotated

import typer

from spinezarr.cli.options import (
    AsJson,
    DryRun,
    IncludeRestricted,
    OpenOptions,
    Repair,
    ScanOptions,
    StoreUrl,
    command,
)

__all__ = ["push"]


@command
def push(
    store: StoreUrl,
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="URL of the copy: s3://…, hf://datasets/…")
    ],
    *,
    scan_options: ScanOptions,
    dry_run: DryRun = False,
    repair: Repair = False,
    include_restricted: IncludeRestricted = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Copy a store to a bucket, or from a disk to a dataset repository of a Hugging Face hub.

    The command first counts objects and bytes. Run it again at any time: it copies only what is
    missing or differs. The root of the copy is written last, so an unfinished copy is no store. At
    the end, the copy is compared with the manifests.

    Exit code 0: all chosen scans are in the copy, except those whose license forbids it; 1: a scan
    is damaged or the copy differs; 2: wrong usage.

    Example:  spinezarr push demo/ctspine1k.zarr s3://lab/ctspine1k.zarr

    If both stores are in buckets, the S3 options apply to both. If only the copy is, they apply to
    it. A repository of a hub must exist; log in with 'hf auth login'.
    """
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.copy import print_copy

    opened_store = open_options.open_source(store, target)
    with show_progress() as on_progress:
        report = opened_store.push(
            target,
            **scan_options.names,
            storage_options=open_options.storage_options,
            dry_run=dry_run,
            repair=repair,
            include_restricted=include_restricted,
            on_progress=on_progress,
        )
    print_copy(report, as_json=as_json)
    raise typer.Exit(report.exit_code)
