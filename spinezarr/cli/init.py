"""``spinezarr init``: how does a user start a catalog?"""

from pathlib import Path
from typing import Annotated

import typer

from spinezarr.cli.options import command

__all__ = ["init"]


@command
def init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")] = Path(
        "catalog.yaml"
    ),
) -> None:
    """Write a starter catalog of datasets, ready to edit.

    Example:  spinezarr init
    """
    from spinezarr.cli.console import OUT
    from spinezarr.errors import UsageError
    from spinezarr.export.atomic_file import make_folder
    from spinezarr.resources import resource

    if path.exists():
        raise UsageError(f"{path}: exists already, and is not changed. Give another name.")
    make_folder(path.parent)
    with path.open("x", encoding="utf-8") as file:  # not through a link
        file.write(resource("catalog.yaml").read_text(encoding="utf-8"))
    OUT.say(f"Wrote {path}. Edit its paths, then run: spinezarr ingest ctspine1k")
