"""What stores and scans are, as JSON: ``/v1/stores``, ``/v1/<store>/scans``."""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from threading import Lock
from typing import Any, Final
from urllib.parse import parse_qsl

import numpy as np
import xarray as xr

from spinezarr.errors import SpinezarrError, UnknownScanError, UsageError
from spinezarr.serve.http import Answer, explained
from spinezarr.serve.objects import ServedFolder
from spinezarr.serve.patches import LIMITS
from spinezarr.stats.statistics import select_scans
from spinezarr.store.attributes import is_scan_id
from spinezarr.store.reader import StoreReader
from spinezarr.text import json_text
from spinezarr.vertebrae import LEVELS

__all__ = ["StoreFacts", "answer_scan", "answer_scans", "answer_store", "answer_stores"]

_TABLE: Final = "table/zarr.json"
_FILTERS: Final = ("split", "source", "vertebra", "anomaly")


class StoreFacts:
    """The scan table of one store, as it is now; safe to share between threads.

    Parameters
    ----------
    files
        Of the store.
    """

    def __init__(self, files: ServedFolder) -> None:
        self._files = files
        self._lock = Lock()
        self._known: tuple[str, StoreReader] | None = None

    def reader(self) -> StoreReader:
        """Return a reader whose table is the one that is there now.

        Raises
        ------
        SpinezarrError
            If the store cannot be read.
        """
        found = self._files.small(_TABLE)
        version = "" if found is None else found.etag
        with self._lock:
            if self._known is None or self._known[0] != version:
                self._known = version, self._files.reader(with_table=True)
            return self._known[1]

    def may_have(self, scan_id: str) -> bool:
        """Whether a scan of that name can be asked for."""
        return is_scan_id(scan_id) and self._files.may_have(scan_id)


def answer_stores(facts: Mapping[str, Callable[[], StoreFacts | None]]) -> Answer:
    """List stores; one that cannot be read says so in its place."""
    found = []
    for name, open_facts in facts.items():
        try:
            one = open_facts()
            if one is not None:
                found.append({"name": name, "zarr": f"/zarr/{name}", **_of_store(one.reader())})
        except (SpinezarrError, OSError):
            found.append({"name": name, "zarr": f"/zarr/{name}", "error": "it cannot be read"})
    return _json({"stores": found})


def answer_store(facts: StoreFacts) -> Answer:
    """Say what a store is, and how its patches may be asked for."""
    return _json({**_of_store(facts.reader()), "batch": LIMITS.model_dump()})


def _of_store(reader: StoreReader) -> dict[str, Any]:
    table, root = reader.table, reader.root.model_dump(mode="json")
    splits, counts = np.unique(table.split.to_numpy().astype(str), return_counts=True)
    return {
        **{key: root[key] for key in ("dataset", "title", "licence", "citation", "homepage")},
        "scans": table.sizes["scan"],
        "splits": dict(zip(splits.tolist(), counts.tolist(), strict=True)),
        "stored_bytes": int(table.stored_bytes.sum()),
        "source_bytes": int(table.source_bytes.sum()),
    }


def answer_scans(facts: StoreFacts, query: str) -> Answer:
    """List the scans of a store, in the order of its table.

    Parameters
    ----------
    facts
        Of the store.
    query
        ``split``, ``source``, ``vertebra`` (shown in the mask) and ``anomaly`` (``true``: the
        dataset names one); all that are given hold.
    """
    asked = dict(parse_qsl(query, keep_blank_values=True))
    unknown = sorted(asked.keys() - set(_FILTERS))
    if unknown or asked.get("anomaly", "true") != "true":
        return explained(
            HTTPStatus.BAD_REQUEST,
            f"Filters are {', '.join(_FILTERS[:-1])} and anomaly=true.",
        )
    try:
        table = select_scans(
            facts.reader().table, split=asked.get("split"), source=asked.get("source")
        )
    except UsageError:  # no scan is of such a split or source
        return _json({"scans": []})
    if "vertebra" in asked:
        if asked["vertebra"] not in LEVELS:
            return explained(HTTPStatus.BAD_REQUEST, f"Vertebrae are {', '.join(LEVELS)}.")
        table = table.isel(scan=table.voxel_count.sel(vertebra=asked["vertebra"]).to_numpy() > 0)
    if "anomaly" in asked:
        table = table.isel(scan=table.anomaly.to_numpy().astype(str) != "")
    return _json({"scans": [_row(table, at) for at in range(table.sizes["scan"])]})


def _row(table: xr.Dataset, at: int) -> dict[str, Any]:
    texts = ("split", "source", "label_state", "anomaly", "erratum", "audit", "content_checksum")
    counts = table.voxel_count.to_numpy()[at]
    return {
        "scan_id": str(table.scan.to_numpy()[at]),
        **{name: str(table[name].to_numpy()[at]) for name in texts},
        "shape_zyx": table.shape_zyx.to_numpy()[at].tolist(),
        "spacing_zyx_mm": table.spacing_mm.to_numpy()[at].tolist(),
        "stored_bytes": int(table.stored_bytes.to_numpy()[at]),
        "vertebrae": [name for name, n in zip(LEVELS, counts, strict=True) if n],
    }


def answer_scan(facts: StoreFacts, scan_id: str) -> Answer:
    """Say all that a store knows of a scan."""
    if not facts.may_have(scan_id):
        return explained(HTTPStatus.NOT_FOUND, "There is no such scan.")
    try:
        attributes = facts.reader().scan(scan_id).attributes
    except UnknownScanError:
        return explained(HTTPStatus.NOT_FOUND, "There is no such scan.")
    found = attributes.to_json()
    del found["manifest"]
    return _json({**found, "content_checksum": attributes.content_checksum})


def _json(value: object) -> Answer:
    return Answer(
        HTTPStatus.OK,
        {"content-type": "application/json", "cache-control": "no-cache"},
        json_text(value, indent=None).encode(),
    )
