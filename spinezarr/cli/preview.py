"""``spinezarr preview``: a picture of each scan."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import track

import spinezarr
from spinezarr.cli.console import ERR, OUT, errors_for_users, make_folder
from spinezarr.cli.options import (
    CatalogFile,
    EndpointUrl,
    NoSignRequest,
    Profile,
    StoreUrl,
    storage_options,
)
from spinezarr.errors import UnknownScanError

__all__ = ["preview", "write_previews"]


def preview(
    store: StoreUrl,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")],
    scan: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this scan; may be repeated.")
    ] = None,
    catalog: CatalogFile = None,
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
) -> None:
    """Draw a PNG a scan: sagittal, coronal and axial through the spine, vertebrae named.

    Annotated centres are shown as dots.

    Example:  spinezarr preview demo/ctspine1k.zarr --out previews
    """
    with errors_for_users():
        options = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        opened = spinezarr.open(store, catalog=catalog, storage_options=options)
        written = write_previews(opened, out, scan)
        pictures = "picture" if len(written) == 1 else "pictures"
        OUT.print(f"Wrote {len(written)} {pictures} to {escape(str(out))}.", soft_wrap=True)


def write_previews(
    store: "spinezarr.Store", folder: Path, scans: list[str] | None = None
) -> list[Path]:
    """Write the preview of each scan to ``folder`` as ``<scan_id>.png``; return the paths."""
    known = [str(name) for name in store.table.scan.to_numpy()]
    names = known if scans is None else scans
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise UnknownScanError(f"{store.url}: has no scan {unknown[0]!r}.")
    make_folder(folder)
    paths = []
    for name in track(names, "preview", console=ERR):
        path = folder / f"{name}.png"
        store.preview(name).savefig(path)
        paths.append(path)
    return paths
