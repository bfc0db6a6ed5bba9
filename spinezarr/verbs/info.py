"""What does a store hold, on one screen?"""

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spinezarr.redaction import redact_url
from spinezarr.stats.statistics import compute_statistics
from spinezarr.store.mask_columns import MASK, has_masks, scans_by_structure
from spinezarr.store.reader import StoreReader
from spinezarr.verbs.sizes import uncompressed_bytes

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["scans_by_split", "summarize"]

_MASK_FACTS = ("model", "author", "license", "scheme")
"""Facts on the origin of a further mask, which are columns of the scan table."""


def scans_by_split(reader: StoreReader) -> dict[str, int]:
    """Count the scans of each split."""
    names, counts = np.unique(reader.columns["split"].astype(object), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def summarize(reader: StoreReader) -> dict[str, Any]:
    """Summarize a store from its scan table; see :meth:`spinezarr.Store.info`."""
    table = reader.table
    source = [str(name) for name in table.source.to_numpy()]
    split = [str(name) for name in table.split.to_numpy()]
    pairs = Counter(zip(source, split, strict=True))
    statistics = compute_statistics(table)
    return {
        "url": redact_url(reader.url),
        **reader.root.model_dump(mode="json"),
        "scans": statistics.scans,
        "patients": statistics.patients,
        "scans_without_mask": statistics.scans - statistics.scans_with_mask,
        "splits": scans_by_split(reader),
        "scans_by_source_and_split": [
            {"source": name, "split": part, "scans": n} for (name, part), n in sorted(pairs.items())
        ],
        "shape_zyx": _spread(table.shape_zyx.to_numpy()),
        "spacing_zyx_mm": _spread(table.spacing_zyx_mm.to_numpy()),
        "orientations": dict(Counter(str(name) for name in table.orientation.to_numpy())),
        "source_bytes": int(table.source_bytes.sum()),
        "stored_bytes": int(table.stored_bytes.sum()),
        "uncompressed_bytes": uncompressed_bytes(table, further_masks=True),
        "scans_by_vertebra": {
            name: row.scans for name, row in statistics.vertebrae.items() if row.scans
        },
        "scans_by_annotated_centroid": {
            name: row.annotated_centroids
            for name, row in statistics.vertebrae.items()
            if row.annotated_centroids
        },
        "scans_by_audit": dict(Counter(str(verdict) for verdict in table.audit.to_numpy())),
        "other_label_voxels": int(table.other_label_voxels.sum()),
        "masks": list(_masks(table)),
    }


def _masks(table: "xr.Dataset") -> Iterator[dict[str, Any]]:
    """Yield a summary of each further mask that scans have."""
    for name in map(str, table[MASK].to_numpy() if MASK in table.variables else ()):
        mask = table.sel({MASK: name}).isel(scan=has_masks(table, [name]))
        made = zip(*(mask[f"mask_{fact}"].to_numpy().tolist() for fact in _MASK_FACTS), strict=True)
        dice = mask.mask_dice.to_numpy()
        dice = dice[np.isfinite(dice)]
        verdicts = Counter(str(kind) for kind in mask.mask_verdict.to_numpy() if kind)
        yield {
            "name": name,
            "scans": mask.sizes["scan"],
            "made": [
                {**dict(zip(_MASK_FACTS, facts, strict=True)), "scans": scans}
                for facts, scans in Counter(made).most_common()
            ],
            "scans_by_structure": scans_by_structure(table, name),
            "scans_by_verdict": dict(verdicts.most_common()),
            "mean_dice": float(dice.mean()) if dice.size else None,
        }


def _spread(values: npt.NDArray[Any]) -> dict[str, list[float]]:
    """Return minimum, median and maximum of each column."""
    if not len(values):
        return {}
    rows = {"min": values.min(0), "median": np.median(values, 0), "max": values.max(0)}
    return {name: [round(float(v), 4) for v in row] for name, row in rows.items()}
