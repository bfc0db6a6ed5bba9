"""How does a scan look: three slices through its vertebral bodies, with labels and names?"""

from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from spinezarr.export.picture import draw_preview
from spinezarr.export.plane import MaskLegend, PreviewPlane, PreviewPoint
from spinezarr.export.spine_slices import Points, annotated_centers, middle_of_spine, read_slice
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import SLICE_AXIS, Plane, ShapeZYX, SpacingZYX, axis_positions_mm
from spinezarr.store.layout import LABEL
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.vertebrae import NAME_OF_VALUE, named_color

__all__ = ["mask_caption", "mask_legend", "points_in_slice", "preview_plane", "preview_scan"]

_PLANES: Final[tuple[Plane, ...]] = ("sagittal", "coronal", "axial")
_AXIAL_REACH_MM: Final = 7.5
"""An axial slice shows annotated centers closer than this, half the step in the cervical spine.

The spine runs along the other planes, so these show all centers.
"""


def preview_scan(scan: ScanHandle, voxels: VoxelReader, mask: str = LABEL) -> Figure:
    """Draw three slices through the spine of a scan.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reader of the slices. No other voxels are read.
    mask
        Mask that lies over the image. A scan without ``label`` is drawn without it.

    Returns
    -------
    Figure
        Figure of :func:`spinezarr.export.picture.draw_preview`.

    Raises
    ------
    UnknownMaskError
        If the scan has no further mask of that name.
    """
    attributes = scan.attributes
    points = annotated_centers(scan)
    array = scan.label if mask == LABEL else scan.mask(mask)
    middle_zyx = middle_of_spine(scan, voxels, mask)
    planes = [
        preview_plane(
            scan,
            voxels,
            plane,
            middle_zyx,
            label=None
            if array is None
            else read_slice(array, voxels, SLICE_AXIS[plane], middle_zyx[SLICE_AXIS[plane]]),
            legend=mask_legend(scan, mask),
            points=points,
        )
        for plane in _PLANES
    ]
    size_text = " x ".join(str(n) for n in attributes.shape_zyx)
    spacing_text = " x ".join(f"{mm:.3g}" for mm in attributes.spacing_zyx_mm)
    origin = ", ".join(filter(None, [attributes.dataset, attributes.source, attributes.split]))
    dots = "; dots: annotated centers" if points else ""
    shown = "" if mask == LABEL else f"; {mask_caption(scan, mask)}"
    caption = f"{origin}: {size_text} voxels of {spacing_text} mm (z, y, x){shown}{dots}"
    return draw_preview(attributes.scan_id, planes, caption)


def mask_legend(scan: ScanHandle, mask: str) -> MaskLegend:
    """Return the names and colors of the values of a mask, ``label`` or a further one."""
    attributes = scan.attributes
    if mask == LABEL:
        structures = {int(value): _words(name) for value, name in attributes.structures.items()}
        return MaskLegend({**structures, **NAME_OF_VALUE})
    labels = {int(value): label for value, label in attributes.masks[mask].labels.items()}
    return MaskLegend(
        {value: _words(label.flag_word(value)) for value, label in labels.items()},
        {value: named_color(label.name, value) for value, label in labels.items()},
    )


def mask_caption(scan: ScanHandle, mask: str) -> str:
    """Return the name of a further mask, and who or what made it."""
    record = scan.attributes.masks[mask]
    made = " and ".join(filter(None, (record.model, record.author)))
    return f"mask {mask}{f' by {made}' if made else ''}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def points_in_slice(
    points: Points, plane: Plane, index: int, spacing_zyx_mm: SpacingZYX
) -> tuple[PreviewPoint, ...]:
    """Return the annotated centers that a slice shows, projected along its normal.

    Parameters
    ----------
    points
        Centers as voxel indices (z, y, x), by level.
    plane, index
        Orientation of the slice, and its index along the normal.
    spacing_zyx_mm
        Distance between neighboring voxels.
    """
    rows, columns = (axis for axis in range(3) if axis != SLICE_AXIS[plane])
    return tuple(
        PreviewPoint(name, float(index_zyx[rows]), float(index_zyx[columns]))
        for name, index_zyx in points.items()
        if plane != "axial" or abs(index_zyx[0] - index) * spacing_zyx_mm[0] <= _AXIAL_REACH_MM
    )


def preview_plane(
    scan: ScanHandle,
    voxels: VoxelReader,
    plane: Plane,
    middle_zyx: ShapeZYX,
    *,
    label: npt.NDArray[np.uint8] | None,
    legend: MaskLegend,
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
        Label values of the slice; None for no mask.
    legend
        Names and colors of the label values.
    points
        Centers that are shown; by default none.
    """
    slice_axis = SLICE_AXIS[plane]
    index = middle_zyx[slice_axis]
    spacing_zyx_mm = scan.attributes.spacing_zyx_mm
    positions = list(axis_positions_mm(scan.affine, scan.image.shape_zyx).values())
    rows, columns = (axis for axis in range(3) if axis != slice_axis)
    return PreviewPlane(
        plane=plane,
        image=read_slice(scan.image, voxels, slice_axis, index),
        label=label,
        spacing_rows_columns_mm=(spacing_zyx_mm[rows], spacing_zyx_mm[columns]),
        position_mm=float(positions[slice_axis][index]),
        origin_rows_columns_mm=(float(positions[rows][0]), float(positions[columns][0])),
        points=points_in_slice(points or {}, plane, index, spacing_zyx_mm),
        legend=legend,
    )
