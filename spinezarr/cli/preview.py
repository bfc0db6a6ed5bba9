"""``spinezarr preview``: what does each scan look like?"""

from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.completion import complete_masks
from spinezarr.cli.options import AsJson, Layer, OpenOptions, ScanOptions, StoreUrl, command

__all__ = ["preview"]


@command
def preview(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")],
    layer: Layer = "label",
    truth: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="NAME",
            help="Also draw this mask, on the left.",
            autocompletion=complete_masks,
        ),
    ] = None,
    scan_options: ScanOptions,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Draw a PNG for each scan: a sagittal, a coronal and an axial plane with named vertebrae.

    Dots show annotated centers.

    A further mask is drawn in place of the label with --layer, and beside another mask with --with.
    Scans without these masks are left out.

    Example:  spinezarr preview demo/ctspine1k.zarr --out previews
    """
    from spinezarr.cli.console import OUT, print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.text import count_noun

    with show_progress() as on_progress:
        paths = open_options.open(store).preview(
            out=out, layer=layer, truth=truth, **scan_options.names, on_progress=on_progress
        )
    if as_json:
        print_json({"pictures": [str(path) for path in paths]})
    else:
        OUT.say(f"Wrote {count_noun(len(paths), 'picture')} to {out}.")
