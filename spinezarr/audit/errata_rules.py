"""Were the labels changed at the ingest? No voxel is read."""

from collections.abc import Iterator

from spinezarr.audit.finding import Finding
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.table import ERRATUM_APPLIED

__all__ = ["corrected_labels"]


def corrected_labels(scan: ScanAttributes) -> Iterator[Finding]:
    """Find scans whose labels were corrected by a list of errata."""
    correction = scan.columns.get(ERRATUM_APPLIED)
    if correction:
        yield Finding(
            scan.scan_id,
            "corrected-labels",
            "info",
            f"the labels are not those of the file: {correction}",
            facts={"correction": correction},
        )
