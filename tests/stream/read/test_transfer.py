"""The faster way of transfer is chosen, even if its first measurements mislead."""

import heapq
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spinezarr.stream.read.batch_client import _KindStats
from spinezarr.stream.read.batch_limits import BatchLimits
from spinezarr.stream.read.transfer import TransferChoice


class Link:
    """A link with two ways of transfer, each with its own rate, and a clock of its own."""

    def __init__(self, served_per_s, ranges_per_s, noise=0.0, seed=0, latency_s=0.0):
        self.now_s = 0.0
        self.per_s = {"patches": served_per_s, "ranges": ranges_per_s}
        self.choice = TransferChoice(lambda: self.now_s)
        self.taken = []
        self._free_s = 0.0
        self._noise = noise
        self._latency_s = latency_s
        self._random = random.Random(seed)  # noqa: S311

    def read(self, n, in_flight, *, estimates=(1e3, 1e3), slower=1.0):
        """Read ``n`` groups, ``in_flight`` at once, each ``slower`` times as slowly."""
        under_way = []
        for number in range(n + in_flight):
            if len(under_way) == in_flight or (number >= n and under_way):
                self.now_s, _, way, began_s = heapq.heappop(under_way)
                self.choice.end(way, began_s, 1)
            if number < n:
                rates = [
                    self.choice.measured(way) or estimate
                    for way, estimate in zip(("patches", "ranges"), estimates, strict=True)
                ]
                way = self.choice.choose(*rates)
                began_s = self.choice.begin()
                self.taken.append(way)
                takes_s = (
                    slower
                    / self.per_s[way]
                    * self._random.uniform(1 - self._noise, 1 + self._noise)
                )
                self._free_s = max(self._free_s, self.now_s) + takes_s
                heapq.heappush(
                    under_way,
                    (max(self._free_s, self.now_s + self._latency_s), number, way, began_s),
                )

    def share(self, way, last):
        return self.taken[-last:].count(way) / last


@pytest.mark.parametrize("in_flight", [1, 2, 5, 16])
@pytest.mark.parametrize(
    ("served_per_s", "ranges_per_s", "way"),
    [(140, 100, "patches"), (30, 10, "patches"), (100, 140, "ranges"), (105, 100, "ranges")],
)
def test_the_faster_transfer_is_chosen(served_per_s, ranges_per_s, way, in_flight):
    """The estimates say that ranges are much faster, so both are tried."""
    link = Link(served_per_s / in_flight, ranges_per_s / in_flight)
    link.read(300, in_flight, estimates=(1e3, 2e3))
    assert set(link.taken) == {"patches", "ranges"}
    assert link.share(way, 200) == 1


def test_the_cost_of_new_connections_and_cold_files_is_not_measured():
    link = Link(140, 100)
    link.read(16, 16, slower=20.0, estimates=(1e3, 2e3))
    link.read(300, 16, estimates=(1e3, 2e3))
    assert link.share("patches", 200) == 1


def test_short_iterations_do_not_mislead_a_later_training():
    """With few groups in flight, latency hides the rate that many groups reach."""
    link = Link(700, 500, latency_s=0.02)
    for _ in range(20):
        link.read(2, 2, estimates=(1e3, 2e3))
    link.read(400, 16, estimates=(1e3, 2e3))
    assert link.share("patches", 200) == 1
    assert link.choice.measured("patches") == pytest.approx(700, rel=0.1)
    assert link.choice.measured("ranges") == pytest.approx(500, rel=0.1)


def test_a_slower_transfer_is_tried_again_later():
    link = Link(20, 100)
    link.read(300, 8)
    assert link.share("ranges", 200) == 1
    link.per_s["patches"] = 400
    link.read(700, 8)
    assert link.share("patches", 100) == 1


def test_ranges_are_tried_though_the_link_seems_too_slow_for_them():
    """While processors are the limit, the link seems slower than it is."""
    link = Link(90, 140)
    link.read(400, 8, estimates=(1e2, 45))
    assert link.share("ranges", 200) == 1


def test_a_slower_transfer_is_tried_ever_more_rarely():
    link = Link(100, 60)
    link.read(20_000, 8, estimates=(1e2, 50))
    n_tried = link.taken.count("ranges")
    assert 0 < n_tried < 200
    assert link.taken[10_000:].count("ranges") < n_tried / 2


def test_a_transfer_with_a_poor_estimate_is_not_tried():
    link = Link(100, 10)
    link.read(1500, 8, estimates=(1e2, 1e1))
    assert link.share("patches", 1500) == 1


@given(
    st.integers(1, 16), st.floats(0.2, 5), st.floats(0, 0.5), st.integers(0, 1000), st.booleans()
)
def test_the_faster_transfer_is_chosen_despite_noisy_measurements(
    in_flight, times, noise, seed, cold
):
    link = Link(100 * times, 100, noise, seed)
    link.read(in_flight, in_flight, slower=30.0 if cold else 1.0, estimates=(1e3, 2e3))
    link.read(500, in_flight, estimates=(1e3, 2e3))
    if times > 1.6:
        assert link.share("patches", 300) > 0.9
    elif times < 0.9:
        assert link.share("ranges", 300) > 0.9


def test_rates_are_measured_at_the_usual_number_in_flight():
    link = Link(100, 1, latency_s=0.1)
    link.read(23, 16)
    assert link.choice.measured("patches") is None
    link.read(200, 16)
    assert link.choice.measured("patches") == pytest.approx(100, rel=0.01)
    link.now_s += 60  # nothing is in flight meanwhile
    link.read(16, 2)
    assert link.choice.measured("patches") == pytest.approx(100, rel=0.01)
    link.read(300, 2)  # two in flight become usual
    assert link.choice.measured("patches") == pytest.approx(20, rel=0.05)


@pytest.mark.parametrize(
    ("bytes_per_s", "cores", "pack"),
    [
        (12e6, 2, "zstd"),
        (100e6, 2, "zstd"),
        (200e6, 2, "lz4"),
        (200e6, 16, "zstd"),
        (3e9, 2, "lz4"),
        (20e9, 2, "none"),
    ],
)
def test_voxels_are_packed_less_on_fast_links_and_few_cores(bytes_per_s, cores, pack):
    limits = BatchLimits.model_construct(cores=cores)
    assert _KindStats().best_pack(limits, bytes_per_s) == pack
