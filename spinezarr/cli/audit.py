"""``spinezarr audit``: which defects do annotation and data of stores have?"""

from typing import Annotated

import typer

from spinezarr.api import audit_stores
from spinezarr.audit.finding import Finding
from spinezarr.audit.run import StoreAudit, severity_rank
from spinezarr.cli.console import (
    ERR,
    OUT,
    SHOWN,
    Table,
    print_capped,
    print_heading,
    print_json,
    show_progress,
)
from spinezarr.cli.options import AsJson, OpenOptions, ScanOptions, command
from spinezarr.redaction import redact_url
from spinezarr.store.audit_log import SEVERITIES, Severity
from spinezarr.text import MultilineText, count_noun

__all__ = ["audit"]

_STYLES = {"error": "bold red", "warning": "yellow", "info": None}


@command
def audit(
    stores: Annotated[
        list[str], typer.Argument(metavar="URL", help="Paths, URLs or catalog names of stores.")
    ],
    *,
    chosen: ScanOptions,
    severity: Annotated[
        Severity, typer.Option(help="Show findings of this severity and worse.")
    ] = "info",
    no_write: Annotated[
        bool, typer.Option("--no-write", help="Report only; leave the stores as they are.")
    ] = False,
    as_json: AsJson = False,
    opening: OpenOptions,
) -> None:
    """Find defects: skipped, misplaced or split vertebrae, odd values, the same scan in two splits.

    Findings are kept in the store and shown in its scan table, columns audit and audit_findings.
    With several stores, images and patients are compared across them too.

    Exit code 0: no finding is an error; 1: at least one is; 2: wrong usage.

    Example:  spinezarr audit demo/ctspine1k.zarr --severity warning
    """
    opened = list({store.url: store for store in map(opening.open, stores)}.values())
    with show_progress() as show:
        audits = audit_stores(opened, **chosen.names, write=not no_write, on_progress=show)
    for found in audits:
        if found.not_written:
            ERR.say(found.not_written)
    if as_json:
        print_json([found.at_least(severity).to_json() for found in audits])
    else:
        for found in audits:
            _print(found, severity)
    raise typer.Exit(max(found.exit_code for found in audits))


def _print(found: StoreAudit, severity: Severity) -> None:
    print_heading(f"Audit of {redact_url(found.url)}: {count_noun(len(found.scans), 'scan')}")
    counts = Table("", "rule", *reversed(SEVERITIES), right=SEVERITIES)
    for rule, by_severity in found.counts.items():
        counts.add_row(rule, *(str(by_severity.get(name, 0)) for name in reversed(SEVERITIES)))
    if not found.findings:
        OUT.say("Nothing was found.")
        return
    OUT.print(counts)
    shown = sorted(found.at_least(severity).findings, key=severity_rank)
    if not shown:
        return
    table = Table(
        "", "scan", "severity", "what (rule)", MultilineText("mm (x y z)", "voxel (z y x)")
    )
    for finding in shown[:SHOWN]:
        table.add_row(*_row(finding), style=_STYLES[finding.severity])
    print_capped(table, len(shown))


def _row(finding: Finding) -> tuple[str, str, str, str]:
    at_mm = " ".join(f"{mm:.0f}" for mm in finding.position_xyz_mm or ())
    at_voxel = " ".join(map(str, finding.voxel_zyx or ()))
    return (
        finding.scan_id,
        finding.severity,
        f"{finding.text} ({finding.rule})",
        MultilineText(*filter(None, (at_mm, at_voxel))),
    )
