"""``spinezarr verify``: is a store whole?"""

from typing import Annotated

import typer

from spinezarr.catalog import locate_store
from spinezarr.cli.console import (
    OUT,
    SHOWN,
    StyledText,
    Table,
    print_capped,
    print_heading,
    print_json,
    show_progress,
)
from spinezarr.cli.options import (
    AsJson,
    FollowLinks,
    OpenOptions,
    RawBucketOptions,
    ScanOptions,
    StoreUrl,
    command,
)
from spinezarr.redaction import redact_url
from spinezarr.store.selection import ScanSelection
from spinezarr.text import count_noun
from spinezarr.verbs.verify import verify as verify_url
from spinezarr.verify.store import Verification

__all__ = ["verify"]


@command
def verify(
    store: StoreUrl,
    *,
    against: Annotated[
        str | None,
        typer.Option(metavar="RAW", help="Also compare each voxel with the files of this folder."),
    ] = None,
    chosen: ScanOptions,
    follow_links: FollowLinks = None,
    as_json: AsJson = False,
    opening: OpenOptions,
    raw_bucket: RawBucketOptions,
) -> None:
    """Read every byte of a store: each file against its manifest, each chunk against its checksum.

    Finds changed bytes, files that are missing, cut short, exchanged or left over, and rows of the
    scan table that differ from their scans.

    Exit code 0: the store is whole; 1: it is not; 2: wrong usage.

    Example:  spinezarr verify demo/ctspine1k.zarr --against demo/raw
    """
    # A damaged store cannot be opened, so it is checked by its URL.
    url, options = locate_store(store, opening.catalog)
    with show_progress() as show:
        found = verify_url(
            url,
            ScanSelection.of(**chosen.names),
            against=against,
            follow_links=follow_links,
            storage_options={**options, **opening.storage_options},
            raw_storage_options=raw_bucket.storage_options,
            on_progress=show,
        )
    if as_json:
        print_json(found.to_json())
    else:
        _print(found, against)
    raise typer.Exit(found.exit_code)


def _print(found: Verification, raw: str | None) -> None:
    print_heading(f"Check of {redact_url(found.url)}: {count_noun(len(found.scans), 'scan')}")
    if not found.listed:
        OUT.say("A web server cannot be listed, so leftover files were not looked for.")
    if found.leftovers:
        names = ", ".join(found.leftovers)
        OUT.say(
            f"Left by an ingest that runs or was cut off: {names}. If none runs, run the same "
            "'spinezarr ingest' again: it removes them."
        )
    if not found.faults:
        place = None if raw is None else redact_url(raw)
        same = "" if place is None else f" Every voxel equals its source file in {place}."
        OUT.say(f"Every byte is as it was written.{same}")
        return
    table = Table("Faults", "scan", "file", "fault", "found", "expected")
    for fault in found.faults[:SHOWN]:
        table.add_row(fault.scan_id or "", fault.path, fault.kind, fault.found, fault.expected)
    print_capped(table, len(found.faults))
    for advice in dict.fromkeys(fault.advice for fault in found.faults):
        kinds = dict.fromkeys(f.kind for f in found.faults if f.advice == advice)
        OUT.say(StyledText(", ".join(kinds), "bold"), f": {advice}")
