"""``spinezarr verify``: whether a store is whole."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

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
from spinezarr.cli.options import (
    AsJson,
    CatalogFile,
    EndpointUrl,
    NoSignRequest,
    Profile,
    RawEndpointUrl,
    RawNoSignRequest,
    RawProfile,
    StoreUrl,
    storage_options,
)
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
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
    raw_endpoint_url: RawEndpointUrl = None,
    raw_profile: RawProfile = None,
    raw_no_sign_request: RawNoSignRequest = False,
) -> None:
    """Read every byte of a store: each file against its manifest, each chunk against its checksum.

    Finds bytes that changed, files that are gone, cut short, exchanged or too many, and rows of
    the scan table that do not say what their scans say.

    Exit code 0: the store is whole; 1: it is not; 2: wrong usage.

    Example:  spinezarr verify demo/ctspine1k.zarr --against demo/raw
    """
    with errors_for_users():
        url, options = locate_store(store, catalog)
        given = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        of_raw = storage_options(raw_endpoint_url, raw_profile, no_sign_request=raw_no_sign_request)
        options = {**options, **given}
        found = _verify(url, scan, options)
        if against is not None:
            raw_options = of_raw or (options if "://" in against else {})
            found = _compare(found, against, options, raw_options)
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


def _verify(url: str, scans: list[str] | None, options: Mapping[str, Any]) -> Verification:
    with _progress() as progress:
        task = progress.add_task("verify", total=None)
        return verify_store(
            url,
            scans,
            storage_options=options,
            on_total=lambda size: progress.update(task, total=size or None),
            on_bytes=lambda size: progress.advance(task, size),
        )


def _compare(
    found: Verification, raw: str, options: Mapping[str, Any], raw_options: Mapping[str, Any]
) -> Verification:
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
            storage_options=options,
            raw_options=raw_options,
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
