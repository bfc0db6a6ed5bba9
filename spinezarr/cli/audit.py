"""``spinezarr audit``: which defects do the annotations and data of stores have?"""

from typing import Annotated

import typer

from spinezarr.cli.options import AsJson, Layer, OpenOptions, ScanOptions, command
from spinezarr.store.severity import Severity

__all__ = ["audit"]


@command
def audit(
    stores: Annotated[
        list[str], typer.Argument(metavar="STORE", help="Paths, URLs or catalog names of stores.")
    ],
    *,
    layer: Layer = "label",
    scan_options: ScanOptions,
    severity: Annotated[
        Severity, typer.Option(help="Show findings of this severity and worse.")
    ] = "info",
    no_write: Annotated[
        bool, typer.Option("--no-write", help="Report only; leave the stores as they are.")
    ] = False,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Find defects: skipped, misplaced or split vertebrae, odd values, the same scan in two splits.

    Findings are kept in the store and shown in its scan table, columns audit and audit_findings.
    With several stores, images and patients are compared across them too.

    With --layer, the rules on vertebrae are applied to that mask, and the findings are only shown.

    Exit code 0: no finding is an error; 1: at least one is; 2: wrong usage.

    Example:  spinezarr audit demo/ctspine1k.zarr --severity warning
    """
    from spinezarr.api import audit_stores
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.audit import print_audits

    opened_stores = list({store.url: store for store in map(open_options.open, stores)}.values())
    with show_progress() as on_progress:
        audits = audit_stores(
            opened_stores,
            layer=layer,
            **scan_options.names,
            write=not no_write,
            on_progress=on_progress,
        )
    print_audits(audits, severity, as_json=as_json)
    raise typer.Exit(max(report.exit_code for report in audits))
