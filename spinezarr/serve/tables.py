"""How are stores and scans listed as JSON?

The paths are ``/v1/stores``, ``/v1/<store>`` and ``/v1/<store>/scans``.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import compress
from threading import Lock, Thread
from typing import Annotated, Any, Final, Literal

import numpy as np
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field, computed_field

from spinezarr.errors import DamagedMetadataError, SpinezarrError, UnknownScanError, UsageError
from spinezarr.serve.body import Body
from spinezarr.serve.http import Answer, Request, json_answer, text_answer
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.patches import batch_limits
from spinezarr.serve.query import QueryModel, WrongQueryError, parse_query
from spinezarr.serve.served_files import ServedFolder
from spinezarr.store.attributes import ScanAttributes, is_scan_id
from spinezarr.store.audit_log import AUDIT_FILE, AuditLog
from spinezarr.store.layout import ARRAY_NAME, LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.stream.read.batch_limits import BatchLimits
from spinezarr.stream.read.cache import BoundedCache
from spinezarr.vertebrae import LEVELS

__all__ = [
    "OneStoreModel",
    "ScanModel",
    "ScansModel",
    "ScansQuery",
    "ServedTable",
    "StoresModel",
    "answer_scan",
    "answer_scans",
    "answer_store",
    "answer_stores",
    "prepare_tables",
]

_ANSWERS_BYTES: Final = 32 << 20
"""Memory for answers about one table, in bytes; a list of 10,000 scans takes 8 MB."""
_VERSION_FILES: Final = ("zarr.json", "table/zarr.json")
"""Files that change whenever the table changes."""
_Level = Literal[LEVELS]  # type: ignore[valid-type]  # as mypy wants them written out
_Count = Annotated[int, Field(ge=0)]


class _ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class StoreModel(_ResponseModel):
    """A store, as its root and its scan table describe it."""

    name: str
    zarr: str
    """Path on this server for Zarr clients."""
    dataset: str
    title: str
    license: str
    citation: str
    homepage: str | None
    scans: _Count
    splits: dict[str, _Count]
    """Number of scans of each split."""
    stored_bytes: _Count
    source_bytes: _Count
    """Size of the files that the store was made from."""


class OneStoreModel(StoreModel):
    """A store, with the limits of requests for its patches."""

    batch: BatchLimits


class UnreadableStoreModel(_ResponseModel):
    """A store that cannot be read."""

    name: str
    zarr: str
    error: str


class StoresModel(_ResponseModel):
    """The stores that are served."""

    stores: tuple[StoreModel | UnreadableStoreModel, ...]


class RowModel(_ResponseModel):
    """A scan, as the scan table describes it."""

    scan_id: str
    split: str
    source: str
    label_state: str
    anomaly: str
    """Anatomical variant that the dataset names; often empty."""
    erratum: str
    """Known error of the mask; often empty."""
    audit: str
    """Severity of the worst finding of the last audit; empty without an audit."""
    content_checksum: str
    """Checksum of the voxels and their positions, which names the version of the scan."""
    shape_zyx: tuple[_Count, _Count, _Count]
    spacing_zyx_mm: tuple[float, float, float]
    stored_bytes: _Count
    vertebrae: tuple[str, ...]
    """Vertebrae that the mask ``label`` shows."""
    masks: tuple[str, ...]
    """Names of all masks, ``label`` first; empty for a scan without a mask."""


class ScansModel(_ResponseModel):
    """Scans, in the order of the store's table."""

    scans: tuple[RowModel, ...]


class ScanModel(ScanAttributes):
    """All attributes of a scan, except the list of its files."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    manifest: Annotated[dict[str, Any], Field(exclude=True)]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def content_checksum(self) -> str:
        """Checksum of the voxels and their positions, which names the version of the scan."""
        return super().content_checksum


class ScansQuery(QueryModel):
    """The scans to list. They match all given filters."""

    split: str | None = None
    source: str | None = None
    """Collection within the dataset."""
    vertebra: _Level | None = None
    """Vertebra that the mask ``label`` must show."""
    mask: Annotated[str, Field(pattern=ARRAY_NAME)] | None = None
    """Mask that the scan must have: ``label`` or a further one."""
    anomaly: Literal["true"] | None = None
    """``true`` for scans with an anatomical variant."""
    erratum: Literal["true"] | None = None
    """``true`` for scans with a known error of the mask."""
    audit: Literal["ok", "info", "warning", "error", "none"] | None = None
    """Severity of the worst finding of the last audit; ``none`` for scans without an audit."""


@dataclass(frozen=True, slots=True, eq=False)
class _TableVersion:
    """One version of a scan table, and the answers about it."""

    version: tuple[str, ...]
    reader: StoreReader
    answers: BoundedCache[str, Body]


class ServedTable:
    """The current scan table of one store; safe to share between threads.

    Parameters
    ----------
    files
        Files of the store.
    limits
        Bounds on requests for patches of the store.
    """

    def __init__(self, files: ServedFolder, limits: ServeLimits) -> None:
        self.limits = limits
        self._files = files
        self._lock = Lock()
        self._table_version: _TableVersion | None = None
        self._log: tuple[str, AuditLog] | None = None

    def reader(self) -> StoreReader:
        """Return a reader with the current table.

        Raises
        ------
        SpinezarrError
            If the store cannot be read.
        """
        return self._current().reader

    def _current(self) -> "_TableVersion":
        files = map(self._files.current_file, _VERSION_FILES)
        version = tuple("" if file is None else file.etag for file in files)
        with self._lock:
            if self._table_version is None or self._table_version.version != version:
                reader = self._files.reader(with_table=True)
                reader.table  # noqa: B018  later it may be of another version
                self._table_version = _TableVersion(version, reader, BoundedCache(_ANSWERS_BYTES))
            return self._table_version

    def body(self, question: str, make: Callable[[xr.Dataset], Mapping[str, Any]]) -> Body:
        """Return an answer about the current table, which is computed once for each version.

        Parameters
        ----------
        question
            Key of the answer.
        make
            Computes the answer from the table.

        Raises
        ------
        SpinezarrError
            If the store cannot be read.
        """
        current = self._current()
        body = current.answers.find([question]).get(question)
        if body is None:
            body = Body.of(make(current.reader.table))
            current.answers.keep({question: body})
        return body

    def audit_log(self) -> AuditLog:
        """Return the findings of the last audits. The log is empty if it is absent or damaged.

        Raises
        ------
        UnreadableError
            If a bucket does not answer.
        """
        file = self._files.current_file(AUDIT_FILE)
        if file is None or file.data is None:
            return AuditLog()
        with self._lock:
            if self._log is None or self._log[0] != file.etag:
                try:
                    log = AuditLog.of_file(file.data)
                except DamagedMetadataError:  # 'spinezarr verify' reports it
                    log = AuditLog()
                self._log = file.etag, log
            return self._log[1]

    def may_have(self, scan_id: str) -> bool:
        """Whether a scan of that name can exist in this store."""
        return is_scan_id(scan_id) and self._files.may_have(scan_id)


def prepare_tables() -> None:
    """Import in a thread the modules that would delay the first table by a second."""
    Thread(target=_import_duck_arrays, name="spinezarr-prepare").start()


def _import_duck_arrays() -> None:
    # Dask registers a function to run at exit, which fails if the interpreter is ending.
    with suppress(RuntimeError):
        xr.Variable((), 0)


def answer_stores(served_tables: Mapping[str, Callable[[], ServedTable | None]]) -> Answer:
    """List the stores. For a store that cannot be read, the list holds an error.

    Parameters
    ----------
    served_tables
        Functions that return the scan table of each store, by name.
    """
    models: list[StoreModel | UnreadableStoreModel] = []
    for name, open_table in served_tables.items():
        try:
            table = open_table()
            if table is not None:
                models.append(_store_model(name, table.reader()))
        except (SpinezarrError, OSError):
            error = "it cannot be read"
            models.append(UnreadableStoreModel(name=name, zarr=f"/zarr/{name}", error=error))
    return _json(StoresModel(stores=tuple(models)))


def answer_store(name: str, served_table: ServedTable) -> Answer:
    """Describe a store, and the limits of requests for its patches."""
    return _json(
        OneStoreModel(
            **dict(_store_model(name, served_table.reader())),
            batch=batch_limits(served_table.limits),
        )
    )


def _store_model(name: str, reader: StoreReader) -> StoreModel:
    table, root = reader.table, reader.root
    splits, counts = np.unique(table.split.to_numpy().astype(str), return_counts=True)
    return StoreModel(
        name=name,
        zarr=f"/zarr/{name}",
        dataset=root.dataset,
        title=root.title,
        license=root.license,
        citation=root.citation,
        homepage=root.homepage,
        scans=table.sizes["scan"],
        splits=dict(zip(splits.tolist(), counts.tolist(), strict=True)),
        stored_bytes=int(table.stored_bytes.sum()),
        source_bytes=int(table.source_bytes.sum()),
    )


def answer_scans(served_table: ServedTable, request: Request) -> Answer:
    """List the scans of a store, in the order of its table.

    Parameters
    ----------
    served_table
        Scan table of the store.
    request
        The request; its query is a :class:`ScansQuery`.
    """
    try:
        query = parse_query(ScansQuery, request.query)
    except WrongQueryError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))

    def choose(table: xr.Dataset) -> dict[str, Any]:
        return {"scans": list(_rows(_matching_scans(table, query)))}

    return served_table.body(f"scans {query.model_dump_json()}", choose).answer(request)


def _matching_scans(table: xr.Dataset, query: ScansQuery) -> xr.Dataset:
    try:
        selection = ScanSelection.of(split=query.split, source=query.source)
        table = table.isel(scan=selection.rows(table, "the store"))
    except UsageError:  # no scan has such a split or source
        return table.isel(scan=slice(0))
    matches = np.ones(table.sizes["scan"], bool)
    if query.vertebra is not None:
        matches &= table.voxel_count.sel(vertebra=query.vertebra).to_numpy() > 0
    for name in ("anomaly", "erratum"):
        if getattr(query, name) is not None:
            matches &= table[name].to_numpy().astype(str) != ""
    if query.mask is not None:
        matches &= np.array([query.mask in names for names in _mask_names(table)], bool)
    if query.audit is not None:
        severity = "" if query.audit == "none" else query.audit
        matches &= table.audit.to_numpy().astype(str) == severity
    return table.isel(scan=np.flatnonzero(matches))


def _rows(table: xr.Dataset) -> Iterator[dict[str, Any]]:
    """Yield the fields of a :class:`RowModel` for each scan.

    Creating models would take most of the time.
    """
    texts = ("split", "source", "label_state", "anomaly", "erratum", "audit", "content_checksum")
    columns = [table[name].to_numpy().astype(str).tolist() for name in ("scan", *texts)]
    numbers = (table.shape_zyx, table.spacing_zyx_mm, table.stored_bytes)
    columns += [column.to_numpy().tolist() for column in numbers]
    columns.append(_mask_names(table))
    is_visible = (table.voxel_count.to_numpy() > 0).tolist()
    names = ("scan_id", *texts, "shape_zyx", "spacing_zyx_mm", "stored_bytes", "masks")
    for row, is_level_visible in zip(zip(*columns, strict=True), is_visible, strict=True):
        yield {
            **dict(zip(names, row, strict=True)),
            "vertebrae": list(compress(LEVELS, is_level_visible)),
        }


def _mask_names(table: xr.Dataset) -> list[list[str]]:
    """Return the names of the masks of each scan, ``label`` first."""
    states = table.label_state.to_numpy().astype(str).tolist()
    further = table.masks.to_numpy().astype(str).tolist()
    return [
        [*([] if state == "none" else [LABEL]), *names.split()]
        for state, names in zip(states, further, strict=True)
    ]


def answer_scan(served_table: ServedTable, scan_id: str) -> Answer:
    """Answer with all attributes of a scan."""
    if not served_table.may_have(scan_id):
        return text_answer(HTTPStatus.NOT_FOUND, "There is no such scan.")
    try:
        attributes = served_table.reader().scan(scan_id).attributes
    except UnknownScanError:
        return text_answer(HTTPStatus.NOT_FOUND, "There is no such scan.")
    return _json(ScanModel.model_construct(None, **dict(attributes)))


def _json(value: BaseModel) -> Answer:
    return json_answer(value.model_dump(mode="json"))
