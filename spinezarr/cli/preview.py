"""``spinezarr preview``: a picture of each scan."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import track

import spinezarr
from spinezarr.cli.console import ERR, OUT, errors_for_users
from spinezarr.cli.options import CatalogFile, StoreUrl

__all__ = ["preview", "write_previews"]


def preview(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")],
    scan: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this scan; may be repeated.")
    ] = None,
    catalog: CatalogFile = None,
) -> None:
    """Draw a PNG a scan: sagittal, coronal and axial through the spine, vertebrae named.

    Example:  spinezarr preview demo/ctspine1k.zarr --out previews
    """
    with errors_for_users():
        written = write_previews(spinezarr.open(store, catalog=catalog), out, scan)
        OUT.print(f"Wrote {len(written)} pictures to {out}.")


def write_previews(
    store: "spinezarr.Store", folder: Path, scans: list[str] | None = None
) -> list[Path]:
    """Write the preview of each scan to ``folder`` as ``<scan_id>.png``; return the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    names = scans or [str(name) for name in store.table.scan.to_numpy()]
    paths = []
    for name in track(names, "preview", console=ERR):
        path = folder / f"{name}.png"
        store.preview(name).savefig(path)
        paths.append(path)
    return paths
