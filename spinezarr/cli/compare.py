"""``spinezarr compare``: how well does a predicted mask agree with the truth?"""

from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.completion import complete_masks
from spinezarr.cli.options import (
    AsJson,
    OpenOptions,
    ScanOptions,
    StoreUrl,
    TakeImageGrid,
    command,
)

__all__ = ["compare"]


@command
def compare(
    store: StoreUrl,
    *,
    layer: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Predicted mask of the store.", autocompletion=complete_masks
        ),
    ] = None,
    masks: Annotated[
        str | None,
        typer.Option(
            metavar="PATTERN",
            help="Predicted masks in files, such as 'predictions/{scan}.nii.gz'.",
        ),
    ] = None,
    truth: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="NAME",
            help="True mask of the store.",
            autocompletion=complete_masks,
        ),
    ] = "label",
    dataset_json: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The dataset.json of the nnU-Net model that wrote the files of --masks.",
        ),
    ] = None,
    take_image_grid: TakeImageGrid = False,
    scan_options: ScanOptions,
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a row for each scan, shift and vertebra."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw a PNG with all vertebrae.")
    ] = None,
    pictures: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Also draw the ten worst scans, truth and prediction side by side."
        ),
    ] = None,
    save: Annotated[
        bool,
        typer.Option(
            "--save",
            help="Save Dice, identification rate and verdict of each scan in the scan table.",
        ),
    ] = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Compare predicted masks with the truth: Dice, distances, VerSe's measures, wrong names.

    All figures are also computed with the names shifted along the spine. So vertebrae that are
    outlined well under the name of a neighbor are told from those that were not found.

    Exit code 0: every scan that has a true mask was compared; 1: some could not be compared, or
    saved; 2: wrong usage.

    Example:  spinezarr compare demo/ctspine1k.zarr --masks 'predictions/{scan}.nii.gz'
    """
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.compare import print_comparison

    with show_progress() as on_progress:
        comparison = open_options.open(store).compare(
            layer=layer,
            masks=masks,
            truth=truth,
            dataset_json=dataset_json,
            take_image_grid=take_image_grid,
            **scan_options.names,
            csv=csv,
            plot=plot,
            pictures=pictures,
            save=save,
            on_progress=on_progress,
        )
    print_comparison(comparison, [path for path in (csv, plot, pictures) if path], as_json=as_json)
    raise typer.Exit(comparison.exit_code)
