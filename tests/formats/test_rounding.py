import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.errors import LabelError
from spinezarr.formats.rounding import LABEL_TOLERANCE, Rounding, round_labels

DTYPES = st.sampled_from(["float32", "float64"])


@given(
    st.lists(st.tuples(st.integers(0, 255), st.floats(-9e-4, 9e-4)), min_size=1, max_size=9), DTYPES
)
def test_values_close_to_a_label_become_the_label(pairs, dtype):
    expected, off = np.array(pairs).T
    values = (expected + off).astype(dtype)
    labels, rounding = round_labels(values, 255)
    assert labels.dtype == dtype
    np.testing.assert_array_equal(labels, expected)
    assert rounding.voxels == np.count_nonzero(values != expected)
    assert rounding.largest == np.abs(values.astype(float) - expected).max()


@given(st.integers(-3, 70000), st.floats(-0.5, 0.5), DTYPES, st.sampled_from([255, 65535]))
def test_a_value_is_accepted_only_if_a_label_is_near(label, off, dtype, highest):
    value = np.array([label + off], dtype)
    nearest = min(max(np.rint(value.astype(float)), 0), highest)
    is_near = abs(float(value[0]) - nearest) <= LABEL_TOLERANCE
    if is_near:
        assert round_labels(value, highest)[0] == nearest
        return
    with pytest.raises(LabelError, match=f"labels are whole numbers from 0 to {highest}") as caught:
        round_labels(value, highest)
    assert repr(value[0].item()) in str(caught.value)


@pytest.mark.parametrize("value", [20.4, np.nan, np.inf, -np.inf, -0.0011, 255.0011, 1e30, -1.0])
def test_a_value_that_is_no_label_is_refused_among_others(value):
    with pytest.raises(LabelError, match="the mask holds the value"):
        round_labels(np.array([0.0, 24.0000004, value, 1.0]), 255)


def test_integers_and_empty_arrays_are_accepted():
    labels, rounding = round_labels(np.array([0, 7], np.int32), 255)
    assert (labels.tolist(), rounding) == ([0, 7], Rounding())
    assert round_labels(np.empty((0, 3, 3)), 255)[1] == Rounding()
    with pytest.raises(LabelError, match="holds the value 300;"):
        round_labels(np.array([300], np.int32), 255)


def test_roundings_of_parts_are_summed():
    total = Rounding(2, 1e-5)
    total.add(Rounding(3, 4e-4))
    total.add(Rounding())
    assert total == Rounding(5, 4e-4)
