"""What does an audit print?"""

from collections.abc import Sequence
from typing import Final

from spinezarr.audit.finding import Finding
from spinezarr.audit.run import StoreAudit, severity_rank
from spinezarr.cli.console import (
    ERR,
    MAX_ROWS,
    OUT,
    Table,
    print_capped,
    print_heading,
    print_json,
)
from spinezarr.redaction import redact_url
from spinezarr.store.layout import LABEL
from spinezarr.store.severity import SEVERITIES, Severity
from spinezarr.text import MultilineText, count_noun

__all__ = ["print_audits"]

_STYLES: Final = {"error": "bold red", "warning": "yellow", "info": None}


def print_audits(audits: Sequence[StoreAudit], severity: Severity, *, as_json: bool) -> None:
    """Print the findings of this severity and worse."""
    for audit in audits:
        if audit.not_written:
            ERR.say(audit.not_written)
    if as_json:
        reports = [audit.at_least(severity).to_json() for audit in audits]
        print_json({"audits": reports}, max(audit.exit_code for audit in audits))
    else:
        for audit in audits:
            _print(audit, severity)


def _print(audit: StoreAudit, severity: Severity) -> None:
    mask = "" if audit.mask == LABEL else f", mask {audit.mask}"
    scans = count_noun(len(audit.scans), "scan")
    print_heading(f"Audit of {redact_url(audit.url)}{mask}: {scans}")
    counts = Table("", "rule", *reversed(SEVERITIES), right=SEVERITIES)
    for rule, by_severity in audit.counts.items():
        counts.add_row(rule, *(str(by_severity.get(name, 0)) for name in reversed(SEVERITIES)))
    if not audit.findings:
        OUT.say("The audit found nothing.")
        return
    OUT.print(counts)
    listed = sorted(audit.at_least(severity).findings, key=severity_rank)
    if not listed:
        return
    table = Table(
        "", "scan", "severity", "finding (rule)", MultilineText("mm (x y z)", "voxel (z y x)")
    )
    for finding in listed[:MAX_ROWS]:
        table.add_row(*_row(finding), style=_STYLES[finding.severity])
    print_capped(table, len(listed))


def _row(finding: Finding) -> tuple[str, str, str, str]:
    at_mm = " ".join(f"{mm:.0f}" for mm in finding.position_xyz_mm or ())
    at_voxel = " ".join(map(str, finding.voxel_zyx or ()))
    return (
        finding.scan_id,
        finding.severity,
        f"{finding.text} ({finding.rule})",
        MultilineText(*filter(None, (at_mm, at_voxel))),
    )
