"""What do ``spinezarr push`` and ``spinezarr pull`` print?"""

from spinezarr.cli.console import MAX_ROWS, OUT, Table, print_capped, print_json
from spinezarr.cli.reports.export import print_left_out
from spinezarr.text import count_noun, megabytes
from spinezarr.verbs.copy import CopyReport, describe_work

__all__ = ["print_copy"]


def print_copy(report: CopyReport, *, as_json: bool) -> None:
    """Print what was copied; with ``as_json``, print the whole report as JSON."""
    if as_json:
        print_json(report.to_json(), report.exit_code)
        return
    outcome = report.outcome
    if outcome is None:
        OUT.say(describe_work(report.work))
    else:
        OUT.say(
            f"Copied {count_noun(len(outcome.copied), 'scan')} to {report.target}: "
            f"{count_noun(outcome.objects, 'object')}, {megabytes(outcome.size_bytes)}."
        )
        if outcome.kept:
            OUT.say(f"The copy had {count_noun(len(outcome.kept), 'scan')} already.")
    print_left_out(report.left_out, report.left_out_masks, "copies")
    if outcome is None:
        return
    if outcome.failed:
        table = Table("Failed", "scan", "reason")
        for row in list(outcome.failed.items())[:MAX_ROWS]:
            table.add_row(*row)
        print_capped(table, len(outcome.failed))
    if report.faults:
        table = Table("The copy differs", "file", "found", "expected")
        for fault in report.faults[:MAX_ROWS]:
            table.add_row(fault.path, fault.found, fault.expected)
        print_capped(table, len(report.faults))
        OUT.say("Run the same command again with --repair.")
    else:
        OUT.say("The files that were copied are those that the manifests describe.")
