"""How is a whole scan downloaded as NIfTI?

``GET /v1/<store>/scans/<scan_id>/image.nii.gz``, ``label.nii.gz`` and ``masks/<mask>.nii.gz`` send
the same files as ``spinezarr export nifti`` writes. They are compressed while they are sent, so
memory holds one slab of voxels, and the size of a file is not known before its end. If a read
fails, the connection ends early. The checksum at the end of the gzip stream is missing then, so no
program mistakes the file for a complete one.
"""

from collections.abc import Iterator
from http import HTTPStatus
from itertools import chain
from typing import Annotated, Any, Final
from urllib.parse import quote

from isal import isal_zlib
from pydantic import Field

from spinezarr.errors import CorruptStoreError, ScanChangedError
from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.opened_scan import OpenedScan, mask_of
from spinezarr.serve.patch_formats import NIFTI_GZ
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.query import QueryModel, WrongQueryError, parse_query
from spinezarr.serve.version_headers import RefusedError, headers_of_version
from spinezarr.store.layout import IMAGE, is_mask_name

__all__ = ["MaskNiftiQuery", "NiftiQuery", "answer_nifti"]

_isal_zlib: Any = isal_zlib  # the package has few annotations
_GZIP_LEVEL: Final = 2
"""Compression level of ISA-L, the same as in ``spinezarr export nifti``."""
_GZIP_BITS: Final = 31
"""The zlib parameter for a gzip stream with the largest window."""
_PART_BYTES: Final = 256 << 10
"""Compressed bytes that are sent together."""


class NiftiQuery(QueryModel):
    """The version of the scan to send."""

    content_checksum: Annotated[str, Field(max_length=64)] | None = None
    """The version of the scan; with it, the answer may be kept for ever."""


class MaskNiftiQuery(NiftiQuery):
    """The version of the scan and of its further mask to send."""

    mask_checksum: Annotated[str, Field(max_length=64)] | None = None
    """The version of the mask, which ``content_checksum`` leaves out."""


def answer_nifti(source: PatchSource, request: Request, scan_id: str, array: str) -> Answer:
    """Answer a request for a NIfTI file. Its first part is read before the answer starts.

    Parameters
    ----------
    source
        Reads the voxels of the store.
    request
        The request.
    scan_id
        Id of the scan.
    array
        ``image`` or the name of a mask. For a further mask, the query is a
        :class:`MaskNiftiQuery`, else a :class:`NiftiQuery`.
    """
    try:
        model = MaskNiftiQuery if is_mask_name(array) else NiftiQuery
        query = parse_query(model, request.query)
        return _answer(source, request, scan_id, array, query)
    except WrongQueryError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    except RefusedError as refusal:
        return refusal.answer
    except ScanChangedError:
        return text_answer(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "The scan was replaced during the read.",
            retry_after="1",
        )
    except CorruptStoreError:
        return text_answer(HTTPStatus.SERVICE_UNAVAILABLE, "The scan is damaged.", retry_after="1")


def _answer(
    source: PatchSource, request: Request, scan_id: str, array: str, query: NiftiQuery
) -> Answer:
    # nibabel takes long to import, and few requests need it.
    from spinezarr.export.nifti import file_name, iter_nifti_bytes  # noqa: PLC0415

    opened = OpenedScan.of(source, scan_id, query.content_checksum)
    scan = opened.scan
    mask_checksum = query.mask_checksum if isinstance(query, MaskNiftiQuery) else None
    spec = scan.image if array == IMAGE else mask_of(scan, array, mask_checksum)
    is_named = query.content_checksum is not None
    is_named &= not is_mask_name(array) or mask_checksum is not None
    headers = headers_of_version(request, NIFTI_GZ, spec.content_checksum, array, is_named=is_named)
    name = quote(file_name(scan_id, array, compressed=True), safe="")
    headers |= {
        "content-type": NIFTI_GZ,
        "content-disposition": f"attachment; filename*=UTF-8''{name}",
        "x-content-type-options": "nosniff",
    }
    if request.method == "HEAD":
        return Answer(HTTPStatus.OK, headers, stream=iter(()))
    parts = _compressed(iter_nifti_bytes(spec, scan.attributes, opened.engine))
    return Answer(HTTPStatus.OK, headers, stream=chain([next(parts)], parts))


def _compressed(parts: Iterator[bytes]) -> Iterator[bytes]:
    """Compress parts without a name or time, so that the same scan gives the same bytes."""
    compressor = _isal_zlib.compressobj(_GZIP_LEVEL, _isal_zlib.DEFLATED, _GZIP_BITS)
    pending = bytearray()
    for part in parts:
        pending += compressor.compress(part)
        if len(pending) >= _PART_BYTES:
            yield bytes(pending)
            pending.clear()
    yield bytes(pending) + compressor.flush()
