"""What does ``spinezarr derive`` print?"""

from dataclasses import asdict

from spinezarr.cli.console import OUT, print_heading, print_json
from spinezarr.cli.reports.export import print_left_out
from spinezarr.cli.reports.ingest import print_run
from spinezarr.verbs.derive import DeriveReport

__all__ = ["print_derived"]


def print_derived(report: DeriveReport, *, as_json: bool) -> None:
    """Print what was derived; with ``as_json``, print the whole report as JSON."""
    if as_json:
        print_json(asdict(report), report.exit_code)
        return
    print_heading(f"Derive {report.store} from {report.source}")
    OUT.say(f"Each scan is {report.derivation}.")
    print_run(
        report,
        kept="The derived store keeps {} from earlier runs, which were not chosen now.",
        source="Source files and arrays",
    )
    print_left_out(report.left_out, report.left_out_masks, "derives")
