"""Where the command line prints, and how it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Final

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from spinezarr.errors import (
    SpinezarrError,
    StoreNotFoundError,
    UnknownScanError,
    UsageError,
    is_from_network,
)

__all__ = [
    "ERR",
    "OUT",
    "SHOWN",
    "errors_for_users",
    "make_folder",
    "megabytes",
    "new_table",
    "print_capped",
    "print_heading",
    "print_json",
]

SOME_FAILED: Final = 1
WRONG_USAGE: Final = 2
INTERRUPTED: Final = 130
"""What a shell reports of a command that Ctrl-C ended."""

SHOWN: Final = 20
"""Rows of a table before the rest is only counted; --json has them all."""

OUT: Final = Console(highlight=False)
ERR: Final = Console(stderr=True, highlight=False)


@contextmanager
def errors_for_users() -> Iterator[None]:
    """Print an expected error as a message, without traceback, and end with its exit code."""
    try:
        yield
    except SpinezarrError as problem:
        wrong_usage = isinstance(problem, UsageError | StoreNotFoundError | UnknownScanError)
        _fail(str(problem), WRONG_USAGE if wrong_usage else SOME_FAILED)
    except OSError as problem:
        where = f"{problem.filename}: " if problem.filename else ""
        _fail(f"{where}{problem.strerror or problem}", SOME_FAILED)
    except Exception as problem:
        if not is_from_network(problem):
            raise
        _fail(str(problem), SOME_FAILED)
    except KeyboardInterrupt:
        _fail("interrupted; what was done is kept, run it again to go on.", INTERRUPTED)


def _fail(message: str, code: int) -> None:
    ERR.print(f"[bold red]Error:[/] {escape(message)}", soft_wrap=True)
    raise typer.Exit(code)


def make_folder(folder: Path) -> None:
    """Make a folder for output, or take one that is there.

    Raises
    ------
    UsageError
        If it, or one above it, is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as problem:
        raise UsageError(
            f"{folder}: there is a file of this name, or above it. Give the name of a folder."
        ) from problem


def new_table(title: str, *columns: str, right: tuple[str, ...] = ()) -> Table:
    """Start a table; columns named in ``right`` hold numbers. A title may be empty."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        header_style="bold",
        min_width=min(len(title), OUT.width),
    )
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in right else "left",
            overflow="fold",
            no_wrap=column in right,
        )
    return table


def print_capped(table: Table, total: int) -> None:
    """Print a table of the first :data:`SHOWN` of ``total`` rows, and how many are left out."""
    OUT.print(table)
    if total > SHOWN:
        OUT.print(f"... and {total - SHOWN} more; --json lists them all.")


def print_heading(text: str) -> None:
    """Print a heading of any length, such as one that holds a path."""
    OUT.print(f"[bold]{escape(text)}[/]", soft_wrap=True)


def megabytes(size_bytes: float) -> str:
    """Show a size in MB of 10^6 bytes.

    Examples
    --------
    >>> megabytes(34_627_583)
    '34.6 MB'
    """
    return f"{size_bytes / 1e6:,.1f} MB"


def print_json(value: object) -> None:
    """Print a dataclass or plain value as JSON on standard output."""
    plain = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    Console(file=sys.stdout, highlight=False).print_json(data=plain, indent=2)
