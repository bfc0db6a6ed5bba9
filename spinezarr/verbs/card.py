"""How is a store described for a hub, for Croissant and for intake?"""

import os
from pathlib import Path

import numpy as np

from spinezarr.describe.croissant import croissant_json
from spinezarr.describe.dataset_card import PICTURE, dataset_card
from spinezarr.describe.description import SCAN_LIST, DatasetDescription
from spinezarr.describe.intake_catalog import intake_yaml
from spinezarr.errors import UsageError
from spinezarr.export.atomic_file import make_folder, write_atomically
from spinezarr.export.preview import preview_scan
from spinezarr.recipe import Recipe
from spinezarr.redaction import redact_url
from spinezarr.resources import package_version, recipe_names
from spinezarr.stats.statistics import compute_statistics
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.stream.read.engine import Engine
from spinezarr.verbs.export import ExportReport, scans_to_share

__all__ = ["write_card"]


def write_card(
    reader: StoreReader,
    engine: Engine,
    selection: ScanSelection,
    out: str | os.PathLike[str],
    *,
    url: str | None,
    overwrite: bool,
    include_restricted: bool,
) -> ExportReport:
    """Write the descriptions of a store; see :meth:`spinezarr.Store.export_card`."""
    place = (url or reader.url).rstrip("/")
    if "://" not in place:
        raise UsageError(
            f"{reader.name}: is on disk, where others cannot read it. Give the URL that the store "
            "will have, such as --url hf://datasets/lab/spine/spine.zarr."
        )
    scan_ids, left_out = scans_to_share(reader, selection, include_restricted=include_restricted)
    rows = np.flatnonzero(np.isin(reader.columns["scan"].astype(str), scan_ids))
    table = reader.table.isel(scan=rows)
    dataset = reader.root.dataset
    card = Recipe.load(dataset).shipped_card() if dataset in recipe_names() else None
    description = DatasetDescription(
        root=reader.root,
        table=table,
        statistics=compute_statistics(table),
        url=redact_url(place),
        scan_licenses=tuple(
            reader.scan(str(scan_id)).attributes.license for scan_id in table.scan.to_numpy()
        ),
        caveats=() if card is None else card.caveats,
    )
    shown = next(iter(table.scan[table.label_state != "none"].to_numpy().tolist()), None)
    folder = Path(out)
    make_folder(folder)
    texts = {
        "README.md": dataset_card(description, has_picture=shown is not None),
        SCAN_LIST: description.scan_list(),
        "croissant.json": croissant_json(description, package_version()),
        "intake.yaml": intake_yaml(description),
    }
    names = [*texts, *([] if shown is None else [PICTURE])]
    for name in names:
        if (folder / name).exists() and not overwrite:
            raise UsageError(
                f"{folder / name}: exists already. Choose another folder, or give --overwrite."
            )
    for name, text in texts.items():
        with write_atomically(folder / name) as file:
            file.write(text.encode())
    if shown is not None:
        with write_atomically(folder / PICTURE) as file:
            preview_scan(reader.scan(str(shown)), engine).savefig(file, format="png")
    files = tuple(str(folder / name) for name in names)
    return ExportReport(str(folder), (), {}, left_out=left_out, files=files)
