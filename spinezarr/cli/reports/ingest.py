"""What do an ingest and a dry run print?"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from spinezarr.cli.console import (
    MAX_ROWS,
    OUT,
    Table,
    print_capped,
    print_heading,
    print_json,
)
from spinezarr.ingestion.discovery.discover import Discovery, PathNote
from spinezarr.ingestion.discovery.leftovers import UNMATCHED
from spinezarr.ingestion.discovery.near_misses import NEARLY
from spinezarr.ingestion.run import IngestReport, RunReport
from spinezarr.redaction import redact_url
from spinezarr.text import MultilineText, count_noun, megabytes

__all__ = ["print_by_scan", "print_discovery", "print_report", "print_run"]

_EXAMPLES: Final = 3
"""Number of file names in one sentence."""


def print_report(report: IngestReport, *, as_json: bool) -> None:
    """Print what an ingest did; with ``as_json``, print the whole report as JSON."""
    if as_json:
        print_json(asdict(report), report.exit_code)
        return
    print_heading(f"Ingest into {report.store}")
    print_run(
        report,
        kept="The store keeps {} from earlier runs, which the raw folder does not have. For a "
        "store without them, choose another path.",
        source="Source files",
        nii_gz_bytes=report.nii_gz_bytes,
    )
    _print_leftovers(report)


def print_run(
    report: RunReport, *, kept: str, source: str, nii_gz_bytes: int | None = None
) -> None:
    """Print what became of the scans of a run that writes a store.

    Parameters
    ----------
    report
        Result of the run.
    kept
        Sentence on scans from earlier runs, with ``{}`` for their number.
    source
        Name of what was read.
    nii_gz_bytes
        Estimated size of the scans as ``.nii.gz``; None if it is not known.
    """
    table = Table("", "", "scans", right=("scans",))
    table.add_row("done", str(len(report.done)))
    if report.updated:
        table.add_row("updated, voxels unchanged", str(len(report.updated)))
    table.add_row("skipped, already whole", str(len(report.skipped)))
    table.add_row("failed", str(len(report.failed)), style="bold red" if report.failed else None)
    OUT.print(table)
    if report.from_earlier_runs:
        OUT.say(kept.format(count_noun(len(report.from_earlier_runs), "scan")))
    if report.done:
        share = report.stored_bytes / max(1, report.source_bytes)
        OUT.say(
            f"{source}: {megabytes(report.source_bytes)}. Stored: "
            f"{megabytes(report.stored_bytes)}, {share:.2f} times as much."
        )
        if nii_gz_bytes:
            OUT.say(
                f"The same voxels as .nii.gz: about {megabytes(nii_gz_bytes)}. Stored: "
                f"{report.stored_bytes / nii_gz_bytes:.2f} times as much."
            )
        speed = megabytes(report.source_bytes / report.seconds)
        OUT.say(f"Time: {report.seconds:.1f} s, {speed} of {source.lower()} a second.")
    if report.problem:
        OUT.say(report.problem, style="bold red")
    print_by_scan("Failed", "reason", [(scan.scan_id, scan.reason) for scan in report.failed])
    _print_layers(report)
    print_by_scan(
        "Notes",
        "note",
        [(scan_id, MultilineText(*texts)) for scan_id, texts in report.notes.items()],
    )


def _print_layers(report: RunReport) -> None:
    """Print what became of the further masks of the scans."""
    if not report.layers:
        return
    columns = ("done", "skipped, already there", "without a file", "failed")
    table = Table("Further masks", "mask", *columns, right=columns)
    for layer in report.layers:
        groups = (layer.done, layer.skipped, layer.without_file, layer.failed)
        counts = (str(len(scans)) for scans in groups)
        table.add_row(layer.name, *counts, style="bold red" if layer.failed else None)
    OUT.print(table)
    print_by_scan(
        "Masks that failed; their scans are in the store",
        "reason",
        [
            (f"{scan.scan_id}: {layer.name}", scan.reason)
            for layer in report.layers
            for scan in layer.failed
        ],
    )


def print_by_scan(title: str, column: str, rows: Sequence[tuple[str, str]]) -> None:
    """Print a table of texts about single scans, if there are any."""
    if rows:
        table = Table(title, "scan", column)
        for scan_id, text in rows[:MAX_ROWS]:
            table.add_row(scan_id, MultilineText(*text.split("\n")))
        print_capped(table, len(rows))


def _print_leftovers(report: Discovery | IngestReport) -> None:
    """Print which files, listed scans and rows of tables belong to no scan."""
    for note in report.unlisted[:MAX_ROWS]:
        OUT.say(f"{note.path}: {note.reason}.", style="bold red")
    if len(report.unlisted) > MAX_ROWS:
        OUT.say(f"... and {len(report.unlisted) - MAX_ROWS} more; --json lists them all.")
    if report.without_image:
        examples = ", ".join(note.path for note in report.without_image[:_EXAMPLES])
        count = count_noun(len(report.without_image), "mask")
        if report.orphans_expected:
            sentence = f"{count} without an image, as the recipe expects of partial downloads"
            OUT.say(f"{sentence}, e.g. {examples}.")
        else:
            advice = "Get the images, or move the masks away."
            OUT.say(f"{count} without an image, e.g. {examples}. {advice}", style="bold red")
    if report.absent:
        OUT.say(f"Listed in a split and not here: {count_noun(len(report.absent), 'scan')}.")
    for missing in report.missing:
        OUT.say(f"{missing}.")
    for use in report.tables:
        if use.unmatched:
            rows = count_noun(use.rows - use.matched, "row")
            OUT.say(f"Table {use.name}: {rows} of {use.rows} without a scan here.")
    if report.ignored:
        _print_notes(report.ignored)


def _print_notes(notes: Sequence[PathNote]) -> None:
    """Print files, grouped by the reason why they belong to no scan, with an example of each."""
    by_reason: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        by_reason[note.reason].append(note.path)
    title = f"Ignored: {count_noun(len(notes), 'file')}"
    table = Table(title, "files", "reason", "example", right=("files",))
    # Files that may belong to a scan come before files that do not.
    reasons = sorted(
        by_reason, key=lambda reason: (not reason.startswith(NEARLY), reason != UNMATCHED)
    )
    for reason in reasons[:MAX_ROWS]:
        paths = by_reason[reason]
        table.add_row(str(len(paths)), reason, paths[0])
    print_capped(table, len(by_reason))


def _members(items: Iterable[tuple[str, object]]) -> dict[str, object]:
    """Return the members of a dataclass for JSON; parts of a recipe are pydantic models."""
    return {
        name: value.model_dump(mode="json") if isinstance(value, BaseModel) else value
        for name, value in items
    }


def print_discovery(discovery: Discovery, *, as_json: bool) -> None:
    """Print what an ingest would do; with ``as_json``, print the whole discovery as JSON."""
    if as_json:
        # Records of headers are only for the next run. Scans and notes hold their results.
        shown = replace(discovery, raw=redact_url(discovery.raw), folders={})
        print_json(asdict(shown, dict_factory=_members))
        return
    scans = discovery.scans
    splits = sorted({scan.split for scan in scans})
    failing = f", {len(discovery.failing)} more will fail" if discovery.failing else ""
    counts_text = f"{count_noun(len(scans), 'scan')} found{failing}"
    print_heading(f"{discovery.title} in {redact_url(discovery.raw)}: {counts_text}")
    headings = tuple(split or "(no split)" for split in splits)
    table = Table("", "source", *headings, "scans", "size", right=(*headings, "scans", "size"))
    sources = sorted({scan.source for scan in scans})
    for source in (*sources, None) if len(sources) != 1 else sources:
        source_scans = [scan for scan in scans if source in (None, scan.source)]
        counts = Counter(scan.split for scan in source_scans)
        size = sum(scan.size_bytes for scan in source_scans)
        row = [str(counts[split]) for split in splits]
        name = "all" if source is None else source or "(one)"
        table.add_row(name, *row, str(len(source_scans)), megabytes(size))
    OUT.print(table)
    corrected = sum(scan.correction is not None for scan in scans)
    if corrected:
        OUT.say(f"Labels to correct by a list of errata: {count_noun(corrected, 'scan')}.")
    _print_patterns(discovery)
    _print_tables(discovery)
    if any(splits):
        OUT.say(f"Splits from: {discovery.split_file or 'the recipe'}.")
    print_by_scan("Scans that will fail", "reason", discovery.failing)
    _print_leftovers(discovery)


def _print_patterns(discovery: Discovery) -> None:
    """Print how many files each pattern of the recipe matched."""
    with_mask = sum(scan.has_mask for scan in discovery.scans)
    with_centroids = sum(scan.centroids is not None for scan in discovery.scans)
    OUT.say(f"With a mask: {count_noun(with_mask, 'scan')}; with centroids: {with_centroids}.")
    layers = [layer for scan in discovery.scans for layer in scan.layers]
    for name, count in Counter(layer.name for layer in layers).items():
        OUT.say(f"With the further mask {name!r}: {count_noun(count, 'scan')}.")
    print_by_scan(
        "Further masks that will fail",
        "reason",
        [
            (f"{scan.scan_id}: {layer.name}", layer.problem)
            for scan in discovery.scans
            for layer in scan.layers
            if layer.problem
        ],
    )
    patterns = Table(
        "Patterns", "layout", "images", "kind", "pattern", "files", right=("images", "files")
    )
    used_patterns = [use for use in discovery.patterns if use.layout in discovery.layouts]
    for use in used_patterns:
        patterns.add_row(
            use.layout,
            str(discovery.layouts[use.layout]) if use.kind == "image" else "",
            use.kind,
            use.pattern,
            str(use.files),
            style="bold red" if use.unread else None if use.files else "yellow",
        )
    images = sum(discovery.layouts.values())
    patterns.add_row("all", str(images), "", "", str(sum(use.files for use in used_patterns)))
    OUT.print(patterns)
    for use in used_patterns:
        if use.unread:
            files = count_noun(use.unread, "file")
            sentence = f"Not read: {files} of {use.pattern}. {use.unread_advice}"
            OUT.say(sentence, style="bold red")
    for layout in dict.fromkeys(part.layout for part in discovery.parts):
        parts = [part for part in discovery.parts if part.layout == layout]
        total = count_noun(parts[0].scans_with + parts[0].scans_without, "scan")
        absent = [f"{part.part} {part.scans_without}" for part in parts if part.scans_without]
        OUT.say(f"Parts absent from masks of {layout} ({total}): {', '.join(absent) or 'none'}.")
    layouts = dict.fromkeys(use.layout for use in discovery.patterns)
    empty = [name for name in layouts if name not in discovery.layouts]
    if empty:
        OUT.say(f"Layouts without a scan: {', '.join(empty)}.")


def _print_tables(discovery: Discovery) -> None:
    """Print which rows of each table of the recipe belong to scans."""
    if discovery.tables:
        tables = Table("Tables", "table", "files", "rows", "scans", right=("rows", "scans"))
        for table in discovery.tables:
            files = ", ".join(Path(file).name for file in table.files) or "none found"
            row = (table.name, files, str(table.rows), str(table.matched))
            tables.add_row(*row, style=None if table.files else "yellow")
        OUT.print(tables)
