"""What a dataset's own tables say of its scans."""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from spinezarr.errors import FormatError
from spinezarr.formats.sheet import read_sheet
from spinezarr.ingest.images import FoundImage
from spinezarr.ingest.raw_folder import RawFolder
from spinezarr.recipe import PathPattern, Recipe, Table

__all__ = ["JoinedTables", "TableUse", "join_tables"]


@dataclass(frozen=True, slots=True)
class TableUse:
    """What became of one table of the recipe."""

    name: str
    files: tuple[str, ...]
    """Files that were read; empty if there is none."""
    rows: int
    matched: int
    """Rows whose scan is in the raw folder."""


@dataclass(frozen=True, slots=True)
class JoinedTables:
    """Columns of all tables, by scan."""

    columns: Mapping[str, Mapping[str, str]]
    """Scan id to column to text."""
    splits: Mapping[str, str]
    """Scan id to the split that a table says."""
    uses: tuple[TableUse, ...]


def join_tables(recipe: Recipe, raw: RawFolder, images: Iterable[FoundImage]) -> JoinedTables:
    """Read the tables that are there and give each scan its rows.

    Several rows of one scan, and several tables with one column, put their texts side by side.

    Raises
    ------
    FormatError
        If a table cannot be read, or lacks the column that names the scan.
    """
    images = list(images)
    columns: dict[str, dict[str, dict[str, None]]] = defaultdict(lambda: defaultdict(dict))
    splits: dict[str, str] = {}
    uses = []
    for name, table in recipe.tables.items():
        scan_of: dict[str, list[str]] = defaultdict(list)
        for image in images:
            wanted = recipe.fill(table.matches, image.texts)
            if wanted is not None:
                scan_of[_normal(wanted)].append(image.scan_id)
        files, rows, matched = _rows(recipe, raw, name, scan_of.keys()), 0, 0
        for row in (row for listed in files.values() for row in listed):
            rows += 1
            scans = scan_of.get(_normal(row.scan), [])
            matched += bool(scans)
            for scan_id in scans:
                for column, text in row.cells.items():
                    columns[scan_id][column][text] = None
                if row.split:
                    splits[scan_id] = row.split
        uses.append(TableUse(name, tuple(files), rows, matched))
    joined = {
        scan_id: {column: "; ".join(texts) for column, texts in cells.items()}
        for scan_id, cells in columns.items()
    }
    return JoinedTables(joined, splits, tuple(uses))


def _normal(text: str) -> str:
    """Write a scan's name in one way; numbers without leading zeros."""
    text = text.strip()
    return str(int(text)) if text.isdecimal() else text


@dataclass(frozen=True, slots=True)
class _Row:
    scan: str
    split: str
    cells: dict[str, str]


def _rows(
    recipe: Recipe, raw: RawFolder, name: str, wanted: Collection[str]
) -> dict[str, list[_Row]]:
    """Read the rows of a table's files: the first there is in the raw folder, and the shipped."""
    table = recipe.tables[name]
    files: dict[str, list[_Row]] = {}
    found = (
        path
        for pattern in map(PathPattern, table.files)
        for path in raw.sizes
        if pattern.match(path) is not None
    )
    path = next(found, None)
    if path is not None:
        files[path] = list(_parse(table, raw.read(path), path, wanted))
    shipped = recipe.shipped_table(name)
    if shipped is not None:
        files[str(shipped)] = list(_parse(table, shipped.read_bytes(), str(shipped), wanted))
    return files


def _parse(table: Table, data: bytes, path: str, wanted: Collection[str]) -> Iterator[_Row]:
    if table.find is not None:
        text = data.decode("utf-8-sig", "replace")
        for scan in dict.fromkeys(match[0] for match in re.finditer(table.find, text)):
            yield _Row(scan, "", table.set)
        return
    rows = read_sheet(data, path, delimiter=table.delimiter, header=table.header)
    known = dict.fromkeys(column for row in rows for column in row)
    key = table.key or _naming_column(rows, known, wanted)
    for column in filter(None, (key, table.split)):
        if rows and column not in known:
            raise FormatError(
                f"{path}: has no column {column!r}, which the recipe names; its columns are: "
                f"{', '.join(known)}. Correct the recipe's key, header or delimiter."
            )
    for row in rows if key else ():
        if key in row:
            cells = {column: text for column, text in row.items() if column != key}
            yield _Row(row[key], row.get(table.split or "", ""), {**cells, **table.set})


def _naming_column(
    rows: list[dict[str, str]], columns: Iterable[str], wanted: Collection[str]
) -> str:
    """Return the column in which most of the wanted scans are named; empty if none is."""
    named = {
        column: len({_normal(row[column]) for row in rows if column in row} & set(wanted))
        for column in columns
    }
    best = max(named, key=named.__getitem__, default="")
    return best if best and named[best] else ""
