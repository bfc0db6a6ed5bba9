"""``spinezarr verify``: is a store intact?"""

from typing import Annotated

import typer

from spinezarr.cli.options import (
    AsJson,
    FollowLinks,
    OpenOptions,
    RawBucketOptions,
    ScanOptions,
    StoreUrl,
    command,
)

__all__ = ["verify"]


@command
def verify(
    store: StoreUrl,
    *,
    against: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RAW",
            help="Also compare each voxel with the files of this folder; may be repeated.",
        ),
    ] = None,
    scan_options: ScanOptions,
    follow_links: FollowLinks = None,
    as_json: AsJson = False,
    open_options: OpenOptions,
    raw_bucket: RawBucketOptions,
) -> None:
    """Check every byte of a store: files against manifests, and chunks against checksums.

    The check finds changed bytes, files that are missing, cut short, exchanged or left over, and
    rows of the scan table that differ from their scans.

    With --against, further masks that came from files are compared too, if one of the folders has
    their files.

    Exit code 0: the store is intact; 1: it is not; 2: wrong usage.

    Example:  spinezarr verify demo/ctspine1k.zarr --against demo/raw
    """
    from spinezarr.catalog import locate_store
    from spinezarr.cli.console import print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.verify import print_verification
    from spinezarr.store.selection import ScanSelection
    from spinezarr.verbs.verify import verify as verify_url

    # A damaged store cannot be opened, so it is checked by its URL.
    url, options = locate_store(store, open_options.catalog)
    with show_progress() as on_progress:
        verification = verify_url(
            url,
            ScanSelection.of(**scan_options.names),
            against=against or None,
            follow_links=follow_links,
            storage_options={**options, **open_options.storage_options},
            raw_storage_options=raw_bucket.storage_options,
            on_progress=on_progress,
        )
    if as_json:
        print_json(verification.to_json(), verification.exit_code)
    else:
        print_verification(verification, against or [])
    raise typer.Exit(verification.exit_code)
