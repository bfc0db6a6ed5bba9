"""What does ``spinezarr add-labels`` print?"""

from collections.abc import Sequence
from typing import Final

from spinezarr.cli.console import MAX_ROWS, OUT, Table, print_capped, print_heading
from spinezarr.cli.reports.ingest import print_by_scan
from spinezarr.text import MultilineText, count_noun, megabytes
from spinezarr.verbs.add_labels import AddLabelsReport

__all__ = ["print_added"]

_EXAMPLES: Final = 2
"""Number of names in one line."""


def print_added(report: AddLabelsReport) -> None:
    """Print what became of each mask file, or what would become of it."""
    if report.dry_run:
        _print_plan(report)
    else:
        print_heading(f"Masks {report.name!r} in {report.store}")
    table = Table("", "", "scans", right=("scans",))
    if report.dry_run:
        table.add_row("to write", str(len(report.files) - len(report.skipped) - len(report.failed)))
    else:
        table.add_row("done", str(len(report.done)))
    table.add_row("skipped, already there", str(len(report.skipped)))
    table.add_row("without a file", str(len(report.without_file)))
    table.add_row("failed", str(len(report.failed)), style="bold red" if report.failed else None)
    OUT.print(table)
    if report.done:
        OUT.say(f"Stored: {megabytes(report.stored_bytes)}. Time: {report.seconds:.1f} s.")
    print_by_scan("Failed", "reason", [(scan.scan_id, scan.reason) for scan in report.failed])
    notes = [(scan_id, MultilineText(*texts)) for scan_id, texts in report.notes.items()]
    print_by_scan("Notes", "note", notes)
    if report.without_scan:
        files = count_noun(len(report.without_scan), "file")
        examples = ", ".join(report.without_scan[:3])
        advice = "Ingest these scans first, or move the files away."
        OUT.say(
            f"{files} of scans that the store does not have, e.g. {examples}. {advice}",
            style="bold red",
        )
    if report.dry_run and report.without_file:
        OUT.say(f"Scans without a file: {_examples(report.without_file, 'scan')}.")
    if report.dry_run and report.unmatched:
        OUT.say(f"Files that do not fit the pattern: {_examples(report.unmatched, 'file')}.")
    for path, reason in list(report.unlisted.items())[:MAX_ROWS]:
        OUT.say(f"{path}: {reason}.", style="bold red")


def _print_plan(report: AddLabelsReport) -> None:
    """Print the files of each scan."""
    print_heading(f"Masks {report.name!r} for {report.store}: nothing is written")
    table = Table("", "scan", "files")
    for scan_id, paths in list(report.files.items())[:MAX_ROWS]:
        table.add_row(scan_id, _examples(paths, "file"))
    print_capped(table, len(report.files))


def _examples(names: Sequence[str], noun: str) -> str:
    """Return the only name, or the number of names and the first of them."""
    if len(names) == 1:
        return names[0]
    return f"{count_noun(len(names), noun)}, e.g. {', '.join(names[:_EXAMPLES])}"
