import pytest

from spinezarr.card import Card, FigureKey
from spinezarr.resources import resource
from spinezarr.stats.compare import compare
from spinezarr.stats.statistics import compute_statistics


def card_of(name):
    return Card.load_file(resource(f"ingest/{name}.card.yaml"))


def compared(table_of, rows, card):
    return {line.key: line for line in compare(compute_statistics(table_of(rows)), card).lines}


@pytest.fixture(scope="module")
def ctspine1k():
    return card_of("ctspine1k")


@pytest.fixture(scope="module")
def ctspine1k_rows(rows_for, ctspine1k):
    return rows_for(ctspine1k)


def not_equal(lines):
    return {key: line.verdict for key, line in lines.items() if line.verdict != "equal"}


def test_a_whole_ctspine1k_agrees_on_every_line(table_of, ctspine1k, ctspine1k_rows):
    lines = compared(table_of, ctspine1k_rows, ctspine1k)
    assert not_equal(lines) == {}
    assert len(lines) == 2 + 3 + 2 * 9 + 25 * 4
    assert compare(compute_statistics(table_of(ctspine1k_rows)), ctspine1k).agrees


def test_the_mislabeled_column_is_compared_with_the_maximum_with_a_note(
    table_of, ctspine1k, ctspine1k_rows
):
    lines = compared(table_of, ctspine1k_rows, ctspine1k)
    line = lines[FigureKey("vertebra", "C1", "volume_cm3_max")]
    assert (line.card, line.store, line.note) == (19.15, 19.15, "printed as min")
    assert FigureKey("vertebra", "C1", "volume_cm3_min") not in lines


def test_ten_test_scans_without_vertebrae_change_counts_slices_and_rates(
    table_of, ctspine1k, ctspine1k_rows
):
    gone = slice(990, 1000)
    assert not any(row["volumes"] for row in ctspine1k_rows[gone])
    rows = ctspine1k_rows[: gone.start] + ctspine1k_rows[gone.stop :]
    lines = compared(table_of, rows, ctspine1k)
    whole = {
        FigureKey("all", "", "scans"): -10,
        FigureKey("all", "", "slices"): -10 * 535,
        FigureKey("split", "test", "scans"): -10,
    }
    rates = {FigureKey("vertebra", name, "detection_percent") for name in ctspine1k.vertebrae}
    assert not_equal(lines) == dict.fromkeys([*whole, *rates], "differs")
    assert {key: lines[key].difference for key in whole} == whole
    rate = lines[FigureKey("vertebra", "L1", "detection_percent")]
    assert rate.difference == pytest.approx(100 * 967 / 995 - 96.22)


def test_ten_train_scans_with_all_vertebrae_change_their_counts_too(
    table_of, ctspine1k, ctspine1k_rows
):
    rows = ctspine1k_rows[:5] + ctspine1k_rows[15:]
    lines = compared(table_of, rows, ctspine1k)
    expected = [FigureKey("all", "", "scans"), FigureKey("all", "", "slices")]
    expected += [FigureKey("split", "train", "scans")]
    for name in ctspine1k.vertebrae:
        expected += [FigureKey("vertebra", name, what) for what in ("scans", "detection_percent")]
        assert lines[FigureKey("vertebra", name, "scans")].difference == -10
    assert not_equal(lines) == dict.fromkeys(expected, "differs")


def test_figures_without_a_counterpart_are_reported_as_missing(table_of, ctspine1k, ctspine1k_rows):
    rows = [
        row | {"volumes": {name: cm3 for name, cm3 in row["volumes"].items() if name != "L6"}}
        for row in ctspine1k_rows
        if row["split"] != "validation"
    ]
    lines = compared(table_of, rows, ctspine1k)
    assert not compare(compute_statistics(table_of(rows)), ctspine1k).agrees
    missing = {key for key, line in lines.items() if line.verdict == "missing in store"}
    assert missing == {
        FigureKey("split", "validation", "scans"),
        *(key for key in lines if key.name == "L6"),
    }
    assert lines[FigureKey("vertebra", "L6", "scans")].difference == -18
    volume = lines[FigureKey("vertebra", "L6", "volume_cm3_max")]
    assert (volume.store, volume.difference) == (None, None)


def test_a_whole_verse_agrees_except_where_the_card_contradicts_itself(table_of, rows_for):
    card = card_of("verse")
    comparison = compare(compute_statistics(table_of(rows_for(card))), card)
    lines = {line.key: line for line in comparison.lines}
    regions = [
        FigureKey("region", name, "vertebrae") for name in ("cervical", "thoracic", "lumbar")
    ]
    rate = FigureKey("vertebra", "C7", "detection_percent")
    assert not_equal(lines) == dict.fromkeys([*regions, rate], "card contradicts itself")
    assert [lines[key].store for key in regions] == [629, 2411, 1508]
    assert lines[rate].note == "128 of 374 scans are 34.22 %"
    assert comparison.agrees
    assert comparison.verdicts == {"equal": len(lines) - 4, "card contradicts itself": 4}


def test_figures_are_equal_within_half_a_printed_digit(table_of):
    row = {"min": 1.0, "median": 1.0, "max": 1.0}
    card = Card.model_validate(
        {
            "name": "x",
            "title": "X",
            "source": "none",
            "scans": 1,
            "vertebrae": {"L1": {"scans": 1, "volume_cm3": row}},
        }
    )
    for cm3, verdict in (
        (1.0049, "equal"),
        (0.9951, "equal"),
        (1.0051, "differs"),
        (0.99, "differs"),
    ):
        lines = compared(table_of, [{"volumes": {"L1": cm3}}], card)
        assert lines[FigureKey("vertebra", "L1", "volume_cm3_max")].verdict == verdict


def test_a_store_must_agree_with_one_of_two_contradictory_figures(table_of):
    text = {"name": "x", "title": "X", "source": "none", "scans": 8}
    row = {"scans": 4, "detection_percent": 75.0}
    card = Card.model_validate(text | {"vertebrae": {"L1": row}})
    count, rate = (FigureKey("vertebra", "L1", key) for key in ("scans", "detection_percent"))
    for shown, verdicts in (
        (4, ("equal", "card contradicts itself")),
        (6, ("card contradicts itself", "equal")),
        (5, ("differs", "differs")),
        (0, ("missing in store", "missing in store")),
    ):
        rows = [{"volumes": {"L1": 1.0} if at < shown else {}} for at in range(8)]
        lines = compared(table_of, rows, card)
        assert (lines[count].verdict, lines[rate].verdict) == verdicts
        agrees = compare(compute_statistics(table_of(rows)), card).agrees
        assert agrees == ("equal" in verdicts)
        assert lines[rate].note == "4 of 8 scans are 50.00 %"


def test_figures_of_a_card_that_are_out_of_order_are_not_compared(table_of):
    size = {"min": (9, 5, 6), "median": (4, 5, 6), "max": (4, 5, 7)}
    card = Card.model_validate(
        {"name": "x", "title": "X", "source": "none", "scans": 1, "shape_ijk": size}
    )
    lines = compared(table_of, [{"size": (4, 5, 6)}], card)
    assert not_equal(lines) == {
        FigureKey("axis", "i", "shape_ijk_min"): "card contradicts itself",
        FigureKey("axis", "k", "shape_ijk_max"): "differs",
    }
