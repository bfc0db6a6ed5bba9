"""How does the command line print, and how does it end?

All output goes through this module. Names and texts may come from strangers, so all printed text is
escaped (:func:`spinezarr.text.to_printable`) and never read as markup. Styles are arguments.
"""

import sys
import traceback
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any, Final, TypeVar

import typer
from rich.columns import Columns
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, JustifyMethod, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    ProgressColumn,
    Task,
    TaskID,
    TimeRemainingColumn,
)
from rich.progress import Progress as ProgressBars
from rich.segment import Segment
from rich.style import StyleType
from rich.table import Table as RichTable
from rich.text import Text

from spinezarr.errors import (
    SpinezarrError,
    StoreNotFoundError,
    UnknownMaskError,
    UnknownScanError,
    UsageError,
)
from spinezarr.progress import OnProgress, Progress
from spinezarr.redaction import redact_urls_in
from spinezarr.text import MultilineText, describe_os_error, to_ascii_json, to_printable

__all__ = [
    "ERR",
    "MAX_ROWS",
    "OUT",
    "StyledText",
    "Table",
    "errors_for_users",
    "megabytes",
    "print_capped",
    "print_document",
    "print_error",
    "print_heading",
    "print_json",
    "print_side_by_side",
    "show_progress",
    "tracked",
]

T = TypeVar("T")

SOME_FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130
"""Exit code that shells report for a command ended by Ctrl-C."""

MAX_ROWS: Final = 20
"""Most rows of a table that are printed. The others are only counted; --json prints all."""


class _Console(RichConsole):
    """Prints text literally, after escaping characters that are not safe to print."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401  as in Rich
        # Text is escaped before the layout, so that the layout leaves room for the escapes.
        return super().render_str(
            to_printable(text), **{**options, "markup": False, "emoji": False}
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        # Text is escaped again after the layout, because other code may have added some.
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text.isprintable():
                yield segment
            else:
                lines = (to_printable(line, longest=None) for line in text.split("\n"))
                yield Segment("\n".join(lines), segment.style)

    def say(self, *parts: "str | StyledText", style: StyleType | None = None) -> None:
        """Print one line or a :class:`~spinezarr.text.MultilineText`, joined from parts."""
        line = Text(style=style or "")
        for part in parts:
            line.append(_styled(part))
        self.print(line, soft_wrap=True)


class StyledText:
    """A part of a line in its own style."""

    def __init__(self, text: str, style: str) -> None:
        self.text, self.style = text, style


def _styled(part: str | StyledText) -> Text:
    if isinstance(part, StyledText):
        return Text(to_printable(part.text), style=part.style)
    return Text(to_printable(part))


OUT: Final = _Console()
ERR: Final = _Console(stderr=True)


@contextmanager
def errors_for_users() -> Iterator[None]:
    """Print an error as a message, and exit with its code; only a bug shows a traceback."""
    try:
        yield
    except SpinezarrError as problem:
        wrong_usage = isinstance(
            problem, UsageError | StoreNotFoundError | UnknownMaskError | UnknownScanError
        )
        _fail(
            MultilineText(*str(problem).split("\n")),  # a group that holds only KeyboardInterrupt
            WRONG_USAGE if wrong_usage else SOME_FAILED,
        )
    except OSError as problem:
        _fail(redact_urls_in(describe_os_error(problem)), SOME_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted. Finished work is kept. Run the command again to continue.", INTERRUPTED)
    except (typer.Exit, typer.Abort):
        raise
    except Exception:  # noqa: BLE001  a bug; its text may come from a stranger
        lines = redact_urls_in(traceback.format_exc().rstrip()).split("\n")
        ERR.say(MultilineText(*lines))
        raise typer.Exit(SOME_FAILED) from None


def _fail(message: str, code: int) -> None:
    print_error(message)
    raise typer.Exit(code)


def print_error(message: str) -> None:
    """Print why a command fails."""
    ERR.say(StyledText("Error:", "bold red"), " ", message)


class Table(RichTable):
    """A table of texts. The columns in ``right`` hold numbers. The title may be empty.

    A cell is one line, unless it is a :class:`~spinezarr.text.MultilineText`.
    """

    def __init__(self, title: str, *columns: str, right: tuple[str, ...] = ()) -> None:
        title = to_printable(title)
        super().__init__(
            title=Text(title, style="bold") if title else None,
            title_justify="left",
            header_style="bold",
            min_width=min(len(title), OUT.width),
        )
        for column in columns:
            justify: JustifyMethod = "right" if column in right else "left"
            self.add_column(
                _styled(column), justify=justify, overflow="fold", no_wrap=column in right
            )

    def add_row(self, *cells: Any, style: StyleType | None = None, **_: Any) -> None:  # noqa: ANN401
        """Add a row of texts."""
        super().add_row(*map(_styled, cells), style=style)


def print_capped(table: Table, total: int) -> None:
    """Print a table of at most :data:`MAX_ROWS` of ``total`` rows, and the number of the others."""
    OUT.print(table)
    if total > MAX_ROWS:
        OUT.say(f"... and {total - MAX_ROWS} more; --json lists them all.")


def print_heading(text: str) -> None:
    """Print a heading of any length, such as one that holds a path."""
    OUT.say(text, style="bold")


def print_side_by_side(
    items: Sequence[Table] | Sequence[Sequence[str | StyledText]], gap: int
) -> None:
    """Print tables or texts in rows, with as many in each row as fit."""
    renderables = [
        item if isinstance(item, Table) else Text.assemble(*map(_styled, item)) for item in items
    ]
    OUT.print(Columns(renderables, padding=(0, gap)))


def megabytes(size_bytes: float) -> str:
    """Format a size in MB of 10^6 bytes.

    Examples
    --------
    >>> megabytes(34_627_583)
    '34.6 MB'
    """
    return f"{size_bytes / 1e6:,.1f} MB"


def print_json(value: object) -> None:
    """Print a dataclass or plain value as JSON on standard output."""
    json_value = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    print_document(f"{to_ascii_json(json_value)}\n")


def print_document(text: str) -> None:
    """Print a document byte for byte on standard output. Its texts must be safe to print."""
    sys.stdout.write(text)
    sys.stdout.flush()


class _Description(ProgressColumn):
    """Column with the task of a progress bar, such as the name of a scan."""

    def render(self, task: Task) -> Text:
        return Text(to_printable(task.description), style="bold")


class _Amount(ProgressColumn):
    """Column with the done and the total number of scans or bytes."""

    _bytes = DownloadColumn()

    def render(self, task: Task) -> Text:
        progress: Progress = task.fields["progress"]
        if progress.scans_total is not None:
            return Text(f"{progress.scans_done}/{progress.scans_total} scans")
        if progress.unit != "bytes":
            unit = "s" if progress.unit == "seconds" else progress.unit
            return Text(f"{progress.done:.0f}/{progress.total} {unit}")
        return self._bytes.render(task)


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


@contextmanager
def show_progress() -> Iterator[OnProgress]:
    """Yield a callback that draws a bar for each step and prints messages above the bars."""
    bars = _bars(_Amount(), _Speed())
    task_ids: dict[str, TaskID] = {}

    def show(progress: Progress) -> None:
        if progress.message:
            ERR.say(progress.message)
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


def tracked(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield items, and show how many are done."""
    with _bars() as bars:
        yield from bars.track(items, total=total, description=description)
