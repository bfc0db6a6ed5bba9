"""``spinezarr add-labels``: how do mask files become further masks of stored scans?"""

from typing import Annotated

import typer

from spinezarr.cli.completion import complete_schemes
from spinezarr.cli.ingest import SourceFileOptions, WorkerOptions
from spinezarr.cli.options import (
    AsJson,
    DryRun,
    MaskName,
    OpenOptions,
    RawBucketOptions,
    ScanOptions,
    Scratch,
    StoreUrl,
    TakeImageGrid,
    command,
)
from spinezarr.vertebrae import LabelState

__all__ = ["add_labels"]


@command
def add_labels(
    store: StoreUrl,
    *,
    layer: MaskName,
    masks: Annotated[
        str,
        typer.Option(
            metavar="PATTERN",
            help="Paths of the masks, e.g. 'pred/{scan}.nii.gz', or 'pred/{scan}/{part}.nii.gz' "
            "with one file for each name of the scheme.",
        ),
    ],
    scheme: Annotated[
        str,
        typer.Option(
            metavar="NAME|FILE",
            help="Names of the values: vertebrae, subregions (TPTBox), spineps, totalsegmentator, "
            "or a .yaml file with the value of each name, 'labels: {left_rib: 1}'.",
            autocompletion=complete_schemes,
        ),
    ] = "vertebrae",
    license: Annotated[
        str, typer.Option(metavar="SPDX", help="License of the masks, if not the scans'.")
    ] = "",
    author: Annotated[str, typer.Option(metavar="TEXT", help="Who annotated the masks.")] = "",
    model: Annotated[
        str, typer.Option(metavar="TEXT", help="Program that made the masks, with its version.")
    ] = "",
    label_state: Annotated[
        LabelState,
        typer.Option(
            help="Whether vertebrae cut by the end of the volume are in the masks, or a model drew "
            "them.",
        ),
    ] = "unknown",
    take_image_grid: TakeImageGrid = False,
    scan_options: ScanOptions,
    source_files: SourceFileOptions,
    scratch: Scratch = None,
    dry_run: DryRun = False,
    worker: WorkerOptions,
    as_json: AsJson = False,
    open_options: OpenOptions,
    raw_bucket: RawBucketOptions,
) -> None:
    """Add masks to the scans of a store, beside the ones that it has. Run it again to add more.

    Each mask must lie on the grid of its image; nothing is resampled. A mask of the same name is
    replaced if its file has changed. Images and other masks stay as they are.

    Exit code 0: each file that fits is a mask in the store.

    Exit code 1: some files failed or belong to no scan, or a folder could not be listed. All other
    masks are in the store.

    Exit code 2: wrong usage.

    Example:  spinezarr add-labels ctspine1k.zarr --layer prediction --masks 'pred/{scan}.nii.gz'
    --model 'SPINEPS 2.1' --scheme spineps

    Example:  spinezarr add-labels ctspine1k.zarr --layer structures
    --masks 'ts/{scan}/{part}.nii.gz' --scheme totalsegmentator --label-state predicted

    Store and masks may be in buckets. The S3 options then apply to both. If an S3 option with --raw
    is given, only those with --raw apply to the masks.
    """
    from spinezarr.cli.console import print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.labels import print_added
    from spinezarr.label_schemes import named_scheme

    with show_progress() as on_progress:
        report = open_options.open(store).add_labels(
            layer,
            masks,
            scheme=named_scheme(scheme),
            license=license,
            author=author,
            model=model,
            label_state=label_state,
            take_image_grid=take_image_grid,
            max_axis_voxels=source_files.max_axis_voxels,
            max_volume_gb=source_files.max_volume_gb,
            follow_links=source_files.follow_links,
            scratch=scratch,
            dry_run=dry_run,
            workers=worker.workers,
            scheduler=worker.scheduler,
            **scan_options.names,
            raw_storage_options=raw_bucket.storage_options,
            on_progress=on_progress,
        )
    if as_json:
        print_json(report.to_json(), report.exit_code)
    else:
        print_added(report)
    raise typer.Exit(report.exit_code)
