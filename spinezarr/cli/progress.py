"""How does a command show how far it is?

A terminal gets bars with the time left. A file or pipe gets a line now and then, so that a log says
that the command works. Both go to standard error, and ``--quiet`` leaves both out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Final

from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TaskID,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBars
from rich.text import Text

from spinezarr.cli.console import ERR
from spinezarr.progress import OnProgress, Progress, ignore_progress
from spinezarr.text import megabytes, to_printable

__all__ = ["progress_line", "show_progress"]

_FIRST_LINE_S: Final = 10.0
"""Seconds of a task after which the first line is printed. Shorter tasks print none."""
_NEXT_LINE_S: Final = 30.0
"""Seconds between two lines."""
_NARROW: Final = 60
"""Columns of a terminal below which bars have fewer figures."""
_MINUTE_S: Final = 60
_HOUR_S: Final = 3600
_LONG_TIME: Final = 90
"""Largest number of seconds or minutes that is shown in that unit."""


class _Description(ProgressColumn):
    """Column with the task of a progress bar, such as the name of a scan."""

    def render(self, task: Task) -> Text:
        text = to_printable(task.description)
        return Text(text, style="bold", no_wrap=True, overflow="ellipsis")


class _Amount(ProgressColumn):
    """Column with the done and the total number of scans or bytes."""

    _bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        progress: Progress = task.fields["progress"]
        if progress.scans_total is not None:
            return Text(f"{progress.scans_done}/{progress.scans_total} scans")
        return self._bytes.render(task) if progress.unit == "bytes" else Text(_amount(progress))


class _Speed(ProgressColumn):
    """Column with MB/s if bytes are counted."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None or task.fields["progress"].unit != "bytes":
            return Text("")
        return Text(f"{speed / 1e6:.1f} MB/s", style="progress.data.speed")


def _bars(*columns: ProgressColumn) -> ProgressBars:
    """Return progress bars with descriptions and further columns, on standard error."""
    return ProgressBars(
        _Description(),
        BarColumn(bar_width=None),
        *columns,
        TimeRemainingColumn(elapsed_when_finished=True),
        console=ERR,
    )


class _Lines:
    """Prints a line on a task that takes long, and another one now and then."""

    def __init__(self) -> None:
        self._started_s: dict[str, float] = {}
        self._next_s = monotonic() + _FIRST_LINE_S

    def show(self, progress: Progress) -> None:
        """Print the messages for the user, and a line if the last one is old."""
        if progress.message:
            ERR.note(progress.message)
        now = monotonic()
        started = self._started_s.setdefault(progress.step, now)
        if now >= self._next_s:
            self._next_s = now + _NEXT_LINE_S
            ERR.note(progress_line(progress, now - started))


def progress_line(progress: Progress, elapsed_s: float) -> str:
    """Return a line that says how far a task is.

    Parameters
    ----------
    progress
        State of the task.
    elapsed_s
        Seconds since the task began.

    Examples
    --------
    >>> half = Progress("ingest", 2e8, 400_000_000, scan="liver_0", scans_done=3, scans_total=6)
    >>> progress_line(half, elapsed_s=100)
    'ingest: 50 %, 200.0 of 400.0 MB, 3/6 scans, liver_0; 2 min left'
    >>> progress_line(Progress("list", 1200, None, "files"), elapsed_s=20)
    'list: 1200 files'
    """
    parts = [_amount(progress)]
    if progress.total:
        parts.insert(0, f"{progress.done / progress.total:.0%}".replace("%", " %"))
    if progress.scans_total is not None:
        parts.append(f"{progress.scans_done}/{progress.scans_total} scans")
    if progress.scan:
        parts.append(progress.scan)
    left = ""
    if progress.total and 0 < progress.done < progress.total:
        left_s = elapsed_s * (progress.total - progress.done) / progress.done
        left = f"; {_duration(left_s)} left"
    return f"{progress.step}: {', '.join(parts)}{left}"


def _amount(progress: Progress) -> str:
    """Return the done and the total amount with their unit."""
    if progress.unit == "bytes":
        done = megabytes(progress.done)
        return (
            f"{done.removesuffix(' MB')} of {megabytes(progress.total)}" if progress.total else done
        )
    unit = "s" if progress.unit == "seconds" else progress.unit
    total = f"/{progress.total}" if progress.total else ""
    return f"{progress.done:.0f}{total} {unit}"


def _duration(seconds: float) -> str:
    """Return a time in the unit in which it is a number of at most two digits."""
    if seconds < _LONG_TIME:
        return f"{seconds:.0f} s"
    minutes = seconds / _MINUTE_S
    return f"{minutes:.0f} min" if minutes < _LONG_TIME else f"{seconds / _HOUR_S:.1f} h"


def _shows_bars() -> bool:
    """Whether standard error is a terminal on which lines can be drawn again."""
    return ERR.file.isatty() and ERR.is_terminal and not ERR.is_dumb_terminal


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Yield a callback that shows each step as a bar, or as lines outside a terminal."""
    if ERR.hides_notes:
        yield ignore_progress
        return
    if not _shows_bars():
        yield _Lines().show
        return
    is_wide = ERR.width >= _NARROW
    bars = _bars(_Amount(), _Speed()) if is_wide else _bars(_Amount())
    task_ids: dict[str, TaskID] = {}

    def show(progress: Progress) -> None:
        if progress.message:
            ERR.note(progress.message)
        if progress.step not in task_ids:
            bars.start()
            task_ids[progress.step] = bars.add_task(progress.step, total=None, progress=progress)
        bars.update(
            task_ids[progress.step],
            completed=progress.done,
            total=progress.total,
            description=progress.scan or progress.step,
            progress=progress,
        )

    try:
        yield show
    finally:
        if task_ids:
            bars.stop()
