"""``spinezarr preview``: what does each scan look like?"""

from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.options import OpenOptions, ScanOptions, StoreUrl, command

__all__ = ["preview"]


@command
def preview(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")],
    scan_options: ScanOptions,
    open_options: OpenOptions,
) -> None:
    """Draw a PNG for each scan: a sagittal, a coronal and an axial plane with named vertebrae.

    Dots show annotated centers.

    Example:  spinezarr preview demo/ctspine1k.zarr --out previews
    """
    from spinezarr.cli.console import OUT, show_progress
    from spinezarr.text import count_noun

    with show_progress() as on_progress:
        paths = open_options.open(store).preview(
            out=out, **scan_options.names, on_progress=on_progress
        )
    OUT.say(f"Wrote {count_noun(len(paths), 'picture')} to {out}.")
