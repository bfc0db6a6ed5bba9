"""How are the figures of a dataset, and a comparison with its card, printed?"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from spinezarr.cli.console import (
    OUT,
    SOME_FAILED,
    StyledText,
    Table,
    print_document,
    print_heading,
    print_json,
)
from spinezarr.cli.stats import Format
from spinezarr.stats.compare import Comparison, Verdict
from spinezarr.stats.documents import (
    TextTable,
    comparison_csv,
    comparison_json,
    comparison_markdown,
    comparison_table,
    statistics_csv,
    statistics_json,
    statistics_markdown,
    statistics_tables,
    summary_lines,
    verdict_line,
)
from spinezarr.stats.statistics import Statistics
from spinezarr.store.layout import LABEL

__all__ = ["print_comparison", "print_statistics"]

_VERDICT_STYLES: Final[dict[Verdict, str]] = {
    "equal": "green",
    "differs": "red",
    "missing in store": "yellow",
    "card contradicts itself": "magenta",
}
_NARROW: Final = {
    "Anatomy Structure": "Vertebra",
    "Detection Count": "Scans",
    "Detection Rate": "Rate",
    "Min Volume (cm³)": "Min cm³",
    "Median Volume (cm³)": "Median cm³",
    "Max Volume (cm³)": "Max cm³",
    "Annotated Centers": "Centers",
}
"""Shorter headings for a terminal of 80 columns."""
_NARROW_OF_FURTHER_MASK: Final = {**_NARROW, "Anatomy Structure": "Structure"}
_NARROW_FIGURES: Final = {" detection rate (%)": " rate %", " volume (cm³)": " cm³", " (mm)": " mm"}
"""Shorter ends of the names of figures, for a terminal of 80 columns."""
_MAX_NAMED_FIGURES: Final = 3
"""Most figures that are named with a note that they share."""
_STATISTICS_AS: Final[dict[Format, Callable[[Statistics], str]]] = {
    Format.MARKDOWN: statistics_markdown,
    Format.CSV: statistics_csv,
}
_COMPARISON_AS: Final[dict[Format, Callable[[Comparison], str]]] = {
    Format.MARKDOWN: comparison_markdown,
    Format.CSV: comparison_csv,
}


def print_statistics(statistics: Statistics, output: Format, *, as_json: bool) -> None:
    """Print the figures in a format, or as JSON."""
    if as_json:
        print_json(statistics_json(statistics))
        return
    if output is not Format.TABLE:
        print_document(_STATISTICS_AS[output](statistics))
        return
    print_heading(statistics.title)
    for line in summary_lines(statistics):
        OUT.say(f"{line}.")
    narrow = _NARROW if statistics.mask == LABEL else _NARROW_OF_FURTHER_MASK
    for sheet in statistics_tables(statistics):
        _print_sheet(sheet, narrow=narrow)


def print_comparison(comparison: Comparison, output: Format, *, as_json: bool) -> None:
    """Print the comparison of each figure with that of the card, in a format, or as JSON."""
    if as_json:
        print_json(comparison_json(comparison), 0 if comparison.agrees else SOME_FAILED)
        return
    if output is not Format.TABLE:
        print_document(_COMPARISON_AS[output](comparison))
        return
    print_heading(f"{comparison.title}: this store and the card")
    OUT.say(comparison.source)
    sheet = comparison_table(comparison)
    figures = [_narrow_figure(row[0]) for row in sheet.rows]
    rows = tuple((figure, *row[1:-1]) for figure, row in zip(figures, sheet.rows, strict=True))
    styles = [_VERDICT_STYLES[line.verdict] for line in comparison.lines]
    _print_sheet(replace(sheet, columns=sheet.columns[:-1], rows=rows), styles)
    notes: dict[str, list[str]] = {}
    for figure, line in zip(figures, comparison.lines, strict=True):
        if line.note:
            notes.setdefault(line.note, []).append(figure)
    for note, noted_figures in notes.items():
        more = (
            f" and {len(noted_figures) - _MAX_NAMED_FIGURES} more"
            if len(noted_figures) > _MAX_NAMED_FIGURES
            else ""
        )
        names = f"{', '.join(noted_figures[:_MAX_NAMED_FIGURES])}{more}"
        OUT.say(StyledText("Note:", "bold"), f" {names}: {note}")
    for text in comparison.caveats:
        OUT.say(StyledText("Doubt:", "bold"), f" {text}")
    OUT.say(verdict_line(comparison))


def _narrow_figure(title: str) -> str:
    for end, short in _NARROW_FIGURES.items():
        title = title.replace(end, short)
    return title


def _print_sheet(
    sheet: TextTable, styles: list[str] | None = None, narrow: Mapping[str, str] = _NARROW
) -> None:
    columns = [narrow.get(column, column) for column in sheet.columns]
    right = tuple(narrow.get(column, column) for column in sheet.numeric)
    table = Table(sheet.title, *columns, right=right)
    for row_number, row in enumerate(sheet.rows):
        table.add_row(*row, style=styles[row_number] if styles else None)
    OUT.print(table)
