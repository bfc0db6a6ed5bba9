"""How are figures and comparisons written as Markdown, CSV and JSON?"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from spinezarr.card import STATISTICS, FigureKey
from spinezarr.stats.compare import ComparedFigure, Comparison
from spinezarr.stats.statistics import Spread, Statistics
from spinezarr.store.layout import LABEL
from spinezarr.text import escape_markdown, to_csv

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
    "statistics_sections",
    "statistics_tables",
    "summary_lines",
    "verdict_line",
]

_NO_VALUE: Final = "-"
"""Text for a figure without a value."""
_VERTEBRA_TITLES: Final = {
    "detection_percent": "{} detection rate (%)",
    "annotated_centroids": "{} annotated centers",
    **{f"volume_cm3_{name}": f"{{}} {name} volume (cm³)" for name in STATISTICS},
}


@dataclass(frozen=True, slots=True)
class TextTable:
    """A table of texts, for a terminal or a page."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[str]
    """Names of the columns that hold numbers."""


def summary_lines(statistics: Statistics) -> list[str]:
    """Return a few sentences with counts, and with the scans that the rates refer to."""
    n_without_mask = statistics.scans - statistics.scans_with_mask
    rates = f"Detection rates are shares of all {statistics.scans:,} scans"
    if n_without_mask:
        a_mask = "a mask" if statistics.mask == LABEL else "this mask"
        rates += f", {n_without_mask:,} of them without {a_mask}"
    return [
        f"Number of scans: {statistics.scans:,}, of {statistics.patients:,} patients",
        f"Number of slices of all data: {statistics.slices:,}",
        rates if statistics.scans_with_mask else "No scan has a mask",
        "Spacing and size are in the order of the source files' axes",
    ]


def statistics_tables(statistics: Statistics) -> list[TextTable]:
    """Return tables in the layout of the published cards, without empty ones."""
    by_split, by_source = statistics.scans_by_split, statistics.scans_by_source
    resolution = [
        (
            name,
            _triple(statistics.spacing_ijk_mm, name, "{:.2f}".format),
            _triple(statistics.shape_ijk, name, lambda voxels: _format_number(voxels, 0)),
        )
        for name in (STATISTICS if statistics.shape_ijk else ())
    ]
    tables = [
        _counts("Scans by split", "Split", by_split, "(no split)"),
        _counts("Scans by source", "Source", by_source, "(one)"),
        TextTable(
            "Resolution Details",
            ("Dataset Statistics", "spacing (mm)", "size"),
            tuple(resolution),
            frozenset(),
        ),
        _vertebra_table(statistics),
    ]
    return [table for table in tables if table.rows]


def comparison_table(comparison: Comparison) -> TextTable:
    """Return a comparison as a table with one row for each figure."""
    columns = ("Figure", "Store", "Card", "Difference", "Verdict", "Note")
    rows = tuple(
        (
            figure_title(line.key),
            _format_number(line.store, line.decimals),
            _format_number(line.card, line.decimals),
            "0"
            if line.verdict == "equal"
            else _format_number(line.difference, line.decimals, sign="+"),
            line.verdict,
            line.note,
        )
        for line in comparison.lines
    )
    return TextTable("Comparison", columns, rows, frozenset({"Store", "Card", "Difference"}))


def figure_title(key: FigureKey) -> str:
    """Return the title of a figure for people.

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
        measure, _, statistic = key.statistic.rpartition("_")
        return (
            f"{statistic} size {key.name}"
            if measure == "shape_ijk"
            else f"{statistic} spacing {key.name} (mm)"
        )
    if key.statistic in _VERTEBRA_TITLES:
        return _VERTEBRA_TITLES[key.statistic].format(key.name)
    return f"{key.name} {key.statistic}".strip()


def statistics_markdown(statistics: Statistics) -> str:
    """Return the figures as Markdown in the layout of the published cards."""
    parts = [f"# {escape_markdown(statistics.title)}"]
    parts += [f"{line}." for line in summary_lines(statistics)]
    return "\n\n".join([*parts, *statistics_sections(statistics)]) + "\n"


def statistics_sections(statistics: Statistics) -> list[str]:
    """Return the headings and tables of the figures as paragraphs of Markdown."""
    parts = []
    for table in statistics_tables(statistics):
        parts += [f"## {table.title}", _markdown_table(table)]
    return parts


def comparison_markdown(comparison: Comparison) -> str:
    """Return a comparison as a Markdown page, with caveats about the card."""
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
    """Return a sentence with the number of figures of each verdict."""
    counts = ", ".join(f"{verdict} {n}" for verdict, n in comparison.verdicts.items())
    return f"{len(comparison.lines)} figures: {counts}."


def statistics_csv(statistics: Statistics) -> str:
    """Return CSV with one row for each figure: ``group, name, statistic, value``, unrounded."""
    rows = [(*key, value) for key, value in statistics.figures().items()]
    return to_csv(("group", "name", "statistic", "value"), rows)


def comparison_csv(comparison: Comparison) -> str:
    """Return CSV with one row for each figure, unrounded. A cell without a value is empty."""
    rows = [_record(line) for line in comparison.lines]
    return to_csv(
        ("group", "name", "statistic", "store", "card", "difference", "verdict", "note"),
        [tuple(row.values()) for row in rows],
    )


def statistics_json(statistics: Statistics) -> dict[str, Any]:
    """Return all figures as JSON values, unrounded."""
    regions = {"vertebrae_by_region": statistics.vertebrae_by_region}
    return asdict(statistics) | regions


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON values, unrounded."""
    return {
        "dataset": comparison.dataset,
        "card": comparison.title,
        "source": comparison.source,
        "as_of": comparison.as_of,
        "agrees": comparison.agrees,
        "verdicts": comparison.verdicts,
        "lines": [_record(line) for line in comparison.lines],
        "caveats": comparison.caveats,
    }


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


def _vertebra_table(statistics: Statistics) -> TextTable:
    """Return a table with one row for each vertebra, without columns that would be empty."""
    rows = statistics.vertebrae
    columns: dict[str, list[str]] = {}
    if any(row.value is not None for row in rows.values()):
        columns["Label"] = [
            _NO_VALUE if row.value is None else str(row.value) for row in rows.values()
        ]
    columns["Anatomy Structure"] = list(rows)
    if statistics.scans_with_mask:
        columns["Detection Count"] = [str(row.scans) for row in rows.values()]
        columns["Detection Rate"] = [f"{row.detection_percent:.2f}%" for row in rows.values()]
        for name in STATISTICS:
            columns[f"{name.capitalize()} Volume (cm³)"] = [
                _NO_VALUE if row.volume_cm3 is None else f"{getattr(row.volume_cm3, name):.2f}"
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


def _format_number(value: float | None, decimals: int, *, sign: str = "") -> str:
    """Return a number with the decimals of the card. Without decimals, a half is still shown."""
    if value is None:
        return _NO_VALUE
    return f"{value:{sign}.{decimals or 1}f}".removesuffix("" if decimals else ".0")


def _markdown_table(table: TextTable) -> str:
    """Return a Markdown table. Its columns are padded, so that its source is legible."""
    lines = [table.columns, *table.rows]
    header, *rows = [
        tuple(
            cell if column in table.numeric else escape_markdown(cell)
            for column, cell in zip(table.columns, cells, strict=True)
        )
        for cells in lines
    ]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    right = [column in table.numeric for column in table.columns]

    def line(cells: Iterable[str]) -> str:
        padded = (
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(cells, widths, right, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = [
        "-" * (width - 1) + ":" if is_right else "-" * width
        for width, is_right in zip(widths, right, strict=True)
    ]
    return "\n".join(map(line, [header, rule, *rows]))
