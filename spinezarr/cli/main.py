"""``spinezarr``: which commands are there, and what do they share?"""

import io
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, Final

import typer
from typer import rich_utils
from typer.core import TyperGroup
from typer.main import get_command

from spinezarr.cli.console import OUT, show_warnings_and_logs
from spinezarr.text import to_printable

__all__ = ["app", "main"]

_COMMANDS: Final = (
    "ingest",
    "info",
    "audit",
    "verify",
    "stats",
    "preview",
    "serve",
    "init",
    "demo",
    "export",
)
"""Names of commands. Each is a function, or a group ``app``, in the module of its name."""
_WITHOUT_ARGUMENTS: Final = {"init", "demo"}
"""Commands that run without arguments; the others then print their help."""
_USAGE_ERROR: Final[Any] = typer.BadParameter.__base__
"""Base class of usage errors in click, or in the copy of click inside typer."""


class _Commands(TyperGroup):
    """Imports a command only when it is used, because importing all commands takes seconds."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002  of typer's click
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        # For an unknown name, typer looks for a similar one among all commands.
        for name in (cmd_name,) if cmd_name in _COMMANDS else _COMMANDS:
            if name not in self.commands:
                self.commands[name] = _imported(name)
        return super().get_command(ctx, cmd_name)


def _imported(name: str) -> Any:  # noqa: ANN401
    module = import_module(f"spinezarr.cli.{name}")
    group = getattr(module, "app", None)
    if group is None:
        group = typer.Typer(rich_markup_mode="rich", add_completion=False)
        group.command(name, no_args_is_help=name not in _WITHOUT_ARGUMENTS)(getattr(module, name))
    return get_command(group)


app = typer.Typer(
    cls=_Commands,
    help="Public spine-CT datasets as Zarr stores: ingest once, open with xarray, stream patches.",
    epilog="Start with: spinezarr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer's callback
    if asked:
        OUT.say(f"spinezarr {version('spinezarr')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. A question mark replaces characters that the terminal cannot show."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    show_warnings_and_logs()
    try:
        code = app(standalone_mode=False)
    except _USAGE_ERROR as problem:
        # Shells complete file names, which come from strangers too.
        problem.message = to_printable(problem.message or "")
        rich_utils.rich_format_error(problem)
        code = problem.exit_code
    sys.exit(code)
