"""Which of two ways gives units of a stream faster: what was measured of each, else estimates.

Rates can be compared only where as many units were under way. A stream that begins or ends, or of
which a program took a look of two batches, has few. So time counts while at least half as many are
under way as usual. The first round of a way does not: its units wait for new connections, and those
of the way before end beside them. What was measured of a way stays when it is left.
"""

import time
from collections.abc import Callable
from typing import Final, Literal

__all__ = ["ENOUGH", "Transfer", "TransferChoice"]

Transfer = Literal["auto", "patches", "ranges"]
"""What travels from a server of spinezarr: voxels that it has read, or byte ranges of the store."""
ENOUGH: Final = 8
"""Units that tell how fast a way is, at least; and half a round."""
_FASTER: Final = 1.25
"""How many times as fast the server must be to be asked, as others may want it too; and so many
times as fast another way must be to be tried."""
_TRY_AGAIN: Final = 512
"""Units after which a way that was slower may be tried again."""
_ROUNDS: Final = 8
"""Of as many units as are usually under way. What was before them counts half, and half again; and
if there were always fewer in so many, fewer are usual now."""


class TransferChoice:
    """Takes the faster way, as far as is known; of one thread.

    Parameters
    ----------
    clock
        Seconds.

    Attributes
    ----------
    way
        That units are read in now.
    units
        How many have ended in each way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.way: Transfer = "patches"
        self.units: dict[Transfer, int] = {"patches": 0, "ranges": 0}
        self._clock = clock
        self._under_way = 0
        self._usual = 0
        """Units under way, in either way."""
        self._fewer = 0
        """Units that ended while there were fewer, one after the other."""
        self._rates: dict[Transfer, tuple[float, int]] = {}
        """Units in a second of each way, and how many were under way then."""
        self._since = 0
        """Units since the way was changed."""
        self._began_s = clock()
        self._last_s = self._began_s
        self._to_skip = self._ended = 0
        self._amount = self._seconds = 0.0

    def measured(self, way: Transfer) -> float | None:
        """Return units in a second; None as long as they are too few to tell."""
        rate, usual = self._rates.get(way, (None, 0))
        is_alike = max(usual, self._usual) <= 2 * min(usual, self._usual)
        return rate if is_alike else None

    def choose(self, served_per_s: float, ranges_per_s: float) -> Transfer:
        """Change the way if another one is faster; return the one to take.

        Parameters
        ----------
        served_per_s, ranges_per_s
            Units in a second: as :meth:`measured`, else estimated.
        """
        other: Transfer = "ranges" if self.way == "patches" else "patches"
        self._since += 1
        if self._since > _TRY_AGAIN:
            self._rates.pop(other, None)
            self._since = 0
        if self.way == "ranges":
            wants = served_per_s > _FASTER * ranges_per_s
        else:
            # What is only estimated must promise more; what was measured takes work off the server.
            is_tried = self.measured(other) is not None
            wants = ranges_per_s * (_FASTER if is_tried else 1 / _FASTER) > served_per_s
        if wants:
            self.way, self._since = other, 0
            self._restart()
        return self.way

    def begin(self) -> float:
        """Say that a unit has begun; return when."""
        now_s = self._pass_time()
        self._under_way += 1
        if self._under_way > self._usual:
            self._usual = self._under_way
            self._restart()
        return now_s

    def end(self, way: Transfer, began_s: float, amount: float) -> None:
        """Say that a unit has ended.

        Parameters
        ----------
        way
            That it was read in.
        began_s
            What :meth:`begin` returned.
        amount
            How much of it was done.
        """
        self._pass_time()
        is_usual = self._is_usual
        self._under_way -= 1
        self.units[way] += 1
        self._fewer = 0 if is_usual else self._fewer + 1
        if self._fewer > _ROUNDS * self._usual:
            self._usual, self._fewer = self._under_way + 1, 0
            self._restart()
        if way != self.way or began_s < self._began_s or not is_usual:
            return
        if self._to_skip:
            self._to_skip -= 1
            return
        self._ended += 1
        self._amount += amount
        if self._ended >= max(ENOUGH, self._usual // 2) and self._seconds > 0:
            self._rates[way] = self._amount / self._seconds, self._usual
        if self._amount > _ROUNDS * max(ENOUGH, self._usual):
            self._amount, self._seconds = self._amount / 2, self._seconds / 2

    @property
    def _is_usual(self) -> bool:
        return 2 * self._under_way >= self._usual

    def _restart(self) -> None:
        """Measure the way anew, after a round."""
        self._began_s = self._clock()
        self._to_skip, self._ended = self._usual, 0
        self._amount = self._seconds = 0.0

    def _pass_time(self) -> float:
        """Count the time since anything began or ended, unless few were under way; return now."""
        now_s = self._clock()
        if self._is_usual and not self._to_skip:
            self._seconds += now_s - self._last_s
        self._last_s = now_s
        return now_s
