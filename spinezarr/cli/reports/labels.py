"""What do the commands that add and remove masks print?"""

from spinezarr.cli.console import MAX_ROWS, OUT, Table, megabytes, print_heading
from spinezarr.cli.reports.ingest import print_by_scan
from spinezarr.text import MultilineText, count_noun
from spinezarr.verbs.add_labels import AddLabelsReport

__all__ = ["print_added"]


def print_added(report: AddLabelsReport) -> None:
    """Print what became of each mask file."""
    print_heading(f"Masks {report.name!r} in {report.store}")
    table = Table("", "", "scans", right=("scans",))
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
    for path, reason in list(report.unlisted.items())[:MAX_ROWS]:
        OUT.say(f"{path}: {reason}.", style="bold red")
