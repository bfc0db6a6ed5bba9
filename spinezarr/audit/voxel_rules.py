"""Is each label connected, known to the scheme, and on bone?"""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from spinezarr.audit.finding import Finding, locate_voxel
from spinezarr.audit.levels import scan_levels, voxel_volume_mm3
from spinezarr.audit.voxel_measurements import Component, VoxelMeasurements
from spinezarr.geometry import Box
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.severity import Severity
from spinezarr.text import count_noun

__all__ = ["mask_off_bone", "several_pieces", "stray_voxels", "unknown_value"]

_STRAY_MM3: Final = 100.0
"""Smaller components are annotation noise, of which VerSe's masks have 3,282."""

_FAR_MM: Final = 10.0
"""A component further than this from the vertebra lies in another structure. Discs are thinner."""

_SPLIT_SHARE: Final = 0.1
"""From this share of the vertebra on, a second component is an error.

In CTSpine1K's scan 0103, which is a reported error, the second component has 31 % of L4.
"""

_BONE_MEDIAN_HU: Final = (0.0, 1000.0)
"""Range of the median CT number inside a vertebra: above water and fat, below a shift by 1024.

It is 87, 182 and 193 HU in the tested CTs of TPTBox, TotalSegmentator and LIDC-IDRI.
"""

_OFF_BONE_SHARE: Final = 0.65
"""A mask is off the bone if its voxels are brighter than the surroundings in fewer pairs than this.

In the tested CTs of TPTBox, LIDC-IDRI and TotalSegmentator, no vertebra is below 0.79. With the
mask moved 18 mm sideways or mirrored front to back, the median is 0.5 to 0.6.
"""

_DISPLACED_SHARE: Final = 0.72
"""Below this share, the mask may be slightly displaced.

With the mask moved 9 mm sideways, the median is 0.57 to 0.70.
"""


def several_pieces(scan: ScanAttributes, voxels: VoxelMeasurements) -> Iterator[Finding]:
    """Find vertebrae with several components that are larger than annotation noise.

    If the end of the volume cuts a vertebra, only its articular processes may be visible.
    """
    touches_end = {level.name for level in scan_levels(scan) if level.touches_end}
    for name, pieces in voxels.components.items():
        large = [piece for piece in pieces if not _is_stray(scan, piece)]
        if len(large) < 2:  # noqa: PLR2004  one component is whole
            continue
        severity: Severity = "warning"
        if name in touches_end:
            severity = "info"
        elif large[1].voxel_count >= _SPLIT_SHARE * scan.vertebrae[name].voxel_count:
            severity = "error"
        shares = [100 * piece.voxel_count / scan.vertebrae[name].voxel_count for piece in large]
        text = f"{name} is in {len(large)} pieces: {', '.join(f'{s:.0f} %' for s in shares)}"
        remark = ", cut by the end of the volume" if name in touches_end else ""
        yield _pieces_finding(
            scan, "pieces", severity, text + remark, name=name, pieces=large, shown=large[1]
        )


def stray_voxels(scan: ScanAttributes, voxels: VoxelMeasurements) -> Iterator[Finding]:
    """Find small components of a label outside the vertebra."""
    for name, pieces in voxels.components.items():
        strays = [piece for piece in pieces[1:] if _is_stray(scan, piece)]
        if not strays:
            continue
        distances = [_gap_mm(scan, pieces[0].box, piece.box) for piece in strays]
        furthest = int(np.argmax(distances))
        count = sum(piece.voxel_count for piece in strays)
        is_far = distances[furthest] > _FAR_MM
        pieces_text = "piece" if len(strays) == 1 else "pieces"
        text = f"{name} has {count} stray voxels in {len(strays)} {pieces_text}"
        yield _pieces_finding(
            scan,
            "stray-voxels",
            "warning" if is_far else "info",
            text + (f", up to {distances[furthest]:.0f} mm away" if is_far else ""),
            name=name,
            pieces=strays,
            shown=strays[furthest],
        )


def _is_stray(scan: ScanAttributes, piece: Component) -> bool:
    return piece.voxel_count * voxel_volume_mm3(scan) < _STRAY_MM3


def _gap_mm(scan: ScanAttributes, first: Box, second: Box) -> float:
    """Return the distance in mm between two boxes; 0 if they overlap."""
    gap = np.maximum(
        np.subtract(first.start_zyx, second.stop_zyx), np.subtract(second.start_zyx, first.stop_zyx)
    )
    return float(np.linalg.norm(np.maximum(gap, 0) * np.array(scan.spacing_zyx_mm)))


_MAX_LISTED_PIECES: Final = 10
"""Number of components described in a finding. All are counted."""


def _pieces_finding(
    scan: ScanAttributes,
    rule: str,
    severity: Severity,
    text: str,
    *,
    name: str,
    pieces: Sequence[Component],
    shown: Component,
) -> Finding:
    location = locate_voxel(scan, shown.voxel_zyx)
    listed = [
        {
            "voxel_count": piece.voxel_count,
            "volume_mm3": round(piece.voxel_count * voxel_volume_mm3(scan), 2),
            "share": round(piece.voxel_count / scan.vertebrae[name].voxel_count, 6),
            "voxel_zyx": list(piece.voxel_zyx),
            "position_xyz_mm": list(locate_voxel(scan, piece.voxel_zyx).position_xyz_mm),
        }
        for piece in pieces[:_MAX_LISTED_PIECES]
    ]
    return Finding(
        scan.scan_id,
        rule,
        severity,
        text,
        vertebra=name,
        voxel_zyx=location.voxel_zyx,
        position_xyz_mm=location.position_xyz_mm,
        facts={"pieces": len(pieces), "largest": listed},
    )


def unknown_value(scan: ScanAttributes, voxels: VoxelMeasurements) -> Iterator[Finding]:
    """Find mask values that are neither vertebrae nor structures of the recipe."""
    for value, voxel_zyx in voxels.unknown_values.items():
        location = locate_voxel(scan, voxel_zyx)
        count = scan.other_labels[str(value)]
        yield Finding(
            scan.scan_id,
            "unknown-value",
            "error",
            f"{count_noun(count, 'voxel')} of the value {value}, outside the label scheme",
            voxel_zyx=location.voxel_zyx,
            position_xyz_mm=location.position_xyz_mm,
            facts={"value": value, "voxel_count": count},
        )


def mask_off_bone(scan: ScanAttributes, voxels: VoxelMeasurements) -> Iterator[Finding]:
    """Find scans without bone under the mask: displaced, mirrored, or with shifted CT numbers."""
    bone, (low, high) = voxels.bone, _BONE_MEDIAN_HU
    if bone is None:
        return
    share = bone.brighter_share
    severity: Severity = "error"
    if not low <= bone.median_hu <= high:
        text = f"{bone.vertebra} has a median of {bone.median_hu:g} HU: the mask is not on this "
        text += "image's bone, or the values are shifted"
    elif share is not None and share < _DISPLACED_SHARE:
        text = f"a voxel of {bone.vertebra} is brighter than one around it in only {share:.0%} of "
        if share < _OFF_BONE_SHARE:
            text += "pairs: the mask is not on this image's bone"
        else:
            severity = "warning"
            text += "pairs: the mask may be displaced from the bone"
    else:
        return
    location = locate_voxel(scan, bone.voxel_zyx)
    yield Finding(
        scan.scan_id,
        "mask-off-bone",
        severity,
        text,
        vertebra=bone.vertebra,
        voxel_zyx=location.voxel_zyx,
        position_xyz_mm=location.position_xyz_mm,
        facts={
            "median_hu": bone.median_hu,
            "voxel_count": bone.voxel_count,
            "brighter_share": share,
        },
    )
