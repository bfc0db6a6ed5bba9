import csv
import datetime as dt
import io
import zipfile
from contextlib import suppress

import openpyxl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from spinezarr.errors import FormatError
from spinezarr.formats.sheet import read_sheet

# Characters that XML and CSV can hold. Cells are stripped, so blanks appear only inside.
words = st.from_regex(r"[A-Za-z0-9é_.\"',;/-]([A-Za-z0-9é_ \n\"',;/-]*[a-z0-9])?", fullmatch=True)
cells = st.one_of(st.just(""), words)


@st.composite
def tables(draw):
    names = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    row = st.lists(cells, min_size=len(names), max_size=len(names))
    return names, draw(st.lists(row, max_size=4))


def expected_rows(names, rows):
    pairs = [{name: cell for name, cell in zip(names, row, strict=True) if cell} for row in rows]
    return tuple(pair for pair in pairs if pair)


def as_text(rows, delimiter):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue()


def as_workbook(rows, change=None):
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    out = io.BytesIO()
    book.save(out)
    return out.getvalue() if change is None else rezipped(out.getvalue(), change)


def rezipped(data, change):
    """Apply ``change`` to the sheet inside a workbook."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, change(content) if name.endswith("sheet1.xml") else content)
    return out.getvalue()


@given(tables(), st.sampled_from([",", ";", "\t", "/"]), st.sampled_from(["", "\ufeff"]))
@example((["Id", "Note"], [["1", 'say "x", y'], ["", ""]]), ",", "\ufeff")
def test_tables_that_the_csv_module_writes_are_read(table, delimiter, mark):
    names, rows = table
    data = (mark + as_text([names, *rows], delimiter)).encode()
    sheet = read_sheet(data, "t.csv", delimiter=delimiter)
    assert sheet.columns == tuple(names)
    assert sheet.rows == expected_rows(names, rows)
    body = as_text(rows, delimiter).encode()
    assert read_sheet(body, "t.csv", delimiter=delimiter, header=names).rows == sheet.rows


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(tables())
def test_workbooks_that_openpyxl_writes_are_read(table):
    names, rows = table
    sheet = read_sheet(as_workbook([names, *rows]), "T.XLSX", delimiter=",")
    assert sheet.columns == tuple(names)
    assert sheet.rows == expected_rows(names, rows)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (17, "17"),
        (17.0, "17"),
        (-2.0, "-2"),
        (0.25, "0.25"),
        (1e22, "10000000000000000000000"),
        ("  a b ", "a b"),
        ("0017", "0017"),
        (True, "True"),
        (dt.datetime(2020, 3, 4), "2020-03-04"),  # noqa: DTZ001  workbooks know no zones
        (dt.datetime(2020, 3, 4, 5, 6), "2020-03-04 05:06:00"),  # noqa: DTZ001
        (dt.time(5, 6), "05:06:00"),
    ],
)
def test_a_cell_becomes_its_displayed_text(value, text):
    data = as_workbook([["Id", "Value"], ["a", value]])
    assert read_sheet(data, "t.xlsx", delimiter=",").rows == ({"Id": "a", "Value": text},)


def test_a_workbook_with_a_wrong_declared_size_is_read_whole():
    def spoil(xml):
        assert b'<dimension ref="A1:B3"/>' in xml.replace(b" />", b"/>")
        return xml.replace(b'ref="A1:B3"', b'ref="A1"')

    data = as_workbook([["Id", "Value"], ["a", 1], ["b", 2]], spoil)
    assert len(read_sheet(data, "t.xlsx", delimiter=",").rows) == 2


def test_a_note_next_to_the_table_of_a_workbook_is_left_out():
    data = as_workbook([["Id"], ["a", None, "checked by me"]])
    assert read_sheet(data, "t.xlsx", delimiter=",").rows == ({"Id": "a"},)


def test_columns_of_equal_names_get_different_names():
    sheet = read_sheet(b"Id,Grade,Grade,,Grade,Grade (2)\na,1,2,x,3,4\n", "t.csv", delimiter=",")
    assert sheet.columns == ("Id", "Grade", "Grade (2)", "Grade (3)", "Grade (2) (2)")
    assert list(sheet.rows[0].values()) == ["a", "1", "2", "3", "4"]


def test_a_column_without_values_is_kept():
    sheet = read_sheet(b"Id,Split\na,\n", "t.csv", delimiter=",")
    assert (sheet.columns, sheet.rows) == (("Id", "Split"), ({"Id": "a"},))


@pytest.mark.parametrize("data", [b"", b"\r\n\r\n", b"\xef\xbb\xbf"])
def test_an_empty_text_is_an_empty_table(data):
    sheet = read_sheet(data, "t.csv", delimiter=",")
    assert (sheet.columns, sheet.rows) == ((), ())


def damaged(data):
    at = data.index(b"sheet1.xml") + 40
    return data[:at] + bytes(60) + data[at + 60 :]


WORKBOOK = as_workbook([["Id"], ["a"]])


@pytest.mark.parametrize(
    ("name", "data", "fragment"),
    [
        ("t.csv", b"Id,Age\na,1,2\n", "row 2: has 1 cell beyond its 2 columns"),
        ("t.csv", b'Id,Age\na,"1\nb,2\nc,3\n', "Mend the quotes"),
        ("t.csv", b'Id,Age\n"a"b,1\n', "Mend the quotes"),
        ("t.csv", b"Id\n\xe9\n", "Save it again as UTF-8"),
        ("t.csv", "Id\na\n".encode("utf-16"), "Save it again as UTF-8"),
        ("t.csv", b"Id\n" + b"x" * 200_000, "field larger than field limit"),
        ("t.xlsx", b"", "Save it again as .xlsx"),
        ("t.xlsx", b"Id,Age\n", "Save it again as .xlsx"),
        ("t.xlsx", WORKBOOK[:-200], "Save it again as .xlsx"),
        ("t.xlsx", damaged(WORKBOOK), "Save it again as .xlsx"),
        ("t.xlsx", rezipped(WORKBOOK, lambda _: b"<worksheet><"), "Save it again as .xlsx"),
        ("t.xlsx", rezipped(WORKBOOK, lambda xml: xml[:-30]), "Save it again as .xlsx"),
    ],
)
def test_the_error_names_a_file_that_is_no_table(name, data, fragment):
    with pytest.raises(FormatError) as caught:
        read_sheet(data, name, delimiter=",")
    assert str(caught.value).startswith(name)
    assert fragment in str(caught.value)


@settings(max_examples=60)
@given(st.data())
def test_any_damaged_workbook_is_read_or_refused_with_a_clear_error(data):
    at = data.draw(st.integers(0, len(WORKBOOK) - 1))
    spoilt = bytearray(WORKBOOK)
    spoilt[at] ^= data.draw(st.integers(1, 255))
    with suppress(FormatError):
        sheet = read_sheet(bytes(spoilt), "t.xlsx", delimiter=",")
        assert all(isinstance(cell, str) for row in sheet.rows for cell in row.values())


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
def test_text_in_utf_16_or_32_is_refused_for_its_nul_characters(encoding):
    with pytest.raises(FormatError, match=r"t\.csv: is not text in UTF-8: it holds NUL"):
        read_sheet("Id,Split\n1,train\n".encode(encoding), "t.csv", delimiter=",")


def test_cells_keep_their_characters_unescaped():
    """Cells are made printable only where they are printed."""
    data = 'Id,No\u202ete\na\x1b[2Jb,"two\nlines"\n'.encode()
    sheet = read_sheet(data, "t.csv", delimiter=",")
    assert sheet.columns == ("Id", "No\u202ete")
    assert sheet.rows == ({"Id": "a\x1b[2Jb", "No\u202ete": "two\nlines"},)


SHEET = 'xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"'


def sheet_of(rows, declared=""):
    """Write a workbook by hand, with contents that openpyxl would not write."""
    text = f'<?xml version="1.0"?>{declared}<worksheet {SHEET}><sheetData>{rows}</sheetData>'
    return as_workbook([["x"]], lambda _: f"{text}</worksheet>".encode())


def sharing(text, rows, cells_in_row):
    """Return a workbook whose cells all share one string."""
    cell = '<c t="s"><v>0</v></c>'
    data = sheet_of(f"<row>{cell * cells_in_row}</row>" * rows)
    part = (
        '<Override PartName="/xl/sharedStrings.xml" ContentType="application/vnd.'
        'openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"/></Types>'
    )
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "[Content_Types].xml":
                content = content.replace(b"</Types>", part.encode())
            new.writestr(name, content)
        shared = f'<?xml version="1.0"?><sst {SHEET}><si><t>{text}</t></si></sst>'
        new.writestr("xl/sharedStrings.xml", shared, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def test_cells_that_share_a_text_are_read():
    sheet = read_sheet(sharing("s", 2, 1), "t.xlsx", delimiter=",")
    assert sheet.rows == ({"s": "s"},)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(sharing("a\u0301" * 15_000, 20, 50), "more than 16777216 char", id="shared"),
        pytest.param(
            sheet_of(
                "".join(f'<row r="{n}"><c r="XFD{n}"><v>1</v></c></row>' for n in range(1, 200))
            ),
            "2000000 cells",
            id="last column",
        ),
        pytest.param(
            sheet_of("".join(f'<row r="{n}"><c r="XFD{n}"/></row>' for n in range(1, 1300))),
            "2000000 cells",
            id="last column, empty",
        ),
        pytest.param(
            sheet_of("", '<!DOCTYPE x [<!ENTITY a "b">]>'), "has a document type", id="entity"
        ),
        pytest.param(
            as_workbook(
                [["x"]], lambda _: '<?xml version="1.0"?><!DOCTYPE x []><x/>'.encode("utf-16")
            ),
            "has a document type",
            id="entity in UTF-16",
        ),
    ],
)
def test_a_workbook_that_would_expand_too_much_is_refused(data, reason):
    with pytest.raises(FormatError, match=rf"t\.xlsx: .*{reason}"):
        read_sheet(data, "t.xlsx", delimiter=",")


def test_more_columns_than_excel_knows_are_refused():
    with pytest.raises(FormatError, match=r"t\.csv: has 16385 columns, .* delimiter"):
        read_sheet(b"a," * 16_384 + b"a\n", "t.csv", delimiter=",")
