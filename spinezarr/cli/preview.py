"""``spinezarr preview``: a picture of each scan."""

from pathlib import Path
from typing import Annotated

import typer

import spinezarr
from spinezarr.cli.console import OUT, errors_for_users, make_folder, tracked
from spinezarr.cli.options import (
    CatalogFile,
    EndpointUrl,
    NoSignRequest,
    Profile,
    StoreUrl,
    storage_options,
)
from spinezarr.export.atomic_file import write_atomically
from spinezarr.store.reader import resolve_scan_ids
from spinezarr.text import count_noun

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

    Annotated centers are shown as dots.

    Example:  spinezarr preview demo/ctspine1k.zarr --out previews
    """
    with errors_for_users():
        options = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        opened = spinezarr.open(store, catalog=catalog, storage_options=options)
        written = write_previews(opened, out, scan)
        OUT.say(f"Wrote {count_noun(len(written), 'picture')} to {out}.")


def write_previews(
    store: "spinezarr.Store", folder: Path, scans: list[str] | None = None
) -> list[Path]:
    """Write the preview of each scan to ``folder`` as ``<scan_id>.png``; return the paths."""
    known = [str(name) for name in store.table.scan.to_numpy()]
    names = known if scans is None else resolve_scan_ids(scans, known, store.url)
    make_folder(folder)
    paths = []
    for name in tracked(names, "preview"):
        path = folder / f"{name}.png"
        picture = store.preview(name)
        with write_atomically(path) as file:
            picture.savefig(file, format="png")
        paths.append(path)
    return paths
