"""The scan table holds a dataset's own columns, whatever they are called."""

import csv
import io
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import spinezarr
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.testing import NiftiForm, write_nifti
from spinezarr.vertebrae import LEVELS

RECIPE = """\
name: odd
title: Odd
license: none
citation: none
layouts:
  x: {description: x, image: "{scan}.nii", sidecar: "{scan}.json", sidecar_keys: "{any:.*}"}
labels: {scheme: canonical, state: unknown}
tables:
  t: {files: t.csv, key: Key of this table}
"""
ODD = [
    "a/b", "a_b", "a\\b", "..", ".", "zarr.json", "__private", "c", "0", "two\nlines", "nul\0",
    "\x7f", "split", "split_in_source", "scan", "vertebra", "axis", "shape_zyx", "manifest",
    "é" * 300, "é" * 299, "x" * 999, "日本", "a b", "*?[x]", "~", "-", "C", "anomaly", "column_..",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "raw").mkdir()
    (folder / "odd.yaml").write_text(RECIPE)
    write_nifti(folder / "raw" / "s.nii", np.zeros((3, 3, 3), np.int16), np.eye(4), NiftiForm())
    return folder


def table_of(folder, names, values, sidecar):
    out = io.StringIO(newline="")
    csv.writer(out).writerows([["Key of this table", *names], ["s", *values]])
    (folder / "raw" / "t.csv").write_bytes(out.getvalue().encode())
    (folder / "raw" / "s.json").write_text(json.dumps(sidecar))
    recipe = Recipe.load(str(folder / "odd.yaml"))
    report = ingest(recipe, discover(recipe, str(folder / "raw")), str(folder / "odd.zarr"))
    assert not report.failed, report.failed
    return spinezarr.open(folder / "odd.zarr")._reader.table  # under the stored names


def assert_holds(table, expected):
    named = {table[name].attrs.get("long_name", name): name for name in table.data_vars}
    for name, value in expected.items():
        column = table[named[name]]
        assert column.dims == ("scan",)
        assert column.item() == value
        assert "/" not in named[name]
    assert table.shape_zyx.to_numpy().tolist() == [[3, 3, 3]]
    assert table.vertebra.to_numpy().tolist() == list(LEVELS)


def test_columns_with_odd_names_are_kept_with_their_values(folder):
    names = [name for name in ODD if "\0" not in name]  # text files cannot hold NUL
    values = [f"value {at}" for at in range(len(names))]
    table = table_of(folder, names, values, {})
    assert_holds(table, dict(zip(names, values, strict=True)))
    assert table["a_b"].item() == values[1]
    assert table["split_in_source"].item() == values[names.index("split_in_source")]
    assert table.split.item() == ""


def test_sidecar_keys_with_odd_names_are_kept_with_their_values(folder):
    said = {name: f"v{at}" for at, name in enumerate(ODD)}
    assert_holds(table_of(folder, ["x"], ["1"], said), {**said, "x": "1"})


names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5)
odd_names = st.one_of(st.sampled_from(ODD), names).map(str.strip).filter(len)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(odd_names, st.text(min_size=1, max_size=3), max_size=6))
@example({"a": "\ud800", "b": "\0", "c": "x\0"})
@example({"x": "0"})
def test_any_sidecar_fits_into_the_table(folder, said):
    shown = {name: text.encode(errors="replace").decode() for name, text in said.items()}
    # The column x of the table goes before a key x of the sidecar.
    assert_holds(table_of(folder, ["x"], ["1"], said), {**shown, "x": "1"})
