"""The values of a mask tell the version of the dataset that it comes from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import LabelError, RecipeError
from spinezarr.recipe import EarlierValues, Recipe
from spinezarr.vertebrae import ANATOMICAL_ORDER, VALUE_OF_NAME

SPINOPELVIC = Recipe.load("ctspinopelvic1k").labels.earlier
SPINE = [name for name in ANATOMICAL_ORDER if name != "coccyx"]
EARLIER = {
    **{f"L{n}": n for n in range(1, 7)},
    "sacrum": 7,
    **{f"C{n}": 12 + n for n in range(1, 8)},
    **{f"T{n}": 19 + n for n in range(1, 14)},
}
"""Value of each level in the exports of June 2026."""
TAIL = ("L1", "L2", "L3", "L4", "L5", "sacrum")


@st.composite
def spines(draw):
    """Return the levels of a scan that shows at least a part of the lumbar spine or sacrum."""
    variant = {"T13": False, "L6": False, "T12": True, "L5": True}
    for level in variant:
        variant[level] = draw(st.booleans())
    order = [name for name in SPINE if variant.get(name, True)]
    last = draw(st.sampled_from([name for name in order if name in TAIL]))
    stop = order.index(last) + 1
    return order[draw(st.integers(0, stop - 1)) : stop]


@given(spines(), st.booleans(), st.booleans())
def test_the_version_of_any_plausible_mask_is_found(levels, hips, partial):
    now = {VALUE_OF_NAME[name] for name in levels} | ({30, 31} if hips else set())
    assert SPINOPELVIC.stored_values(now | {0}) == ()
    background = 10 if partial else 0
    then = {EARLIER[name] for name in levels} | ({8, 9} if hips else set())
    pairs = dict(SPINOPELVIC.stored_values(then | {background}))
    assert {pairs[value] for value in then} == now
    assert pairs[10] == 255


@pytest.mark.parametrize("found", [{0}, set(), {0, 8, 9}, {0, 30, 31}, {255}, {0, 20, 23}])
def test_a_mask_without_a_level_that_earlier_masks_show_has_the_present_values(found):
    assert SPINOPELVIC.stored_values(found) == ()


@pytest.mark.parametrize(
    ("found", "reasons"),
    [
        (
            {0, *range(1, 6), *range(7, 13)},  # version 3 of June 2026: S1, sacrum, hips, femora
            ["the values 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12 are neither", "not name 11, 12"],
        ),
        ({0, *range(1, 6), *range(7, 11)}, ["none is L1, L2, L3, L4, L5, sacrum", "both 0 and 10"]),
        ({0, 2, 20, 21}, ["C3 to T12 would be missing between C2 and L1", "T3 to L1 would be"]),
        ({0, 1, 99}, ["do not name 99"]),
    ],
)
def test_values_of_neither_version_are_refused_with_the_reasons(found, reasons):
    with pytest.raises(LabelError) as caught:
        SPINOPELVIC.stored_values(found)
    for reason in reasons:
        assert reason in str(caught.value)


def test_values_of_both_versions_are_refused():
    shifted = EarlierValues(values={"21": "L1", "22": "L2"}, shown=("L1", "L2", "L3"))
    assert shifted.stored_values({0, 20, 21}) == ()
    with pytest.raises(LabelError, match="the values 21, 22 may be those of the dataset and"):
        shifted.stored_values({0, 21, 22})


def test_a_layout_with_values_of_its_own_has_no_earlier_ones(tmp_path):
    text = (
        "name: mine\ntitle: Mine\nlicense: CC0-1.0\ncitation: none\n"
        'layouts: {flat: {description: one, image: "{scan}.nii", label: "{scan}_seg.nii", '
        'values: {"3": L1}}}\n'
        "labels: {scheme: canonical, state: unknown, "
        'earlier: {values: {"1": L1}, shown: [L1]}}\n'
    )
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match="'flat' gives its masks other values"):
        Recipe.load(str(path))
    path.write_text(text.replace(', values: {"3": L1}', ""))
    assert Recipe.load(str(path)).labels.earlier.shown == ("L1",)
