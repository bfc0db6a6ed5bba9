"""Which structures does a mask of a dataset show, and where?

The voxels of the dataset say so, and not the records in its attributes, which hold for the whole
stored scan. So the answer is right after a crop, after a resampling, and for a mask that a program
has changed.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.accessor.dataset_grid import scan_name, values_zyx, voxel_variable
from spinezarr.errors import UsageError
from spinezarr.export.plane import MaskLegend
from spinezarr.geometry import Box
from spinezarr.ingestion.labels import LabelSummary, label_summaries
from spinezarr.ingestion.voxels.chunks import (
    DoesNotFitError,
    LabelFacts,
    cast_losslessly,
    locate_labels,
)
from spinezarr.store.layout import LABEL
from spinezarr.vertebrae import ANATOMICAL_ORDER, NAME_OF_VALUE, VALUE_OF_NAME, structure_color

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["as_labels", "box_of_structure", "legend_of", "located_labels", "names_of_values"]

_PLANES: Final = 64
"""Number of planes whose labels are located at once, which bounds the memory."""


def as_labels(array: "xr.DataArray") -> npt.NDArray[np.uint8]:
    """Return the values of a mask as uint8.

    Raises
    ------
    UsageError
        If a value is not a whole number from 0 to 255.
    """
    try:
        return cast_losslessly(values_zyx(array), np.dtype(np.uint8))
    except DoesNotFitError as problem:
        raise UsageError(
            f"{array.name!r} has the value {problem}; a mask has whole numbers from 0 to 255."
        ) from problem


def located_labels(labels_zyx: npt.NDArray[np.uint8]) -> dict[int, LabelSummary]:
    """Return count, centroid and box of each value of a mask except background."""
    slabs = range(0, len(labels_zyx), _PLANES)
    return label_summaries(
        LabelFacts((0, 0, 0), locate_labels(labels_zyx[z : z + _PLANES], (z, 0, 0))) for z in slabs
    )


def names_of_values(array: "xr.DataArray") -> dict[int, str]:
    """Return the name of each value of a mask, from its CF flags or else those of vertebrae."""
    flags = _flags(array.attrs)
    words = {value: word.replace("_", " ") for value, word in flags.items() if value}
    if array.name == LABEL or not words:
        words |= NAME_OF_VALUE
    return words


def legend_of(array: "xr.DataArray") -> MaskLegend:
    """Return the names and colors of the values of a mask, as all pictures have them."""
    names = names_of_values(array)
    if array.name == LABEL:
        return MaskLegend(names)
    others = {value for value, name in names.items() if name not in VALUE_OF_NAME}
    return MaskLegend(names, {value: structure_color(value) for value in others})


def box_of_structure(dataset: "xr.Dataset", layer: str, name: str) -> Box:
    """Return the box of a structure, in voxels of the dataset.

    Raises
    ------
    UsageError
        If the mask does not show it. The message lists what it shows.
    """
    array = voxel_variable(dataset, layer)
    names = names_of_values(array)
    located = located_labels(as_labels(array))
    wanted = name.replace("_", " ")
    found = [summary for value, summary in located.items() if names.get(value) == wanted]
    if not found:
        shown = sorted((names.get(value, f"label {value}") for value in located), key=_rank)
        raise UsageError(
            f"{scan_name(dataset)}: {layer!r} does not show {name!r} in this dataset; it shows "
            f"{', '.join(shown) or 'no structure'}."
        )
    z, y, x = np.min([summary.start_zyx for summary in found], axis=0).tolist()
    stop_z, stop_y, stop_x = np.max([summary.stop_zyx for summary in found], axis=0).tolist()
    return Box((z, y, x), (stop_z, stop_y, stop_x))


def _rank(name: str) -> tuple[int, str]:
    """Order vertebrae from head to tail, and other structures by name behind them."""
    is_vertebra = name in ANATOMICAL_ORDER
    return (ANATOMICAL_ORDER.index(name) if is_vertebra else len(ANATOMICAL_ORDER), name)


def _flags(attributes: Mapping[str, Any]) -> dict[int, str]:
    """Return the words of CF flags by value; empty if there are none, or they do not fit."""
    values, words = attributes.get("flag_values"), attributes.get("flag_meanings")
    if values is None or not isinstance(words, str):
        return {}
    numbers = np.atleast_1d(np.asarray(values)).ravel().tolist()
    if not all(isinstance(number, int) for number in numbers):
        return {}
    return dict(zip(numbers, words.split(), strict=False))
