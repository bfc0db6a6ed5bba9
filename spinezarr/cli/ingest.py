"""``spinezarr ingest``: how does a raw folder become a store?"""

from dataclasses import dataclass
from typing import Annotated

import typer

import spinezarr
from spinezarr.cli.completion import complete_datasets
from spinezarr.cli.options import (
    AsJson,
    BucketOptions,
    CatalogFile,
    Codec,
    DryRun,
    FollowLinks,
    RawBucketOptions,
    Repair,
    Scratch,
    TakeImageGrid,
    command,
)
from spinezarr.errata import Errata
from spinezarr.formats.limits import DEFAULT_LIMITS
from spinezarr.store.layout import LARGEST_AXIS

__all__ = ["SourceFileOptions", "WorkerOptions", "ingest"]


@dataclass(frozen=True, slots=True)
class PairsOptions:
    """Names of the files of a dataset without a recipe, for 'pairs'."""

    image: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="With 'pairs': images, e.g. '{scan}_ct.nii.gz'."),
    ] = None
    label: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="With 'pairs': masks, e.g. '{scan}_seg.nii.gz'."),
    ] = None
    scan_id: Annotated[
        str | None,
        typer.Option(
            metavar="TEMPLATE",
            help="With 'pairs': ids, e.g. '{path|join}_{series_number}' for each CT series of a "
            "DICOM folder; {scan} by default, or all names of the image pattern, joined.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class PseudonymOptions:
    """Whether ids of scans and patients are replaced by keyed hashes."""

    pseudonymize: Annotated[
        bool,
        typer.Option(
            "--pseudonymize",
            help="Store keyed hashes for scan and patient ids. Key and map stay outside the store.",
        ),
    ] = False
    pseudonyms: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --pseudonymize: the map, a .csv file with a .key file next to it; by "
            "default next to the store.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class SourceFileOptions:
    """Which source files are read."""

    max_axis_voxels: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=1,
            max=LARGEST_AXIS,
            help="Largest number of voxels of a source file along an axis.",
        ),
    ] = DEFAULT_LIMITS.axis_voxels
    max_volume_gb: Annotated[
        float,
        typer.Option(
            metavar="GB", min=0, help="Largest size of a source file's voxels, in GB of 10^9 bytes."
        ),
    ] = DEFAULT_LIMITS.volume_bytes / 1e9
    follow_links: FollowLinks = None


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Processes or cluster that work on several scans at the same time."""

    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Work on N scans at once, each in a separate process."
        ),
    ] = None
    scheduler: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Work on a Dask cluster: tcp://HOST:8786."),
    ] = None


@command
def ingest(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="Name in the catalog, name of a shipped recipe, path of a recipe, or 'pairs'.",
            autocompletion=complete_datasets,
        ),
    ],
    *,
    raw: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder of the files as downloaded.")
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="URL", help="Path or URL of the store to write.")
    ] = None,
    pairs: PairsOptions,
    license: Annotated[
        str | None, typer.Option(metavar="SPDX", help="License of the data, if not the recipe's.")
    ] = None,
    codec: Codec = None,
    take_image_grid: TakeImageGrid = False,
    pseudonym: PseudonymOptions,
    source_files: SourceFileOptions,
    scratch: Scratch = None,
    errata: Annotated[
        Errata,
        typer.Option(help="Whether lists of errata only mark scans, or also correct their masks."),
    ] = "mark",
    dry_run: DryRun = False,
    worker: WorkerOptions,
    repair: Repair = False,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
    bucket: BucketOptions,
    raw_bucket: RawBucketOptions,
) -> None:
    """Write a dataset's raw files into one store. Run it again to add what is missing.

    The report counts files that belong to no scan, with reasons: masks without an image, and files
    that nothing matched. It also counts scans of split lists and rows of tables that are not here.
    --json names them all.

    Exit code 0: every scan is in the store.

    Exit code 1: some scans failed, a mask has no image, or a folder could not be listed. All other
    scans are in the store.

    Exit code 2: wrong usage.

    Example:  spinezarr ingest ctspine1k --raw CTSpine1K --out ctspine1k.zarr

    Example:  spinezarr ingest pairs --raw DIR --image '{scan}_ct.nii.gz'
    --label '{scan}_seg.nii.gz' --out mine.zarr

    Raw folder and store may be in buckets, s3://bucket/name. The S3 options then apply to both. If
    an S3 option with --raw is given, only those with --raw apply to the raw folder.
    """
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.ingest import print_discovery, print_report
    from spinezarr.ingestion.run import IngestReport

    with show_progress() as on_progress:
        report = spinezarr.ingest(
            dataset,
            raw=raw,
            out=out,
            image=pairs.image,
            label=pairs.label,
            scan_id=pairs.scan_id,
            license=license,
            codec=codec,
            take_image_grid=take_image_grid,
            pseudonymize=pseudonym.pseudonymize,
            pseudonyms=pseudonym.pseudonyms,
            max_axis_voxels=source_files.max_axis_voxels,
            max_volume_gb=source_files.max_volume_gb,
            follow_links=source_files.follow_links,
            scratch=scratch,
            errata=errata,
            dry_run=dry_run,
            workers=worker.workers,
            scheduler=worker.scheduler,
            repair=repair,
            catalog=catalog,
            storage_options=bucket.storage_options,
            raw_storage_options=raw_bucket.storage_options,
            on_progress=on_progress,
        )
    if isinstance(report, IngestReport):
        print_report(report, as_json=as_json)
        raise typer.Exit(report.exit_code)
    print_discovery(report, as_json=as_json)
