"""``spinezarr remove-labels``: how are further masks of stored scans removed?"""

from typing import Annotated

import typer

from spinezarr.cli.options import AsJson, OpenOptions, ScanOptions, StoreUrl, command

__all__ = ["remove_labels"]


@command
def remove_labels(
    store: StoreUrl,
    *,
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the mask, such as 'prediction'.")
    ],
    scan_options: ScanOptions,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Remove a mask that 'add-labels' or Python has added. Images and other masks stay.

    Exit code 0: the chosen scans do not have the mask any more; 2: wrong usage, such as a mask that
    none of them has.

    Example:  spinezarr remove-labels ctspine1k.zarr --name prediction
    """
    from spinezarr.cli.console import OUT, print_json
    from spinezarr.text import count_noun

    removed = open_options.open(store).remove_labels(name, **scan_options.names)
    if as_json:
        print_json({"removed": list(removed)})
    else:
        OUT.say(f"Removed the mask {name!r} from {count_noun(len(removed), 'scan')}.")
