"""What do the tables of a dataset say about its scans?"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from spinezarr.errors import FormatError
from spinezarr.formats.sheet import Sheet, read_sheet
from spinezarr.ingestion.discovery.images import FoundImage
from spinezarr.ingestion.discovery.raw_folder import RawFolder
from spinezarr.recipe import (
    LabelCorrection,
    Recipe,
    Relabeling,
    Table,
    compile_bounded,
    fill_template,
)
from spinezarr.text import count_noun, to_nfc

__all__ = ["JoinedTables", "TableUse", "join_tables", "without_leading_zeros"]


_MAX_JOINED_CELLS: Final = 10_000_000
"""Largest number of cells of all joined tables: 100 columns of 100,000 scans."""


@dataclass(frozen=True, slots=True)
class TableUse:
    """Number of rows of a table of the recipe, and of those that belong to scans."""

    name: str
    files: tuple[str, ...]
    """Files that were read; empty if there is none."""
    rows: int
    matched: int
    """Number of rows whose scan is in the raw folder."""
    unmatched: tuple[str, ...] = ()
    """Names that the other rows give to scans, each once."""


@dataclass(frozen=True, slots=True)
class JoinedTables:
    """Columns of all tables, by scan."""

    columns: Mapping[str, Mapping[str, str]]
    """Text of each column, by scan id."""
    splits: Mapping[str, str]
    """Split of each scan that a table names, by scan id."""
    corrections: Mapping[str, LabelCorrection]
    """Correct labels of each scan that a list of errata names, by scan id."""
    uses: tuple[TableUse, ...]


def join_tables(recipe: Recipe, raw: RawFolder, images: Iterable[FoundImage]) -> JoinedTables:
    """Read the tables that exist, and give each scan its rows.

    Texts of several rows of one scan, or of one column in several tables, are joined.

    Raises
    ------
    FormatError
        If a table cannot be read, or lacks the column that names the scan.
    """
    images = list({image.scan_id: image for image in images}.values())
    columns: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    splits: dict[str, str] = {}
    corrections: dict[str, LabelCorrection] = {}
    uses = []
    for name, table in recipe.tables.items():
        scans_by_name = _ScansByName(table, images)
        files, rows, matched, joined_cells = _rows(recipe, raw, name, scans_by_name.names), 0, 0, 0
        unmatched: dict[str, None] = {}
        for row in (row for file_rows in files.values() for row in file_rows):
            rows += 1
            scans = scans_by_name.get(row.scan)
            matched += bool(scans)
            joined_cells += len(scans) * len(row.cells)
            if joined_cells > _MAX_JOINED_CELLS:
                raise FormatError(
                    f"{', '.join(files)}: each row of the table {name!r} names several scans, so "
                    f"the rows fill more than {_MAX_JOINED_CELLS} cells. Let 'key' and 'matches' "
                    "in the recipe name one scan for each row."
                )
            if not scans:
                unmatched[row.scan] = None
            for scan_id in scans:
                for column, text in row.cells.items():
                    columns[scan_id][column][text] = None
                split = row.cells.get(table.split or "")
                if split:
                    splits[scan_id] = split
                if row.correction is not None:
                    corrections[scan_id] = row.correction
        uses.append(TableUse(name, tuple(files), rows, matched, tuple(unmatched)))
    joined = {
        scan_id: {column: "; ".join(texts) for column, texts in cells.items()}
        for scan_id, cells in columns.items()
    }
    return JoinedTables(joined, splits, corrections, tuple(uses))


class _ScansByName:
    """Finds scans by the names that a table gives them."""

    def __init__(self, table: Table, images: Iterable[FoundImage]) -> None:
        self._by_exact_name: dict[str, list[str]] = defaultdict(list)
        self._by_normalized_name: dict[str, list[str]] = defaultdict(list)
        for image in images:
            name = fill_template(table.matches, image.texts)
            if name is not None:
                self._by_exact_name[name.strip()].append(image.scan_id)
                self._by_normalized_name[without_leading_zeros(name)].append(image.scan_id)

    @property
    def names(self) -> frozenset[str]:
        """All names of scans. Numbers have no leading zeros."""
        return frozenset(self._by_normalized_name)

    def get(self, name: str) -> list[str]:
        """Return the scans with a name.

        If there are none, return those whose name differs only in leading zeros.
        """
        return self._by_exact_name.get(name.strip()) or self._by_normalized_name.get(
            without_leading_zeros(name), []
        )


def without_leading_zeros(text: str) -> str:
    """Return the name of a scan. If it is a number, remove leading zeros."""
    text = text.strip()
    return text.lstrip("0") if text.isdecimal() else text


@dataclass(frozen=True, slots=True)
class _Row:
    scan: str
    cells: dict[str, str]
    correction: LabelCorrection | None = None


def _rows(
    recipe: Recipe, raw: RawFolder, name: str, scan_names: frozenset[str]
) -> dict[str, list[_Row]]:
    """Read the rows of a table, by file.

    The files are the first one in the raw folder, and the one that ships with the recipe.
    """
    table = recipe.tables[name]
    files: dict[str, list[_Row]] = {}
    path = raw.first(table.files)
    if path is not None:
        files[path] = list(_parse(table, raw.read(path), path, scan_names))
    shipped = recipe.shipped_table(name)
    if shipped is not None:
        shipped_path, data = shipped
        files[shipped_path] = list(_parse(table, data, shipped_path, scan_names))
    return files


def _parse(table: Table, data: bytes, path: str, scan_names: frozenset[str]) -> Iterator[_Row]:
    if table.scan_regex is not None:
        text = to_nfc(data.decode("utf-8-sig", "replace"))
        for scan in dict.fromkeys(compile_bounded(table.scan_regex).findall(text)):
            yield _Row(scan, table.constants)
        return
    sheet = read_sheet(data, path, delimiter=table.delimiter, header=table.header)
    key = table.key or _naming_column(sheet, scan_names)
    relabel = table.relabel
    needed = (key, table.split, *((relabel.column, relabel.source) if relabel else ()))
    for column in filter(None, needed):
        if column not in sheet.columns and column not in table.constants:
            raise FormatError(
                f"{path}: has no column {column!r}, which the recipe names. It has "
                f"{count_noun(len(sheet.columns), 'column')}. Correct the recipe's key, header or "
                "delimiter."
            )
    for row in sheet.rows:
        if key in row:
            hidden = {key, relabel.column} if relabel else {key}
            cells = {column: text for column, text in row.items() if column not in hidden}
            all_cells = {**row, **table.constants}
            correction = None if relabel is None else _correction(relabel, all_cells, path)
            yield _Row(row[key], {**cells, **table.constants}, correction)


def _correction(relabel: Relabeling, row: Mapping[str, str], path: str) -> LabelCorrection | None:
    """Return the correct labels that a row of a list of errata states; None if it has none."""
    text = row.get(relabel.column, "").strip()
    if not text:
        return None
    try:
        return LabelCorrection.parse(text, row.get(relabel.source, "") or path)
    except ValueError as problem:
        raise FormatError(
            f"{path}: column {relabel.column!r}: {problem}. Write pairs such as 'L1>T13 L2>L1', or "
            "the levels from the top down."
        ) from problem


def _naming_column(sheet: Sheet, scan_names: frozenset[str]) -> str:
    """Return the column that names most of the scans; empty if no column names any."""
    n_named_scans = {
        column: len(
            {without_leading_zeros(row[column]) for row in sheet.rows if column in row} & scan_names
        )
        for column in sheet.columns
    }
    column = max(n_named_scans, key=n_named_scans.__getitem__, default="")
    return column if column and n_named_scans[column] else ""
