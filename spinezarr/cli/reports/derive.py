"""What does ``spinezarr derive`` print?"""

from dataclasses import asdict

from spinezarr.cli.console import OUT, print_heading, print_json
from spinezarr.cli.reports.ingest import print_run
from spinezarr.text import count_noun, to_printable
from spinezarr.verbs.derive import DeriveReport

__all__ = ["print_derived"]


def print_derived(report: DeriveReport, *, as_json: bool) -> None:
    """Print what was derived; with ``as_json``, print the whole report as JSON."""
    if as_json:
        print_json({**asdict(report), "exit_code": report.exit_code})
        return
    print_heading(f"Derive {report.store} from {report.source}")
    OUT.say(f"Each scan is {report.derivation}.")
    print_run(
        report,
        kept="The derived store keeps {} from earlier runs, which were not chosen now.",
        source="Source files and arrays",
    )
    if report.left_out:
        licenses = ", ".join(sorted({*report.left_out.values()}))
        OUT.say(
            f"Left out: {count_noun(len(report.left_out), 'scan')} whose license allows no "
            f"derivatives ({to_printable(licenses)}); --include-restricted derives them, too."
        )
