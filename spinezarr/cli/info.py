"""``spinezarr info``: what does a store hold, on one screen?"""

from spinezarr.cli.options import AsJson, OpenOptions, StoreUrl, command

__all__ = ["info"]


@command
def info(store: StoreUrl, *, as_json: AsJson = False, open_options: OpenOptions) -> None:
    """Show what a store holds: splits, sizes, compression, vertebra counts.

    Example:  spinezarr info demo/ctspine1k.zarr
    """
    from spinezarr.cli.console import print_json
    from spinezarr.cli.reports.info import print_summary

    summary = open_options.open(store).info()
    if as_json:
        print_json(summary)
    else:
        print_summary(summary)
