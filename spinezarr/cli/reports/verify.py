"""How is the check of a store printed?"""

from spinezarr.cli.console import (
    MAX_ROWS,
    OUT,
    StyledText,
    Table,
    print_capped,
    print_heading,
)
from spinezarr.redaction import redact_url
from spinezarr.text import count_noun
from spinezarr.verify.store import Verification

__all__ = ["print_verification"]


def print_verification(verification: Verification, raw: str | None) -> None:
    """Print the faults of a store. If ``raw`` is given, it was also compared with this folder."""
    print_heading(
        f"Check of {redact_url(verification.url)}: {count_noun(len(verification.scans), 'scan')}"
    )
    if not verification.listed:
        OUT.say("A web server cannot be listed, so leftover files cannot be found.")
    if verification.leftovers:
        names = ", ".join(verification.leftovers)
        OUT.say(
            f"A running or interrupted ingest left these files: {names}. If no ingest is running, "
            "run the same 'spinezarr ingest' again, which removes them."
        )
    if not verification.faults:
        raw_location = None if raw is None else redact_url(raw)
        comparison = (
            ""
            if raw_location is None
            else f" Every voxel equals its source file in {raw_location}."
        )
        OUT.say(f"Every byte is as it was written.{comparison}")
        return
    table = Table("Faults", "scan", "file", "fault", "found", "expected")
    for fault in verification.faults[:MAX_ROWS]:
        table.add_row(fault.scan_id or "", fault.path, fault.kind, fault.found, fault.expected)
    print_capped(table, len(verification.faults))
    for advice in dict.fromkeys(fault.advice for fault in verification.faults):
        kinds = dict.fromkeys(fault.kind for fault in verification.faults if fault.advice == advice)
        OUT.say(StyledText(", ".join(kinds), "bold"), f": {advice}")
