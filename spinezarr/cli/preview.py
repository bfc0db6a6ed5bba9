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
    chosen: ScanOptions,
    opening: OpenOptions,
) -> None:
    """Draw a PNG for each scan: a sagittal, a coronal and an axial plane with named vertebrae.

    Annotated centers are shown as dots.

    Example:  spinezarr preview demo/ctspine1k.zarr --out previews
    """
    from spinezarr.cli.console import OUT, show_progress
    from spinezarr.text import count_noun

    with show_progress() as show:
        written = opening.open(store).preview(out=out, **chosen.names, on_progress=show)
    OUT.say(f"Wrote {count_noun(len(written), 'picture')} to {out}.")
