import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import RecipeError
from spinezarr.ingestion.discovery.images import _SCAN_ID
from spinezarr.recipe import SERIES_NAMES, Recipe, SeriesInfo, SeriesSelection

BONE = SeriesInfo(
    number=3,
    uid="1.2.3",
    study_uid="1.2",
    kernel=("Br59f", "3"),
    description="LSPINE / Bone 1.0",
    image_type=("ORIGINAL", "PRIMARY", "AXIAL"),
    slice_thickness_mm=1.0,
    slices=200,
)
NOTHING = SeriesInfo(None, "", "", (), "", (), None, 2)


def choice(**keys):
    return SeriesSelection.model_validate_json(json.dumps(keys))


@pytest.mark.parametrize(
    ("keys", "taken"),
    [
        ({}, True),
        ({"number": 3}, True),
        ({"number": [1, 2]}, False),
        ({"uid": "1.2.3"}, True),
        ({"uid": ["1.2.4", "1.2.30"]}, False),
        ({"kernel": "Br59*"}, True),
        ({"kernel": "br59f-3"}, True),
        ({"kernel": "Br59f"}, False),
        ({"kernel": ["STANDARD", "{k:B[rl][56].*}"]}, True),
        ({"description": "*bone*"}, True),
        ({"description": "*lspine   bone*"}, True),
        ({"description": "bone"}, False),
        ({"image_type": ["AXIAL", "ORIGINAL"]}, True),
        ({"image_type": ["AXIAL", "DERIVED"]}, False),
        ({"image_type": "AXIAL"}, True),
        ({"slice_thickness_mm": [0, 1]}, True),
        ({"slice_thickness_mm": [1.1, 5]}, False),
        ({"min_slices": 200}, True),
        ({"min_slices": 201}, False),
        ({"number": 3, "kernel": "Br*", "min_slices": 100}, True),
        ({"number": 3, "kernel": "Hr*"}, False),
    ],
)
def test_a_series_is_chosen_if_it_fits_every_key(keys, taken):
    assert choice(**keys).selects(BONE) == taken


@pytest.mark.parametrize(
    "keys",
    [
        {"number": 0},
        {"uid": "1"},
        {"kernel": "?"},
        {"description": "x*"},
        {"image_type": "AXIAL"},
        {"slice_thickness_mm": [0, 9]},
    ],
)
def test_a_missing_field_of_a_series_fits_only_the_wildcard(keys):
    assert choice().selects(NOTHING)
    assert choice(kernel="*").selects(NOTHING)
    assert not choice(**keys).selects(NOTHING)


texts = st.text("aB3/\\ .-_^*?[]{}\0é", max_size=9)


@given(
    st.builds(
        SeriesInfo,
        number=st.none() | st.integers(-(2**31), 2**31),
        uid=texts,
        study_uid=texts,
        kernel=st.lists(texts, max_size=3).map(tuple),
        description=texts,
        image_type=st.just(()),
        slice_thickness_mm=st.none() | st.floats(0, 1e6),
        slices=st.integers(1, 9),
    )
)
def test_fields_of_a_series_can_be_part_of_a_scan_id(series):
    found = series.texts()
    assert found.keys() == SERIES_NAMES
    assert all(_SCAN_ID.fullmatch(f"x_{text}") and text for text in found.values())


def test_fields_are_plain_text_and_absent_ones_are_none():
    assert BONE.texts() == {
        "series_number": "3",
        "series_uid": "1.2.3",
        "study_uid": "1.2",
        "kernel": "Br59f-3",
        "slice_thickness_mm": "1",
    }
    assert set(NOTHING.texts().values()) == {"none"}


# Pairs


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ("{scan}_ct.nii.gz", "{scan}"),
        ("{patient}/{scan}.nii", "{scan}"),
        ("{path:.+}/", "{path|join}"),
        ("{patient}/{date}/{patient}.mha", "{patient|join}_{date|join}"),
    ],
)
def test_the_id_of_pairs_consists_of_the_fields_of_the_image_pattern(image, expected):
    recipe = Recipe.from_pairs(image, None, name="x")
    assert recipe.scan_id == expected
    assert recipe.patient_id == ""
    assert recipe.layouts["pairs"].series is None


def test_pairs_whose_id_names_a_series_take_each_series():
    recipe = Recipe.from_pairs("{path:.+}/", None, name="x", scan_id="{path|join}_{series_number}")
    assert recipe.layouts["pairs"].series == SeriesSelection()


@pytest.mark.parametrize(
    ("image", "scan_id", "expected"),
    [
        ("{scan}.nii", "{scan}_{kernel}", "'series' goes with folders of DICOM slices"),
        ("{scan}/", "{scan}_{case}", "scan_id uses {case}, which"),
        ("{scan}/", "{scan|upper}", "no filter 'upper'"),
        ("{kernel}/", "{kernel}", "the image pattern names {kernel}, which 'series' gives, too"),
    ],
)
def test_the_error_of_a_wrong_pairs_id_explains_it(image, scan_id, expected):
    with pytest.raises(RecipeError) as caught:
        Recipe.from_pairs(image, None, name="x", scan_id=scan_id)
    assert expected in str(caught.value)
