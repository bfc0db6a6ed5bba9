"""``spinezarr verify``: whether a store is whole."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any

import typer

from spinezarr.catalog import locate_store
from spinezarr.cli.console import (
    ERR,
    OUT,
    SHOWN,
    Said,
    Table,
    bytes_progress,
    errors_for_users,
    print_capped,
    print_heading,
    print_json,
)
from spinezarr.cli.options import (
    AsJson,
    CatalogFile,
    EndpointUrl,
    FollowLinks,
    NoSignRequest,
    Profile,
    RawEndpointUrl,
    RawNoSignRequest,
    RawProfile,
    StoreUrl,
    link_folders,
    storage_options,
)
from spinezarr.formats import Limits
from spinezarr.redaction import redact_url
from spinezarr.text import count_noun
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
    follow_links: FollowLinks = None,
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
            limits = Limits(link_folders=link_folders(follow_links))
            found = _compare(found, against, options, raw_options, limits)
        if as_json:
            print_json(found.to_json())
        else:
            _print(found, against)
        raise typer.Exit(found.exit_code)


def _verify(url: str, scans: list[str] | None, options: Mapping[str, Any]) -> Verification:
    with bytes_progress() as progress:
        task = progress.add_task("verify", total=None)
        return verify_store(
            url,
            scans,
            storage_options=options,
            on_total=lambda size: progress.update(task, total=size or None),
            on_bytes=lambda size: progress.advance(task, size),
        )


def _compare(
    found: Verification,
    raw: str,
    options: Mapping[str, Any],
    raw_options: Mapping[str, Any],
    limits: Limits,
) -> Verification:
    """Compare the scans that are whole with their source files."""
    broken = {fault.scan_id for fault in found.faults if fault.kind not in {"disagrees", "extra"}}
    if "zarr.json" in {fault.path for fault in found.faults}:
        broken.update(found.scans)
    whole = [name for name in found.scans if name not in broken]
    if len(whole) < len(found.scans):
        ERR.say(f"Not compared, as not whole: {count_noun(len(found.scans) - len(whole), 'scan')}.")
    if not whole:
        return found
    # What reads raw files takes long to import.
    from spinezarr.verify.source import compare_with_source  # noqa: PLC0415

    with bytes_progress() as progress:
        task = progress.add_task("compare", total=None)
        faults = compare_with_source(
            found.url,
            raw,
            whole,
            storage_options=options,
            raw_options=raw_options,
            limits=limits,
            on_total=lambda size: progress.update(task, total=size),
            on_bytes=lambda size: progress.advance(task, size),
        )
    return replace(found, faults=(*found.faults, *faults))


def _print(found: Verification, raw: str | None) -> None:
    print_heading(f"Check of {redact_url(found.url)}: {count_noun(len(found.scans), 'scan')}")
    if not found.listed:
        OUT.say("A web server cannot be listed: files that are too many were not looked for.")
    if found.leftovers:
        names = ", ".join(found.leftovers)
        OUT.say(
            f"Left by an ingest that runs or was cut off: {names}. If none runs, run the same "
            "'spinezarr ingest' again: it removes them."
        )
    if not found.faults:
        place = None if raw is None else redact_url(raw)
        same = "" if place is None else f" Every voxel is that of its source file in {place}."
        OUT.say(f"Every byte is as it was written.{same}")
        return
    table = Table("Faults", "scan", "file", "fault", "found", "expected")
    for fault in found.faults[:SHOWN]:
        table.add_row(fault.scan_id or "", fault.path, fault.kind, fault.found, fault.expected)
    print_capped(table, len(found.faults))
    for advice in dict.fromkeys(fault.advice for fault in found.faults):
        kinds = dict.fromkeys(f.kind for f in found.faults if f.advice == advice)
        OUT.say(Said(", ".join(kinds), "bold"), f": {advice}")
