"""How are all rules applied to every scan of a store, and how is the result saved in it?"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final

from spinezarr.audit.audited_mask import AuditedMask
from spinezarr.audit.centroid_rules import centroid_order, centroid_outside, centroid_unmatched
from spinezarr.audit.cross_scan_rules import ScanKey, same_image, same_patient, scan_keys
from spinezarr.audit.errata_rules import corrected_labels
from spinezarr.audit.finding import Finding
from spinezarr.audit.grid_rules import header_conflicts, oblique_or_sheared, spacing, unplaced
from spinezarr.audit.image_rules import extreme_values, image_type, image_values, not_finite
from spinezarr.audit.level_rules import (
    border_contact,
    empty_mask,
    label_order,
    large_vertebra,
    skipped_level,
    small_vertebra,
)
from spinezarr.audit.voxel_measurements import VoxelMeasurements, measure_voxels
from spinezarr.audit.voxel_rules import mask_off_bone, several_pieces, stray_voxels, unknown_value
from spinezarr.errors import CorruptStoreError, ScanChangedError, UnknownScanError
from spinezarr.processors import cpu_count
from spinezarr.redaction import redact_url
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.audit_log import AuditedScan, AuditLog, scan_identity
from spinezarr.store.layout import LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import check_scan_ids
from spinezarr.store.severity import SEVERITIES, Severity
from spinezarr.store.writer import StoreWriter
from spinezarr.stream.read.engine import Engine

__all__ = ["StoreAudit", "audit_across", "audit_store", "save_audit", "severity_rank"]

_FACT_RULES: Final[tuple[Callable[[ScanAttributes], Iterator[Finding]], ...]] = (
    empty_mask,
    skipped_level,
    label_order,
    small_vertebra,
    large_vertebra,
    border_contact,
    centroid_outside,
    centroid_unmatched,
    centroid_order,
    corrected_labels,
    spacing,
    oblique_or_sheared,
    unplaced,
    header_conflicts,
    not_finite,
    image_values,
    extreme_values,
    image_type,
)
_LABEL_RULES: Final = (
    empty_mask,
    skipped_level,
    label_order,
    small_vertebra,
    large_vertebra,
    border_contact,
    centroid_unmatched,
)
"""Those about the labels of a mask, which are all that is applied to a further one."""
_VOXEL_RULES: Final[
    tuple[Callable[[ScanAttributes, VoxelMeasurements], Iterator[Finding]], ...]
] = (
    several_pieces,
    stray_voxels,
    unknown_value,
    mask_off_bone,
)
_SCANS_AT_ONCE: Final = 4
"""Largest number of scans read at once.

Each holds the chunks of one label, or one vertebra of the image, in memory. More scans would wait
for each other, because cc3d keeps the GIL; reading and decoding release it.
"""


@dataclass(frozen=True, slots=True)
class StoreAudit:
    """The findings of the audit of a store."""

    url: str = field(repr=False)
    dataset: str
    scans: tuple[str, ...]
    """Ids of the audited scans."""
    findings: tuple[Finding, ...]
    """Findings scan by scan; in each scan, the most severe first."""
    not_written: str = ""
    """Why the findings could not be saved in the store.

    The text is empty if they were saved, or if saving was not requested.
    """
    mask: str = LABEL
    """Name of the audited mask. If it is a further one, nothing but its labels was audited."""

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Number of findings of each rule by severity."""
        counters: dict[str, Counter[str]] = {}
        for finding in self.findings:
            counters.setdefault(finding.rule, Counter())[finding.severity] += 1
        return {rule: dict(counter) for rule, counter in sorted(counters.items())}

    @property
    def exit_code(self) -> int:
        """Exit code: 1 if a finding is an error, else 0."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def by_scan(self) -> dict[str, list[Finding]]:
        """Return the findings of each audited scan."""
        findings_by_scan: dict[str, list[Finding]] = {scan_id: [] for scan_id in self.scans}
        for finding in self.findings:
            findings_by_scan[finding.scan_id].append(finding)
        return findings_by_scan

    def at_least(self, severity: Severity) -> "StoreAudit":
        """Return the audit without the findings that are less severe."""
        lowest_rank = SEVERITIES.index(severity)
        findings = tuple(f for f in self.findings if SEVERITIES.index(f.severity) >= lowest_rank)
        return replace(self, findings=findings)

    def to_json(self) -> dict[str, Any]:
        """Return the audit as JSON values."""
        return {
            "url": redact_url(self.url),
            "dataset": self.dataset,
            "mask": self.mask,
            "scans": list(self.scans),
            "counts": self.counts,
            "findings": [
                {name: getattr(finding, name) for name in Finding.__slots__}
                for finding in self.findings
            ],
        }


def audit_store(
    reader: StoreReader,
    engine: Engine,
    scans: Sequence[str] | None = None,
    *,
    mask: str = LABEL,
    on_scan: Callable[[], None] = lambda: None,
) -> StoreAudit:
    """Apply all rules to the scans of a store, or those about labels to a further mask.

    A scan that cannot be read leads to a finding, not to an exception.

    Parameters
    ----------
    reader, engine
        Readers of the store and of its voxels.
    scans
        Scan ids; by default all scans.
    mask
        Name of the mask to audit.
    on_scan
        Called in this thread after each scan, for progress.

    Raises
    ------
    UnknownScanError
        If the store does not have one of the scans.
    CorruptStoreError
        If the table of the store cannot be read.
    """
    keys = scan_keys(reader.url, reader.root.dataset, reader.table)
    all_scan_ids = [key.scan_id for key in keys]
    scan_ids = all_scan_ids if scans is None else list(scans)
    check_scan_ids(scan_ids, all_scan_ids, reader.name)
    findings_by_scan: dict[str, list[Finding]] = {scan_id: [] for scan_id in scan_ids}
    shared = (*same_image(keys), *same_patient(keys)) if mask == LABEL else ()
    for key, finding in shared:
        if key.scan_id in findings_by_scan:
            findings_by_scan[key.scan_id].append(finding)
    pool = ThreadPoolExecutor(min(_SCANS_AT_ONCE, cpu_count()), "spinezarr-audit")
    try:
        results = pool.map(lambda scan_id: _audit_scan(reader, engine, scan_id, mask), scan_ids)
        for scan_id, findings in zip(scan_ids, results, strict=True):
            findings_by_scan[scan_id] += findings
            on_scan()
    finally:
        pool.shutdown(cancel_futures=True)
    ordered = tuple(
        f for scan_id in scan_ids for f in sorted(findings_by_scan[scan_id], key=severity_rank)
    )
    return StoreAudit(reader.url, reader.root.dataset, tuple(scan_ids), ordered, mask=mask)


def severity_rank(finding: Finding) -> int:
    """Return a sort key that puts the most severe finding first."""
    return -SEVERITIES.index(finding.severity)


def _audit_scan(reader: StoreReader, engine: Engine, scan_id: str, mask: str) -> list[Finding]:
    findings: list[Finding] = []
    try:
        scan = reader.scan(scan_id)
        audited = AuditedMask.of(scan, mask)
        facts = audited.facts
        rules = _FACT_RULES if mask == LABEL else _LABEL_RULES
        findings += [finding for rule in rules for finding in rule(facts)]
        voxels = measure_voxels(engine, scan, audited, reader.label_chunks(scan_id, mask))
        findings += [finding for rule in _VOXEL_RULES for finding in rule(facts, voxels)]
    except (CorruptStoreError, ScanChangedError, UnknownScanError) as problem:
        findings.append(Finding(scan_id, "damaged", "error", str(problem)))
    return findings


def audit_across(keys: Iterable[ScanKey], audits: Iterable[StoreAudit]) -> list[StoreAudit]:
    """Add findings on images and patients that several stores share.

    Parameters
    ----------
    keys
        Keys of all scans of all stores.
    audits
        One audit for each store.

    Returns
    -------
    list of StoreAudit
        The audits with these findings added.
    """
    keys = list(keys)
    shared_findings: dict[tuple[str, str], list[Finding]] = {}
    for key, finding in (*same_image(keys), *same_patient(keys)):
        in_another_store = len(finding.others) < len(finding.facts["others"])
        if in_another_store:
            shared_findings.setdefault((key.url, key.scan_id), []).append(finding)
    return [_add_shared_findings(audit, shared_findings) for audit in audits]


def _add_shared_findings(
    audit: StoreAudit, shared_findings: dict[tuple[str, str], list[Finding]]
) -> StoreAudit:
    findings = tuple(
        finding
        for scan_id, scan_findings in audit.by_scan().items()
        for finding in sorted(
            [*scan_findings, *shared_findings.get((audit.url, scan_id), [])], key=severity_rank
        )
    )
    return replace(audit, findings=findings)


def save_audit(reader: StoreReader, audit: StoreAudit) -> None:
    """Write an audit and the scan table with its results into the store.

    Earlier results of scans that this audit did not cover are kept, if the scan has not changed.

    Raises
    ------
    ReadOnlyStoreError
        If the store cannot be written.
    StoreBusyError
        If another process is writing the store.
    CorruptStoreError
        If only some scans were audited, and the stored results of the others are damaged.
    """
    writer = StoreWriter(reader.url, reader.root, reader.storage_options)
    with writer.lock("an audit") as lock:
        if lock.took_over:
            # The next ingest then looks for the files of the ingest that was killed.
            writer.registry.forget_ledger()
        covers_all_scans = set(reader.table.scan.to_numpy().tolist()) <= set(audit.scans)
        entries = {} if covers_all_scans else dict(writer.registry.audit_log().scans)
        mentioned_ids = {
            *audit.scans,
            *(other for finding in audit.findings for other in finding.others),
        }
        identities = {
            scan_id: scan_identity(scan)
            for scan_id, scan in _readable_attributes(reader, mentioned_ids).items()
        }
        for scan_id, findings in audit.by_scan().items():
            if scan_id in identities:
                records = tuple(finding.to_record(identities) for finding in findings)
                entries[scan_id] = AuditedScan(identity=identities[scan_id], findings=records)
            else:
                entries.pop(scan_id, None)
        # An ingest may have changed the store since it was opened.
        current = StoreReader(reader.url, reader.storage_options)
        writer.registry.write_audit_log(
            AuditLog(scans=entries),
            current.table,
            _readable_attributes(current, {*entries, *mentioned_ids}),
        )


def _readable_attributes(reader: StoreReader, scan_ids: Iterable[str]) -> dict[str, ScanAttributes]:
    """Return the attributes of the scans that can be read, by scan id."""
    attributes: dict[str, ScanAttributes] = {}
    for scan_id in scan_ids:
        try:
            attributes[scan_id] = reader.scan(scan_id).attributes
        except (CorruptStoreError, ScanChangedError, UnknownScanError):
            continue
    return attributes
