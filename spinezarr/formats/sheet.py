"""Tables that datasets ship, as rows of text: ``.xlsx`` workbooks and text in columns."""

import csv
import datetime as dt
import io
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import openpyxl

from spinezarr.errors import FormatError

__all__ = ["Sheet", "read_sheet"]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table as text."""

    columns: tuple[str, ...]
    """Names of the columns that have one; of several with one name, the later are numbered."""
    rows: tuple[dict[str, str], ...]
    """Text by column; empty cells are left out, and so are empty rows."""


def read_sheet(data: bytes, path: str, *, delimiter: str, header: Sequence[str] = ()) -> Sheet:
    r"""Read a table; every cell becomes the text that a person sees in it.

    Parameters
    ----------
    data
        Content of the file.
    path
        For messages; a name that ends with ``.xlsx`` is a workbook, whose first sheet is read.
    delimiter
        Between the columns of a text file.
    header
        Names of the columns of a file whose first row is none.

    Raises
    ------
    FormatError
        If the file is not such a table, or a row has more cells than there are columns.

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
    cells = ([cell.strip() for cell in row] for row in rows)
    numbered = ((number, row) for number, row in enumerate(cells, 1) if any(row))
    columns = _told_apart(header or next(numbered, (0, []))[1])
    return Sheet(tuple(filter(None, columns)), tuple(_by_column(numbered, path, columns)))


def _told_apart(names: Iterable[str]) -> list[str]:
    """Return column names, those that are met again with a number behind."""
    columns: list[str] = []
    for name in names:
        column, count = name, 1
        while name and column in columns:
            count += 1
            column = f"{name} ({count})"
        columns.append(column)
    return columns


def _by_column(
    rows: Iterable[tuple[int, list[str]]], path: str, columns: Sequence[str]
) -> Iterator[dict[str, str]]:
    for number, cells in rows:
        surplus = [cell for cell in cells[len(columns) :] if cell]
        if surplus:
            raise FormatError(
                f"{path}, row {number}: has {len(surplus)} cells beyond its {len(columns)} "
                f"columns. Mend the file, or give the right delimiter and "
                "header in the recipe."
            )
        named = zip(columns, cells, strict=False)
        yield {column: cell for column, cell in named if column and cell}


def _text_rows(data: bytes, path: str, delimiter: str) -> Iterator[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise FormatError(
            f"{path}: is not text in UTF-8: {problem}. Save it again as UTF-8."
        ) from problem
    try:
        # strict: a quote that nothing closes would take all rows below it into one cell.
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    except csv.Error as problem:
        raise FormatError(
            f"{path}: is not a table in text columns: {problem}. Mend the quotes in it."
        ) from problem


def _workbook_rows(data: bytes, path: str) -> Iterator[list[str]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of styles and extensions, which no cell depends on
            book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
            sheet = book.worksheets[0]
            sheet.reset_dimensions()  # programs that write workbooks state them wrongly
            rows = [[_text(value) for value in row] for row in sheet.iter_rows(values_only=True)]
    except Exception as problem:  # a broken workbook makes openpyxl raise anything
        raise FormatError(
            f"{path}: is not a workbook that can be read ({type(problem).__name__}). "
            "Save it again as .xlsx."
        ) from problem
    # A note beside a table has no column, and is none of a row's cells too many.
    width = max(map(len, rows), default=0)
    yield from (row + [""] * (width - len(row)) for row in rows)


def _text(value: object) -> str:
    """Show a cell as people write it: whole numbers without a point, dates without a time."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        return value.date().isoformat()
    return str(value)
