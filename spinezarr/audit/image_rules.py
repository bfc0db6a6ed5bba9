"""Rules on the image: its values and its grid; no voxel is read."""

from collections.abc import Iterator
from typing import Final

import numpy as np

from spinezarr.audit.finding import Finding
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.audit_log import Severity

__all__ = ["geometry", "image_type", "image_values", "spacing"]

_SPACING_MM: Final = (0.185, 5.005)
"""Voxel spacing of public spine CT: 0.19 to 5 mm in VerSe, 0.45 to 5 mm in CTSpine1K, rounded.

From the tables "Resolution Details" of https://github.com/openmedlab/Awesome-Medical-Dataset,
resources/VerSe.md and resources/CTSpine1K.md.
"""

_OTHER_UNIT: Final = 10.0
"""Beyond those limits by this factor the unit is wrong: cm and m, or micrometres, for mm."""

_LEAST_SPAN_HU: Final = 300.0
"""Smallest span of CT numbers from soft tissue to bone.

Pictures of 8 bits span 255, scaled or standardised images far less; real CT spans over 2,000.
"""

_AIR_HU: Final = -500.0
"""A CT without lower values shows no air: it is cropped, clipped or shifted. Air is -1000 HU."""

_BONE_HU: Final = 300.0
"""A CT without higher values shows no dense bone: it is clipped or shifted.

The shell of a vertebra has more, even through the blur of a clinical scan.
"""

_OBLIQUE_DEG: Final = 15.0
"""From here the stored axes are no longer nearly axial, coronal and sagittal.

VerSe's oblique scans lie at about 5 degrees (sub-verse004).
"""

_SHEAR_DEG: Final = 0.1
"""Angle of the axes off 90 degrees above rounding.

TotalSegmentator's directions are perpendicular to 2e-4, which is 0.01 degrees.
"""


def image_values(scan: ScanAttributes) -> Iterator[Finding]:
    """Find images whose values are no CT numbers, are shifted, or are clipped."""
    if scan.image_range_hu is None:
        yield Finding(scan.scan_id, "image-values", "error", "no value of the image is finite")
        return
    low, high = scan.image_range_hu
    problem: str | None = None
    severity: Severity = "error"
    if low == high:
        problem = "the image is constant"
    elif high - low < _LEAST_SPAN_HU:
        kind = "an 8-bit picture" if low >= 0 and high > 1 else "scaled or standardised values"
        problem = f"these are no CT numbers but {kind}"
    elif low >= 0:
        problem = "nothing is below 0: stored values without their intercept, usually -1024"
    elif high < _BONE_HU:
        severity, problem = "warning", "no bone: clipped or shifted"
    elif low > _AIR_HU:
        severity, problem = "warning", "no air: cropped, clipped or shifted"
    if problem is not None:
        yield Finding(
            scan.scan_id,
            "image-values",
            severity,
            f"values run from {low:g} to {high:g}: {problem}",
            facts={"lowest_hu": low, "highest_hu": high},
        )


def image_type(scan: ScanAttributes) -> Iterator[Finding]:
    """Find images that int16 could not hold: rescaled, resampled, or damaged by a fill value."""
    if scan.image_dtype != "int16":
        yield Finding(
            scan.scan_id,
            "image-type",
            "info",
            f"the image is stored as {scan.image_dtype}: int16 cannot hold its values",
            facts={"image_dtype": scan.image_dtype},
        )


def spacing(scan: ScanAttributes) -> Iterator[Finding]:
    """Find voxel spacings that no spine CT has."""
    low, high = _SPACING_MM
    if all(low <= mm <= high for mm in scan.spacing_zyx_mm):
        return
    other_unit = not all(
        low / _OTHER_UNIT <= mm <= high * _OTHER_UNIT for mm in scan.spacing_zyx_mm
    )
    found = " x ".join(f"{mm:.3g}" for mm in scan.spacing_zyx_mm)
    rest = ": is the unit mm?" if other_unit else ""
    yield Finding(
        scan.scan_id,
        "spacing",
        "error" if other_unit else "warning",
        f"voxels of {found} mm (z, y, x), usual are 0.19 to 5 mm{rest}",
        facts={"spacing_zyx_mm": list(scan.spacing_zyx_mm)},
    )


def geometry(scan: ScanAttributes) -> Iterator[Finding]:
    """Find grids that are strongly oblique or whose axes are not perpendicular."""
    if scan.oblique_deg > _OBLIQUE_DEG:
        yield Finding(
            scan.scan_id,
            "oblique",
            "info",
            f"the voxel axes are {scan.oblique_deg:.1f} degrees oblique: only the affine gives "
            "true positions",
            facts={"oblique_deg": scan.oblique_deg},
        )
    axes = np.array(scan.affine)[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    cosine = float(np.abs(axes.T @ axes - np.eye(3)).max())
    shear_deg = float(np.degrees(np.arcsin(min(1.0, cosine))))
    if shear_deg > _SHEAR_DEG:
        yield Finding(
            scan.scan_id,
            "sheared",
            "info",
            f"the voxel axes are {shear_deg:.1f} degrees off perpendicular: a tilted gantry, or a "
            "wrong affine",
            facts={"shear_deg": shear_deg},
        )
