"""Histograms have round bin edges and count every value once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.stats.histogram import Histogram

lengths = st.floats(1e-3, 1e4)
steps = st.integers(1, 4000).map(lambda n: n * 0.05)


@given(st.lists(st.one_of(lengths, steps), min_size=1, max_size=60))
def test_every_value_is_counted_between_its_edges(values):
    numbers = np.array(values)
    found = Histogram.of(numbers)
    edges, counts = np.array(found.edges), np.array(found.counts)
    assert len(edges) == len(counts) + 1 <= 25
    assert counts.sum() == len(values)
    widths = np.diff(edges)
    np.testing.assert_allclose(widths, widths[0], rtol=1e-6, atol=2e-9)
    np.testing.assert_allclose(edges / widths[0], np.rint(edges / widths[0]), atol=1e-3)
    assert counts[0] > 0
    assert counts[-1] > 0
    slack = 2e-6 * widths[0] + 1e-9
    for value in values:
        inside = (edges[:-1] - slack <= value) & (value < edges[1:] + slack)
        assert inside.any()
    model = np.histogram(numbers + slack, edges + slack / 2)[0]
    assert np.abs(np.cumsum(model) - np.cumsum(counts)).max() <= sum(
        np.abs(numbers[:, None] - edges).min(axis=1) < 2 * slack
    )


def test_a_value_on_an_edge_belongs_to_the_upper_bin():
    found = Histogram.of(np.array([0.1 + 0.2, 0.3, 0.35 - 1e-12]))
    assert (found.edges, found.counts) == ((0.3, 0.35, 0.4), (2, 1))


@pytest.mark.parametrize(("width", "next_width"), [(0.05, 0.1), (0.2, 0.25), (1.0, 2.0), (50, 100)])
def test_bins_are_as_fine_as_possible_with_two_dozen(width, next_width):
    for bins, expected in ((24, width), (25, next_width)):
        found = Histogram.of(np.array([100.0, 100 + (bins - 0.5) * width]))
        assert found.edges[1] - found.edges[0] == pytest.approx(expected)


def test_any_finite_values_lie_within_the_bins():
    assert len(Histogram.of(np.array([1.0, 1e6])).counts) <= 24
    assert Histogram.of(np.empty(0)) == Histogram((), ())
