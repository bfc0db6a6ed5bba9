"""How is the progress of a long task reported?

Every function that takes long calls ``on_progress`` with a :class:`Progress`. The command line
draws a bar from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Literal

__all__ = ["OnProgress", "Progress", "ProgressCounter", "Unit", "ignore_progress"]

Unit = Literal["bytes", "scans", "seconds", "files", "folders", "batches"]
"""What is counted."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a task.

    Examples
    --------
    A third of an ingest, while two scans are read:

    >>> progress = Progress("ingest", 100, 300, scan="liver_0 + 1", scans_done=2, scans_total=6)
    >>> f"{progress.done / progress.total:.0%}"
    '33%'
    """

    step: str
    """Name of the task, such as ``"verify"``."""
    done: float
    """Amount that is done, in :attr:`unit`."""
    total: int | None
    """Total amount, in :attr:`unit`; None if it is not known."""
    unit: Unit = "bytes"
    """Unit of :attr:`done` and :attr:`total`."""
    scan: str = ""
    """The scan that has been in progress longest, and the number of others in progress."""
    scans_done: int | None = None
    """Number of finished scans, if both bytes and scans are counted."""
    scans_total: int | None = None
    """Number of all scans, if both bytes and scans are counted."""
    message: str = ""
    """A sentence for the user, such as the address of a dashboard; empty most of the time."""


OnProgress = Callable[[Progress], None]
"""Called repeatedly. Calls may come from several threads, but never two at once."""


def ignore_progress(_: Progress) -> None:
    """Do nothing."""


class ProgressCounter:
    """Adds up what several threads have done, and reports it.

    Parameters
    ----------
    on_progress
        Called after each addition, by one thread at a time.
    step, unit
        As in :class:`Progress`.
    total
        As in :class:`Progress`; :meth:`expect` may set it later.
    """

    def __init__(
        self,
        on_progress: OnProgress,
        step: str,
        unit: Unit = "bytes",
        total: int | None = None,
    ) -> None:
        self._on_progress = on_progress
        self._step = step
        self._unit: Unit = unit
        self._total = total
        self._done = 0
        self._lock = Lock()
        self._report()

    def expect(self, total: int) -> None:
        """Set the total amount; 0 if it is not known."""
        with self._lock:
            self._total = total or None
            self._report()

    def add(self, amount: int = 1) -> None:
        """Add an amount that is done."""
        with self._lock:
            self._done += amount
            self._report()

    def say(self, message: str) -> None:
        """Report a message for the user."""
        with self._lock:
            self._report(message)

    def _report(self, message: str = "") -> None:
        self._on_progress(
            Progress(self._step, self._done, self._total, self._unit, message=message)
        )
