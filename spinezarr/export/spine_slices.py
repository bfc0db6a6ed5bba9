"""Which slices run through the middle of the spine of a scan?"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import SLICE_AXIS, Box, Plane, ShapeZYX
from spinezarr.store.layout import LABEL, LARGEST_AXIS
from spinezarr.store.records import LabelRecord, VertebraRecord
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.vertebrae import ANATOMICAL_ORDER, LEVELS, vertebra_of

__all__ = [
    "Points",
    "annotated_centers",
    "middle_of_labels",
    "middle_of_spine",
    "middle_slice",
    "read_slice",
]

Points = dict[str, npt.NDArray[np.float64]]
"""Voxel index (z, y, x) of each level's annotated center, from head to tail."""


def annotated_centers(scan: ScanHandle) -> Points:
    """Return the vertebra centers from the scan's centroid file."""
    to_voxel = np.linalg.inv(scan.affine)
    centroids = scan.attributes.centroids
    return {
        name: (to_voxel @ (*centroids[name].position_zyx_mm[::-1], 1))[2::-1]
        for name in LEVELS
        if name in centroids
    }


def middle_of_spine(scan: ScanHandle, voxels: VoxelReader, mask: str = LABEL) -> ShapeZYX:
    """Return the voxel in the middle of the vertebral bodies, or of the scan if none are known.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reader of one slice of the mask.
    mask
        Mask that is shown. If it has no vertebrae, those of ``label`` count, unless the mask lies
        elsewhere; then its own labels do.
    """
    attributes = scan.attributes
    for name, labels in _candidates(scan, mask):
        middle_zyx = middle_of_labels(scan.mask(name), voxels, labels)
        if name == mask or _is_in_box(middle_zyx, attributes.masks[mask].labels.values()):
            return middle_zyx
    last_zyx = np.array(attributes.shape_zyx) - 1
    points = annotated_centers(scan)
    if points:
        points_zyx = np.array(list(points.values()))
        middle_zyx = (points_zyx[len(points_zyx) // 2, 0], *np.median(points_zyx[:, 1:], axis=0))
        z, y, x = np.clip(np.rint(middle_zyx), 0, last_zyx).astype(int).tolist()
    else:
        z, y, x = (n // 2 for n in attributes.shape_zyx)
    return (z, y, x)


def middle_slice(scan: ScanHandle, voxels: VoxelReader, plane: Plane, mask: str = LABEL) -> int:
    """Return the index of the slice that contains :func:`middle_of_spine`.

    For a sagittal slice of ``label``, no voxel is read.
    """
    vertebrae = _labeled_vertebrae(scan)
    if plane == "sagittal" and mask == LABEL and scan.label is not None and vertebrae:
        return _middle_x(vertebrae)
    return middle_of_spine(scan, voxels, mask)[SLICE_AXIS[plane]]


def read_slice(
    array: ArraySpec, voxels: VoxelReader, flat_axis: int, index: int
) -> npt.NDArray[Any]:
    """Read one slice across an axis. The result has the other two axes, in the order z, y, x."""
    start, stop = [0, 0, 0], list(array.shape_zyx)
    start[flat_axis], stop[flat_axis] = index, index + 1
    box = Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))
    out = np.empty(box.shape_zyx, array.dtype)
    voxels.read_into(array, box, out)
    return out.squeeze(flat_axis)


def _labeled_vertebrae(scan: ScanHandle) -> list[VertebraRecord]:
    """Return the vertebrae of the mask, from head to tail."""
    vertebrae = scan.attributes.vertebrae
    return [vertebrae[name] for name in ANATOMICAL_ORDER if name in vertebrae]


def _candidates(scan: ScanHandle, mask: str) -> Iterator[tuple[str, list[VertebraRecord]]]:
    """Yield masks and labels whose middle a picture of a mask may show, the best first."""
    record = scan.attributes.masks.get(mask)
    own = [] if record is None else _from_head_to_tail(record.labels.values())
    own_vertebrae = [label for label in own if vertebra_of(label.name) is not None]
    spine = [] if scan.label is None else _labeled_vertebrae(scan)
    if own_vertebrae:
        yield mask, [*own_vertebrae]
    elif spine:
        yield LABEL, spine
    if own and not own_vertebrae:
        yield mask, [*own]


def _from_head_to_tail(labels: Iterable[LabelRecord]) -> list[LabelRecord]:
    return sorted(labels, key=lambda label: -label.centroid_zyx[0])


def _is_in_box(voxel_zyx: ShapeZYX, labels: Iterable[VertebraRecord]) -> bool:
    """Whether a voxel is in the common bounding box of some labels."""
    boxes = [(label.start_zyx, label.stop_zyx) for label in labels]
    return all(
        min((start[axis] for start, _ in boxes), default=0)
        <= voxel_zyx[axis]
        < max((stop[axis] for _, stop in boxes), default=LARGEST_AXIS)
        for axis in range(3)
    )


def _middle_x(vertebrae: list[VertebraRecord]) -> int:
    return round(float(np.median([vertebra.centroid_zyx[2] for vertebra in vertebrae])))


def middle_of_labels(
    label: ArraySpec, voxels: VoxelReader, vertebrae: list[VertebraRecord]
) -> ShapeZYX:
    """Return the voxel in the middle of some labels, from head to tail; one slice is read."""
    x = _middle_x(vertebrae)
    sagittal = read_slice(label, voxels, SLICE_AXIS["sagittal"], x) > 0
    if not sagittal.any():
        centroids_zyx = np.array([vertebra.centroid_zyx for vertebra in vertebrae])
        z, y, _ = np.rint(np.median(centroids_zyx, axis=0)).astype(int).tolist()
        return (z, y, x)
    # Vertebral bodies are taller and closer together than spinous processes.
    y = int(sagittal.sum(axis=0).argmax())
    middle = vertebrae[len(vertebrae) // 2]
    rows = sagittal[middle.start_zyx[0] : middle.stop_zyx[0], y]
    inside = np.flatnonzero(rows)
    offset = inside[len(inside) // 2] if len(inside) else len(rows) // 2
    return (int(middle.start_zyx[0] + offset), y, x)
