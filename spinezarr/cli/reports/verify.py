"""How is the check of a store printed?"""

from collections.abc import Sequence

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


def print_verification(verification: Verification, raw: Sequence[str]) -> None:
    """Print the faults of a store, which was also compared with the folders in ``raw``."""
    print_heading(
        f"Check of {redact_url(verification.url)}: {count_noun(len(verification.scans), 'scan')}"
    )
    if not verification.listed:
        OUT.say("A web server cannot be listed, so leftover files cannot be found.")
    if verification.leftovers:
        names = ", ".join(verification.leftovers)
        command = "ingest" if verification.derived_from is None else "derive"
        OUT.say(
            f"A running or interrupted command left these files: {names}. If no command is writing "
            f"the store, run the same 'spinezarr {command}' again, which removes them."
        )
    for reason, count in verification.not_compared.items():
        were = "was" if count == 1 else "were"
        OUT.say(f"{count} of the images and masks {were} not compared with a source: {reason}.")
    if not verification.faults:
        folders = " and ".join(map(redact_url, raw))
        rest = " compared" if verification.not_compared else ""
        comparison = f" Every{rest} voxel equals its source file in {folders}." if raw else ""
        OUT.say(f"Every byte is as it was written.{comparison}")
        return
    table = Table("Faults", "scan", "file", "fault", "found", "expected")
    for fault in verification.faults[:MAX_ROWS]:
        table.add_row(fault.scan_id or "", fault.path, fault.kind, fault.found, fault.expected)
    print_capped(table, len(verification.faults))
    for advice in dict.fromkeys(fault.advice for fault in verification.faults):
        kinds = dict.fromkeys(fault.kind for fault in verification.faults if fault.advice == advice)
        OUT.say(StyledText(", ".join(kinds), "bold"), f": {advice}")
