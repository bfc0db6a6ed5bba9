"""``spinezarr``: which commands exist, and what do they share?

A module of a command holds its options. It imports the code of the command when the command runs,
so that help and messages about wrong usage appear at once.
"""

import io
import sys
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.main import get_command

from spinezarr.cli.help import Command, Group, command_group, first_paragraph
from spinezarr.cli.logs import show_warnings_and_logs
from spinezarr.text import MultilineText

__all__ = ["app", "main"]

_COMMANDS: Final = (
    "ingest",
    "add-labels",
    "remove-labels",
    "derive",
    "info",
    "audit",
    "verify",
    "stats",
    "compare",
    "preview",
    "serve",
    "doctor",
    "bench",
    "init",
    "demo",
    "export",
)
"""Names of commands. Each is a function, or a group ``app``, in the module of that name."""
_RUN_WITHOUT_ARGUMENTS: Final = {"doctor", "init", "demo"}
"""Commands that run without arguments. The others print their help then."""
_USAGE_ERROR: Final[Any] = typer.BadParameter.__base__
"""Base class of usage errors in click, or in the copy of click inside typer."""


class _Commands(Group):
    """The commands. The module of a command is imported when it is used or described."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ANN401, ARG002  of click in typer
        return list(_COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ANN401
        # For an unknown name, typer searches all commands for a similar one.
        for name in (cmd_name,) if cmd_name in _COMMANDS else _COMMANDS:
            if name not in self.commands:
                self.commands[name] = _command(name)
        return super().get_command(ctx, cmd_name)

    def summary(self, ctx: Any, name: str) -> str:  # noqa: ANN401, ARG002
        """Return what a command does. Its options are not created for this."""
        command = _command_object(name)
        return first_paragraph(
            command.info.help if isinstance(command, typer.Typer) else command.__doc__
        )


def _command_object(name: str) -> Any:  # noqa: ANN401
    """Return the function or the group of a command."""
    module_name = name.replace("-", "_")
    module = import_module(f"spinezarr.cli.{module_name}")
    return getattr(module, "app", None) or getattr(module, module_name)


@cache
def _command(name: str) -> Any:  # noqa: ANN401
    group = _command_object(name)
    if not isinstance(group, typer.Typer):
        function, group = group, typer.Typer(rich_markup_mode=None, add_completion=False)
        no_args_is_help = name not in _RUN_WITHOUT_ARGUMENTS
        group.command(name, cls=Command, no_args_is_help=no_args_is_help)(function)
    return get_command(group)


app = command_group(
    cls=_Commands,
    help="Public spine-CT datasets as Zarr stores: ingest once, open with xarray, stream patches.",
    epilog="Start with: spinezarr demo",
    pretty_exceptions_enable=False,
)


def _print_version(is_requested: bool) -> None:  # noqa: FBT001  callback of typer
    if is_requested:
        from spinezarr import __version__
        from spinezarr.cli.console import OUT

        OUT.say(f"spinezarr {__version__}")
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
        _print_usage_error(problem)
        code = problem.exit_code
    sys.exit(code)


def _print_usage_error(problem: Any) -> None:  # noqa: ANN401
    from spinezarr.cli.console import ERR, print_error

    if problem.ctx is not None:
        ERR.say(MultilineText(*problem.ctx.get_usage().split("\n")))
        ERR.say(f"Try '{problem.ctx.command_path} --help' for help.")
    print_error(problem.format_message())
