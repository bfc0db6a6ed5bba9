"""How does a command show its help?

Help is plain text. The layout of Typer imports parts of Rich, which takes longer than all other
steps of help.
"""

from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "Group", "command_group", "first_paragraph"]

_WRONG_USAGE: Final = 2


class _Offer(NamedTuple):
    """A word that a shell offers, in the form of the completion items of click."""

    value: str
    help: str
    type: str = "plain"


class Command(TyperCommand):
    """A command whose options are listed under their headings (``rich_help_panel``)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401  of click in typer
        """Read the arguments; show the help if there are none, but some are required."""
        _show_help_without_arguments(self, ctx, args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the options."""
        _write_options(self, ctx, formatter)


class Group(TyperGroup):
    """A group of commands, each listed with the first paragraph of its help."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401
        """Read the arguments; show the help if there are none."""
        _show_help_without_arguments(self, ctx, args)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
        """Write the options and the commands."""
        _write_options(self, ctx, formatter)
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, self.summary(ctx, name)) for name in self.list_commands(ctx)]
            )

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:  # noqa: ANN401
        """Return the commands and options that a shell offers, without making any command."""
        if incomplete.startswith("-"):
            return list(super().shell_complete(ctx, incomplete))
        return [
            _Offer(name, self.summary(ctx, name))
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]

    def summary(self, ctx: Any, name: str) -> str:  # noqa: ANN401
        """Return what a command does, in a sentence."""
        command = self.get_command(ctx, name)
        return "" if command is None else first_paragraph(command.help)


def first_paragraph(text: str | None) -> str:
    """Return the first paragraph of a help text as one line."""
    return " ".join((text or "").strip().partition("\n\n")[0].split())


def command_group(*, help: str, cls: type[Group] = Group, **options: Any) -> typer.Typer:  # noqa: A002, ANN401
    """Return a group of commands that shows its help without arguments."""
    return typer.Typer(cls=cls, help=help, no_args_is_help=True, rich_markup_mode=None, **options)


def _show_help_without_arguments(command: Any, ctx: Any, args: list[str]) -> None:  # noqa: ANN401
    if command.no_args_is_help and not args and not ctx.resilient_parsing:
        typer.echo(ctx.get_help())
        ctx.exit(_WRONG_USAGE)


def _write_options(command: Any, ctx: Any, formatter: Any) -> None:  # noqa: ANN401
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
    for parameter in command.get_params(ctx):
        record = parameter.get_help_record(ctx)
        if record is not None:
            default_heading = "Arguments" if parameter.param_type_name == "argument" else "Options"
            heading = getattr(parameter, "rich_help_panel", None) or default_heading
            sections.setdefault(heading, []).append(record)
    for heading, records in sections.items():
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)
