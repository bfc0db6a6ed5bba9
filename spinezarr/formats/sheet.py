"""Tables that datasets ship, as rows of text: ``.xlsx`` workbooks and text in columns."""

import csv
import datetime as dt
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from xml.etree.ElementTree import ParseError

import openpyxl
from openpyxl.utils.exceptions import InvalidFileException

from spinezarr.errors import FormatError

__all__ = ["read_sheet"]


def read_sheet(
    data: bytes, path: str, *, delimiter: str, header: Sequence[str] = ()
) -> list[dict[str, str]]:
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

    Returns
    -------
    list
        A dictionary a row, by column; empty cells are left out, and so are empty rows.

    Raises
    ------
    FormatError
        If the file is not such a table, or a row has more cells than there are columns.

    Examples
    --------
    >>> read_sheet(b"image_id;split\r\ns0001;train\r\n", "meta.csv", delimiter=";")
    [{'image_id': 's0001', 'split': 'train'}]
    """
    rows = (
        _workbook_rows(data, path)
        if path.lower().endswith(".xlsx")
        else _text_rows(data, path, delimiter)
    )
    return list(_by_column(rows, path, header))


def _by_column(
    rows: Iterable[Sequence[str]], path: str, header: Sequence[str]
) -> Iterator[dict[str, str]]:
    columns = list(header)
    for number, row in enumerate(rows, 1):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if not columns:
            columns = cells
            continue
        surplus = [cell for cell in cells[len(columns) :] if cell]
        if surplus:
            raise FormatError(
                f"{path}, row {number}: has the cell {surplus[0]!r} beyond its {len(columns)} "
                f"columns ({', '.join(columns)}). Mend the file, or give the right delimiter and "
                "header in the recipe."
            )
        named = zip(columns, cells, strict=False)
        yield {column: cell for column, cell in named if column and cell}


def _text_rows(data: bytes, path: str, delimiter: str) -> Iterator[list[str]]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise FormatError(f"{path}: is not text in UTF-8: {problem}.") from problem
    try:
        yield from csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    except csv.Error as problem:
        raise FormatError(f"{path}: is not a table in text columns: {problem}.") from problem


def _workbook_rows(data: bytes, path: str) -> Iterator[list[str]]:
    try:
        book = openpyxl.load_workbook(io.BytesIO(data), read_only=True, data_only=True)
        sheet = book.worksheets[0]
        for row in sheet.iter_rows(values_only=True):
            yield [_text(value) for value in row]
    except (
        InvalidFileException,
        zipfile.BadZipFile,
        ParseError,
        KeyError,
        ValueError,
        IndexError,
        OSError,
        EOFError,
        TypeError,
        AttributeError,
    ) as problem:
        raise FormatError(
            f"{path}: is not a workbook that can be read: {problem!r}. Save it again as .xlsx."
        ) from problem


def _text(value: object) -> str:
    """Show a cell as people write it: whole numbers without a point, dates without a time."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dt.datetime) and value.time() == dt.time():
        return value.date().isoformat()
    return str(value)
