"""Fixtures that build scan tables from rows, and rows that have the figures of a card."""

import numpy as np
import pytest
import xarray as xr

from spinezarr.vertebrae import LEVELS

WORLD_AXES = {"S": 0, "I": 0, "A": 1, "P": 1, "R": 2, "L": 2}
ROW = {
    "patient": "p",
    "source": "",
    "split": "",
    "codes": "LPS",
    "size": (4, 5, 6),
    "spacing": (1.0, 1.0, 2.0),
    "mask": True,
    "volumes": {},
    "centroids": (),
}


def table_of(rows, title="Made up"):
    """Lay out rows, whose sizes and spacings are in file order, as a scan table."""
    rows = [ROW | row for row in rows]
    n = len(rows)

    def text(values):
        return np.array(list(values), np.dtypes.StringDType())

    def zyx(key, dtype):
        values = np.zeros((n, 3), dtype)
        for at, row in enumerate(rows):
            for letter, value in zip(row["codes"], row[key], strict=True):
                values[at, WORLD_AXES[letter]] = value
        return ("scan", "axis"), values

    volume = np.full((n, len(LEVELS)), np.nan)
    points = np.full((n, len(LEVELS), 3), np.nan)
    for at, row in enumerate(rows):
        for name, cm3 in row["volumes"].items():
            volume[at, LEVELS.index(name)] = cm3
        for name in row["centroids"]:
            points[at, LEVELS.index(name)] = (1, 2, 3)
    count = np.where(np.isnan(volume), 0, np.ceil(np.nan_to_num(volume) * 1000)).astype("i8")
    return xr.Dataset(
        {
            "patient_id": ("scan", text(row["patient"] for row in rows)),
            "source": ("scan", text(row["source"] for row in rows)),
            "split": ("scan", text(row["split"] for row in rows)),
            "orientation": ("scan", text(row["codes"] for row in rows)),
            "shape_zyx": zyx("size", "i4"),
            "spacing_zyx_mm": zyx("spacing", "f8"),
            "label_state": ("scan", text("all-visible" if r["mask"] else "none" for r in rows)),
            "voxel_count": (("scan", "vertebra"), count),
            "volume_cm3": (("scan", "vertebra"), volume),
            "annotated_centroid_zyx_mm": (("scan", "vertebra", "axis"), points),
        },
        {"scan": text(f"s{at}" for at in range(n)), "vertebra": text(LEVELS), "axis": text("zyx")},
        {"dataset": "made-up", "title": title},
    )


def values_with(n, minimum, median, maximum):
    """Return ``n`` values with a given minimum, median and maximum, in rising order."""
    return [minimum, *[median] * (n - 2), maximum]


def rows_for(card):
    """Return as many rows as a card counts, with the figures of the card."""
    n = card.scans
    splits = [split for split, scans in card.splits.items() for _ in range(scans)]
    patients = [f"p{at % (card.patients or n)}" for at in range(n)]
    by_axis = {
        key: list(
            zip(*(values_with(n, s.min[a], s.median[a], s.max[a]) for a in range(3)), strict=True)
        )
        for key, s in (("size", card.shape_ijk), ("spacing", card.spacing_ijk_mm))
    }
    rows = [
        {"split": split, "patient": patient, "size": size, "spacing": spacing, "volumes": {}}
        for split, patient, size, spacing in zip(
            splits, patients, by_axis["size"], by_axis["spacing"], strict=True
        )
    ]
    remove_slices(rows, card)
    for name, row in card.vertebrae.items():
        printed = row.volume_cm3.model_dump(exclude_none=True)
        statistics = {
            card.volume_column_holds.get(heading, heading): cm3 for heading, cm3 in printed.items()
        }
        if row.scans:
            minimum = statistics.get("min", statistics["median"])
            volumes = values_with(row.scans, minimum, statistics["median"], statistics["max"])
            for scan, cm3 in zip(rows, volumes, strict=False):
                scan["volumes"][name] = cm3
    return rows


def remove_slices(rows, card):
    """Remove slices from some scans until their number is that of the card."""
    if card.slices is None:
        return
    too_many = sum(row["size"][2] for row in rows) - card.slices
    minimum = card.shape_ijk.min[2]
    for row in rows[100:]:
        removed = min(too_many, row["size"][2] - minimum)
        row["size"] = (*row["size"][:2], row["size"][2] - removed)
        too_many -= removed
        if not too_many:
            return
    raise AssertionError(f"{too_many} slices are left over")


@pytest.fixture(scope="session", name="table_of")
def _table_of():
    return table_of


@pytest.fixture(scope="session", name="rows_for")
def _rows_for():
    return rows_for
