"""``spinezarr verify``: whether a store is whole."""

from dataclasses import replace
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from spinezarr.catalog import locate_store
from spinezarr.cli.console import (
    ERR,
    OUT,
    SHOWN,
    errors_for_users,
    new_table,
    print_capped,
    print_heading,
    print_json,
)
from spinezarr.cli.options import AsJson, CatalogFile, StoreUrl
from spinezarr.verify.against import compare_with_source
from spinezarr.verify.store import Verification, verify_store

__all__ = ["verify"]


def verify(
    store: StoreUrl,
    *,
    against: Annotated[
        str | None,
        typer.Option(metavar="RAW", help="Also compare each voxel with the files of this folder."),
    ] = None,
    scan: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this scan; may be repeated.")
    ] = None,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
) -> None:
    """Read every byte of a store: each file against its manifest, each chunk against its checksum.

    Finds bytes that changed, files that are gone, cut short, exchanged or too many, and rows of
    the scan table that do not say what their scans say.

    Exit code 0: the store is whole; 1: it is not; 2: wrong usage.

    Example:  spinezarr verify demo/ctspine1k.zarr --against demo/raw
    """
    with errors_for_users():
        url = locate_store(store, catalog)
        found = _verify(url, scan)
        if against is not None:
            found = _compare(found, against)
        if as_json:
            print_json(found.to_json())
        else:
            _print(found, against)
        raise typer.Exit(found.exit_code)


def _progress() -> Progress:
    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=ERR,
    )


def _verify(url: str, scans: list[str] | None) -> Verification:
    with _progress() as progress:
        task = progress.add_task("verify", total=None)
        return verify_store(
            url,
            scans,
            on_total=lambda size: progress.update(task, total=size or None),
            on_bytes=lambda size: progress.advance(task, size),
        )


def _compare(found: Verification, raw: str) -> Verification:
    """Compare the scans that are whole with their source files."""
    broken = {fault.scan_id for fault in found.faults if fault.kind not in {"disagrees", "extra"}}
    if "zarr.json" in {fault.path for fault in found.faults}:
        broken.update(found.scans)
    whole = [name for name in found.scans if name not in broken]
    if len(whole) < len(found.scans):
        ERR.print(f"Not compared: {len(found.scans) - len(whole)} scans that are not whole.")
    if not whole:
        return found
    with _progress() as progress:
        task = progress.add_task("compare", total=None)
        faults = compare_with_source(
            found.url,
            raw,
            whole,
            on_total=lambda size: progress.update(task, total=size),
            on_bytes=lambda size: progress.advance(task, size),
        )
    return replace(found, faults=(*found.faults, *faults))


def _print(found: Verification, raw: str | None) -> None:
    print_heading(f"Check of {found.url}: {len(found.scans)} scans")
    if not found.listed:
        OUT.print("A web server cannot be listed: files that are too many were not looked for.")
    if found.leftovers:
        names = ", ".join(found.leftovers)
        OUT.print(
            f"Left by an ingest that runs or was cut off: {escape(names)}. If none runs, run the "
            "same 'spinezarr ingest' again: it removes them.",
            soft_wrap=True,
        )
    if not found.faults:
        same = "" if raw is None else f" Every voxel is that of its source file in {escape(raw)}."
        OUT.print(f"Every byte is as it was written.{same}", soft_wrap=True)
        return
    table = new_table("Faults", "scan", "file", "fault", "found", "expected")
    for fault in found.faults[:SHOWN]:
        row = (fault.scan_id or "", fault.path, fault.kind, fault.found, fault.expected)
        table.add_row(*map(escape, row))
    print_capped(table, len(found.faults))
    for advice in dict.fromkeys(fault.advice for fault in found.faults):
        kinds = dict.fromkeys(f.kind for f in found.faults if f.advice == advice)
        OUT.print(f"[bold]{', '.join(kinds)}[/]: {escape(advice)}", soft_wrap=True)
