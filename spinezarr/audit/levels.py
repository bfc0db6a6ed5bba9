"""Which vertebrae does the mask of a scan hold, and how large are whole vertebrae?"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import ShapeZYX
from spinezarr.store.attributes import ScanAttributes, VertebraRecord
from spinezarr.vertebrae import ANATOMICAL_ORDER

__all__ = [
    "WHOLE_VOLUME_CM3",
    "Level",
    "fragment_names",
    "min_whole_volume_cm3",
    "scan_levels",
    "voxel_volume_mm3",
]

WHOLE_VOLUME_CM3: Final[dict[str, tuple[float, float]]] = {
    "C1": (7.82, 14.24),
    "C2": (11.73, 18.38),
    "C3": (8.26, 12.98),
    "C4": (7.57, 12.51),
    "C5": (8.01, 13.08),
    "C6": (8.59, 17.5),
    "C7": (10.19, 17.34),
    "T1": (12.15, 22.64),
    "T2": (13.23, 22.61),
    "T3": (7.37, 21.72),
    "T4": (12.75, 22.34),
    "T5": (13.71, 24.04),
    "T6": (15.04, 26.11),
    "T7": (17.03, 29.78),
    "T8": (17.72, 32.2),
    "T9": (19.04, 34.85),
    "T10": (13.79, 38.72),
    "T11": (22.54, 41.98),
    "T12": (23.19, 46.4),
    "T13": (31.41, 57.06),
    "L1": (28.54, 51.46),
    "L2": (30.93, 56.54),
    "L3": (27.32, 62.5),
    "L4": (37.8, 64.66),
    "L5": (38.0, 63.76),
    "L6": (47.52, 70.55),
}
"""Smallest and median volume in cm³ of whole vertebrae in all 374 scans of VerSe.

VerSe annotates no vertebra that the volume cuts. The numbers are from the table "Label Information
Statistics" of https://github.com/openmedlab/Awesome-Medical-Dataset/blob/main/resources/VerSe.md
"""

_MIN_PATIENT_SIZE: Final = 0.25
"""Smallest plausible size of a patient's vertebrae, as a share of VerSe's median volume.

It corresponds to a child's vertebrae with 0.63 of the adult length. Without this lower bound, a
scan that shows only a fragment would make fragments the norm.
"""

_FRAGMENT_SHARE: Final = 0.25
"""A label smaller than this share of the smallest whole vertebra of its level is a fragment.

In lidc-idri-0001, the share of C5 is 0.02 (99 voxels in the last slice). C6, which is cut in its
middle, has a share of 0.5.
"""

Point = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One labeled vertebra of a scan."""

    name: str
    volume_cm3: float
    center_mm: Point
    """Mean position (x, y, z) of its voxels in RAS+ mm."""
    center_zyx: tuple[float, float, float]
    """Mean index (z, y, x) of its voxels."""
    faces: tuple[str, ...]
    """Faces of the volume that the label touches, such as ``superior`` and ``left``."""

    @property
    def touches_end(self) -> bool:
        """Whether the upper or lower end of the volume may have cut the vertebra."""
        return not {"superior", "inferior"}.isdisjoint(self.faces)


def voxel_volume_mm3(scan: ScanAttributes) -> float:
    """Return the volume of one voxel in mm³."""
    return abs(float(np.linalg.det(np.array(scan.affine)[:3, :3])))


def scan_levels(scan: ScanAttributes) -> tuple[Level, ...]:
    """Return the labeled vertebrae of a scan from head to tail."""
    affine = np.array(scan.affine)
    return tuple(
        Level(
            name=name,
            volume_cm3=record.voxel_count * voxel_volume_mm3(scan) / 1000,
            center_mm=(affine @ (*record.centroid_zyx[::-1], 1))[:3],
            center_zyx=record.centroid_zyx,
            faces=tuple(_faces(record, scan.shape_zyx)),
        )
        for name in ANATOMICAL_ORDER
        if (record := scan.vertebrae.get(name)) is not None
    )


def _faces(record: VertebraRecord, shape_zyx: ShapeZYX) -> Iterable[str]:
    names = (("inferior", "superior"), ("posterior", "anterior"), ("left", "right"))
    for axis, (low, high) in enumerate(names):
        if record.start_zyx[axis] == 0:
            yield low
        if record.stop_zyx[axis] == shape_zyx[axis]:
            yield high


def min_whole_volume_cm3(levels: Sequence[Level]) -> dict[str, float]:
    """Return the smallest plausible volume in cm³ of each labeled vertebra if it is whole.

    VerSe's smallest volume is scaled by the size of the patient: the median ratio of the labeled
    volumes to VerSe's medians. It is not scaled up for large patients.
    """
    known = [level for level in levels if level.name in WHOLE_VOLUME_CM3]
    if not known:
        return {}
    size = float(np.median([level.volume_cm3 / WHOLE_VOLUME_CM3[level.name][1] for level in known]))
    size = min(1.0, max(_MIN_PATIENT_SIZE, size))
    return {level.name: size * WHOLE_VOLUME_CM3[level.name][0] for level in known}


def fragment_names(levels: Sequence[Level]) -> frozenset[str]:
    """Return the names of the labeled vertebrae that are only fragments."""
    min_volumes_cm3 = min_whole_volume_cm3(levels)
    return frozenset(
        level.name
        for level in levels
        if level.name in min_volumes_cm3
        and level.volume_cm3 < _FRAGMENT_SHARE * min_volumes_cm3[level.name]
    )
