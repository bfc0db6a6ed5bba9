"""Which facts does a page need to show a scan?

``GET /v1/<store>/scans/<scan_id>/view`` returns them.
"""

from spinezarr.errors import SpinezarrError
from spinezarr.serve.body import answer_json
from spinezarr.serve.http import Answer, Request
from spinezarr.serve.opened_scan import OpenedScan
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.tables import ServedTable
from spinezarr.serve.version_headers import RefusedError
from spinezarr.store.attributes import ScanAttributes
from spinezarr.view.scan_view import view_of

__all__ = ["answer_view"]


def answer_view(table: ServedTable, source: PatchSource, request: Request, scan_id: str) -> Answer:
    """Answer with the facts that a page needs to show a scan.

    Parameters
    ----------
    table, source
        Table and audit log of the store, and the reader of its voxels.
    request
        The request.
    scan_id
        Id of the scan.
    """
    try:
        opened = OpenedScan.of(source, scan_id, None)
    except RefusedError as refusal:
        return refusal.answer

    def attributes_of(other_id: str) -> ScanAttributes | None:
        try:
            attributes: ScanAttributes = opened.reader.scan(other_id).attributes
        except SpinezarrError:
            return None
        return attributes

    scan = opened.scan
    audited = table.audit_log().of_scan(scan.attributes, attributes_of)
    scan_ids = table.reader().table.scan.to_numpy().tolist()
    return answer_json(
        request,
        view_of(
            scan,
            opened.engine,
            scan_ids,
            audited,
            coarsest_voxels=source.limits.coarsest_level_voxels,
        ),
    )
