"""``spinezarr bench``: how fast is a store read here, and what bounds that?"""

from typing import Annotated

import typer

from spinezarr.cli.options import AsJson, OpenOptions, ScanOptions, StoreUrl, command

__all__ = ["bench"]


@command
def bench(
    store: StoreUrl,
    *,
    seconds: Annotated[
        float, typer.Option(metavar="S", help="Time for all measurements together.")
    ] = 60.0,
    scan_options: ScanOptions,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Measure how fast this machine reads a store, and say what bounds that.

    Patches of 64, 96 and 128 voxels a side and slices of three planes are read from the disk, the
    bucket or the server, as a training reads them but without caches. Nothing is written.

    Example:  spinezarr bench demo/ctspine1k.zarr --seconds 10
    """
    from spinezarr.cli.console import print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.cli.reports.bench import print_benchmark

    with show_progress() as on_progress:
        benchmark = open_options.open(store).bench(
            seconds=seconds, **scan_options.names, on_progress=on_progress
        )
    if as_json:
        print_json(benchmark.to_json())
    else:
        print_benchmark(benchmark)
