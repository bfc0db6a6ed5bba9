"""What does a check of a store print?"""

from spinezarr.cli.console import (
    OUT,
    SHOWN,
    StyledText,
    Table,
    print_capped,
    print_heading,
)
from spinezarr.redaction import redact_url
from spinezarr.text import count_noun
from spinezarr.verify.store import Verification

__all__ = ["print_verification"]


def print_verification(found: Verification, raw: str | None) -> None:
    """Print the faults of a store, which was also compared with a raw folder if one is given."""
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
