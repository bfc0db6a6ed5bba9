"""``spinezarr stats``: what are the figures of a dataset, and does its card give the same?"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.options import OpenOptions, ScanOptions, StoreUrl, command

__all__ = ["Format", "stats"]


class Format(StrEnum):
    """Form of the output."""

    TABLE = "table"
    MARKDOWN = "markdown"
    JSON = "json"
    CSV = "csv"


@command
def stats(
    store: StoreUrl,
    *,
    chosen: ScanOptions,
    output: Annotated[
        Format, typer.Option("--format", help="Print one document in this format.")
    ] = Format.TABLE,
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
    opening: OpenOptions,
) -> None:
    """Print the figures of published dataset cards, counted from the scan table; compare them.

    With --against, exit code 0 says that every figure is the card's, 1 that
    one differs or is missing in store. Where the card contradicts itself and the
    store agrees with one side, that is shown and does not count.

    Example:  spinezarr stats demo/ctspine1k.zarr --format markdown
    """
    from spinezarr.cli.console import ERR, SOME_FAILED
    from spinezarr.cli.reports.stats import print_comparison, print_statistics
    from spinezarr.stats.compare import Comparison
    from spinezarr.verbs.stats import PLOTS

    opened = opening.open(store)
    found = opened.stats(**chosen.names, plots=plots, against=against)
    if isinstance(found, Comparison):
        print_comparison(found, output)
    else:
        print_statistics(found, output)
    if plots is not None:
        ERR.say(f"Wrote {', '.join(PLOTS)} to {plots}.")
    if isinstance(found, Comparison) and not found.agrees:
        raise typer.Exit(SOME_FAILED)
