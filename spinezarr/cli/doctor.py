"""``spinezarr doctor``: is this machine ready, and is a disk or link fast enough?"""

from typing import Annotated

import typer

from spinezarr.cli.options import AsJson, OpenOptions, command

__all__ = ["doctor"]


@command
def doctor(
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="[STORE]",
            help="Path, URL or catalog name of a store, or a folder; by default the working one.",
        ),
    ] = None,
    *,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Check this machine and the place of a store, and say what to change.

    The checks cover versions, kernel and codecs, processors and memory that this process may use,
    open files and shared memory, free space, and the speed of the disk or link. They take a few
    seconds. In a folder without a store, a file of up to 128 MB is written and removed.

    Exit code 0: nothing is broken; 1: something is; 2: wrong usage.

    Example:  spinezarr doctor demo/ctspine1k.zarr
    """
    from spinezarr.catalog import locate_store
    from spinezarr.cli.console import print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.doctor import print_diagnosis
    from spinezarr.verbs.doctor import diagnose

    url, options = (None, {}) if store is None else locate_store(store, open_options.catalog)
    with show_progress() as on_progress:
        diagnosis = diagnose(url, {**options, **open_options.storage_options}, on_progress)
    if as_json:
        print_json(diagnosis.to_json(), diagnosis.exit_code)
    else:
        print_diagnosis(diagnosis)
    raise typer.Exit(diagnosis.exit_code)
