import openpyxl
import pytest

from spinezarr.errors import FormatError, RecipeError
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.recipe import Recipe

RECIPE = """\
name: clinic
title: Clinic
license: none
citation: none
layouts:
  flat:
    description: flat
    image: "{scan}.nii"
labels: {scheme: canonical, state: unknown}
tables:
"""


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def found(raw, tables, scans):
    for scan in scans:
        (raw / f"{scan}.nii").touch()
    (raw.parent / "clinic.yaml").write_text(RECIPE + tables)
    return discover(Recipe.load(str(raw.parent / "clinic.yaml")), str(raw))


def columns(discovery):
    return {scan.scan_id: scan.columns for scan in discovery.scans}


def test_rows_are_joined_to_the_scans_that_they_name(raw):
    (raw / "t.csv").write_text("Age,Id,Empty\n61, a ,\n,b,\n40,nobody,\n")
    discovery = found(raw, "  t: {files: t.csv, key: Id}\n", "abc")
    assert columns(discovery) == {"a": {"Age": "61"}, "b": {}, "c": {}}
    (use,) = discovery.tables
    assert (use.name, use.files, use.rows, use.matched) == ("t", ("t.csv",), 3, 2)


@pytest.mark.parametrize(
    ("listed", "scans", "expected"),
    [
        (["7"], ["007"], {"007": "7"}),
        (["007"], ["7"], {"7": "007"}),
        (["0", "000"], ["00"], {"00": "0; 000"}),
        (["007", "7"], ["007", "7"], {"007": "007", "7": "7"}),
        (["07"], ["007", "7"], {"007": "07", "7": "07"}),
        (["9" * 5000], ["7"], {"7": ""}),
        (["7a"], ["07a"], {"07a": ""}),
    ],
)
def test_leading_zeros_are_ignored_unless_scans_differ_only_in_them(raw, listed, scans, expected):
    rows = "".join(f"{name},{name}\n" for name in listed)
    (raw / "t.csv").write_text(f"Id,Said\n{rows}")
    discovery = found(raw, "  t: {files: t.csv, key: Id}\n", scans)
    assert {scan: cells.get("Said", "") for scan, cells in columns(discovery).items()} == expected


def test_all_rows_of_a_scan_are_joined_to_it(raw):
    (raw / "t.csv").write_text("Id,Grade,Level\na,1,L1\na,2,L1\n")
    (raw / "u.csv").write_text("Id;Grade\na;3\n")
    tables = "  t: {files: t.csv, key: Id}\n  u: {files: u.csv, key: Id, delimiter: ';'}\n"
    assert columns(found(raw, tables, "a")) == {"a": {"Grade": "1; 2; 3", "Level": "L1"}}


def test_tables_are_joined_by_the_column_that_names_most_scans(raw):
    (raw / "t.csv").write_text("Nr,Twin,Scan\n1,b,a\n2,x,b\n3,y,c\n")
    assert columns(found(raw, "  t: {files: t.csv}\n", "abc"))["c"] == {"Nr": "3", "Twin": "y"}


def test_a_table_that_names_no_scan_joins_nothing(raw):
    (raw / "t.csv").write_text("Nr\n100\n")
    assert columns(found(raw, "  t: {files: t.csv}\n", "a")) == {"a": {}}


def test_a_table_may_give_the_split_and_a_list_overrides_it(raw):
    (raw / "t.csv").write_text("Id,Part\na,train\nb,test\nc,\n")
    (raw / "s.txt").write_text("one:\nb\n")
    tables = "  t: {files: t.csv, key: Id, split: Part}\n"
    splits = "splits: {files: s.txt, sections: {one: validation}, entry: '{scan}'}\n"
    discovery = found(raw, tables + splits, "abc")
    assert {scan.scan_id: (scan.split, scan.split_index) for scan in discovery.scans} == {
        "a": ("train", -1),
        "b": ("validation", 0),
        "c": ("", -1),
    }


def test_a_list_without_numbers_may_give_the_split(raw):
    (raw / "t.txt").write_text("patients: 11; 12\r\n")
    tables = (
        "  t: {files: t.txt, scan_regex: '\\d+', constants: {fold: '1', part: test}, split: part}\n"
    )
    discovery = found(raw, tables, ["11", "12", "13"])
    assert [scan.split for scan in discovery.scans] == ["test", "test", ""]
    assert columns(discovery)["11"] == {"fold": "1", "part": "test"}


def test_a_table_may_belong_to_one_split(raw):
    (raw / "t.csv").write_text("Id,Age\na,61\n")
    tables = "  t: {files: t.csv, key: Id, constants: {part: test}, split: part}\n"
    discovery = found(raw, tables, "ab")
    assert [scan.split for scan in discovery.scans] == ["test", ""]


def test_all_scans_of_a_patient_have_the_row_of_the_patient(raw):
    (raw / "t.csv").write_text("Id,Age\nP1,61\n")
    text = RECIPE.replace('"{scan}.nii"', '"{patient}_{scan}.nii"')
    (raw.parent / "clinic.yaml").write_text(
        text + '  t: {files: t.csv, key: Id, matches: "{patient}"}\n'
    )
    for name in ("P1_a", "P1_b", "P2_c"):
        (raw / f"{name}.nii").touch()
    discovery = discover(Recipe.load(str(raw.parent / "clinic.yaml")), str(raw))
    assert columns(discovery) == {"a": {"Age": "61"}, "b": {"Age": "61"}, "c": {}}


def test_a_table_next_to_the_recipe_is_read(raw):
    (raw / "t.csv").write_text("Id,Age\na,61\n")
    (raw.parent / "mine.csv").write_text("Id,Note\na,prone\n")
    tables = "  t: {files: t.csv, shipped: mine.csv, key: Id}\n"
    assert columns(found(raw, tables, "a")) == {"a": {"Age": "61", "Note": "prone"}}


def test_a_column_of_the_recipe_may_be_empty_in_every_row(raw):
    (raw / "t.csv").write_text("Id,Part\na,\n")
    tables = "  t: {files: t.csv, key: Id, split: Part}\n"
    assert columns(found(raw, tables, "a")) == {"a": {}}


@pytest.mark.parametrize(
    ("write", "fragments"),
    [
        (lambda path: path.write_text("Name,Age\na,1\n"), ["no column 'Id'", "It has 2 column"]),
        (lambda path: path.write_text("Id;Age\na;1\n"), ["no column 'Id'", "It has 1 column"]),
        (lambda path: path.write_bytes(b""), ["no column 'Id'"]),
        (lambda path: path.write_bytes(b"Id\n\xff\n"), ["not text in UTF-8"]),
        (lambda path: path.symlink_to(path.parent / "gone"), ["cannot be read"]),
    ],
)
def test_the_error_names_a_table_that_cannot_be_read(raw, write, fragments):
    write(raw / "t.csv")
    with pytest.raises(FormatError) as caught:
        found(raw, "  t: {files: t.csv, key: Id}\n", "a")
    assert all(text in str(caught.value) for text in ["t.csv", *fragments]), str(caught.value)


def test_missing_or_binary_files_of_a_recipe_are_refused(raw):
    with pytest.raises(RecipeError, match=r"tables\.t\.shipped names .*gone\.csv"):
        found(raw, "  t: {shipped: gone.csv, key: Id}\n", "a")
    (raw.parent / "s.txt").write_bytes(b"\xff\xfe")
    splits = "splits: {files: x, shipped: s.txt, sections: {one: train}, entry: '{scan}'}\n"
    with pytest.raises(RecipeError, match=r"s\.txt is not text"):
        found(raw, f"  t: {{files: none.csv}}\n{splits}", "a")


def test_workbooks_are_joined_like_csv_files(raw):
    book = openpyxl.Workbook()
    book.active.append(["Id", "Age"])
    book.active.append([17, 61.0])
    book.save(raw / "t.xlsx")
    tables = '  t: {files: "*.xlsx", key: Id}\n'
    assert columns(found(raw, tables, ["017"])) == {"017": {"Age": "61"}}
