"""``spinezarr remove-labels``: how are further masks of stored scans removed?"""

from spinezarr.cli.options import AsJson, MaskName, OpenOptions, ScanOptions, StoreUrl, command

__all__ = ["remove_labels"]


@command
def remove_labels(
    store: StoreUrl,
    *,
    layer: MaskName,
    scan_options: ScanOptions,
    as_json: AsJson = False,
    open_options: OpenOptions,
) -> None:
    """Remove a mask that 'add-labels' or Python has added. Images and other masks stay.

    Exit code 0: the chosen scans do not have the mask any more; 2: wrong usage, such as a mask that
    none of them has.

    Example:  spinezarr remove-labels ctspine1k.zarr --layer prediction
    """
    from spinezarr.cli.console import OUT, print_json
    from spinezarr.cli.progress import show_progress
    from spinezarr.text import count_noun

    with show_progress() as on_progress:
        removed = open_options.open(store).remove_labels(
            layer, **scan_options.names, on_progress=on_progress
        )
    if as_json:
        print_json({"removed": list(removed)})
    else:
        OUT.say(f"Removed the mask {layer!r} from {count_noun(len(removed), 'scan')}.")
