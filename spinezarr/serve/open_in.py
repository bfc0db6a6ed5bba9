"""In which other programs can a scan be opened?

``GET /v1/<store>/scans/<scan_id>/open-in`` lists them.
"""

from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict

from spinezarr.serve.http import Answer, Request, json_answer, text_answer
from spinezarr.serve.opened_scan import OpenedScan
from spinezarr.serve.origin import origin_of
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.version_headers import RefusedError
from spinezarr.view.open_in import ServedScan, open_in_options

__all__ = ["OpenInModel", "answer_open_in"]


class _ResponseModel(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class OptionModel(_ResponseModel):
    """One program or file that opens a scan."""

    name: str
    """Name of the program or file."""
    kind: Literal["link", "code"]
    """``link`` for a path on this server, ``code`` for text to copy."""
    text: str
    """The path, or the text to copy."""
    hint: str
    """One or two sentences of advice."""


class OpenInModel(_ResponseModel):
    """The programs that can open a scan."""

    options: tuple[OptionModel, ...]


def answer_open_in(
    source: PatchSource, request: Request, store: str, scan_id: str, *, needs_token: bool
) -> Answer:
    """List the programs that can open a scan, with the address that the client used.

    Parameters
    ----------
    source
        Reads the scans of the store.
    request
        The request.
    store, scan_id
        Names of store and scan.
    needs_token
        Whether the server requires tokens.
    """
    origin = origin_of(request)
    if origin is None:
        return text_answer(HTTPStatus.BAD_REQUEST, "The request names no host.")
    try:
        scan = OpenedScan.of(source, scan_id, None).scan
    except RefusedError as refusal:
        return refusal.answer
    served_scan = ServedScan(
        origin,
        store,
        scan_id,
        has_label=scan.label is not None,
        needs_token=needs_token,
        masks=tuple(scan.masks),
    )
    options = tuple(
        OptionModel(name=option.name, kind=option.kind, text=option.text, hint=option.hint)
        for option in open_in_options(served_scan)
    )
    return json_answer(OpenInModel(options=options).model_dump(mode="json"), "no-store")
