"""What does an audit print?"""

from collections.abc import Sequence
from typing import Final

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
)
from spinezarr.redaction import redact_url
from spinezarr.store.severity import SEVERITIES, Severity
from spinezarr.text import MultilineText, count_noun

__all__ = ["print_audits"]

_STYLES: Final = {"error": "bold red", "warning": "yellow", "info": None}


def print_audits(audits: Sequence[StoreAudit], severity: Severity, *, as_json: bool) -> None:
    """Print the findings of this severity and worse."""
    for found in audits:
        if found.not_written:
            ERR.say(found.not_written)
    if as_json:
        print_json([found.at_least(severity).to_json() for found in audits])
    else:
        for found in audits:
            _print(found, severity)


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
