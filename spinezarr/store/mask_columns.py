"""What does the scan table hold of the masks beside ``label``?

Its columns are over ``scan`` and ``mask``, those of the labels also over ``structure``. A table
whose scans have no further mask has none of these columns.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import LABEL
from spinezarr.store.scan_table import TableColumns
from spinezarr.store.table_columns import MM3_PER_CM3, TEXT, Columns, natural_key, text_array
from spinezarr.vertebrae import LEVELS

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "LARGEST_MASK_COUNTS",
    "MASK",
    "STRUCTURE",
    "MaskCells",
    "cells_of_scan",
    "cells_of_table",
    "has_masks",
    "mask_column_forms",
    "mask_columns",
    "scans_by_structure",
]

MASK: Final = "mask"
"""Dimension of the names of further masks, and the column with these names."""
STRUCTURE: Final = "structure"
"""Dimension of the names of the labels of all further masks, and the column with these names."""
LARGEST_MASK_COUNTS: Final = 1 << 22
"""Largest number of values of a column over scans, masks and structures.

Two such columns take 64 MiB, and readers refuse a table that takes too much memory.
"""
_VOXEL_COUNT, _VOLUME_CM3 = "mask_voxel_count", "mask_volume_cm3"
_TEXTS: Final[Mapping[str, str]] = {
    "mask_scheme": "where the names of the labels come from",
    "mask_license": "license of the mask; empty if it is not known",
    "mask_author": "who made or annotated the mask",
    "mask_model": "program that made the mask",
    "mask_compared_with": "true mask of the last saved comparison; empty if there is none",
    "mask_verdict": "fault of the mask in that comparison",
    "mask_verdict_text": "the same in sentences",
}
"""Columns of text over scan and mask, with their ``long_name``."""
_NUMBERS: Final[Mapping[str, str]] = {
    "mask_dice": "mean Dice coefficient of the vertebrae as named, in that comparison",
    "mask_identification_rate": "identification rate of VerSe, in that comparison",
}
"""Columns of float64 over scan and mask, with their ``long_name``."""


@dataclass(frozen=True, slots=True)
class MaskCells:
    """The cells of one further mask of one scan."""

    texts: Mapping[str, str]
    """Cells of the columns of text, by column."""
    numbers: Mapping[str, float]
    """Cells of the columns of numbers, by column; NaN without a value."""
    structures: Mapping[str, tuple[int, float]] | None
    """Voxel count and volume in cm³ of each label, by its name.

    None if they were read from a table that is too large for them.
    """


def cells_of_scan(scan: ScanAttributes) -> dict[str, MaskCells]:
    """Return the cells of each further mask of a scan."""
    voxel_mm3 = abs(float(np.linalg.det(np.array(scan.affine)[:3, :3])))
    cells: dict[str, MaskCells] = {}
    for name, record in scan.masks.items():
        counts: dict[str, int] = {}
        for value, label in record.labels.items():
            structure = label.flag_word(int(value))
            total = counts.get(structure, 0) + label.voxel_count
            counts[structure] = min(total, np.iinfo(np.int64).max)
        comparison = scan.comparison(name)
        made = (record.scheme, record.license, record.author, record.model)
        said, rates = ("", "", ""), (math.nan, math.nan)
        if comparison is not None:
            said = (comparison.truth, comparison.verdict, comparison.text)
            rates = (_number(comparison.dice), _number(comparison.identification_rate))
        cells[name] = MaskCells(
            texts=dict(zip(_TEXTS, (*made, *said), strict=True)),
            numbers=dict(zip(_NUMBERS, rates, strict=True)),
            structures={
                structure: (count, count * voxel_mm3 / MM3_PER_CM3)
                for structure, count in counts.items()
            },
        )
    return cells


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def cells_of_table(table: "xr.Dataset") -> list[dict[str, MaskCells]]:
    """Return the cells of each further mask of each scan, from a table that was read."""
    cells: list[dict[str, MaskCells]] = [{} for _ in range(table.sizes["scan"])]
    if MASK not in table.variables:
        return cells
    masks = [str(name) for name in table[MASK].to_numpy()]
    words = {name: table[name].to_numpy() for name in _TEXTS}
    numbers = {name: table[name].to_numpy() for name in _NUMBERS}
    has_structures = STRUCTURE in table.variables
    for row, names in enumerate(table.masks.to_numpy()):
        for name in str(names).split():
            at = row, masks.index(name)
            cells[row][name] = MaskCells(
                texts={column: str(values[at]) for column, values in words.items()},
                numbers={column: float(values[at]) for column, values in numbers.items()},
                structures=_structures_of_table(table, *at) if has_structures else None,
            )
    return cells


def _structures_of_table(table: "xr.Dataset", row: int, mask: int) -> dict[str, tuple[int, float]]:
    """Return voxel count and volume in cm³ of each label of one mask of one scan."""
    counts = table.variables[_VOXEL_COUNT].values[row, mask]
    shown = np.flatnonzero(counts)
    columns = (counts, table.variables[_VOLUME_CM3].values[row, mask])
    cells = zip(*(column[shown].tolist() for column in columns), strict=True)
    return dict(zip(table.variables[STRUCTURE].values[shown].tolist(), cells, strict=True))


def has_masks(table: TableColumns, masks: Collection[str]) -> npt.NDArray[np.bool_]:
    """Return which scans of a table have all of some masks, ``label`` or further ones."""
    further = {*masks} - {LABEL}
    cells = np.asarray(table["masks"]).tolist()
    has = np.array([further <= {*str(cell).split()} for cell in cells], bool)
    if LABEL in masks:
        has &= np.asarray(table["label_state"]).astype(object) != "none"
    return has


def scans_by_structure(table: "xr.Dataset", mask: str) -> dict[str, int] | None:
    """Return how many scans of a table show each label of a further mask that some of them have.

    The result is None if the table has no room for labels.
    """
    if STRUCTURE not in table.variables:
        return None
    scans = (table[_VOXEL_COUNT].sel({MASK: mask}).to_numpy() > 0).sum(axis=0)
    names = map(str, table[STRUCTURE].to_numpy())
    return {name: int(n) for name, n in zip(names, scans, strict=True) if n}


def mask_columns(rows: Sequence[Mapping[str, MaskCells]]) -> Columns:
    """Return the columns of further masks, given their cells in the order of the scans.

    Returns
    -------
    dict
        The columns by name, with the names along ``mask`` and ``structure``; empty if no scan has
        a further mask. Structures are vertebrae from head to tail, then others in natural order. If
        there are too many values for :data:`LARGEST_MASK_COUNTS`, the columns of structures are
        left out.
    """
    masks = sorted({name for cells in rows for name in cells})
    if not masks:
        return {}
    shape = len(rows), len(masks)
    words = {name: np.full(shape, "", TEXT) for name in _TEXTS}
    numbers = {name: np.full(shape, np.nan) for name in _NUMBERS}
    for row, cells in enumerate(rows):
        for name, cell in cells.items():
            at = row, masks.index(name)
            for column, text in cell.texts.items():
                words[column][at] = text
            for column, number in cell.numbers.items():
                numbers[column][at] = number
    by_mask = ("scan", MASK)
    columns: Columns = {MASK: ((MASK,), text_array(masks), {})}
    columns |= {name: (by_mask, words[name], {"long_name": _TEXTS[name]}) for name in _TEXTS}
    columns |= {name: (by_mask, numbers[name], {"long_name": _NUMBERS[name]}) for name in _NUMBERS}
    return columns | _structure_columns(rows, masks)


def _structure_columns(rows: Sequence[Mapping[str, MaskCells]], masks: Sequence[str]) -> Columns:
    """Return the columns over structures; none if they would be too large or are not known."""
    cells = [cell.structures for row in rows for cell in row.values()]
    known = [structures for structures in cells if structures is not None]
    names = sorted({name for structures in known for name in structures}, key=_structure_key)
    shape = len(rows), len(masks), len(names)
    if len(known) < len(cells) or math.prod(shape) > LARGEST_MASK_COUNTS:
        return {}
    counts, volumes = np.zeros(shape, "i8"), np.full(shape, np.nan)
    order = {name: i for i, name in enumerate(names)}
    for (row, row_cells), (column, mask) in product(enumerate(rows), enumerate(masks)):
        found = row_cells[mask].structures if mask in row_cells else None
        if found:
            at = row, column, [order[name] for name in found]
            counts[at], volumes[at] = zip(*found.values(), strict=True)
    by_structure = ("scan", MASK, STRUCTURE)
    return {
        STRUCTURE: ((STRUCTURE,), text_array(names), {}),
        _VOXEL_COUNT: (by_structure, counts, {}),
        _VOLUME_CM3: (by_structure, volumes, {"units": "cm3"}),
    }


def _structure_key(name: str) -> tuple[Any, ...]:
    if name in LEVELS:
        return (0, LEVELS.index(name))
    return (1, natural_key(name), name)


@cache
def mask_column_forms() -> Mapping[str, tuple[tuple[str, ...], np.dtype[Any]]]:
    """Return dimensions and data type of all columns of further masks, by name."""
    nothing: dict[str, Any] = {"texts": {}, "numbers": {}, "structures": {}}
    columns = mask_columns([{"x1": MaskCells(**nothing)}])
    return {name: (dims, values.dtype) for name, (dims, values, _) in columns.items()}
