"""Figures and comparisons as one document each: Markdown laid out as the cards are, CSV, JSON."""

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from spinezarr.card import STATISTICS, FigureKey
from spinezarr.stats.compare import ComparedFigure, Comparison
from spinezarr.stats.statistics import Spread, Statistics
from spinezarr.text import escape_markdown, to_ascii_json, to_printable

__all__ = [
    "TextTable",
    "comparison_csv",
    "comparison_json",
    "comparison_markdown",
    "comparison_table",
    "figure_title",
    "statistics_csv",
    "statistics_json",
    "statistics_markdown",
    "statistics_tables",
    "summary_lines",
    "verdict_line",
]

_NOTHING: Final = "-"
"""Stands where there is nothing to measure."""
_VERTEBRA_TITLES: Final = {
    "detection_percent": "{} detection rate (%)",
    "annotated_centroids": "{} annotated centers",
    **{f"volume_cm3_{name}": f"{{}} {name} volume (cm³)" for name in STATISTICS},
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table as text, for a terminal or a page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[str]
    """Columns that hold numbers."""


def summary_lines(statistics: Statistics) -> list[str]:
    """Say in a few sentences what was counted, and of what the rates are shares."""
    found = statistics
    without = found.scans - found.scans_with_mask
    rates = f"Detection rates are shares of all {found.scans:,} scans"
    if without:
        rates += f", {without:,} of them without a mask"
    return [
        f"Number of scans: {found.scans:,}, of {found.patients:,} patients",
        f"Number of slices of all data: {found.slices:,}",
        rates if found.scans_with_mask else "No scan has a mask",
        "Spacing and size are in the order of the source files' axes",
    ]


def statistics_tables(statistics: Statistics) -> list[TextTable]:
    """Lay figures out as the cards do; tables that would be empty are left out."""
    by_split, by_source = statistics.scans_by_split, statistics.scans_by_source
    resolution = [
        (
            name,
            _triple(statistics.spacing_ijk_mm, name, "{:.2f}".format),
            _triple(statistics.shape_ijk, name, lambda voxels: _plain(voxels, 0)),
        )
        for name in (STATISTICS if statistics.shape_ijk else ())
    ]
    sheets = [
        _counts("Scans by split", "Split", by_split, "(no split)"),
        _counts("Scans by source", "Source", by_source, "(one)"),
        TextTable(
            "Resolution Details",
            ("Dataset Statistics", "spacing (mm)", "size"),
            tuple(resolution),
            frozenset(),
        ),
        _vertebra_sheet(statistics),
    ]
    return [sheet for sheet in sheets if sheet.rows]


def comparison_table(comparison: Comparison) -> TextTable:
    """Lay out a comparison with one row a figure."""
    columns = ("Figure", "Store", "Card", "Difference", "Verdict", "Note")
    rows = tuple(
        (
            figure_title(line.key),
            _plain(line.store, line.decimals),
            _plain(line.card, line.decimals),
            "0" if line.verdict == "equal" else _plain(line.difference, line.decimals, sign="+"),
            line.verdict,
            line.note,
        )
        for line in comparison.lines
    )
    return TextTable("Comparison", columns, rows, frozenset({"Store", "Card", "Difference"}))


def figure_title(key: FigureKey) -> str:
    """Name a figure for people.

    Examples
    --------
    >>> figure_title(FigureKey("vertebra", "L1", "volume_cm3_median"))
    'L1 median volume (cm³)'
    >>> figure_title(FigureKey("axis", "k", "spacing_ijk_mm_max"))
    'max spacing k (mm)'
    >>> figure_title(FigureKey("split", "train", "scans"))
    'train scans'
    """
    if key.group == "axis":
        of, _, statistic = key.statistic.rpartition("_")
        return (
            f"{statistic} size {key.name}"
            if of == "shape_ijk"
            else f"{statistic} spacing {key.name} (mm)"
        )
    if key.statistic in _VERTEBRA_TITLES:
        return _VERTEBRA_TITLES[key.statistic].format(key.name)
    return f"{key.name} {key.statistic}".strip()


def statistics_markdown(statistics: Statistics) -> str:
    """Write figures as the cards print them."""
    parts = [f"# {escape_markdown(statistics.title)}"]
    parts += [f"{line}." for line in summary_lines(statistics)]
    for sheet in statistics_tables(statistics):
        parts += [f"## {sheet.title}", _markdown_table(sheet)]
    return "\n\n".join(parts) + "\n"


def comparison_markdown(comparison: Comparison) -> str:
    """Write a comparison as a page, with what is doubtful about the card."""
    state = f" ({comparison.as_of})" if comparison.as_of else ""
    parts = [
        f"# {escape_markdown(comparison.title)}: this store and the card",
        escape_markdown(f"Card: {comparison.source}{state}."),
        verdict_line(comparison),
        _markdown_table(comparison_table(comparison)),
    ]
    if comparison.caveats:
        parts += [
            "## Doubts about the card",
            "\n".join(f"- {escape_markdown(text)}" for text in comparison.caveats),
        ]
    return "\n\n".join(parts) + "\n"


def verdict_line(comparison: Comparison) -> str:
    """Say how many figures have which verdict."""
    counts = ", ".join(f"{verdict} {n}" for verdict, n in comparison.verdicts.items())
    return f"{len(comparison.lines)} figures: {counts}."


def statistics_csv(statistics: Statistics) -> str:
    """Write one row a figure: ``group, name, statistic, value``, unrounded."""
    rows = [(*key, value) for key, value in statistics.figures().items()]
    return _csv(("group", "name", "statistic", "value"), rows)


def comparison_csv(comparison: Comparison) -> str:
    """Write one row a figure, unrounded; nothing stands where there is nothing to measure."""
    rows = [_record(line) for line in comparison.lines]
    return _csv(
        ("group", "name", "statistic", "store", "card", "difference", "verdict", "note"),
        [tuple(row.values()) for row in rows],
    )


def statistics_json(statistics: Statistics) -> str:
    """Write all figures, unrounded."""
    regions = {"vertebrae_by_region": statistics.vertebrae_by_region}
    return _json(asdict(statistics) | regions)


def comparison_json(comparison: Comparison) -> str:
    """Write a comparison, unrounded."""
    return _json(
        {
            "dataset": comparison.dataset,
            "card": comparison.title,
            "source": comparison.source,
            "as_of": comparison.as_of,
            "agrees": comparison.agrees,
            "verdicts": comparison.verdicts,
            "lines": [_record(line) for line in comparison.lines],
            "caveats": comparison.caveats,
        }
    )


def _record(line: ComparedFigure) -> dict[str, Any]:
    return {
        **line.key._asdict(),
        "store": line.store,
        "card": line.card,
        "difference": line.difference,
        "verdict": line.verdict,
        "note": line.note,
    }


def _counts(title: str, column: str, counts: dict[str, int], unnamed: str) -> TextTable:
    rows = tuple((name or unnamed, str(n)) for name, n in counts.items())
    return TextTable(title, (column, "Scans"), rows, frozenset({"Scans"}))


def _vertebra_sheet(statistics: Statistics) -> TextTable:
    """One row a vertebra; without masks, or without centroid files, their columns are left out."""
    rows = statistics.vertebrae
    columns: dict[str, list[str]] = {
        "Label": [_NOTHING if row.value is None else str(row.value) for row in rows.values()],
        "Anatomy Structure": list(rows),
    }
    if statistics.scans_with_mask:
        columns["Detection Count"] = [str(row.scans) for row in rows.values()]
        columns["Detection Rate"] = [f"{row.detection_percent:.2f}%" for row in rows.values()]
        for name in STATISTICS:
            columns[f"{name.capitalize()} Volume (cm³)"] = [
                _NOTHING if row.volume_cm3 is None else f"{getattr(row.volume_cm3, name):.2f}"
                for row in rows.values()
            ]
    if any(row.annotated_centroids for row in rows.values()):
        columns["Annotated Centers"] = [str(row.annotated_centroids) for row in rows.values()]
    return TextTable(
        "Label Information Statistics",
        tuple(columns),
        tuple(zip(*columns.values(), strict=True)),
        frozenset(columns) - {"Anatomy Structure"},
    )


def _triple(spreads: dict[str, Spread], statistic: str, show: Callable[[float], str]) -> str:
    return f"({', '.join(show(getattr(spread, statistic)) for spread in spreads.values())})"


def _plain(value: float | None, decimals: int, *, sign: str = "") -> str:
    """Show a number to the decimals of the card, or the half between two whole ones."""
    if value is None:
        return _NOTHING
    return f"{value:{sign}.{decimals or 1}f}".removesuffix("" if decimals else ".0")


def _markdown_table(sheet: TextTable) -> str:
    """Pad the columns, so that the table reads as well unrendered."""
    lines = [sheet.columns, *sheet.rows]
    header, *rows = [
        tuple(
            cell if column in sheet.numeric else escape_markdown(cell)
            for column, cell in zip(sheet.columns, cells, strict=True)
        )
        for cells in lines
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = [column in sheet.numeric for column in sheet.columns]

    def line(cells: Iterable[str]) -> str:
        padded = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = ["-" * (w - 1) + ":" if r else "-" * w for w, r in zip(widths, right, strict=True)]
    return "\n".join(map(line, [header, rule, *rows]))


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_csv_text(cell) for cell in row] for row in rows)
    return text.getvalue()


def _csv_text(cell: Any) -> Any:  # noqa: ANN401  as csv.writer takes it
    """Return a cell that no spreadsheet takes for a formula, and that is fit to print.

    JSON has names as they are; CSV is what spreadsheets open, and they compute what begins like
    this, whatever the quotes around it (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    if not isinstance(cell, str):
        return cell
    text = to_printable(cell)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _json(value: object) -> str:
    return f"{to_ascii_json(value)}\n"
