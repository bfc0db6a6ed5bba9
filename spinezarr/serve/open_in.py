"""In which other programs can a scan be opened?

``GET /v1/<store>/scans/<scan_id>/open-in`` lists them.
"""

from http import HTTPStatus
from typing import Literal

from pydantic import BaseModel, ConfigDict

from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.opened_scan import OpenedScan
from spinezarr.serve.origin import origin_of
from spinezarr.serve.patches import PatchSource
from spinezarr.serve.version_headers import RefusedError
from spinezarr.text import to_ascii_json
from spinezarr.view.open_in import ServedScan, ways_to_open

__all__ = ["OpenInModel", "answer_open_in"]


class _ToldModel(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", use_attribute_docstrings=True
    )


class WayModel(_ToldModel):
    """One way to open a scan."""

    name: str
    """Name of the program or file."""
    kind: Literal["link", "code"]
    """``link`` is a path on this server, ``code`` is text to copy."""
    text: str
    """The path, or the text to copy."""
    hint: str
    """One or two sentences of advice."""


class OpenInModel(_ToldModel):
    """The programs that can open a scan."""

    ways: tuple[WayModel, ...]


def answer_open_in(
    source: PatchSource, request: Request, store: str, scan_id: str, *, needs_token: bool
) -> Answer:
    """List the ways to open a scan, with the address by which the client reached the server.

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
    except RefusedError as refused:
        return refused.answer
    served = ServedScan(
        origin, store, scan_id, has_label=scan.label is not None, needs_token=needs_token
    )
    ways = tuple(
        WayModel(name=way.name, kind=way.kind, text=way.text, hint=way.hint)
        for way in ways_to_open(served)
    )
    told = OpenInModel(ways=ways)
    return Answer(
        HTTPStatus.OK,
        {"content-type": "application/json", "cache-control": "no-store"},
        to_ascii_json(told.model_dump(mode="json"), indent=None).encode(),
    )
