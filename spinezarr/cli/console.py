"""How does the command line print, and how does it end?

All output goes through this module. Names and texts may come from strangers, so all printed text is
escaped (:func:`spinezarr.text.to_printable`) and never read as markup. Styles are arguments.

Standard output gets the result of a command. Standard error gets errors, warnings, progress and
notes; ``--quiet`` leaves out progress and notes.
"""

import os
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import typer
from rich.cells import cell_len
from rich.columns import Columns
from rich.console import Console as RichConsole
from rich.console import ConsoleOptions, JustifyMethod, RenderableType
from rich.padding import Padding
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
from spinezarr.redaction import redact_urls_in
from spinezarr.text import MultilineText, describe_os_error, to_ascii_json, to_printable

__all__ = [
    "ERR",
    "MAX_ROWS",
    "OUT",
    "SOME_FAILED",
    "StyledText",
    "Table",
    "errors_for_users",
    "print_capped",
    "print_document",
    "print_error",
    "print_heading",
    "print_json",
    "print_side_by_side",
    "set_up_output",
]

SOME_FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130
"""Exit code that shells report for a command ended by Ctrl-C."""
PIPE_CLOSED: Final = 141
"""Exit code that shells report for a command whose output nobody reads any more."""

MAX_ROWS: Final = 20
"""Most rows of a table that are printed. The others are only counted; --json prints all."""
_READABLE_WIDTH: Final = 10
"""Fewest characters of a column of text that is narrower than its longest line."""


class _Console(RichConsole):
    """Prints text literally, after escaping characters that are not safe to print."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)
        self.hides_notes = False
        """Whether notes and progress are left out."""

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

    def on_broken_pipe(self) -> None:
        """End the program without a message, as after ``| head``."""
        self.quiet = True
        # Python writes what is left in its buffer when it ends.
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.file.fileno())
            os.close(nowhere)
        raise SystemExit(PIPE_CLOSED)

    def say(self, *parts: "str | StyledText", style: StyleType | None = None) -> None:
        """Print one line or a :class:`~spinezarr.text.MultilineText`, joined from parts."""
        line = Text(style=style or "")
        for part in parts:
            line.append(_styled(part))
        self.print(line, soft_wrap=True)

    def note(self, *parts: "str | StyledText") -> None:
        """Print a line that is neither a result nor an error, unless ``--quiet`` is given."""
        if not self.hides_notes:
            self.say(*parts)


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


def set_up_output(*, quiet: bool, no_color: bool) -> None:
    """Choose what is printed on standard error, and whether colors are used.

    Parameters
    ----------
    quiet
        Whether progress and notes are left out.
    no_color
        Whether colors are left out. They are also left out if ``$NO_COLOR`` is set, if ``$TERM`` is
        ``dumb``, and outside a terminal.
    """
    ERR.hides_notes = quiet
    for console in (OUT, ERR):
        console.no_color = no_color or bool(os.environ.get("NO_COLOR"))


@contextmanager
def errors_for_users(*, as_json: bool = False) -> Iterator[None]:
    """Print an error as a message, and exit with its code; only a bug shows a traceback.

    With ``as_json``, the error is also printed as JSON on standard output.
    """
    try:
        yield
    except SpinezarrError as problem:
        wrong_usage = isinstance(
            problem, UsageError | StoreNotFoundError | UnknownMaskError | UnknownScanError
        )
        _fail(
            MultilineText(*str(problem).split("\n")),  # all line breaks are spinezarr's
            WRONG_USAGE if wrong_usage else SOME_FAILED,
            as_json=as_json,
        )
    except OSError as problem:
        _fail(redact_urls_in(describe_os_error(problem)), SOME_FAILED, as_json=as_json)
    except KeyboardInterrupt:
        _fail(
            "interrupted. Finished work is kept. Run the command again to continue.",
            INTERRUPTED,
            as_json=as_json,
        )
    except (typer.Exit, typer.Abort):
        raise
    except Exception as problem:  # noqa: BLE001  a bug; its text may come from a stranger
        lines = redact_urls_in(traceback.format_exc().rstrip()).split("\n")
        ERR.say(MultilineText(*lines))
        if as_json:
            print_json({"error": redact_urls_in(repr(problem))}, SOME_FAILED)
        raise typer.Exit(SOME_FAILED) from None


def _fail(message: str, code: int, *, as_json: bool) -> None:
    print_error(message)
    if as_json:
        print_json({"error": message}, code)
    raise typer.Exit(code)


def print_error(message: str) -> None:
    """Print why a command fails."""
    ERR.say(StyledText("Error:", "bold red"), " ", message)


class Table(RichTable):
    """A table of texts. The columns in ``right`` hold numbers. The title may be empty.

    A cell is one line, unless it is a :class:`~spinezarr.text.MultilineText`. Where the table does
    not fit in the terminal, each row is printed as a paragraph.
    """

    def __init__(self, title: str, *columns: str, right: tuple[str, ...] = ()) -> None:
        title = to_printable(title)
        super().__init__(
            title=Text(title, style="bold") if title else None,
            title_justify="left",
            header_style="bold",
            min_width=min(len(title), OUT.width),
        )
        self._cells: list[tuple[list[Text], StyleType | None]] = []
        self._headings = [_styled(column) for column in columns]
        for column, heading in zip(columns, self._headings, strict=True):
            justify: JustifyMethod = "right" if column in right else "left"
            self.add_column(heading, justify=justify, overflow="fold", no_wrap=column in right)

    def add_row(self, *cells: Any, style: StyleType | None = None, **_: Any) -> None:  # noqa: ANN401
        """Add a row of texts."""
        texts = [_styled(cell) for cell in cells]
        self._cells.append((texts, style))
        super().add_row(*texts, style=style)

    def __rich_console__(self, console: RichConsole, options: ConsoleOptions) -> Iterator[Any]:
        if self._narrowest_width() <= options.max_width:
            yield from super().__rich_console__(console, options)
            return
        if self.title:
            yield self.title
        for cells, style in self._cells:
            yield from self._paragraphs(cells, style or "")

    def _narrowest_width(self) -> int:
        """Return the number of characters that the table needs to be readable."""
        widths = []
        for number, column in enumerate(self.columns):
            texts = [self._headings[number], *(cells[number] for cells, _ in self._cells)]
            natural = max(cell_len(line) for text in texts for line in text.plain.split("\n"))
            widths.append(natural if column.no_wrap else min(natural, _READABLE_WIDTH))
        borders = 3 * len(widths) + 1  # each cell has a space on both sides
        return sum(widths) + borders

    def _paragraphs(self, cells: list[Text], style: StyleType) -> Iterator[RenderableType]:
        """Yield the first cell as a heading, then the numbers, then each text."""
        named = list(zip(self._headings, cells, self.columns, strict=True))
        first_name, first, _ = named[0]
        heading = Text(style=style)
        heading.append_text(Text(f"{first_name} ".lstrip(), style="bold"))
        heading.append_text(first)
        yield heading
        rest = [(name, cell, column) for name, cell, column in named[1:] if cell.plain]
        numbers = [f"{name} {cell}" for name, cell, column in rest if column.no_wrap]
        texts = [f"{name}: {cell}" for name, cell, column in rest if not column.no_wrap]
        for line in ([", ".join(numbers)] if numbers else []) + texts:
            yield Padding(Text(line, style=style), (0, 0, 0, 2), expand=False)


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


def print_json(report: Mapping[str, Any], exit_code: int = 0) -> None:
    """Print a report as a JSON object on standard output, with the exit code of the command."""
    print_document(f"{to_ascii_json({**report, 'exit_code': exit_code})}\n")


def print_document(text: str) -> None:
    """Print a document byte for byte on standard output. Its texts must be safe to print."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        OUT.on_broken_pipe()
