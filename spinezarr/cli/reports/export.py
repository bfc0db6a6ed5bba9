"""What does an export print?"""

from collections.abc import Mapping, Sequence

from spinezarr.cli.console import MAX_ROWS, OUT, Table, print_capped
from spinezarr.export.nifti import ExportedScan
from spinezarr.text import count_noun, to_printable
from spinezarr.verbs.export import ExportReport

__all__ = ["print_files", "print_images", "print_left_out"]


def print_images(report: ExportReport) -> None:
    """Print how many OME-Zarr images were written, and the notes about them."""
    OUT.say(f"Wrote {count_noun(len(report.done), 'image')} to {report.out}.")
    _print_notes_and_failures("images", report)


def print_files(report: ExportReport) -> None:
    """Print how many NIfTI files were written, and the notes about them."""
    files = sum(len(exported.files) for exported in report.done)
    scans = count_noun(len(report.done), "scan")
    OUT.say(f"Wrote {count_noun(files, 'file')} of {scans} to {report.out}.")
    _print_notes_and_failures("files", report)


def _print_notes_and_failures(column: str, report: ExportReport) -> None:
    _print_rows("Notes", (column, "note"), _grouped(report.done))
    print_left_out(report.left_out, report.left_out_masks, "exports")
    _print_rows("Failed", ("scan", "reason"), list(report.failed.items()))


def print_left_out(
    scans: Mapping[str, str], masks: Mapping[str, Mapping[str, str]], verb: str
) -> None:
    """Print how many scans and masks were left out because of their license.

    Parameters
    ----------
    scans
        License of each scan that was left out, by scan id.
    masks
        License of each further mask that was left out, by mask and scan id.
    verb
        What the command does with a scan, such as "exports".
    """
    if scans:
        licenses = ", ".join(sorted(set(scans.values())))
        OUT.say(
            f"Left out {count_noun(len(scans), 'scan')} whose license allows no "
            f"derivatives ({to_printable(licenses)}); --include-restricted {verb} them, too."
        )
    for name, license_of_scan in masks.items():
        licenses = ", ".join(sorted(set(license_of_scan.values())))
        OUT.say(
            f"Left out the mask {name} of {count_noun(len(license_of_scan), 'scan')}, as its "
            f"license allows no derivatives ({to_printable(licenses)}); --include-restricted "
            f"{verb} it, too."
        )


def _grouped(done: Sequence[ExportedScan]) -> list[tuple[str, str]]:
    """Return each note once, with its file or the number of its files. Rare notes come first."""
    files: dict[str, list[str]] = {}
    for exported in done:
        for note in exported.notes:
            file, _, text = note.partition(": ")
            files.setdefault(text, []).append(file)
    rarest_first = sorted(files.items(), key=lambda item: len(item[1]))
    return [
        (names[0] if len(names) == 1 else f"{len(names)}, e.g. {names[0]}", text)
        for text, names in rarest_first
    ]


def _print_rows(title: str, columns: tuple[str, str], rows: Sequence[tuple[str, str]]) -> None:
    if not rows:
        return
    table = Table(title, *columns)
    for row in rows[:MAX_ROWS]:
        table.add_row(*row)
    print_capped(table, len(rows))
