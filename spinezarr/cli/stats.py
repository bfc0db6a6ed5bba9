"""``spinezarr stats``: which figures does a dataset have, and does its card agree?"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.options import (
    OUTPUT,
    AsJson,
    Layer,
    OpenOptions,
    ScanOptions,
    StoreUrl,
    command,
)

__all__ = ["Format", "stats"]


class Format(StrEnum):
    """Format of a document for people or spreadsheets."""

    TABLE = "table"
    MARKDOWN = "markdown"
    CSV = "csv"


@command
def stats(
    store: StoreUrl,
    *,
    layer: Layer = "label",
    scan_options: ScanOptions,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also draw detection.png, volumes.png and spacing.png."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="card|FILE",
            help="Compare with the dataset's published card, or with the card in a .yaml file.",
        ),
    ] = None,
    output: Annotated[
        Format,
        typer.Option("--format", help="Print one document in this format.", rich_help_panel=OUTPUT),
    ] = Format.TABLE,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Print the figures that dataset cards publish, from the scan table, or compare them.

    With --against, the exit code is 0 if every figure equals that of the card, and 1 if a figure
    differs or is missing in the store. If the card contradicts itself and the store agrees with one
    side, this is shown, but does not count as a difference.

    With --layer, volumes and counts are those of the labels of that mask.

    Example:  spinezarr stats demo/ctspine1k.zarr --format markdown
    """
    from spinezarr.cli.console import ERR, SOME_FAILED
    from spinezarr.cli.reports.stats import print_comparison, print_statistics
    from spinezarr.errors import UsageError
    from spinezarr.stats.compare import Comparison
    from spinezarr.verbs.stats import PLOTS

    if as_json and output is not Format.TABLE:
        raise UsageError(f"--json and --format {output}: give one of them.")
    opened_store = open_options.open(store)
    result = opened_store.stats(layer=layer, **scan_options.names, plots=plots, against=against)
    if isinstance(result, Comparison):
        print_comparison(result, output, as_json=as_json)
    else:
        print_statistics(result, output, as_json=as_json)
    if plots is not None:
        ERR.note(f"Wrote {', '.join(PLOTS)} to {plots}.")
    if isinstance(result, Comparison) and not result.agrees:
        raise typer.Exit(SOME_FAILED)
