"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["AsJson", "CatalogFile", "StoreUrl"]

StoreUrl = Annotated[
    str, typer.Argument(metavar="URL", help="Path, URL or catalog name of the store.")
]
CatalogFile = Annotated[
    Path | None,
    typer.Option(
        "--catalog",
        metavar="FILE",
        help="Catalog file; else $SPINEZARR_CATALOG, else ./catalog.yaml.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
