import re

import pytest

from spinezarr.card import Card, FigureKey
from spinezarr.errors import CardError, RecipeError
from spinezarr.recipe import Recipe
from spinezarr.resources import recipe_names, resource

CARDS = [file.name for file in resource("ingest").iterdir() if file.name.endswith(".card.yaml")]
CARD = """\
name: mine
title: Mine
source: a page
scans: 10
slices: 100
splits: {train: 6, test: 4}
regions: {lumbar: 5}
shape_ijk: {min: [1, 1, 5], median: [2, 2, 10], max: [3, 3, 20]}
spacing_ijk_mm: {min: [0.5, 0.5, 1], median: [0.5, 0.5, 1], max: [0.5, 0.5, 1]}
vertebrae:
  L1: {scans: 3, detection_percent: 30.00, volume_cm3: {min: 1, median: 2, max: 3}}
  L6: {scans: 2, detection_percent: 20.00}
  sacrum: {scans: 0, detection_percent: 0.00, volume_cm3: {min: 0, median: 0, max: 0}}
"""


def load(tmp_path, text):
    path = tmp_path / "mine.card.yaml"
    path.write_text(text)
    return Card.load_file(path)


def shipped(name):
    return Card.load_file(resource(f"ingest/{name}"))


@pytest.mark.parametrize("name", CARDS)
def test_every_contradiction_of_a_shipped_card_is_listed_in_its_doubts(name):
    card = shipped(name)
    for key, contradiction in card.contradictions().items():
        value = f"{card.figures()[key].value:g}"
        told = [
            text for text in card.caveats if {value, key.name} & set(re.findall(r"[\w.]+", text))
        ]
        assert any(
            number in text
            for text in told
            for number in re.findall(r"\d[\d.]*", contradiction.reason)
        )


def test_the_ctspine1k_card_contradicts_itself_only_in_one_column():
    card = shipped("ctspine1k.card.yaml")
    assert card.contradictions() == {}
    taken_literally = card.model_copy(update={"volume_column_holds": {}}).contradictions()
    assert set(taken_literally) == {
        FigureKey("vertebra", name, f"volume_cm3_{statistic}")
        for name in card.vertebrae
        for statistic in ("min", "median")
    }
    assert len(card.vertebrae) == 25
    assert "Min Volume" in card.caveats[0]


def test_the_verse_card_contradicts_itself_in_c7_and_in_the_regions():
    card = shipped("verse.card.yaml")
    assert {(key.name, key.statistic) for key in card.contradictions()} == {
        ("C7", "scans"),
        ("C7", "detection_percent"),
        *((region, "vertebrae") for region in ("cervical", "thoracic", "lumbar")),
    }
    assert sum(card.regions.values()) == 4505
    assert sum(row.scans for row in card.vertebrae.values()) == 4548


def test_the_years_of_verse_overlap_by_as_much_in_scans_and_splits():
    card = shipped("verse.card.yaml")
    years = next(text for text in card.caveats if "2019: 141 patients" in text)
    numbers = [int(n) for n in re.findall(r"\d+", years)]
    _, patients_19, scans_19, *splits_19, total_19 = numbers[:7]
    _, patients_20, scans_20, *splits_20, total_20 = numbers[7:14]
    both_patients, both_scans = numbers[14:]
    assert (sum(splits_19), sum(splits_20)) == (scans_19, scans_20)
    assert patients_19 + patients_20 - both_patients == card.patients
    assert scans_19 + scans_20 - both_scans == card.scans == sum(card.splits.values())
    overlap = [
        a + b - n for a, b, n in zip(splits_19, splits_20, card.splits.values(), strict=True)
    ]
    assert sum(overlap) == both_scans
    assert total_19 == 220 + 884 + 621
    assert total_20 == 581 + 2255 + 1305


def test_msr_states_scans_and_patients():
    figures = shipped("msr.card.yaml").figures()
    assert {key.statistic: figure.value for key, figure in figures.items()} == {
        "scans": 242,
        "patients": 125,
    }


def test_a_consistent_card_has_no_contradictions(tmp_path):
    card = load(tmp_path, CARD)
    assert card.contradictions() == {}
    assert not any(
        key.name == "sacrum" and key.statistic.startswith("volume") for key in card.figures()
    )
    assert len(card.figures()) == 2 + 2 + 1 + 18 + 2 + 3 + 2 + 2


@pytest.mark.parametrize(
    ("old", "new", "wrong"),
    [
        ("train: 6", "train: 7", {"train scans", "test scans", " scans"}),
        ("slices: 100", "slices: 49", {" slices"}),
        ("slices: 100", "slices: 201", {" slices"}),
        ("lumbar: 5", "lumbar: 6", {"lumbar vertebrae"}),
        ("30.00", "30.01", {"L1 scans", "L1 detection_percent"}),
        ("scans: 3, detection_percent: 30.00", "scans: 11", {"L1 scans", "lumbar vertebrae"}),
        (
            "{min: 1, median: 2",
            "{min: 2.5, median: 2",
            {f"L1 volume_cm3_{s}" for s in ("min", "median", "max")},
        ),
        ("[2, 2, 10]", "[2, 4, 10]", {f"j shape_ijk_{s}" for s in ("min", "median", "max")}),
        (
            "max: [0.5, 0.5, 1]",
            "max: [0.5, 0.5, 0.9]",
            {f"k spacing_ijk_mm_{s}" for s in ("min", "median", "max")},
        ),
    ],
)
def test_contradictory_figures_are_found(tmp_path, old, new, wrong):
    assert CARD.count(old) == 1
    found = load(tmp_path, CARD.replace(old, new)).contradictions()
    assert {f"{key.name} {key.statistic}" for key in found} == wrong
    assert all(contradiction.reason for contradiction in found.values())


def test_a_contradiction_shows_the_value_expected_from_other_figures(tmp_path):
    text = (
        CARD.replace("test: 4", "test: 5")
        .replace("30.00", "50.00")
        .replace("lumbar: 5", "lumbar: 9")
    )
    found = load(tmp_path, text).contradictions()
    assert {f"{key.name} {key.statistic}": other.implied_value for key, other in found.items()} == {
        " scans": 11,
        "train scans": 5,
        "test scans": 4,
        "lumbar vertebrae": 5,
        "L1 scans": 5,
        "L1 detection_percent": 30,
    }


def test_a_mislabeled_column_may_be_read_as_another(tmp_path):
    text = CARD.replace("{min: 1, median: 2, max: 3}", "{min: 3, median: 2}")
    text = text.replace("median: 0, max: 0", "median: 0")
    card = load(tmp_path, f"volume_column_holds: {{min: max}}\n{text}")
    assert card.contradictions() == {}
    figure = card.figures()[FigureKey("vertebra", "L1", "volume_cm3_max")]
    assert (figure.value, figure.printed_as) == (3, "min")
    assert FigureKey("vertebra", "L1", "volume_cm3_min") not in card.figures()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("L6:", "L7:", "'L7' is not a vertebra; the vertebrae are C1, C2"),
        ("scans: 10", "scans: 0", "line 4, scans"),
        ("scans: 10", "scans: '10'", "line 4, scans"),
        ("lumbar: 5", "sacral: 5", "regions.sacral"),
        ("[1, 1, 5]", "[1, 1]", "shape_ijk.min"),
        ("name: mine", "nome: mine", "did you mean 'name'"),
        ("slices: 100", "volume_column_holds: {min: max}", "two volumes of L1 to one statistic"),
    ],
)
def test_the_error_of_a_wrong_card_names_its_line(tmp_path, old, new, message):
    assert CARD.count(old) == 1
    with pytest.raises(CardError, match=re.escape(message)):
        load(tmp_path, CARD.replace(old, new))


def test_cards_are_not_listed_as_recipes_and_recipes_find_their_cards(tmp_path):
    assert CARDS
    assert not any("card" in name for name in recipe_names())
    for name in recipe_names():
        card = Recipe.load(name).shipped_card()
        assert card is None or card.name == name
    text = resource("ingest/ctspine1k.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace("ctspine1k.card.yaml", "ours.card.yaml"))
    with pytest.raises(RecipeError, match=r"mine\.yaml: card names .*, which is not there"):
        Recipe.load(str(path)).shipped_card()
    (tmp_path / "ours.card.yaml").write_text(CARD)
    assert Recipe.load(str(path)).shipped_card().scans == 10
    path.write_text(text.replace("card: ctspine1k.card.yaml\n", ""))
    assert Recipe.load(str(path)).shipped_card() is None
