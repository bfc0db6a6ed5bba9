"""Tests of which changes of the inputs make the next ingest read a scan again."""

import re
from dataclasses import dataclass, field, make_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.formats.limits import Limits
from spinezarr.ingestion.discovery.discover import discover
from spinezarr.ingestion.run import ingest
from spinezarr.recipe import Recipe
from spinezarr.recipe.layout import Layout
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.ledger import hash_inputs

RECIPE = Recipe.from_pairs("{scan}_ct.nii.gz", "{scan}_seg.nii.gz", name="pairs")


class LaterLayout(Layout):
    """The layout of a later version, with one more field."""

    new_option: bool = False
    new_list: tuple[str, ...] = ()


class LaterRecipe(Recipe):
    """The recipe of a later version, with new fields in the recipe and in its layouts."""

    new_field: str | None = None
    layouts: dict[str, LaterLayout]


def later():
    return LaterRecipe.model_validate_json(RECIPE.model_dump_json())


def test_a_new_field_with_its_default_keeps_the_hash():
    assert hash_inputs(later(), "a") == hash_inputs(RECIPE, "a")


def test_a_new_field_with_a_value_changes_the_hash():
    changed = later().model_copy(update={"new_field": "x"})
    assert hash_inputs(changed, "a") != hash_inputs(RECIPE, "a")
    layouts = {
        name: layout.model_copy(update={"new_option": True})
        for name, layout in later().layouts.items()
    }
    changed = later().model_copy(update={"layouts": layouts})
    assert hash_inputs(changed, "a") != hash_inputs(RECIPE, "a")


@pytest.mark.parametrize("name", ["title", "license", "citation", "homepage"])
def test_a_changed_value_changes_the_hash(name):
    assert hash_inputs(RECIPE.model_copy(update={name: "another"})) != hash_inputs(RECIPE)


class NoWork:
    """Workers that fail if they get a task."""

    def run(self, job, tasks, listener):  # noqa: ARG002  as the Protocol has it
        assert list(tasks) == []
        yield from ()


def test_scans_are_not_read_again_after_a_new_field_is_added(two_versions, tmp_path):
    raw, store = str(two_versions / "before"), str(tmp_path / "store.zarr")
    done = ingest(RECIPE, discover(RECIPE, raw), store).done
    report = ingest(later(), discover(later(), raw), store, workers=NoWork())
    assert (report.skipped, report.done, report.updated) == (done, (), ())


def test_a_new_dataclass_field_with_its_default_keeps_the_hash():
    grown = make_dataclass(
        "LaterLimits",
        [("new_limit", int, 3), ("new_list", list, field(default_factory=list))],
        bases=(Limits,),
        frozen=True,
    )
    assert hash_inputs(grown()) == hash_inputs(Limits())
    assert hash_inputs(grown(new_limit=4)) != hash_inputs(Limits())
    assert hash_inputs(Limits(axis_voxels=4)) != hash_inputs(Limits())


@dataclass(frozen=True)
class Box:
    """A value with a required field."""

    content: object


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(VALUES, VALUES)
def test_different_values_have_different_canonical_json(one, other):
    same = repr(one) == repr(other)
    assert (canonical_json(Box(one)) == canonical_json(Box(other))) <= (same or one == other)
    assert canonical_json(Box(one)) == canonical_json(Box(one))


def test_canonical_json_keeps_the_order_of_keys_and_sorts_sets():
    assert canonical_json({"a": 1, "b": 2}) != canonical_json({"b": 2, "a": 1})
    assert canonical_json({"a", "b", "c"}) == canonical_json({"c", "b", "a"})


def test_a_regular_expression_is_hashed_by_its_text_and_flags():
    assert canonical_json(re.compile("a")) != canonical_json(re.compile("a", re.IGNORECASE))


def test_values_without_canonical_json_are_refused():
    with pytest.raises(TypeError, match="object has no canonical JSON"):
        canonical_json((object(),))
