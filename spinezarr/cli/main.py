"""``spinezarr``: every command, and what they share."""

import io
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from spinezarr.cli.audit import audit
from spinezarr.cli.demo import demo
from spinezarr.cli.export import app as export_app
from spinezarr.cli.info import info
from spinezarr.cli.ingest import ingest
from spinezarr.cli.init import init
from spinezarr.cli.preview import preview
from spinezarr.cli.stats import stats
from spinezarr.cli.verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    help="Public spine-CT datasets as Zarr stores: ingest once, open with xarray, stream patches.",
    epilog="Start with: spinezarr demo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (ingest, info, audit, verify, stats, preview, init, demo):
    app.command(no_args_is_help=command not in (init, demo))(command)

app.add_typer(export_app, name="export")


def _print_version(asked: bool) -> None:  # noqa: FBT001  typer's callback
    if asked:
        typer.echo(f"spinezarr {version('spinezarr')}")
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
    """Run the command line; what the terminal's encoding lacks is shown as a question mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()
