"""Do the annotated centers of a dataset fit its labels and the order of the spine?

No voxel is read.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import numpy as np

from spinezarr.audit.finding import Finding, locate_point, locate_voxel
from spinezarr.store.attributes import ScanAttributes
from spinezarr.vertebrae import ANATOMICAL_ORDER, LEVELS

__all__ = ["centroid_order", "centroid_outside", "centroid_unmatched"]

_MAX_DISTANCE_MM: Final = 10.0
"""A point further than this from its label belongs to another vertebra, or to another convention.

This is half the step between thoracic vertebrae (20 to 24 mm in lidc-idri-0001).
"""


def _tolerance_mm(scan: ScanAttributes) -> float:
    """Return the diagonal of a voxel in mm.

    Points are annotated to one voxel, and may count from 0 or 1.
    """
    return float(np.linalg.norm(scan.spacing_zyx_mm))


def centroid_outside(scan: ScanAttributes) -> Iterator[Finding]:
    """Find annotated centers that lie outside the label of their vertebra."""
    for name, point in scan.centroids.items():
        distance = point.label_distance_mm
        if distance is None or distance <= _tolerance_mm(scan):
            continue
        location = locate_point(scan, point.position_zyx_mm)
        yield Finding(
            scan.scan_id,
            "centroid-outside",
            "error" if distance > max(_MAX_DISTANCE_MM, _tolerance_mm(scan)) else "warning",
            f"the annotated center of {name} lies {distance:.1f} mm outside its label",
            vertebra=name,
            voxel_zyx=location.voxel_zyx,
            position_xyz_mm=location.position_xyz_mm,
            facts={"label_distance_mm": distance},
        )


def centroid_unmatched(scan: ScanAttributes) -> Iterator[Finding]:
    """Find annotated centers without a label, and labels without an annotated center.

    Scans without a mask or without points are skipped, and so are S1 and S2, which have no label.
    """
    if not scan.centroids or not scan.vertebrae:
        return
    for name in ANATOMICAL_ORDER:
        point, record = scan.centroids.get(name), scan.vertebrae.get(name)
        if point is not None and record is None:
            location = locate_point(scan, point.position_zyx_mm)
            text = f"{name} has an annotated center and no label"
        elif point is None and record is not None:
            location = locate_voxel(scan, record.centroid_zyx)
            text = f"{name} has a label and no annotated center"
        else:
            continue
        yield Finding(
            scan.scan_id,
            "centroid-unmatched",
            "info",
            text,
            vertebra=name,
            voxel_zyx=location.voxel_zyx,
            position_xyz_mm=location.position_xyz_mm,
        )


def centroid_order(scan: ScanAttributes) -> Iterator[Finding]:
    """Find annotated centers that do not run from head to tail."""
    named_points = [(name, scan.centroids[name]) for name in LEVELS if name in scan.centroids]
    for (upper, upper_point), (lower, lower_point) in pairwise(named_points):
        depth = lower_point.position_zyx_mm[0] - upper_point.position_zyx_mm[0]
        if depth <= 0:
            continue
        location = locate_point(scan, upper_point.position_zyx_mm)
        yield Finding(
            scan.scan_id,
            "centroid-order",
            "error",
            f"the annotated center of {upper} lies {depth:.0f} mm below that of {lower}",
            vertebra=upper,
            voxel_zyx=location.voxel_zyx,
            position_xyz_mm=location.position_xyz_mm,
            facts={"pair": [upper, lower], "depth_mm": round(depth, 2)},
        )
