"""How is a slice drawn on the server?

``GET /v1/<store>/scans/<scan_id>/slice.png`` returns it as PNG.
"""

import math
from http import HTTPStatus
from typing import Annotated, Final

from pydantic import Field

from spinezarr.errors import UsageError
from spinezarr.geometry import SLICE_AXIS, Plane
from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.opened_scan import OpenedScan, mask_of
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.query import QueryModel, WrongQueryError, parse_query
from spinezarr.serve.version_headers import RefusedError, headers_of_version
from spinezarr.store.layout import ARRAY_NAME, LABEL, is_mask_name
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.view.shown_labels import shown_labels
from spinezarr.view.slice_picture import (
    LARGEST_PX,
    SliceRequest,
    label_names,
    parse_labels,
    slice_at,
    slice_png,
)
from spinezarr.view.windows import DEFAULT_WINDOW, parse_window

__all__ = ["PNG", "SliceQuery", "answer_slice"]

PNG: Final = "image/png"
_LARGEST_NAMES: Final = 8192
"""Largest number of characters of the names of labels; those of SPINEPS have about 900."""
_CHECKSUMS: Final = {"content_checksum", "mask_checksum", "outline_checksum"}


class SliceQuery(QueryModel):
    """The slice to draw, and how to draw it."""

    plane: Plane = "sagittal"
    """Plane of the stored grid; the planes of an oblique scan are tilted like its axes."""
    mm: float | None = None
    """Position of the slice in mm, as the coordinate x, y or z of the scan (RAS+). The nearest
    slice is drawn. By default it is the middle of the spine that ``mask`` shows, or of the scan if
    it has no mask."""
    window: Annotated[str, Field(max_length=64)] = DEFAULT_WINDOW
    """``bone``, ``soft_tissue``, ``lung``, or the HU of black and white, such as -160,240."""
    labels: Annotated[str, Field(max_length=_LARGEST_NAMES)] = "true"
    """Labels to color: ``true`` for all of the masks, ``false``, or names such as L1,L2, in which
    commas are spaces."""
    mask: Annotated[str, Field(pattern=ARRAY_NAME)] = LABEL
    """Mask whose values are colored: ``label`` or a further mask."""
    outline: Annotated[str, Field(pattern=ARRAY_NAME)] | None = None
    """Mask whose values are outlined in their colors over those of ``mask``."""
    size_px: Annotated[int, Field(ge=1, le=LARGEST_PX)] | None = None
    """Pixels along the longer side. By default, one pixel for each voxel of the finer spacing, up
    to the largest size."""
    content_checksum: Annotated[str, Field(max_length=64)] | None = None
    """The version of the scan; with it, the answer may be kept for ever."""
    mask_checksum: Annotated[str, Field(max_length=64)] | None = None
    """The version of ``mask`` if that is a further mask, which ``content_checksum`` leaves out."""
    outline_checksum: Annotated[str, Field(max_length=64)] | None = None
    """The version of ``outline`` if that is a further mask."""


def answer_slice(source: PatchSource, request: Request, scan_id: str) -> Answer:
    """Answer a request for a slice. Its query is a :class:`SliceQuery`.

    Parameters
    ----------
    source
        Reads the voxels of the store.
    request
        The request.
    scan_id
        Id of the scan.
    """
    try:
        query = parse_query(SliceQuery, request.query)
        window_hu = parse_window(query.window)
    except (WrongQueryError, UsageError) as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    try:
        opened = OpenedScan.of(source, scan_id, query.content_checksum)
        scan = opened.scan
        _check_size(scan.image.shape_zyx, SLICE_AXIS[query.plane], source.limits.slice_voxels)
        masks = _masks_of(scan, query)
        facts = scan.attributes
        names = [name for mask in masks for name in label_names(facts, mask.name)]
        labels = parse_labels(query.labels, names)
        version_parts = (
            scan.content_checksum,
            *(f"{mask.content_checksum} {shown_labels(facts, mask.name)}" for mask in masks),
            query.model_dump_json(exclude=_CHECKSUMS),
        )
        # The names of the labels of a further mask may change without its voxels, and the colors
        # with them.
        has_further = any(is_mask_name(mask.name) for mask in masks)
        is_named = query.content_checksum is not None and not has_further
        headers = headers_of_version(request, PNG, *version_parts, is_named=is_named)
    except RefusedError as refusal:
        return refusal.answer
    except UsageError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))
    try:
        index = slice_at(scan, opened.engine, query.plane, query.mm, query.mask)
    except UsageError as problem:
        return text_answer(HTTPStatus.UNPROCESSABLE_ENTITY, str(problem))
    slice_request = SliceRequest(
        query.plane, index, window_hu, labels, query.size_px, query.mask, query.outline
    )
    data = slice_png(scan, opened.engine, slice_request)
    return Answer(HTTPStatus.OK, {**headers, "content-type": PNG}, data)


def _masks_of(scan: ScanHandle, query: SliceQuery) -> list[ArraySpec]:
    """Return the masks to draw.

    Raises
    ------
    RefusedError
        If the scan lacks one of them, or one has another version.
    """
    masks = []
    # Lists show pictures of all scans, also of those without the mask.
    if query.mask != LABEL or scan.label is not None:
        masks.append(mask_of(scan, query.mask, query.mask_checksum))
    if query.outline is not None:
        masks.append(mask_of(scan, query.outline, query.outline_checksum))
    return masks


def _check_size(shape_zyx: tuple[int, int, int], flat_axis: int, limit: int) -> None:
    voxels = math.prod(n for axis, n in enumerate(shape_zyx) if axis != flat_axis)
    if voxels > limit:
        text = f"The slice has {voxels} voxels; at most {limit} are drawn."
        raise RefusedError(text_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text))
