"""What an audit found, kept in the store: ``audit/zarr.json``, a sealed group of its own.

The scan table shows it. A result counts only as long as the scan is the one that was audited.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from pydantic import Field

from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.sealed import StoredAttributes, StoredModel, parse_sealed, seal

__all__ = [
    "AUDIT_FILE",
    "SEVERITIES",
    "AuditLog",
    "AuditedScan",
    "FindingRecord",
    "Severity",
    "scan_identity",
]

Severity = Literal["info", "warning", "error"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "error")
"""From what is good to know to what makes data wrong."""

AUDIT_FILE: Final = "audit/zarr.json"
"""A Zarr group, so that clients which list the store know what it is."""


def scan_identity(scan: ScanAttributes) -> str:
    """Return a hash of all that is stored of a scan: voxels, split, patient and the rest.

    The manifest holds the checksum of every file of image and mask, so no other voxels have it.
    """
    text = json.dumps(scan.to_json(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class FindingRecord(StoredAttributes):
    """One finding; see :class:`spinezarr.audit.finding.Finding` for what the fields mean."""

    rule: str
    severity: Severity
    vertebra: str | None
    text: str
    voxel_zyx: tuple[int, int, int] | None
    position_mm: tuple[float, float, float] | None
    facts: dict[str, Any]
    others: dict[str, str]
    """Other scans of the store that it speaks of, and their identities."""


class AuditedScan(StoredAttributes):
    """The result for one scan."""

    identity: str
    """:func:`scan_identity` of the scan that was audited."""
    findings: tuple[FindingRecord, ...]

    @property
    def verdict(self) -> str:
        """``ok``, or the worst severity."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default="ok")

    @property
    def summary(self) -> str:
        """All findings in short, the worst first."""
        ordered = sorted(self.findings, key=lambda f: -SEVERITIES.index(f.severity))
        return "; ".join(finding.text for finding in ordered)


class AuditLog(StoredAttributes):
    """The results of a store."""

    scans: dict[str, AuditedScan] = Field(default_factory=dict)

    def current(self, identities: Mapping[str, str]) -> dict[str, AuditedScan]:
        """Return the results that still hold for the scans of a store, by scan id.

        Parameters
        ----------
        identities
            :func:`scan_identity` of each scan as it is stored now.
        """
        found: dict[str, AuditedScan] = {}
        for scan_id, audited in self.scans.items():
            if identities.get(scan_id) != audited.identity:
                continue
            findings = tuple(
                finding
                for finding in audited.findings
                if all(identities.get(other) == was for other, was in finding.others.items())
            )
            found[scan_id] = audited.model_copy(update={"findings": findings})
        return found

    def of_scan(
        self, scan: ScanAttributes, find: Callable[[str], ScanAttributes | None]
    ) -> AuditedScan | None:
        """Return the result for one scan, as far as it still holds; None if there is none.

        Parameters
        ----------
        scan
            As it is stored now.
        find
            Returns another scan as it is stored now; None if it cannot be read.
        """
        audited = self.scans.get(scan.scan_id)
        if audited is None:
            return None
        others = {other for finding in audited.findings for other in finding.others}
        found = {other: find(other) for other in others} | {scan.scan_id: scan}
        identities = {name: scan_identity(one) for name, one in found.items() if one is not None}
        alone = AuditLog(scans={scan.scan_id: audited})
        return alone.current(identities).get(scan.scan_id)

    def to_file(self) -> bytes:
        """Return the content of :data:`AUDIT_FILE`."""
        group = {"zarr_format": 3, "node_type": "group"}
        return seal({**group, "attributes": self.model_dump(mode="json")})

    @classmethod
    def of_file(cls, data: bytes) -> "AuditLog":
        """Read what :meth:`to_file` made.

        Raises
        ------
        DamagedMetadataError
            If :meth:`to_file` did not make it, or it is damaged.
        """
        return parse_sealed(data, _AuditLogGroup).attributes


class _AuditLogGroup(StoredModel):
    attributes: AuditLog
