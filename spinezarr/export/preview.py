"""How does a scan look: three slices through its vertebral bodies, with labels and names?"""

from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from spinezarr.export.picture import draw_preview
from spinezarr.export.plane import PreviewPlane, PreviewPoint
from spinezarr.export.spine_slices import Points, annotated_centers, middle_of_spine, read_slice
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import SLICE_AXIS, Plane, ShapeZYX, axis_positions_mm
from spinezarr.store.scan_handle import ScanHandle

__all__ = ["preview_plane", "preview_scan"]

_PLANES: Final[tuple[Plane, ...]] = ("sagittal", "coronal", "axial")
_AXIAL_REACH_MM: Final = 7.5
"""An axial slice shows annotated centers closer than this, half the step in the cervical spine.

The spine runs along the other planes, so these show all centers.
"""


def preview_scan(scan: ScanHandle, voxels: VoxelReader) -> Figure:
    """Draw three slices through the spine of a scan.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reader of the slices. No other voxels are read.

    Returns
    -------
    Figure
        Figure of :func:`spinezarr.export.picture.draw_preview`.
    """
    attributes = scan.attributes
    points = annotated_centers(scan)
    middle_zyx = middle_of_spine(scan, voxels)
    planes = [preview_plane(scan, voxels, plane, middle_zyx, points=points) for plane in _PLANES]
    size_text = " x ".join(str(n) for n in attributes.shape_zyx)
    spacing_text = " x ".join(f"{mm:.3g}" for mm in attributes.spacing_zyx_mm)
    origin = ", ".join(filter(None, [attributes.dataset, attributes.source, attributes.split]))
    dots = "; dots: annotated centers" if points else ""
    caption = f"{origin}: {size_text} voxels of {spacing_text} mm (z, y, x){dots}"
    return draw_preview(attributes.scan_id, planes, caption)


def preview_plane(
    scan: ScanHandle,
    voxels: VoxelReader,
    plane: Plane,
    middle_zyx: ShapeZYX,
    *,
    label: npt.NDArray[np.uint8] | None = None,
    points: Points | None = None,
) -> PreviewPlane:
    """Return the slice of a scan through a voxel.

    Parameters
    ----------
    scan, voxels
        As in :func:`preview_scan`.
    plane
        Orientation of the slice.
    middle_zyx
        The voxel.
    label
        Label values of the slice that are shown in place of those of the store.
    points
        Centers that are shown; by default none.
    """
    slice_axis = SLICE_AXIS[plane]
    index = middle_zyx[slice_axis]
    if label is None and scan.label is not None:
        label = read_slice(scan.label, voxels, slice_axis, index)
    spacing_zyx_mm = scan.attributes.spacing_zyx_mm
    positions = list(axis_positions_mm(scan.affine, scan.image.shape_zyx).values())
    rows, columns = (axis for axis in range(3) if axis != slice_axis)
    visible_points = tuple(
        PreviewPoint(name, float(index_zyx[rows]), float(index_zyx[columns]))
        for name, index_zyx in (points or {}).items()
        if plane != "axial"
        or abs(index_zyx[0] - middle_zyx[0]) * spacing_zyx_mm[0] <= _AXIAL_REACH_MM
    )
    return PreviewPlane(
        plane=plane,
        image=read_slice(scan.image, voxels, slice_axis, index),
        label=label,
        spacing_rows_columns_mm=(spacing_zyx_mm[rows], spacing_zyx_mm[columns]),
        position_mm=float(positions[slice_axis][index]),
        origin_rows_columns_mm=(float(positions[rows][0]), float(positions[columns][0])),
        points=visible_points,
        structures={
            int(value): name.replace("_", " ") for value, name in scan.attributes.structures.items()
        },
    )
