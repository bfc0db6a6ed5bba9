"""What did the audits of a store find, and which results still hold?

The audit log is the sealed group ``audit/zarr.json``, and the scan table shows it. A result holds
as long as the stored scan is the one that was audited.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import Field

from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.sealed import StoredAttributes, StoredModel, parse_sealed, seal
from spinezarr.store.severity import SEVERITIES, Severity

__all__ = [
    "AUDIT_FILE",
    "AuditLog",
    "AuditedScan",
    "FindingRecord",
    "scan_identity",
]

AUDIT_FILE: Final = "audit/zarr.json"
"""Key of the audit log; it is a Zarr group, so that clients which list the store can name it."""


def scan_identity(scan: ScanAttributes) -> str:
    """Return a hash of everything that is stored of a scan: voxels, split, patient and the rest.

    It covers the manifest, which holds the checksum of every file, so other voxels change it.
    Further masks are left out: a prediction changes neither what an ingest wrote nor what an audit
    found.
    """
    attributes = scan.without_masks().model_dump(mode="json", exclude={"masks"})
    text = json.dumps(attributes, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class FindingRecord(StoredAttributes):
    """One finding; :class:`spinezarr.audit.finding.Finding` describes the fields."""

    rule: str
    severity: Severity
    vertebra: str | None
    text: str
    voxel_zyx: tuple[int, int, int] | None
    position_xyz_mm: tuple[float, float, float] | None
    facts: dict[str, Any]
    others: dict[str, str]
    """Identities of the other scans that the finding refers to, by scan id."""


class AuditedScan(StoredAttributes):
    """Audit result of one scan."""

    identity: str
    """:func:`scan_identity` of the scan that was audited."""
    findings: tuple[FindingRecord, ...]

    @property
    def verdict(self) -> str:
        """``ok``, or the worst severity of the findings."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default="ok")

    @property
    def summary(self) -> str:
        """Texts of all findings, the worst first."""
        ordered = sorted(self.findings, key=lambda f: -SEVERITIES.index(f.severity))
        return "; ".join(finding.text for finding in ordered)


class AuditLog(StoredAttributes):
    """Audit results of a store."""

    scans: dict[str, AuditedScan] = Field(default_factory=dict)

    def current(self, identities: Mapping[str, str]) -> dict[str, AuditedScan]:
        """Return the results that still hold for the scans of a store, by scan id.

        Parameters
        ----------
        identities
            :func:`scan_identity` of each scan as it is stored now.
        """
        results: dict[str, AuditedScan] = {}
        for scan_id, audited in self.scans.items():
            if identities.get(scan_id) != audited.identity:
                continue
            findings = tuple(
                finding
                for finding in audited.findings
                if all(identities.get(other) == old for other, old in finding.others.items())
            )
            results[scan_id] = audited.model_copy(update={"findings": findings})
        return results

    def of_scan(
        self, scan: ScanAttributes, find: Callable[[str], ScanAttributes | None]
    ) -> AuditedScan | None:
        """Return the result of one scan that still holds; None if there is none.

        Parameters
        ----------
        scan
            Attributes of the scan as it is stored now.
        find
            Returns the stored attributes of another scan; None if it cannot be read.
        """
        audited = self.scans.get(scan.scan_id)
        if audited is None:
            return None
        others = {other for finding in audited.findings for other in finding.others}
        stored = {other: find(other) for other in others} | {scan.scan_id: scan}
        identities = {
            name: scan_identity(other) for name, other in stored.items() if other is not None
        }
        log = AuditLog(scans={scan.scan_id: audited})
        return log.current(identities).get(scan.scan_id)

    def to_file(self) -> bytes:
        """Return the content of :data:`AUDIT_FILE`."""
        group = {"zarr_format": 3, "node_type": "group"}
        return seal({**group, "attributes": self.model_dump(mode="json")})

    @classmethod
    def of_file(cls, data: bytes) -> "AuditLog":
        """Parse the content of :data:`AUDIT_FILE`.

        Raises
        ------
        DamagedMetadataError
            If :meth:`to_file` did not make it, or it is damaged.
        """
        return parse_sealed(data, _AuditLogGroup).attributes


class _AuditLogGroup(StoredModel):
    attributes: AuditLog
