from threading import Barrier, get_ident

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spinezarr.stream.read.parallel import run_in_parts


@given(st.lists(st.integers(0, 99), max_size=40), st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_each_item_is_done_once(costs, threads):
    done, n_parts = [], []

    def work(first, last):
        n_parts.append(get_ident())
        done.extend(range(first, last))

    run_in_parts(work, np.array(costs, np.int64), threads=threads)
    assert sorted(done) == list(range(len(costs)))
    assert len(n_parts) <= max(1, min(threads, len(costs)))


def test_parts_cost_about_the_same_and_run_at_once():
    costs, parts, together = np.array([9, 1, 1, 1, 5, 5, 2, 8]), [], Barrier(3, timeout=60)

    def work(first, last):
        together.wait()
        parts.append(costs[first:last].sum())

    run_in_parts(work, costs, threads=3)
    assert max(parts) <= costs.sum() / 3 + costs.max()
    assert sum(parts) == costs.sum()


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_an_error_of_any_part_is_raised(failing):
    def work(first, last):
        if first <= failing < last:
            raise OSError(failing)

    with pytest.raises(OSError, match=str(failing)):
        run_in_parts(work, np.ones(3, np.int64), threads=3)
