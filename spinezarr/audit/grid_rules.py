"""Is the grid of a scan plausible, and do the headers of its files agree on it?

No voxel is read.
"""

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np

from spinezarr.audit.finding import Finding
from spinezarr.geometry import SHEAR_TOLERANCE_DEG, shear_deg
from spinezarr.nifti_geometry import (
    conflicting_pixdim_mm,
    is_default_affine,
    qform_sform_distance_mm,
)
from spinezarr.store.attributes import ScanAttributes, SourceRecord
from spinezarr.store.severity import Severity

__all__ = ["header_conflicts", "oblique_or_sheared", "spacing", "unplaced"]

_USUAL_SPACING_MM: Final = (0.185, 5.005)
"""Voxel spacing of public spine CT: 0.19 to 5 mm in VerSe, 0.45 to 5 mm in CTSpine1K, rounded.

The numbers are from the tables "Resolution Details" of
https://github.com/openmedlab/Awesome-Medical-Dataset, resources/VerSe.md and
resources/CTSpine1K.md.
"""

_WRONG_UNIT_FACTOR: Final = 10.0
"""A spacing beyond those limits by this factor has a wrong unit: cm, m or micrometers for mm."""

_OBLIQUE_DEG: Final = 15.0
"""From this angle on, the stored axes are no longer nearly axial, coronal and sagittal.

VerSe's oblique scans lie at about 5 degrees (sub-verse004).
"""

_SHEAR_WARNING_DEG: Final = 1.0
"""From this angle on, programs that use only the spacing are off by 5 mm over 300 mm.

ITK requires perpendicular directions and does not read such a NIfTI file.
"""

_SPACING_RTOL: Final = 1e-4
"""Largest relative difference of voxel size and spacing, which allows for rounding."""


def spacing(scan: ScanAttributes) -> Iterator[Finding]:
    """Find voxel spacings that are unusual for spine CT."""
    low, high = _USUAL_SPACING_MM
    if all(low <= mm <= high for mm in scan.spacing_zyx_mm):
        return
    wrong_unit = not all(
        low / _WRONG_UNIT_FACTOR <= mm <= high * _WRONG_UNIT_FACTOR for mm in scan.spacing_zyx_mm
    )
    spacing_text = " x ".join(f"{mm:.3g}" for mm in scan.spacing_zyx_mm)
    question = ": is the unit mm?" if wrong_unit else ""
    yield Finding(
        scan.scan_id,
        "spacing",
        "error" if wrong_unit else "warning",
        f"voxels of {spacing_text} mm (z, y, x); 0.19 to 5 mm are usual{question}",
        facts={"spacing_zyx_mm": list(scan.spacing_zyx_mm)},
    )


def oblique_or_sheared(scan: ScanAttributes) -> Iterator[Finding]:
    """Find grids that are strongly oblique, or whose axes are not perpendicular."""
    if scan.oblique_deg > _OBLIQUE_DEG:
        yield Finding(
            scan.scan_id,
            "oblique",
            "info",
            f"the voxel axes are {scan.oblique_deg:.1f} degrees oblique: only the affine gives "
            "true positions",
            facts={"oblique_deg": scan.oblique_deg},
        )
    angle = shear_deg(np.array(scan.affine))
    if angle > SHEAR_TOLERANCE_DEG:
        yield Finding(
            scan.scan_id,
            "sheared",
            "warning" if angle > _SHEAR_WARNING_DEG else "info",
            f"the voxel axes are {angle:.1f} degrees off perpendicular: a tilted gantry, or a "
            "wrong affine",
            facts={"shear_deg": angle},
        )


def unplaced(scan: ScanAttributes) -> Iterator[Finding]:
    """Find files whose header states no orientation, so that left and right may be swapped."""
    for name, source in _sources(scan):
        nifti, metaimage = source.nifti, source.metaimage
        if nifti is not None and nifti.sform_code <= 0 and nifti.qform_code <= 0:
            text = "states no orientation (sform and qform codes are 0): LAS was assumed"
        elif metaimage is not None and not metaimage.states_orientation:
            text = "states no orientation (no TransformMatrix): LPS was assumed"
        elif is_default_affine(np.array(source.affine_ijk)):
            text = (
                "has the affine that programs write for an array without a position: 1 mm, from 0"
            )
        else:
            continue
        yield _header_finding(scan, "unplaced", "warning", name, text)


def header_conflicts(scan: ScanAttributes) -> Iterator[Finding]:
    """Find headers that state two different spacings or positions."""
    for name, source in _sources(scan):
        affine = np.array(source.affine_ijk)
        affine_spacing_mm = np.linalg.norm(affine[:3, :3], axis=0).tolist()
        if source.nifti is not None:
            pixdim_mm = conflicting_pixdim_mm(source.nifti, source.shape_ijk, affine)
            if pixdim_mm is not None:
                text = (
                    f"states a spacing of {_format_spacing(pixdim_mm)} mm in pixdim and of "
                    f"{_format_spacing(affine_spacing_mm)} mm in the sform"
                )
                facts = {"pixdim_mm": list(pixdim_mm), "sform_spacing_mm": affine_spacing_mm}
                yield _header_finding(scan, "spacing-conflict", "warning", name, text, **facts)
            distance = qform_sform_distance_mm(source.nifti, source.shape_ijk, affine)
            if distance is not None:
                text = f"has a qform and an sform that place a corner {distance:.3g} mm apart"
                yield _header_finding(
                    scan, "qform-conflict", "warning", name, text, distance_mm=distance
                )
        element_size_mm = None if source.metaimage is None else source.metaimage.element_size_ijk_mm
        if element_size_mm is not None and not np.allclose(
            element_size_mm, affine_spacing_mm, rtol=_SPACING_RTOL, atol=0
        ):
            text = (
                f"states voxels of {_format_spacing(element_size_mm)} mm, which are "
                f"{_format_spacing(affine_spacing_mm)} mm apart"
            )
            facts = {
                "element_size_ijk_mm": list(element_size_mm),
                "element_spacing_ijk_mm": affine_spacing_mm,
            }
            yield _header_finding(scan, "element-size", "info", name, text, **facts)


def _sources(scan: ScanAttributes) -> Iterator[tuple[str, SourceRecord]]:
    yield "image", scan.image_source
    if scan.label_source is not None:
        yield "mask", scan.label_source


def _header_finding(
    scan: ScanAttributes,
    rule: str,
    severity: Severity,
    name: str,
    text: str,
    **facts: list[float] | float,
) -> Finding:
    return Finding(
        scan.scan_id, rule, severity, f"the {name}'s header {text}", facts={"file": name, **facts}
    )


def _format_spacing(spacing_mm: Iterable[float]) -> str:
    return " x ".join(f"{mm:.4g}" for mm in spacing_mm)
