import colorsys
from itertools import combinations, pairwise

import pytest

from spinezarr.label_schemes import SCHEMES
from spinezarr.vertebrae import (
    ANATOMICAL_ORDER,
    BACKGROUND,
    NAME_OF_VALUE,
    VALUE_OF_NAME,
    hex_color,
    named_color,
    structure_color,
    vertebra_color,
    vertebra_of,
)

VERSE_SCHEME = [
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 13)),
    *(f"L{n}" for n in range(1, 7)),
    "sacrum",
    "coccyx",
    "T13",
]


def test_mask_values_equal_those_of_verse():
    assert dict(enumerate(VERSE_SCHEME, 1)) == NAME_OF_VALUE
    assert max(NAME_OF_VALUE) == 28
    assert BACKGROUND == 0
    assert BACKGROUND not in NAME_OF_VALUE


def test_names_and_values_map_to_each_other():
    assert {NAME_OF_VALUE[value]: value for value in NAME_OF_VALUE} == VALUE_OF_NAME
    assert len(VALUE_OF_NAME) == len(NAME_OF_VALUE)


def test_the_anatomical_order_is_that_of_the_values_except_for_t13():
    assert sorted(ANATOMICAL_ORDER) == sorted(VERSE_SCHEME)
    assert [name for name in ANATOMICAL_ORDER if name != "T13"] == VERSE_SCHEME[:-1]
    at = ANATOMICAL_ORDER.index("T13")
    assert ANATOMICAL_ORDER[at - 1 : at + 2] == ("T12", "T13", "L1")


def test_every_label_has_its_own_color():
    colors = [vertebra_color(value) for value in NAME_OF_VALUE]
    assert all(0 <= part <= 1 for color in colors for part in color)
    apart = min(
        sum(abs(p - q) for p, q in zip(a, b, strict=True)) for a, b in combinations(colors, 2)
    )
    assert apart > 0.05


def test_hues_of_adjacent_vertebrae_are_far_apart():
    hues = [
        colorsys.rgb_to_hsv(*vertebra_color(VALUE_OF_NAME[name]))[0] for name in ANATOMICAL_ORDER
    ]
    assert min(min(abs(a - b), 1 - abs(a - b)) for a, b in pairwise(hues)) > 0.3


def test_hex_colors_equal_the_rgb_colors():
    for value in NAME_OF_VALUE:
        text = hex_color(value)
        assert (text[0], len(text)) == ("#", 7)
        parts = [part / 255 for part in bytes.fromhex(text[1:])]
        assert parts == pytest.approx(vertebra_color(value), abs=0.5 / 255 + 1e-9)


@pytest.mark.parametrize("value", [BACKGROUND, 29, -1])
def test_values_that_are_no_vertebra_have_no_color(value):
    with pytest.raises(KeyError):
        vertebra_color(value)


SPELLINGS = ("{}", "vertebrae_{}", "vertebra {}", "{} vertebra", "VERTEBRAE-{}")


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_vertebra_has_one_color_in_every_spelling(spelling):
    for name, value in VALUE_OF_NAME.items():
        text = spelling.format(name)
        assert vertebra_of(text) == vertebra_of(text.lower()) == name
        assert named_color(text, 77) == vertebra_color(value)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "L7",
        "S1",
        "vertebrae_S1",
        "vertebrae_",
        "vertebra",
        "L1_disc",
        "T4_rib",
        "L1 L2",
        "C1\n",
    ],
)
def test_a_structure_that_is_no_vertebra_has_the_color_of_its_value(name):
    assert vertebra_of(name) is None
    assert named_color(name, 20) == structure_color(20)


def test_the_vertebrae_of_all_schemes_have_the_same_colors():
    for scheme in SCHEMES.values():
        colors = {}
        for value in scheme.vertebrae:
            name = vertebra_of(scheme.names[value])
            colors[name] = named_color(scheme.names[value], value)
        assert colors == {name: vertebra_color(VALUE_OF_NAME[name]) for name in colors}
    assert len(SCHEMES["totalsegmentator"].vertebrae) == 25  # C1 to L5, and the sacrum
