"""Printed statistics read back as the same figures."""

import csv
import io
import json
from dataclasses import asdict
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from spinezarr.card import Card
from spinezarr.stats.compare import compare
from spinezarr.stats.documents import (
    comparison_csv,
    comparison_json,
    comparison_markdown,
    statistics_csv,
    statistics_json,
    statistics_markdown,
)
from spinezarr.stats.statistics import compute_statistics
from spinezarr.text import to_ascii_json

cells = st.text('ab|\\",;ü#-', max_size=4).map(str.strip)
rows = st.fixed_dictionaries(
    {
        "patient": st.sampled_from("pq"),
        "source": cells,
        "split": cells,
        "size": st.tuples(*[st.integers(1, 2000)] * 3),
        "spacing": st.tuples(*[st.floats(0.1, 9)] * 3),
        "mask": st.booleans(),
        "volumes": st.dictionaries(st.sampled_from(["C1", "T13", "L1", "L6"]), st.floats(0.01, 99)),
        "centroids": st.sets(st.sampled_from(["L1", "S1"])),
    }
)
made_tables = st.lists(rows, max_size=6)


def card_of(**values):
    figures = {"scans": 3, "splits": {"a": 1, "|": 2}, "caveats": ["a | b"]}
    spread = {"min": [1, 1, 1], "median": [2, 2, 2.5], "max": [3, 3, 3]}
    row = {"scans": 2, "detection_percent": 66.67, "volume_cm3": {"min": 3, "median": 2}}
    known = {"name": "x", "title": "X", "source": "somewhere", "shape_ijk": spread}
    return Card.model_validate_json(
        json.dumps({**known, **figures, "vertebrae": {"L1": row, "sacrum": row}, **values})
    )


def markdown_tables(text):
    """Yield each table as (heading, columns, rows), as a rendered page shows it."""
    heading, rows = "", []
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for before, token in pairwise(tokens):
        if before.type == "heading_open":
            heading = _shown(token)
        elif before.type == "tr_open":
            rows.append([])
        if before.type in {"th_open", "td_open"}:
            rows[-1].append(_shown(token))
        elif token.type == "table_close":
            columns, *body = rows
            assert {len(row) for row in rows} == {len(columns)}
            yield heading, columns, body
            rows = []


def _shown(token):
    assert {part.type for part in token.children} <= {"text"}
    return "".join(part.content for part in token.children)


def number(text):
    return None if text == "-" else float(text.removesuffix("%"))


def in_csv(name):
    """Return a name in the form that no spreadsheet takes for a formula."""
    return f"'{name}" if name.startswith(("=", "+", "-", "@")) else name


@given(made=made_tables)
def test_csv_reads_back_as_the_same_figures(table_of, made):
    found = compute_statistics(table_of(made))
    read = list(csv.reader(io.StringIO(statistics_csv(found))))
    assert read[0] == ["group", "name", "statistic", "value"]
    expected = {
        (key.group, in_csv(key.name), key.statistic): value
        for key, value in found.figures().items()
    }
    assert {tuple(row[:3]): float(row[3]) for row in read[1:]} == expected
    assert len(read) == 1 + len(expected)


@given(made=made_tables)
def test_json_reads_back_as_the_same_figures(table_of, made):
    found = compute_statistics(table_of(made))
    read = json.loads(to_ascii_json(statistics_json(found)))
    assert read.pop("vertebrae_by_region") == found.vertebrae_by_region
    assert read == asdict(found)


@given(made=made_tables)
def test_markdown_reads_back_as_the_same_figures_rounded(table_of, made):
    found = compute_statistics(table_of(made))
    text = statistics_markdown(found)
    assert f"Number of slices of all data: {found.slices:,}." in text
    masked = found.scans_with_mask
    assert (f"of all {found.scans:,} scans" in text) == (masked > 0)
    assert ("No scan has a mask" in text) == (masked == 0)
    without = f"{found.scans - masked} of them without a mask"
    assert (without in text) == (found.scans > masked > 0)
    tables = {heading: (columns, body) for heading, columns, body in markdown_tables(text)}
    for heading, unnamed, counts in (
        ("Scans by split", "(no split)", found.scans_by_split),
        ("Scans by source", "(one)", found.scans_by_source),
    ):
        _, body = tables.get(heading, ((), []))
        assert body == [[name or unnamed, str(n)] for name, n in counts.items()]
    _, body = tables.get("Resolution Details", ((), []))
    assert len(body) == (3 if made else 0)
    for statistic, spacing, size in body:
        mm = [getattr(found.spacing_ijk_mm[axis], statistic) for axis in "ijk"]
        assert spacing == "({:.2f}, {:.2f}, {:.2f})".format(*mm)
        voxels = [getattr(found.shape_ijk[axis], statistic) for axis in "ijk"]
        assert [float(n) for n in size.strip("()").split(",")] == voxels
    columns, body = tables.get("Label Information Statistics", ((), []))
    at = columns.index("Anatomy Structure") if body else 0
    assert [row[at] for row in body] == list(found.vertebrae)
    for row, vertebra in zip(body, found.vertebrae.values(), strict=True):
        volume = vertebra.volume_cm3
        measured = {
            "Label": vertebra.value,
            "Detection Count": vertebra.scans,
            "Detection Rate": round(vertebra.detection_percent, 2),
            **{
                f"{s.capitalize()} Volume (cm³)": volume and round(getattr(volume, s), 2)
                for s in ("min", "median", "max")
            },
            "Annotated Centers": vertebra.annotated_centroids,
        }
        cells = dict(zip(columns, row, strict=True))
        del cells["Anatomy Structure"]
        assert {name: number(cell) for name, cell in cells.items()} == {
            name: measured[name] for name in cells
        }
    if body:
        assert ("Annotated Centers" in columns) == any(row.get("centroids") for row in made)
        assert ("Detection Count" in columns) == ("Max Volume (cm³)" in columns) == (masked > 0)


@given(made=made_tables)
def test_a_comparison_reads_back_as_the_same_lines(table_of, made):
    found = compare(compute_statistics(table_of(made)), card_of())
    by_json = json.loads(to_ascii_json(comparison_json(found)))
    assert by_json["agrees"] == found.agrees
    assert by_json["caveats"] == list(found.caveats)
    by_csv = list(csv.DictReader(io.StringIO(comparison_csv(found))))
    ((_, _, by_markdown),) = markdown_tables(comparison_markdown(found))
    records = zip(found.lines, by_json["lines"], by_csv, by_markdown, strict=True)
    for line, from_json, from_csv, from_markdown in records:
        for record in (from_json, from_csv):
            assert tuple(record[part] for part in ("group", "name", "statistic")) == line.key
            assert (record["verdict"], record["note"]) == (line.verdict, line.note)
        for part, at in (("store", 1), ("card", 2), ("difference", 3)):
            value = getattr(line, part)
            assert from_json[part] == value
            assert from_csv[part] == ("" if value is None else str(value))
            shown = number(from_markdown[at])
            assert (shown is None) == (value is None)
            if value is not None:
                assert abs(shown - value) <= 0.5 * 10**-line.decimals + 1e-9
        assert from_markdown[4:] == [line.verdict, line.note]


def test_no_title_of_a_figure_is_given_twice(table_of):
    row = {"volumes": {"L1": 1.0, "S1": 1.0}, "split": "a", "source": "b"}
    ((_, _, body),) = markdown_tables(
        comparison_markdown(
            compare(
                compute_statistics(table_of([row])),
                card_of(
                    regions={"lumbar": 1},
                    spacing_ijk_mm={"min": [1, 1, 1], "median": [1, 1, 1], "max": [1, 1, 1]},
                ),
            )
        )
    )
    titles = [cells[0] for cells in body]
    assert len(set(titles)) == len(titles)
    assert {"scans", "a scans", "lumbar vertebrae", "L1 scans", "L1 min volume (cm³)"} <= set(
        titles
    )
    assert {"max spacing k (mm)", "median size i", "sacrum detection rate (%)"} <= set(titles)
