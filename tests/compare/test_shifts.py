"""Names that are wrong by some levels are told from vertebrae that are not found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spinezarr.compare.measures import compare_masks
from spinezarr.compare.overlap import measure_overlap
from spinezarr.testing import PhantomSpec, make_phantom, usual_levels
from spinezarr.vertebrae import ANATOMICAL_ORDER, NAME_OF_VALUE, VALUE_OF_NAME

EYE = np.eye(4)


def spine(names, first=0, length=10):
    """Return a mask of boxes from the top down, one voxel apart."""
    mask = np.zeros((1 + len(names) * (length + 1), 6, 6), np.uint8)
    for place, name in enumerate(names):
        stop = len(mask) - 1 - place * (length + 1)
        mask[stop - length + first : stop, 1:5, 1:5] = VALUE_OF_NAME[name]
    return mask


def text(true_names, predicted_names, **options):
    return compare_masks(spine(true_names), spine(predicted_names, **options), EYE).verdict.text


def test_t12_and_l1_are_neighbors_in_most_patients():
    comparison = compare_masks(spine(["T11", "T12", "L1"]), spine(["T12", "L1", "L2"]), EYE)
    assert comparison.best.shift == 1
    assert comparison.best.verse.dice == comparison.best.verse.identification_rate == 1
    assert [row.predicted_name for row in comparison.best.vertebrae] == ["T12", "L1", "L2"]
    assert comparison.as_named.verse.dice == 0
    assert comparison.verdict.kind == "shifted"
    assert comparison.verdict.text == (
        "Right vertebrae, wrong names by one: T11 to L1 are named one level too low "
        "(T11 is named T12)."
    )


@pytest.mark.parametrize(
    ("truth", "prediction", "shift"),
    [
        (["T12", "T13", "L1"], ["T13", "L1", "L2"], 1),
        (["T12", "L1", "L2"], ["T13", "L1", "L2"], None),
        (["L4", "L5", "L6"], ["L3", "L4", "L5"], -1),
        (["L4", "L5"], ["L5", "L6"], 1),
        (["L4", "L5"], ["L5", "sacrum"], 1),
        (["C1", "C2"], ["C3", "C4"], 2),
        (["T12", "L1"], ["T10", "T11"], -2),
    ],
)
def test_a_shift_goes_along_the_spine(truth, prediction, shift):
    comparison = compare_masks(spine(truth), spine(prediction), EYE)
    if shift is None:
        assert comparison.verdict.kind == "partly shifted"
    else:
        assert comparison.best.shift == comparison.verdict.shift == shift
        assert comparison.best.verse.dice == 1
        assert comparison.verdict.kind == "shifted"


def test_a_vertebra_too_many_shifts_the_names_below():
    """The patient has T13, and the prediction counts from the sacrum up without one."""
    found = text(["T11", "T12", "T13", "L1", "L2"], ["T10", "T11", "T12", "L1", "L2"])
    assert found == (
        "Right vertebrae, wrong names by one: T11 to T13 are named one level too high "
        "(T11 is named T10). Right names: L1 to L2."
    )


def test_a_missing_vertebra_is_not_called_shifted():
    comparison = compare_masks(spine(["T11", "T12", "L1"])[:], spine(["T11", "T12", "L1"]), EYE)
    assert comparison.verdict.text == "All 3 vertebrae have the right names."
    truth = spine(["T11", "T12", "L1"])
    prediction = np.where(truth == VALUE_OF_NAME["T12"], 0, truth)
    found = compare_masks(truth, prediction, EYE).verdict
    assert (found.kind, found.shift) == ("incomplete", 0)
    assert found.text == "2 of 3 vertebrae were found, with the right names. Not found: T12."


def test_two_vertebrae_that_are_merged_are_one_that_is_not_found():
    truth = spine(["T11", "T12", "L1"])
    merged = np.where(truth == VALUE_OF_NAME["T12"], VALUE_OF_NAME["L1"], truth)
    found = compare_masks(truth, merged, EYE).verdict
    assert found.kind == "incomplete"
    assert "Not found: T12." in found.text
    assert "Poor outlines: L1 (lowest Dice 0.67, L1)." in found.text


def test_half_of_each_vertebra_is_a_poor_outline():
    names = ["T12", "L1"]
    found = compare_masks(spine(names), spine(names, first=5), EYE).verdict
    assert found.kind == "poor outlines"
    assert found.text.startswith("All 2 vertebrae have the right names. Poor outlines: T12 to L1")


def test_nothing_found_and_nothing_to_find():
    nothing = np.zeros_like(spine(["L1"]))
    assert compare_masks(spine(["L1"]), nothing, EYE).verdict.text == (
        "None of 1 vertebrae was found, under any name (highest Dice 0.00)."
    )
    invented = compare_masks(nothing, spine(["L1"]), EYE).verdict
    assert (invented.kind, invented.text) == (
        "empty",
        "The true mask has no vertebra. Invented: L1.",
    )


def test_an_invented_vertebra_is_named():
    truth = spine(["T12", "L1", "L2"])
    truth[truth == VALUE_OF_NAME["L2"]] = 0
    found = compare_masks(truth, spine(["T12", "L1", "L2"]), EYE).verdict
    assert (found.kind, found.text) == (
        "incomplete",
        "All 2 vertebrae have the right names. Invented: L2.",
    )


def test_values_that_are_no_vertebra_are_ignored_and_named():
    """A mask with the numbers of another program must not look like a bad one."""
    truth = spine(["T12", "L1"])
    found = compare_masks(truth, np.where(truth, truth + 30, 0).astype(np.uint8), EYE)
    assert found.ignored_values == (49, 50)
    assert found.verdict.kind == "not found"


def test_random_values_give_few_shifts():
    """All pairs of levels overlap in noise, and surfaces are not computed for each of them."""
    rng = np.random.default_rng(0)
    truth = spine(usual_levels("C1", "L5"))
    comparison = compare_masks(truth, rng.integers(0, 26, truth.shape, np.uint8), EYE)
    assert [row.shift for row in comparison.shifts] == [0]


@given(st.integers(-3, 3), st.data())
def test_any_shift_of_a_phantom_is_found(shift, data):
    """The names of a made prediction are moved along the anatomical order."""
    levels = usual_levels("T8", "L2")
    phantom = make_phantom(
        PhantomSpec(shape_zyx=(60, 30, 30), spacing_zyx_mm=(3.5, 5.0, 5.0), levels=levels)
    )
    order = [name for name in ANATOMICAL_ORDER if name not in {"T13", "L6"}]
    table = np.zeros(256, np.uint8)
    for name in phantom.labeled:
        table[VALUE_OF_NAME[name]] = VALUE_OF_NAME[order[order.index(name) + shift]]
    comparison = compare_masks(phantom.label, table[phantom.label], phantom.affine_xyz)
    assert comparison.best.shift == comparison.verdict.shift == shift
    assert comparison.best.verse.dice == 1
    assert comparison.verdict.kind == ("shifted" if shift else "right")
    # The measures at the best shift are those of the same mask with the right names.
    right = compare_masks(phantom.label, phantom.label, phantom.affine_xyz)
    assert comparison.best.verse == right.as_named.verse


label_masks = arrays(np.uint8, (5, 4, 3), elements=st.sampled_from([0, 7, 8, 20, 28, 99]))


@given(label_masks, label_masks)
def test_counts_are_those_of_numpy(truth, prediction):
    affine = np.array([[0.5, 0, 0, 3], [0, 1, 0.25, -9], [0, 0, 2, 70], [0, 0, 0, 1]])
    overlap = measure_overlap(truth, prediction, affine)
    for mask, levels in ((truth, overlap.truth), (prediction, overlap.prediction)):
        assert set(levels) == {
            NAME_OF_VALUE[v] for v in np.unique(mask).tolist() if v in (7, 8, 20, 28)
        }
        for name, level in levels.items():
            indices = np.argwhere(mask == VALUE_OF_NAME[name])
            assert level.voxel_count == len(indices)
            assert level.box.start_zyx == tuple(indices.min(0))
            assert level.box.stop_zyx == tuple(indices.max(0) + 1)
            positions = indices[:, ::-1] @ affine[:3, :3].T + affine[:3, 3]
            np.testing.assert_allclose(level.centroid_xyz_mm, positions.mean(0))
    for true_value, predicted_value in ((7, 7), (20, 28), (8, 99), (0, 7)):
        both = (truth == true_value) & (prediction == predicted_value)
        if (true_value, predicted_value) != (0, 0):
            assert overlap.shared_voxels[true_value, predicted_value] == both.sum()


def test_a_volume_of_several_slabs_is_counted_in_one_frame():
    """The volume has more voxels than are counted at once."""
    mask = np.zeros((24, 500, 500), np.uint8)
    mask[20:23, 7, 8] = VALUE_OF_NAME["L1"]
    level = measure_overlap(mask, mask, EYE).truth["L1"]
    assert level.box.start_zyx == (20, 7, 8)
    assert level.centroid_xyz_mm.tolist() == [8, 7, 21]
