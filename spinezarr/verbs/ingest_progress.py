"""How far is a run that may work on several scans at once?"""

from collections.abc import Collection

from spinezarr.ingestion.job import Outcome, TaskSource
from spinezarr.ingestion.run import Listener
from spinezarr.progress import OnProgress, Progress

__all__ = ["IngestProgress"]


class IngestProgress(Listener):
    """Adds up the source bytes of scans as they are read.

    Parameters
    ----------
    scans
        All scans of the run.
    on_progress
        Called whenever something has changed.
    step
        Name of the task; see :class:`spinezarr.progress.Progress`.
    """

    def __init__(
        self, scans: Collection[TaskSource], on_progress: OnProgress, step: str = "ingest"
    ) -> None:
        self._on_progress = on_progress
        self._step = step
        self._total_bytes = sum(scan.read_bytes for scan in scans)
        self._done_bytes = 0.0
        self._scans_total = len(scans)
        self._scans_done = 0
        self._fractions: dict[str, float] = {}
        """Finished fraction (0 to 1) of each scan in progress."""

    def started(self, source: TaskSource) -> None:
        """Add a scan to those in progress."""
        self._fractions[source.scan_id] = 0.0
        self._report()

    def advanced(self, source: TaskSource, share: float) -> None:
        """Count the bytes of a further part of a scan, a share from 0 to 1."""
        self._fractions[source.scan_id] += share
        self._done_bytes += share * source.read_bytes
        self._report()

    def finished(self, source: TaskSource, outcome: Outcome) -> None:
        """Count a scan. If it was not read, reduce the total, so that the speed stays correct."""
        self._scans_done += 1
        rest = (1 - self._fractions.pop(source.scan_id, 0.0)) * source.read_bytes
        if outcome == "done":
            self._done_bytes += rest
        else:
            self._total_bytes -= round(rest)
        self._report()

    def _report(self) -> None:
        first, *others = self._fractions or [""]
        self._on_progress(
            Progress(
                self._step,
                self._done_bytes,
                self._total_bytes,
                scan=f"{first} + {len(others)}" if others else first,
                scans_done=self._scans_done,
                scans_total=self._scans_total,
            )
        )
