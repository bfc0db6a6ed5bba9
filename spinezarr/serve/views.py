"""What is shown of a scan: ``GET /v1/<store>/scans/<scan_id>/view``."""

from spinezarr.errors import SpinezarrError
from spinezarr.serve.facts import StoreFacts
from spinezarr.serve.http import Answer, Request
from spinezarr.serve.opened import OpenedScan
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.told import answer_json
from spinezarr.serve.versioned import RefusedError
from spinezarr.store.attributes import ScanAttributes
from spinezarr.view.scan_view import view_of

__all__ = ["answer_view"]


def answer_view(facts: StoreFacts, source: PatchSource, request: Request, scan_id: str) -> Answer:
    """Answer with all that a page needs to show a scan.

    Parameters
    ----------
    facts, source
        Of the store: its table and what audits found, and its voxels.
    request
        As it came.
    scan_id
        Of the scan.
    """
    try:
        opened = OpenedScan.of(source, scan_id, None)
    except RefusedError as refused:
        return refused.answer

    def find(other: str) -> ScanAttributes | None:
        try:
            found: ScanAttributes = opened.reader.scan(other).attributes
        except SpinezarrError:
            return None
        return found

    scan = opened.scan
    audited = facts.audit_log().of_scan(scan.attributes, find)
    scan_ids = facts.reader().table.scan.to_numpy().tolist()
    return answer_json(request, view_of(scan, opened.engine, scan_ids, audited))
