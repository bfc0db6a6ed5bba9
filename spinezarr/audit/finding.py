"""What does the audit report of one defect: scan, severity, position and numbers?"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import ShapeZYX
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.audit_log import FindingRecord
from spinezarr.store.severity import Severity

__all__ = ["Finding", "FindingLocation", "locate_point", "locate_voxel"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One defect that a rule found in a scan."""

    scan_id: str
    rule: str
    """Name of the rule, such as ``skipped-level``."""
    severity: Severity
    """``error``: image or annotation is wrong; ``warning``: check it; ``info``: good to know."""
    text: str
    """Description in one line."""
    vertebra: str | None = None
    voxel_zyx: ShapeZYX | None = None
    """Stored voxel where the defect can be seen."""
    position_xyz_mm: tuple[float, float, float] | None = None
    """Position (x, y, z) of that voxel in RAS+ mm."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers behind the finding, as JSON values with units in their names."""
    others: tuple[str, ...] = ()
    """Ids of other scans of the same store that the finding mentions."""

    def to_record(self, identities: dict[str, str]) -> FindingRecord:
        """Return the record for the store, given the identities of the other scans by id."""
        return FindingRecord(
            rule=self.rule,
            severity=self.severity,
            vertebra=self.vertebra,
            text=self.text,
            voxel_zyx=self.voxel_zyx,
            position_xyz_mm=self.position_xyz_mm,
            facts=self.facts,
            others={other: identities.get(other, "") for other in self.others},
        )


class FindingLocation(NamedTuple):
    """Stored voxel and position (x, y, z) in RAS+ mm of a finding."""

    voxel_zyx: ShapeZYX
    position_xyz_mm: tuple[float, float, float]


def locate_voxel(scan: ScanAttributes, index_zyx: npt.ArrayLike) -> FindingLocation:
    """Return the voxel nearest to a fractional index (z, y, x), and its position."""
    z, y, x = np.rint(np.asarray(index_zyx, float)).astype(int).tolist()
    x_mm, y_mm, z_mm = (np.array(scan.affine) @ (x, y, z, 1))[:3].round(3).tolist()
    return FindingLocation((z, y, x), (x_mm, y_mm, z_mm))


def locate_point(scan: ScanAttributes, position_zyx_mm: npt.ArrayLike) -> FindingLocation:
    """Return a point (z, y, x) in RAS+ mm and the voxel nearest to it, which may lie outside."""
    z_mm, y_mm, x_mm = np.asarray(position_zyx_mm, float).tolist()
    x, y, z, _ = np.linalg.solve(np.array(scan.affine), (x_mm, y_mm, z_mm, 1))
    z, y, x = np.rint((z, y, x)).astype(int).tolist()
    return FindingLocation((z, y, x), (round(x_mm, 3), round(y_mm, 3), round(z_mm, 3)))
