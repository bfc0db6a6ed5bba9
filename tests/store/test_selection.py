"""Selections choose the same scans as a plain loop over the table."""

import re
import unicodedata

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import UnknownScanError, UsageError
from spinezarr.store.selection import ScanSelection

LEVELS = ("T12", "L1", "L6")
rows = st.fixed_dictionaries(
    {
        "split": st.sampled_from(["", "train", "test"]),
        "source": st.sampled_from(["A", "B"]),
        "shown": st.sets(st.sampled_from(LEVELS)),
    }
)


def table_of(made):
    counts = np.array([[level in row["shown"] for level in LEVELS] for row in made], int)
    return xr.Dataset(
        {
            "split": ("scan", [row["split"] for row in made]),
            "source": ("scan", [row["source"] for row in made]),
            "voxel_count": (("scan", "vertebra"), 7 * counts.reshape(-1, len(LEVELS))),
        },
        {"scan": [f"s{i}" for i in range(len(made))], "vertebra": list(LEVELS)},
    )


@given(
    made=st.lists(rows, min_size=1, max_size=8),
    split=st.none() | st.sets(st.sampled_from(["", "train", "test"]), min_size=1),
    source=st.none() | st.sets(st.sampled_from(["A", "B"]), min_size=1),
    vertebra=st.none() | st.sets(st.sampled_from(LEVELS), min_size=1),
    order=st.none() | st.permutations(range(8)),
)
def test_a_scan_is_chosen_if_it_meets_every_condition(made, split, source, vertebra, order):
    scans = None if order is None else [f"s{i}" for i in order if i < len(made)]
    known = {
        "split": {row["split"] for row in made},
        "source": {row["source"] for row in made},
        "vertebra": {level for row in made for level in row["shown"]},
    }
    selection = ScanSelection.of(scans, split, source, vertebra)
    given_names = {"split": split, "source": source, "vertebra": vertebra}
    if any(not (names or set()) <= known[key] for key, names in given_names.items()):
        with pytest.raises(UsageError, match="the store has"):
            selection.scan_ids(table_of(made), "it")
        return
    expected = [
        f"s{i}"
        for i in (range(len(made)) if scans is None else (int(name[1:]) for name in scans))
        if (split is None or made[i]["split"] in split)
        and (source is None or made[i]["source"] in source)
        and (vertebra is None or made[i]["shown"] & vertebra)
    ]
    assert selection.scan_ids(table_of(made), "it") == expected


@pytest.mark.parametrize(
    "given_names",
    ["s1", ["s1"], ("s1", "s1"), np.array(["s1"]), xr.DataArray(["s1"]), iter(["s1"])],
    ids=lambda names: type(names).__name__,
)
def test_scan_ids_may_come_in_any_collection(given_names):
    assert ScanSelection.of(given_names).scans == ("s1",)


def test_scan_ids_match_in_any_unicode_normal_form():
    assert ScanSelection.of(unicodedata.normalize("NFD", "Müller")).scans == ("Müller",)


def test_an_error_names_the_scan_that_is_missing():
    table = table_of([{"split": "", "source": "A", "shown": set()}])
    with pytest.raises(UnknownScanError, match=r"mine\.zarr: has no scan 's8'\."):
        ScanSelection.of(["s9", "s8", "s0"]).rows(table, "mine.zarr")


def test_conditions_that_no_scan_meets_together_are_refused():
    table = table_of(
        [
            {"split": "train", "source": "A", "shown": set()},
            {"split": "test", "source": "B", "shown": set()},
        ]
    )
    selection = ScanSelection.of(["s0"], split="test", source=["A", "B"])
    assert selection.scan_ids(table, "it") == []
    conditions = r"scan 's0', split 'test', source 'A' or 'B'"
    with pytest.raises(UsageError, match=rf"it: no scan meets all conditions \({conditions}\)"):
        selection.some_scan_ids(table, "it")
    assert ScanSelection.of([], split="test").some_scan_ids(table, "it") == []
    assert ScanSelection.of(["s0"], split="train").some_scan_ids(table, "it") == ["s0"]


def test_an_error_suggests_names_that_are_alike():
    table = table_of([{"split": "train", "source": "A", "shown": {"L1"}}] * 3)
    for condition, name, hint in (
        ("scans", "s11", "Did you mean 's1'"),
        ("scans", "unlike", "It has 3 scans, such as 's0'"),
        ("split", "trian", "Did you mean 'train'?"),
        ("vertebra", "l1", "Did you mean 'L1'?"),
    ):
        with pytest.raises((UsageError, UnknownScanError), match=re.escape(hint)):
            ScanSelection.of(**{condition: [name]}).rows(table, "it")
