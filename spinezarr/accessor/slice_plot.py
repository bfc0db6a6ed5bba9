"""How is a slice of a dataset drawn on axes of matplotlib?

It is drawn as in all pictures of spinezarr, from the values and coordinates of the dataset.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, get_args

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from spinezarr.accessor.dataset_grid import (
    AXES,
    DatasetGrid,
    scan_name,
    values_zyx,
    voxel_variable,
)
from spinezarr.accessor.memory_source import MemorySource
from spinezarr.accessor.structures import as_labels, legend_of, located_labels
from spinezarr.errors import UsageError
from spinezarr.export.picture import draw_on_axes, empty_axes
from spinezarr.export.plane import LABEL_LEGEND, PreviewPlane
from spinezarr.export.preview import points_in_slice
from spinezarr.export.spine_slices import Points, middle_of_labels
from spinezarr.geometry import SLICE_AXIS, Plane, ShapeZYX
from spinezarr.store.layout import IMAGE, LABEL
from spinezarr.store.records import VertebraRecord
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.vertebrae import ANATOMICAL_ORDER, LEVELS, NAME_OF_VALUE
from spinezarr.view.windows import WindowHU

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_slice"]

_HALF_VOXEL: Final = 0.5


def plot_slice(
    dataset: "xr.Dataset",
    plane: Plane,
    *,
    position_mm: float | None,
    window_hu: WindowHU,
    layer: str | None,
    axes: Axes | None,
) -> Axes:
    """Draw a slice; see :meth:`spinezarr.accessor.accessor.SpineAccessor.plot`."""
    if plane not in SLICE_AXIS:
        raise UsageError(f"plane {plane!r}: must be {', '.join(get_args(Plane))}.")
    grid = DatasetGrid.of(dataset)
    backward = {name: slice(None, None, -1) for name in grid.reversed_axes}
    if backward:
        dataset = dataset.isel(backward)
        grid = DatasetGrid.of(dataset)
    image = voxel_variable(dataset, IMAGE)
    mask = None if layer is None else _mask(dataset, layer)
    axis = SLICE_AXIS[plane]
    if position_mm is None:
        index = _middle(None if mask is None else as_labels(mask), grid.shape_zyx)[axis]
    else:
        index = _index_at(dataset, axis, position_mm)
    one_slice = {AXES[axis]: index}
    rows, columns = (other for other in range(3) if other != axis)
    positions = [dataset.coords[name].to_numpy() for name in AXES]
    content = PreviewPlane(
        plane=plane,
        image=values_zyx(image.isel(one_slice)),
        label=None if mask is None else as_labels(mask.isel(one_slice)),
        spacing_rows_columns_mm=(grid.spacing_zyx_mm[rows], grid.spacing_zyx_mm[columns]),
        position_mm=float(positions[axis][index]),
        origin_rows_columns_mm=(float(positions[rows][0]), float(positions[columns][0])),
        points=points_in_slice(_centers(dataset.attrs, grid), plane, index, grid.spacing_zyx_mm),
        legend=LABEL_LEGEND if mask is None else legend_of(mask),
    )
    axes = empty_axes(content) if axes is None else axes
    draw_on_axes(axes, content, window_hu)
    return axes


def _mask(dataset: "xr.Dataset", layer: str) -> "xr.DataArray | None":
    """Return a mask; None for a scan without ``label``."""
    if layer == LABEL and LABEL not in dataset.data_vars:
        return None
    return voxel_variable(dataset, layer)


def _middle(labels_zyx: npt.NDArray[np.uint8] | None, shape_zyx: ShapeZYX) -> ShapeZYX:
    """Return the voxel in the middle of the vertebrae, of other labels, or of the volume."""
    z, y, x = (n // 2 for n in shape_zyx)
    if labels_zyx is None:
        return (z, y, x)
    located = {
        value: VertebraRecord.model_validate(summary.to_record())
        for value, summary in located_labels(labels_zyx).items()
    }
    if not located:
        return (z, y, x)
    vertebrae = sorted(
        {*located} & {*NAME_OF_VALUE}, key=lambda v: ANATOMICAL_ORDER.index(NAME_OF_VALUE[v])
    )
    others = sorted(located, key=lambda value: -located[value].centroid_zyx[0])
    array = ArraySpec.in_memory("", LABEL, shape_zyx, labels_zyx.dtype)
    records = [located[value] for value in vertebrae or others]
    return middle_of_labels(array, MemorySource(labels_zyx), records)


def _index_at(dataset: "xr.Dataset", axis: int, position_mm: float) -> int:
    """Return the index of the slice at a position.

    Raises
    ------
    UsageError
        If the position is more than half a voxel outside of the dataset.
    """
    name = AXES[axis]
    positions = dataset.coords[name].to_numpy()
    reach = DatasetGrid.of(dataset).spacing_zyx_mm[axis] / 2
    low, high = float(positions[0]) - reach, float(positions[-1]) + reach
    if not low <= position_mm <= high:
        raise UsageError(
            f"{scan_name(dataset)}: {name} = {position_mm} mm lies outside of the dataset, which "
            f"reaches from {low:.1f} to {high:.1f} mm."
        )
    return int(np.abs(positions - position_mm).argmin())


def _centers(attributes: Mapping[str, Any], grid: DatasetGrid) -> Points:
    """Return the annotated centers inside the dataset as voxel indices, from head to tail."""
    to_voxel = np.linalg.inv(grid.affine)
    centroids = attributes.get("centroids")
    known = centroids if isinstance(centroids, Mapping) else {}
    points = {
        name: (to_voxel @ (*known[name]["position_zyx_mm"][::-1], 1))[2::-1]
        for name in LEVELS
        if name in known
    }
    end = np.array(grid.shape_zyx) - _HALF_VOXEL
    return {
        name: index
        for name, index in points.items()
        if ((index >= -_HALF_VOXEL) & (index <= end)).all()
    }
