"""Which slices show a scan best: through the vertebral bodies, labelled or annotated as points."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from spinezarr.export.picture import draw_preview
from spinezarr.export.plane import PreviewPlane, PreviewPoint
from spinezarr.export.voxels import VoxelReader
from spinezarr.geometry import FLAT_AXIS, Box, Plane, ShapeZYX, axis_positions_mm
from spinezarr.store.attributes import VertebraRecord
from spinezarr.store.reader import ArraySpec, ScanHandle
from spinezarr.vertebrae import ANATOMICAL_ORDER, LEVELS

__all__ = ["preview_scan"]

_PLANES: Final[tuple[Plane, ...]] = ("sagittal", "coronal", "axial")
_AXIAL_REACH_MM: Final = 7.5
"""Centres nearer than this are shown in an axial slice: half the step between cervical vertebrae.

The spine runs along the other planes, so they show all of them.
"""

_Points = dict[str, npt.NDArray[np.float64]]
"""Voxel index (z, y, x) of each level's annotated centre, from head to tail."""


def preview_scan(scan: ScanHandle, voxels: VoxelReader) -> Figure:
    """Draw three planes through the spine of a scan.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reads the slices; nothing else of the scan is read.

    Returns
    -------
    Figure
        See :func:`spinezarr.export.picture.draw_preview`.
    """
    facts = scan.attributes
    points = _annotated_centres(scan)
    at_zyx = _crossing(scan, voxels, points)
    planes = [_plane(scan, voxels, plane, at_zyx, points) for plane in _PLANES]
    size = " x ".join(str(n) for n in facts.shape_zyx)
    spacing = " x ".join(f"{mm:.3g}" for mm in facts.spacing_zyx_mm)
    known = ", ".join(filter(None, [facts.dataset, facts.source, facts.split]))
    dots = "; dots: annotated centres" if points else ""
    caption = f"{known}: {size} voxels of {spacing} mm (z, y, x){dots}"
    return draw_preview(facts.scan_id, planes, caption)


def _annotated_centres(scan: ScanHandle) -> _Points:
    to_voxel = np.linalg.inv(scan.affine)
    centroids = scan.attributes.centroids
    return {
        name: (to_voxel @ (*centroids[name].position_zyx_mm[::-1], 1))[2::-1]
        for name in LEVELS
        if name in centroids
    }


def _crossing(scan: ScanHandle, voxels: VoxelReader, points: _Points) -> ShapeZYX:
    """Choose where the planes cross: in the middle of the spine's bodies, if they are known."""
    facts = scan.attributes
    labelled = [facts.vertebrae[name] for name in ANATOMICAL_ORDER if name in facts.vertebrae]
    if scan.label is not None and labelled:
        return _crossing_of_labels(scan.label, voxels, labelled)
    last_zyx = np.array(facts.shape_zyx) - 1
    if points:
        found = np.array(list(points.values()))
        at_zyx = (found[len(found) // 2, 0], *np.median(found[:, 1:], axis=0))
        z, y, x = np.clip(np.rint(at_zyx), 0, last_zyx).astype(int).tolist()
    else:
        z, y, x = (n // 2 for n in facts.shape_zyx)
    return (z, y, x)


def _crossing_of_labels(
    label: ArraySpec, voxels: VoxelReader, vertebrae: list[VertebraRecord]
) -> ShapeZYX:
    centroids_zyx = np.array([vertebra.centroid_zyx for vertebra in vertebrae])
    x = round(float(np.median(centroids_zyx[:, 2])))
    sagittal = _slice(label, voxels, FLAT_AXIS["sagittal"], x) > 0
    if not sagittal.any():
        z, y, _ = np.rint(np.median(centroids_zyx, axis=0)).astype(int).tolist()
        return (z, y, x)
    # Bodies are taller and closer together than spinous processes.
    y = int(sagittal.sum(axis=0).argmax())
    middle = vertebrae[len(vertebrae) // 2]
    rows = sagittal[middle.start_zyx[0] : middle.stop_zyx[0], y]
    inside = np.flatnonzero(rows)
    offset = inside[len(inside) // 2] if len(inside) else len(rows) // 2
    return (int(middle.start_zyx[0] + offset), y, x)


def _slice(array: ArraySpec, voxels: VoxelReader, flat_axis: int, at: int) -> npt.NDArray[Any]:
    """Read one slice across an axis."""
    start, stop = [0, 0, 0], list(array.shape_zyx)
    start[flat_axis], stop[flat_axis] = at, at + 1
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    out = np.empty(box.shape_zyx, array.dtype)
    voxels.read_into(array, box, out)
    return out.squeeze(flat_axis)


def _plane(
    scan: ScanHandle, voxels: VoxelReader, plane: Plane, at_zyx: ShapeZYX, points: _Points
) -> PreviewPlane:
    flat = FLAT_AXIS[plane]
    slices = {spec.name: _slice(spec, voxels, flat, at_zyx[flat]) for spec in scan.arrays}
    spacing = scan.attributes.spacing_zyx_mm
    positions = list(axis_positions_mm(scan.affine, scan.image.shape_zyx).values())
    rows, columns = (axis for axis in range(3) if axis != flat)
    shown = tuple(
        PreviewPoint(name, float(index_zyx[rows]), float(index_zyx[columns]))
        for name, index_zyx in points.items()
        if plane != "axial" or abs(index_zyx[0] - at_zyx[0]) * spacing[0] <= _AXIAL_REACH_MM
    )
    return PreviewPlane(
        plane=plane,
        image=slices["image"],
        label=slices.get("label"),
        spacing_mm=(spacing[rows], spacing[columns]),
        position_mm=float(positions[flat][at_zyx[flat]]),
        origin_mm=(float(positions[rows][0]), float(positions[columns][0])),
        points=shown,
        structures={
            int(value): name.replace("_", " ") for value, name in scan.attributes.structures.items()
        },
    )
