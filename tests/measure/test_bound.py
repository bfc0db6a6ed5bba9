from hypothesis import assume, given
from hypothesis import strategies as st

from spinezarr.measure.bound import find_bound
from spinezarr.measure.resource_use import ResourceUse

ALONE = 1e8
shares = st.floats(0, 1.2)


def bound(core, moved, *, idle=None, remote=False, alone=ALONE, cores=4, seconds=3.0):
    """Return what bounds a rate, given shares of cores and of the speed of the disk or link."""
    n_bytes = moved * ALONE * seconds
    idle_core_s = None if idle is None else idle * cores * seconds
    use = ResourceUse(seconds, core * cores * seconds, idle_core_s, n_bytes, n_bytes)
    return find_bound(use, cores=cores, is_remote=remote, alone_bytes_per_s=alone)


@given(shares, shares, st.booleans())
def test_what_is_full_bounds_a_rate_and_the_fuller_one_counts(core, moved, remote):
    assume(abs(core - moved) > 1e-6)
    found = bound(core, moved, remote=remote)
    if max(core, moved) >= 0.75 + 1e-6:
        carrier = "link" if remote else "disk"
        assert found.limit == ("processors" if core > moved else carrier)
    elif max(core, moved) < 0.75 - 1e-6:
        assert found.limit != "processors"
        assert found.limit != "link"
    assert abs(found.core_share - core) < 1e-9
    assert found.bytes_share is None or abs(found.bytes_share - moved) < 1e-6


def test_other_programs_may_fill_the_processors():
    assert bound(0.5, 0.0, idle=0.05).limit == "processors"
    assert bound(0.5, 0.0, idle=0.45).limit == "nothing"


def test_what_is_not_full_is_told_apart():
    assert bound(0.2, 0.3).limit == "disk"
    assert bound(0.2, 0.0).limit == "nothing"
    assert bound(0.2, 0.3, remote=True).limit == "answers"


def test_bytes_that_are_not_counted_bound_nothing():
    use = ResourceUse(2.0, 0.2, None, None, 0)
    for remote, limit in ((False, "nothing"), (True, "answers")):
        found = find_bound(use, cores=1, is_remote=remote, alone_bytes_per_s=1e6)
        assert (found.limit, found.bytes_per_s, found.bytes_share) == (limit, None, None)
