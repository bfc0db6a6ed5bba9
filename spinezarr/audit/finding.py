"""One defect: which scan, how bad, where, and the numbers it rests on."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from spinezarr.geometry import ShapeZYX
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.audit_log import FindingRecord, Severity

__all__ = ["Finding", "FindingLocation", "locate_point", "locate_voxel"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found in one scan."""

    scan_id: str
    rule: str
    """Name of the rule, e.g. ``skipped-level``."""
    severity: Severity
    """``error``: data or annotation is wrong; ``warning``: look at it; ``info``: good to know."""
    text: str
    """One line for people."""
    vertebra: str | None = None
    voxel_zyx: ShapeZYX | None = None
    """Stored voxel to look at."""
    position_mm: tuple[float, float, float] | None = None
    """The same place, x, y, z in RAS+ mm."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The numbers behind it, as plain data with units in their names."""
    others: tuple[str, ...] = ()
    """Other scans of the same store that it speaks of."""

    def to_record(self, identities: dict[str, str]) -> FindingRecord:
        """Return what is kept in the store; ``identities`` are those of the other scans."""
        return FindingRecord(
            rule=self.rule,
            severity=self.severity,
            vertebra=self.vertebra,
            text=self.text,
            voxel_zyx=self.voxel_zyx,
            position_mm=self.position_mm,
            facts=self.facts,
            others={other: identities.get(other, "") for other in self.others},
        )


class FindingLocation(NamedTuple):
    """Fields of a finding that say where it is."""

    voxel_zyx: ShapeZYX
    position_mm: tuple[float, float, float]


def locate_voxel(scan: ScanAttributes, index_zyx: npt.ArrayLike) -> FindingLocation:
    """Return the voxel nearest to an index that need not be whole, and its position."""
    z, y, x = np.rint(np.asarray(index_zyx, float)).astype(int).tolist()
    x_mm, y_mm, z_mm = (np.array(scan.affine) @ (x, y, z, 1))[:3].round(3).tolist()
    return FindingLocation((z, y, x), (x_mm, y_mm, z_mm))


def locate_point(scan: ScanAttributes, position_zyx_mm: npt.ArrayLike) -> FindingLocation:
    """Return a point in RAS+ mm, and the voxel nearest to it, which may lie outside."""
    z_mm, y_mm, x_mm = np.asarray(position_zyx_mm, float).tolist()
    x, y, z, _ = np.linalg.solve(np.array(scan.affine), (x_mm, y_mm, z_mm, 1))
    z, y, x = np.rint((z, y, x)).astype(int).tolist()
    return FindingLocation((z, y, x), (round(x_mm, 3), round(y_mm, 3), round(z_mm, 3)))
