"""Which figures does a dataset have, and does its published card agree?"""

import os
from pathlib import Path

from spinezarr.card import Card
from spinezarr.errors import CardError, UsageError
from spinezarr.export.atomic_file import make_folder, write_atomically
from spinezarr.recipe import Recipe
from spinezarr.redaction import redact_url
from spinezarr.resources import recipe_names
from spinezarr.stats.compare import Comparison, compare
from spinezarr.stats.mask_table import table_of_mask
from spinezarr.stats.statistics import Statistics, compute_statistics
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.verbs.masked_scans import scans_with_masks

__all__ = ["PLOTS", "compute_stats"]

PLOTS = ("detection.png", "volumes.png", "spacing.png")
"""Names of the plots."""


def compute_stats(
    reader: StoreReader,
    selection: ScanSelection,
    layer: str,
    against: str | os.PathLike[str] | None,
    plots: str | os.PathLike[str] | None,
) -> Statistics | Comparison:
    """Count and measure scans; see :meth:`spinezarr.Store.stats`."""
    if against is not None and selection != ScanSelection():
        raise UsageError(
            "--against compares with the card of the whole dataset; leave out --scan, --split, "
            "--source and --vertebra."
        )
    if against is not None and layer != LABEL:
        raise UsageError(
            "--against compares with a card, which describes the masks of the dataset itself; "
            "leave out --layer."
        )
    rows = selection.rows(reader.columns, reader.name)
    selection.check_some(len(rows), reader.name)
    if layer != LABEL:
        scans_with_masks(reader, selection, [layer])  # raises if there are none
    if plots is not None:
        make_folder(Path(plots))
    table = table_of_mask(reader.table.isel(scan=rows), layer)
    statistics = compute_statistics(table, layer)
    result = statistics if against is None else compare(statistics, _card(reader, against))
    if plots is not None:
        # matplotlib takes long to import, and few calls draw plots.
        from spinezarr.stats.plots import (  # noqa: PLC0415
            draw_detection,
            draw_spacing,
            draw_volumes,
        )

        figures = (draw_detection(statistics), draw_volumes(table), draw_spacing(table))
        for name, figure in zip(PLOTS, figures, strict=True):
            with write_atomically(Path(plots) / name) as file:
                figure.savefig(file, format="png")
    return result


def _card(reader: StoreReader, against: str | os.PathLike[str]) -> Card:
    """Read the requested card."""
    if against != "card":
        return Card.load_file(Path(against).expanduser())
    dataset = reader.root.dataset
    card = Recipe.load(dataset).shipped_card() if dataset in recipe_names() else None
    if card is None:
        raise CardError(
            f"{redact_url(reader.url)}: no published card of the dataset {dataset!r} ships with "
            "spinezarr. Give the path of one: --against FILE.card.yaml."
        )
    return card
