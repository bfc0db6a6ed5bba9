"""``spinezarr audit``: defects of annotation and data in stores."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import typer
from rich.progress import MofNCompleteColumn, TextColumn

import spinezarr
from spinezarr.audit.cross_scan_rules import scan_keys
from spinezarr.audit.finding import Finding
from spinezarr.audit.run import StoreAudit, audit_across, severity_rank
from spinezarr.cli.console import (
    ERR,
    OUT,
    SHOWN,
    Table,
    describing,
    errors_for_users,
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
    storage_options,
)
from spinezarr.errors import ReadOnlyStoreError, UnknownScanError
from spinezarr.redaction import redact_url
from spinezarr.store.audit_log import SEVERITIES, Severity
from spinezarr.text import MultilineText, count_noun, to_nfc

__all__ = ["audit"]

_STYLES = {"error": "bold red", "warning": "yellow", "info": None}


def audit(
    stores: Annotated[
        list[str], typer.Argument(metavar="URL", help="Paths, URLs or catalog names of stores.")
    ],
    *,
    scan: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only this scan; may be repeated.")
    ] = None,
    severity: Annotated[
        Severity, typer.Option(help="Show findings of this severity and worse.")
    ] = "info",
    no_write: Annotated[
        bool, typer.Option("--no-write", help="Report only; leave the stores as they are.")
    ] = False,
    as_json: AsJson = False,
    catalog: CatalogFile = None,
    endpoint_url: EndpointUrl = None,
    profile: Profile = None,
    no_sign_request: NoSignRequest = False,
) -> None:
    """Find defects: skipped, misplaced or split vertebrae, odd values, the same scan in two splits.

    Findings are kept in the store and shown in its scan table, columns audit and audit_findings.
    With several stores, images and patients are compared across them too.

    Exit code 0: no finding is an error; 1: at least one is; 2: wrong usage.

    Example:  spinezarr audit demo/ctspine1k.zarr --severity warning
    """
    with errors_for_users():
        options = storage_options(endpoint_url, profile, no_sign_request=no_sign_request)
        named = (spinezarr.open(name, catalog=catalog, storage_options=options) for name in stores)
        opened = list({store.url: store for store in named}.values())
        audits = _run(opened, scan)
        if not no_write:
            for store, found in zip(opened, audits, strict=True):
                if found.scans:
                    _keep(store, found)
        keys = [key for s in opened for key in scan_keys(s.url, s.attrs["dataset"], s.table)]
        audits = audit_across(keys, audits)
        if as_json:
            print_json([_selected(found, severity).to_json() for found in audits])
        else:
            for found in audits:
                _print(found, severity)
        raise typer.Exit(max(found.exit_code for found in audits))


def _run(stores: Sequence["spinezarr.Store"], wanted: Sequence[str] | None) -> list[StoreAudit]:
    """Audit the wanted scans of each store, with a progress bar."""
    wanted = None if wanted is None else list(map(to_nfc, wanted))
    names = [_own_scans(store, wanted) for store in stores]
    if wanted is not None and (absent := sorted(set(wanted).difference(*names))):
        places = ", ".join(redact_url(store.url) for store in stores)
        raise UnknownScanError(f"{places}: no scan {absent[0]!r}.")
    with describing(MofNCompleteColumn(), TextColumn("scans")) as progress:
        task = progress.add_task("audit", total=sum(map(len, names)))
        return [
            store.audit(own, on_scan=lambda: progress.advance(task))
            for store, own in zip(stores, names, strict=True)
        ]


def _own_scans(store: "spinezarr.Store", wanted: Sequence[str] | None) -> list[str]:
    known = store.table.scan.to_numpy().tolist()
    return known if wanted is None else [name for name in wanted if name in known]


def _keep(store: "spinezarr.Store", found: StoreAudit) -> None:
    try:
        store.save_audit(found)
    except ReadOnlyStoreError as problem:
        ERR.say(f"{problem} The findings are only reported.")


def _selected(found: StoreAudit, severity: Severity) -> StoreAudit:
    """Leave out what is less severe."""
    least = SEVERITIES.index(severity)
    kept = tuple(f for f in found.findings if SEVERITIES.index(f.severity) >= least)
    return replace(found, findings=kept)


def _print(found: StoreAudit, severity: Severity) -> None:
    print_heading(f"Audit of {redact_url(found.url)}: {count_noun(len(found.scans), 'scan')}")
    counts = Table("", "rule", *reversed(SEVERITIES), right=SEVERITIES)
    for rule, by_severity in found.counts.items():
        counts.add_row(rule, *(str(by_severity.get(name, 0)) for name in reversed(SEVERITIES)))
    if not found.findings:
        OUT.say("Nothing was found.")
        return
    OUT.print(counts)
    shown = sorted(_selected(found, severity).findings, key=severity_rank)
    if not shown:
        return
    table = Table(
        "", "scan", "severity", "what (rule)", MultilineText("mm (x y z)", "voxel (z y x)")
    )
    for finding in shown[:SHOWN]:
        table.add_row(*_row(finding), style=_STYLES[finding.severity])
    print_capped(table, len(shown))


def _row(finding: Finding) -> tuple[str, str, str, str]:
    at_mm = " ".join(f"{mm:.0f}" for mm in finding.position_mm or ())
    at_voxel = " ".join(map(str, finding.voxel_zyx or ()))
    return (
        finding.scan_id,
        finding.severity,
        f"{finding.text} ({finding.rule})",
        MultilineText(*filter(None, (at_mm, at_voxel))),
    )
