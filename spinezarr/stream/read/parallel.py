"""How is one call's work divided among threads?

The work is C code that frees the GIL, and consists of numbered items of known cost.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.forks import ProcessLock

__all__ = ["run_in_parts"]

_PARALLEL_CALLS: Final = ProcessLock()
"""Lock of the one call that works with several threads; such calls take turns.

So the first call ends early, and the last one ends no later than if all ran at once.
"""


def run_in_parts(
    work: Callable[[int, int], None], costs: npt.NDArray[np.integer], *, threads: int
) -> None:
    """Do all items, with about the same cost for each thread.

    Parameters
    ----------
    work
        Does the items ``first`` to ``last - 1``. Each thread refers to it until it is done, also if
        the caller is interrupted. So what the function refers to lives until then.
    costs
        Cost of each item, in any unit.
    threads
        Number of threads, with that of the caller.
    """
    n = len(costs)
    parts = min(threads, n)
    if parts <= 1:
        work(0, n)
        return
    done = np.cumsum(costs)
    borders = np.searchsorted(done, done[-1] * np.arange(1, parts) / parts).tolist()
    borders = [0, *borders, n]
    with _PARALLEL_CALLS, ThreadPoolExecutor(parts - 1, "spinezarr-patch") as pool:
        others = [pool.submit(work, *part) for part in pairwise(borders[1:])]
        work(0, borders[1])
        for other in others:
            other.result()
