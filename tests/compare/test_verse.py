"""VerSe's measures follow the rules of its public evaluation code."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.compare.measures import compare_masks
from spinezarr.compare.summary import MeanMeasures
from spinezarr.compare.verse import identified_levels
from spinezarr.vertebrae import VALUE_OF_NAME

NAMES = ("T11", "T12", "T13", "L1")


def points(**heights_mm):
    return {name: np.array([0.0, 0.0, z]) for name, z in heights_mm.items()}


def test_a_vertebra_within_20_mm_of_its_own_centroid_is_identified():
    truth = points(T12=0.0, L1=-60.0)
    assert identified_levels(truth, points(T12=20.0, L1=-80.0001)) == {"T12"}


def test_the_nearest_true_centroid_must_be_its_own():
    truth = points(T12=0.0, L1=-25.0)
    assert identified_levels(truth, points(T12=-13.0, L1=-25.0)) == {"L1"}


def test_only_vertebrae_that_both_name_are_candidates():
    """The true T12 is nearest to the predicted L1, but the prediction has no T12."""
    truth = points(T12=0.0, L1=-30.0)
    assert identified_levels(truth, points(L1=-14.0)) == {"L1"}


def test_of_equal_distances_the_lower_value_wins():
    """T13 has the value 28, so L1 wins although it lies below."""
    truth = points(T13=0.0, L1=-20.0)
    assert identified_levels(truth, points(T13=-10.0, L1=-10.0)) == {"L1"}


heights = st.dictionaries(st.sampled_from(NAMES), st.integers(-60, 60), max_size=4)


@given(heights, heights)
def test_identification_equals_the_rule_written_out(truth, prediction):
    """Each rule of the module's docstring is one line."""
    both = [name for name in sorted(VALUE_OF_NAME, key=VALUE_OF_NAME.get) if name in truth]
    both = [name for name in both if name in prediction]
    expected = set()
    for name in both:
        nearest = min(both, key=lambda other, name=name: abs(truth[other] - prediction[name]))
        if nearest == name and abs(truth[name] - prediction[name]) <= 20:
            expected.add(name)
    found = identified_levels(points(**truth), points(**prediction))
    assert found == expected


def spine(**boxes):
    """Return a mask of boxes, each from its first to its last slice."""
    mask = np.zeros((80, 6, 6), np.uint8)
    for name, (start, stop) in boxes.items():
        mask[start:stop, 1:5, 1:5] = VALUE_OF_NAME[name]
    return mask


def test_figures_of_a_scan_are_those_computed_by_hand():
    """One vertebra is exact, one is half, one is missing, and one is invented."""
    truth = spine(T11=(60, 70), T12=(40, 50), L1=(20, 30))
    prediction = spine(T11=(60, 70), T12=(40, 45), L3=(0, 5))
    found = compare_masks(truth, prediction, np.diag([1.0, 1.0, 2.0, 1.0])).as_named
    assert [row.dice for row in found.vertebrae] == pytest.approx([1, 2 / 3, 0])
    assert found.missing == ("L1",)
    assert found.invented == ("L3",)
    assert found.verse.dice == pytest.approx((1 + 2 / 3 + 0) / 3)
    # 44.5 - 42 = 2.5 slices of 2 mm; T11 is exact, and L1 has no distance.
    assert found.verse.mean_localization_distance_mm == pytest.approx((0 + 5) / 2)
    assert found.verse.identification_rate == pytest.approx(2 / 3)
    # The last true slice of T12 is 5 slices of 2 mm above the predicted surface.
    assert found.verse.hausdorff_mm == pytest.approx((0 + 10) / 2)
    half = found.vertebrae[1]
    assert (half.true_volume_cm3, half.predicted_volume_cm3) == pytest.approx((0.32, 0.16))
    missing = found.vertebrae[2]
    assert missing.is_missing
    assert missing.hausdorff95_mm is missing.assd_mm is missing.centroid_distance_mm is None


def test_the_sacrum_counts_in_no_measure_of_verse():
    """VerSe does not label it."""
    truth, prediction = spine(L5=(40, 50), sacrum=(10, 30)), spine(L5=(40, 50))
    found = compare_masks(truth, prediction, np.eye(4)).as_named
    assert found.verse.dice == found.verse.identification_rate == 1
    assert found.missing == ("sacrum",)
    assert [row.identified for row in found.vertebrae] == [True, None]


@pytest.mark.parametrize(
    ("truth", "prediction", "dice"),
    [(spine(), spine(), None), (spine(), spine(L1=(1, 2)), None), (spine(L1=(1, 2)), spine(), 0)],
)
def test_empty_masks(truth, prediction, dice):
    found = compare_masks(truth, prediction, np.eye(4)).as_named.verse
    assert found.dice == dice
    assert found.identification_rate == dice
    assert found.mean_localization_distance_mm is found.hausdorff_mm is None


def test_masks_of_two_shapes_are_a_mistake():
    with pytest.raises(ValueError, match="shapes"):
        compare_masks(spine(), spine()[1:], np.eye(4))


def test_a_shift_may_leave_one_vertebra_identified():
    """The prediction has no T11, so the true T12 is the nearest candidate to its T12, on T11."""
    truth = points(T11=40.0, T12=22.0, T13=4.0)
    assert identified_levels(truth, points(T12=40.0, T13=22.0, L1=4.0)) == {"T12"}


def test_means_over_scans_are_means_of_scans_and_not_of_vertebrae():
    """The mean of 1 of 1 and 1 of 3 vertebrae is 2/3; of all, 2 of 4 are found."""
    scans = [
        (spine(L1=(20, 30)), spine(L1=(20, 30))),
        (spine(T11=(60, 70), T12=(40, 50), L1=(20, 30)), spine(L1=(20, 30))),
    ]
    compared = [compare_masks(*masks, np.eye(4)).as_named for masks in scans]
    means = MeanMeasures.of(compared)
    assert means.identification_rate == means.dice == pytest.approx((1 + 1 / 3) / 2)
    assert means.hausdorff_mm == means.mean_localization_distance_mm == 0
    identified = [row.identified for scan in compared for row in scan.vertebrae]
    assert np.mean(identified) == 0.5


def test_dice_of_wrong_names_is_that_of_the_names():
    """One Dice of both vertebrae together would be 1."""
    truth, prediction = spine(T12=(40, 50), L1=(20, 30)), spine(T12=(40, 50), L2=(20, 30))
    assert compare_masks(truth, prediction, np.eye(4)).as_named.verse.dice == 0.5


def test_the_hausdorff_distance_is_the_largest_and_in_mm():
    """One stray voxel, 20 slices of 2 mm above the vertebra, counts in full."""
    truth = spine(L1=(20, 40))
    prediction = truth.copy()
    prediction[59, 1, 1] = VALUE_OF_NAME["L1"]
    row = compare_masks(truth, prediction, np.diag([1.0, 1.0, 2.0, 1.0])).as_named.vertebrae[0]
    assert row.hausdorff_mm == 40
    assert row.hausdorff95_mm == 0
