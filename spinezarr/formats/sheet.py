"""How is a table of a dataset, an ``.xlsx`` workbook or delimited text, read as rows of text?"""

import csv
import datetime as dt
import io
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from spinezarr.errors import FormatError
from spinezarr.text import count_noun, to_nfc

__all__ = ["Sheet", "read_sheet"]

_MAX_ROWS: Final = 200_000
"""Largest number of rows, which is more than any dataset has scans.

Reading as many empty rows takes half a second.
"""
_MAX_CELLS: Final = 2_000_000
"""Largest number of cells: a thousand columns for two thousand scans."""
_MAX_COLUMNS: Final = 16_384
"""Largest number of columns, which is Excel's limit."""
_MAX_WORKBOOK_CELLS: Final = 20_000_000
"""Largest number of cells of a workbook, with those that are empty or have only a format."""
_MAX_CHARACTERS: Final = 16 << 20
"""Largest number of characters of all cells. Cells of a workbook may share one long text."""
_MAX_INFLATED_BYTES: Final = 32 << 20
"""Largest inflated workbook in bytes. A cell takes about 20 bytes."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as text."""

    columns: tuple[str, ...]
    """Names of the columns.

    Later columns with the same name get a number, and columns without a name are left out.
    """
    rows: tuple[dict[str, str], ...]
    """Text of each row by column, without empty cells and empty rows."""


def read_sheet(data: bytes, path: str, *, delimiter: str, header: Sequence[str] = ()) -> Sheet:
    r"""Read a table. Every cell becomes the text that a person sees in it, in NFC.

    Parameters
    ----------
    data
        Content of the file.
    path
        Path of the file. If it ends with ``.xlsx``, the first sheet of the workbook is read.
    delimiter
        Character between the columns of a text file.
    header
        Names of the columns, for a file without a header row.

    Returns
    -------
    Sheet
        The columns and rows.

    Raises
    ------
    FormatError
        If the file is no such table, exceeds a limit, or a row has more cells than there are
        columns.

    Examples
    --------
    >>> read_sheet(b"image_id;split\r\ns0001;train\r\n", "meta.csv", delimiter=";").rows
    ({'image_id': 's0001', 'split': 'train'},)
    """
    rows = (
        _workbook_rows(data, path)
        if path.lower().endswith(".xlsx")
        else _text_rows(data, path, delimiter)
    )
    cells = ([_normalize_cell(cell) for cell in row] for row in _check_size(rows, path))
    numbered = ((number, row) for number, row in enumerate(cells, 1) if any(row))
    names = header or next(numbered, (0, []))[1]
    if len(names) > _MAX_COLUMNS:
        raise FormatError(
            f"{path}: has {len(names)} columns, expected at most {_MAX_COLUMNS}. Give the right "
            "delimiter in the recipe, or split it."
        )
    columns = _unique_names(map(to_nfc, names))
    return Sheet(tuple(filter(None, columns)), tuple(_rows_by_column(numbered, path, columns)))


def _normalize_cell(cell: str) -> str:
    return to_nfc(cell.strip())


def _check_size(rows: Iterable[list[str]], path: str) -> Iterator[list[str]]:
    """Yield the rows; refuse too many rows, cells or characters."""
    cells = characters = 0
    for number, row in enumerate(rows, 1):
        cells += len(row)
        characters += sum(map(len, row))
        if number > _MAX_ROWS or cells > _MAX_CELLS:
            raise _too_many(path)
        if characters > _MAX_CHARACTERS:
            raise FormatError(
                f"{path}: its cells have more than {_MAX_CHARACTERS} characters, which no table "
                "of scans has. Split it."
            )
        yield row


def _too_many(path: str) -> FormatError:
    return FormatError(
        f"{path}: has more than {_MAX_ROWS} rows or {_MAX_CELLS} cells, which no table of scans "
        "has. Remove empty rows and cells, or split it."
    )


def _unique_names(names: Iterable[str]) -> list[str]:
    """Return the column names; a repeated name gets a number."""
    columns: list[str] = []
    used_names: set[str] = set()
    counts: dict[str, int] = {}
    for name in names:
        column = name
        while name and column in used_names:
            counts[name] = counts.get(name, 1) + 1
            column = f"{name} ({counts[name]})"
        used_names.add(column)
        columns.append(column)
    return columns


def _rows_by_column(
    rows: Iterable[tuple[int, list[str]]], path: str, columns: Sequence[str]
) -> Iterator[dict[str, str]]:
    for number, cells in rows:
        surplus = [cell for cell in cells[len(columns) :] if cell]
        if surplus:
            raise FormatError(
                f"{path}, row {number}: has {count_noun(len(surplus), 'cell')} beyond its "
                f"{count_noun(len(columns), 'column')}. Mend the file, or give the right delimiter "
                "and header in the recipe."
            )
        named_cells = zip(columns, cells, strict=False)
        yield {column: cell for column, cell in named_cells if column and cell}


def _text_rows(data: bytes, path: str, delimiter: str) -> Iterator[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise FormatError(
            f"{path}: is not text in UTF-8: {problem}. Save it again as UTF-8."
        ) from problem
    if "\0" in text:
        raise FormatError(
            f"{path}: is not text in UTF-8: it holds NUL characters. Save it again as UTF-8."
        )
    if text.count(delimiter) > _MAX_CELLS:
        raise _too_many(path)
    try:
        # strict: otherwise an unclosed quote would join all rows below it into one cell.
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except csv.Error as problem:
        raise FormatError(
            f"{path}: is not a table in text columns: {problem}. Mend the quotes in it."
        ) from problem


def _workbook_rows(data: bytes, path: str) -> Iterator[list[str]]:
    import openpyxl  # noqa: PLC0415  takes long, and most datasets have no workbook

    try:
        with warnings.catch_warnings():
            # The warnings are about styles and extensions, which do not affect cells.
            warnings.simplefilter("ignore")
            _check_inflated(data, path)
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # some programs state wrong dimensions
            value_rows = sheet.iter_rows(values_only=True)
            rows = list(_trimmed_rows(islice(value_rows, _MAX_ROWS + 1), path))
    except FormatError:
        raise
    except Exception as problem:  # a broken workbook makes openpyxl raise anything
        raise FormatError(
            f"{path}: is not a workbook that can be read ({type(problem).__name__}). "
            "Save it again as .xlsx."
        ) from problem
    # All rows get the same width, so a note beside the table is not a surplus cell of its row.
    width = max(map(len, rows), default=0)
    yield from (row + [""] * (width - len(row)) if row else [] for row in rows)


def _trimmed_rows(value_rows: Iterable[Sequence[object]], path: str) -> Iterator[list[str]]:
    """Yield each row up to its last filled cell.

    Rows without content, which formatting may add in great number, are yielded as empty lists.
    """
    n_cells = n_values = 0
    for values in value_rows:
        row = [_text(value) for value in values]
        width = max((column for column, text in enumerate(row, 1) if text), default=0)
        n_cells += width
        n_values += len(row)
        if n_cells > _MAX_CELLS or n_values > _MAX_WORKBOOK_CELLS:
            raise _too_many(path)
        yield row[:width]


def _check_inflated(data: bytes, path: str) -> None:
    """Refuse a workbook that would inflate to too many bytes, or declares a document type.

    zipfile inflates each file at most to its stated size. A document type, which no workbook needs,
    could define a short entity that expands to a hundred times the file.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as book:
        inflated = sum(file.file_size for file in book.infolist())
        if inflated > _MAX_INFLATED_BYTES:
            raise FormatError(
                f"{path}: it inflates to {inflated} bytes, expected at most "
                f"{_MAX_INFLATED_BYTES}. Remove empty rows and cells, or split it."
            )
        for name in book.namelist():
            if b"<!DOCTYPE" in book.read(name).replace(b"\0", b""):  # UTF-16 as well
                raise FormatError(
                    f"{path}: has a document type, which no workbook has. Save it again as .xlsx."
                )


def _text(value: object) -> str:
    """Return a cell as people write it: whole numbers without a point, dates without a time."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        return value.date().isoformat()
    return str(value)
