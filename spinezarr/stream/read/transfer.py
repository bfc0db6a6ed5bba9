"""Which of two ways reads batches faster: from the server, or by ranges?

A *read* is one call for batches that are read together. Both ways are estimated at first. Then
their rates are measured, in reads per second, and measured rates replace the estimates. A measured
rate stays when the other way is taken.

Two rates can be compared only if about as many reads were in flight for both. There are few at the
start and the end of a stream, and if a program takes only two batches. So time counts only while at
least half as many reads are in flight as usual. The first round of a way does not count either: its
reads wait for new connections, and the last reads of the other way still run then.
"""

import time
from collections.abc import Callable
from typing import Final, Literal

__all__ = ["MIN_READS", "Transfer", "TransferChoice"]

Transfer = Literal["auto", "patches", "ranges"]
"""Kind of data that a spinezarr server sends: voxels of patches, or byte ranges of the store.

``"auto"`` takes whichever is faster.
"""
MIN_READS: Final = 16
"""Smallest number of reads that a rate is measured from; it is also at least half a round."""
_MIN_SPEEDUP: Final = 1.1
"""The server is used if it is this many times as fast as ranges, as others need it too.

Before anything is measured, ranges are taken if their estimate is this many times as fast.
"""
_MAX_UNDERESTIMATE: Final = 2.5
"""Ranges are tried if the measured rate of the server is at most this many times their estimate.

While processors are the limit, the estimate is too low, because the link waits for them.
"""
_RETRY_AFTER: Final = 512
"""Number of reads until a slower way is tried again. It doubles with each trial."""
_MAX_RETRY_AFTER: Final = 16 * _RETRY_AFTER
"""Largest number of reads until a slower way is tried again."""
_ROUNDS: Final = 8
"""Number of rounds that a rate is measured over; then all earlier reads count half.

A round is as many reads as are usually in flight. After this many rounds with fewer reads in
flight, the smaller number becomes the usual one.
"""


class TransferChoice:
    """Chooses the faster way to read. It is not shared between threads.

    Parameters
    ----------
    clock
        Returns the time in seconds.

    Attributes
    ----------
    transfer
        The way to read now.
    n_reads
        Number of reads that ended, by way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.transfer: Transfer = "patches"
        self.n_reads: dict[Transfer, int] = {"patches": 0, "ranges": 0}
        self._clock = clock
        self._in_flight = 0
        self._usual = 0
        """Number of reads in flight, in either way."""
        self._n_fewer = 0
        """Number of reads in a row that ended while fewer were in flight."""
        self._rates: dict[Transfer, tuple[float, int]] = {}
        """Reads per second of each way, and the usual number in flight then."""
        self._n_choices = 0
        """Number of choices since the way was changed."""
        self._retry_after = _RETRY_AFTER
        self._began_s = clock()
        self._last_s = self._began_s
        self._n_to_skip = self._n_ended = 0
        self._n_succeeded = self._seconds = 0.0

    def measured(self, transfer: Transfer) -> float | None:
        """Return the measured reads per second; None if there were too few reads."""
        rate, usual = self._rates.get(transfer, (None, 0))
        is_comparable = max(usual, self._usual) <= 2 * min(usual, self._usual)
        return rate if is_comparable else None

    def choose(self, served_per_s: float, ranges_per_s: float) -> Transfer:
        """Change the way if the other one is faster, and return the way to take.

        Parameters
        ----------
        served_per_s, ranges_per_s
            Reads per second from the server and by ranges, measured or estimated.
        """
        other: Transfer = "ranges" if self.transfer == "patches" else "patches"
        self._n_choices += 1
        if self._n_choices > self._retry_after:
            self._rates.pop(other, None)
            self._n_choices = 0
            self._retry_after = min(2 * self._retry_after, _MAX_RETRY_AFTER)
        if self.transfer == "ranges":
            is_measured = self.measured("ranges") is not None
            is_faster = is_measured and served_per_s > _MIN_SPEEDUP * ranges_per_s
        else:
            is_faster = ranges_per_s * self._allowance() > served_per_s
        if is_faster:
            self.transfer, self._n_choices = other, 0
            self._restart()
        return self.transfer

    def _allowance(self) -> float:
        """Return how many times as fast as ranges the server may be when ranges are taken."""
        if self.measured("ranges") is not None:
            return _MIN_SPEEDUP
        return 1 / _MIN_SPEEDUP if self.measured("patches") is None else _MAX_UNDERESTIMATE

    def begin(self) -> float:
        """Record that a read begins, and return the time in seconds."""
        now_s = self._advance_clock()
        self._in_flight += 1
        if self._in_flight > self._usual:
            self._usual = self._in_flight
            self._restart()
        return now_s

    def end(self, transfer: Transfer, began_s: float, n_succeeded: float) -> None:
        """Record that a read has ended.

        Parameters
        ----------
        transfer
            Way of the read.
        began_s
            The time that :meth:`begin` returned.
        n_succeeded
            1 if the read succeeded, 0 if it failed.
        """
        self._advance_clock()
        is_usual = self._is_usual
        self._in_flight -= 1
        self.n_reads[transfer] += 1
        self._n_fewer = 0 if is_usual else self._n_fewer + 1
        if self._n_fewer > _ROUNDS * self._usual:
            self._usual, self._n_fewer = self._in_flight + 1, 0
            self._restart()
        if transfer != self.transfer or began_s < self._began_s or not is_usual:
            return
        if self._n_to_skip:
            self._n_to_skip -= 1
            return
        self._n_ended += 1
        self._n_succeeded += n_succeeded
        if self._n_ended >= max(MIN_READS, self._usual // 2) and self._seconds > 0:
            self._rates[transfer] = self._n_succeeded / self._seconds, self._usual
        if self._n_succeeded > _ROUNDS * max(MIN_READS, self._usual):
            self._n_succeeded, self._seconds = self._n_succeeded / 2, self._seconds / 2

    @property
    def _is_usual(self) -> bool:
        return 2 * self._in_flight >= self._usual

    def _restart(self) -> None:
        """Measure the rate of this way again, after one round."""
        self._began_s = self._clock()
        self._n_to_skip, self._n_ended = self._usual, 0
        self._n_succeeded = self._seconds = 0.0

    def _advance_clock(self) -> float:
        """Count the time since the last event, unless few reads were in flight; return the time."""
        now_s = self._clock()
        if self._is_usual and not self._n_to_skip:
            self._seconds += now_s - self._last_s
        self._last_s = now_s
        return now_s
