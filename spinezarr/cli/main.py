"""``spinezarr``: which commands exist, and what do they share?

A module of a command holds its options. It imports the code of the command when the command runs,
so that help and messages about wrong usage appear at once.
"""

import codecs
import io
import sys
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Final

import typer
from typer.main import get_command

from spinezarr.cli.help import Command, Group, command_group, first_paragraph
from spinezarr.cli.logs import show_warnings_and_logs
from spinezarr.text import MultilineText, did_you_mean

__all__ = ["app", "main"]

_COMMANDS: Final = (
    "ingest",
    "add-labels",
    "remove-labels",
    "derive",
    "push",
    "pull",
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

_REPLACE: Final = "spinezarr-replace"
"""Name of the way in which characters are replaced that an encoding does not have."""
_SPELLED: Final = {"²": "2", "³": "3", "…": "..."}
"""Spelling of characters that spinezarr itself prints. All others become question marks."""


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
    """Run the command line. Characters that the terminal cannot show are replaced."""
    codecs.register_error(_REPLACE, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=_REPLACE)
    show_warnings_and_logs()
    try:
        code = app(standalone_mode=False)
    except _USAGE_ERROR as problem:
        _print_usage_error(problem)
        code = problem.exit_code
    sys.exit(code)


def _replace(problem: UnicodeError) -> tuple[str, int]:
    """Return the text for characters that an encoding does not have, and where to go on."""
    if not isinstance(problem, UnicodeEncodeError):
        raise problem
    found = problem.object[problem.start : problem.end]
    return "".join(_SPELLED.get(char, "?") for char in found), problem.end


def _print_usage_error(problem: Any) -> None:  # noqa: ANN401
    from spinezarr.cli.console import ERR, print_error, print_json, set_up_output

    words = sys.argv[1:]
    set_up_output(quiet=False, no_color="--no-color" in words)
    if problem.ctx is not None:
        ERR.say(MultilineText(*problem.ctx.get_usage().split("\n")))
        ERR.say(f"Try '{problem.ctx.command_path} --help' for help.")
    message = _usage_message(problem)
    print_error(message)
    if "--json" in words:
        print_json({"error": message}, problem.exit_code)


def _usage_message(problem: Any) -> str:  # noqa: ANN401
    """Return the message of a usage error, with similar options as they are suggested elsewhere."""
    if isinstance(problem, typer.BadParameter):
        # Pydantic checks the values of options, and does not say what it has found.
        found = _value_of(problem.param)
        text = str(problem.format_message()).replace("Value error, ", "")
        return text.replace("Input should be", f"{found} should be" if found else "it should be")
    if getattr(problem, "option_name", None) is None or problem.ctx is None:
        return str(problem.format_message())
    known = [name for option in problem.ctx.command.params for name in option.opts]
    is_unknown = problem.option_name not in known
    hint = did_you_mean(problem.option_name, known) if is_unknown else ""
    return f"{problem.message.rstrip('.')}.{hint}"


def _value_of(parameter: Any) -> str:  # noqa: ANN401
    """Return the word that follows an option on the command line, or an empty text."""
    words = sys.argv[1:]
    names = () if parameter is None else parameter.opts
    for place, word in enumerate(words[:-1]):
        if word in names:
            return repr(words[place + 1])
    return next((repr(word.partition("=")[2]) for word in words if word.split("=")[0] in names), "")
