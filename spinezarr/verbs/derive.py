"""How is a store made from a store, given the scans, masks, spacing and part that a user wants?"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spinezarr.derive.job import DeriveJob, StoredSource
from spinezarr.derive.parameters import Derivation
from spinezarr.derive.scan import ScanOrigin
from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.ingestion.run import RunReport, open_writer, run_job
from spinezarr.progress import OnProgress
from spinezarr.store.layout import LABEL, profile_named
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.store.selection import ScanSelection
from spinezarr.verbs.export import scans_to_share
from spinezarr.verbs.ingest import check_workers, open_workers
from spinezarr.verbs.ingest_progress import IngestProgress

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["DeriveReport", "derive"]


@dataclass(frozen=True, slots=True)
class DeriveReport(RunReport):
    """The result of deriving a store."""

    source: str
    """Path or URL of the store that was read, without secrets."""
    derivation: str
    """How the scans were derived, for people."""
    left_out: Mapping[str, str]
    """License of each scan that was left out because it allows no derivatives, by scan id."""


def derive(
    reader: StoreReader,
    selection: ScanSelection,
    out: str,
    derivation: Derivation,
    *,
    layers: Sequence[str] | None,
    codec: str | None,
    workers: int | None,
    scheduler: "str | Client | None",
    scratch: str | None,
    include_restricted: bool,
    storage_options: Mapping[str, Any],
    on_progress: OnProgress,
) -> DeriveReport:
    """Make a store from a store; see :meth:`spinezarr.Store.derive`."""
    check_workers(workers, scheduler, scratch)
    # Scans may have been replaced since the store was opened.
    reader = StoreReader(reader.url, reader.storage_options)
    if _is_same_place(reader.url, out):
        raise UsageError(f"{reader.name}: is the store that is read. Choose another place.")
    scan_ids, left_out = scans_to_share(reader, selection, include_restricted=include_restricted)
    _check_layers(reader, scan_ids, layers)
    sources, failing = _sources(reader, scan_ids, layers, derivation)
    description = derivation.describe()
    if reader.root.derivation is not None:
        description = f"{reader.root.derivation}; then {description}"
    root = reader.root.model_copy(
        update={
            "codec_profile": None if codec is None else profile_named(codec).name,
            "derived_from": reader.name,
            "derivation": description,
        }
    )
    options = storage_options if "://" in out else {}
    job = DeriveJob(
        source_url=reader.url,
        source_options=reader.storage_options or {},
        store=open_writer(out, root, options),
        derivation=derivation,
        scratch=scratch,
    )
    with open_workers(workers, scheduler, on_progress, "derive") as cluster:
        report = run_job(
            job,
            sources,
            purpose="'spinezarr derive'",
            failing=failing,
            listener=IngestProgress(sources, on_progress, "derive"),
            workers=cluster,
        )
    return DeriveReport(
        **{item.name: getattr(report, item.name) for item in fields(report)},
        source=reader.name,
        derivation=description,
        left_out=left_out,
    )


def _is_same_place(store: str, other: str) -> bool:
    """Whether two paths or URLs lead to one store."""
    if "://" in store or "://" in other:
        return store.rstrip("/") == other.rstrip("/")
    return Path(store).resolve() == Path(other).resolve()


def _check_layers(
    reader: StoreReader, scan_ids: Sequence[str], layers: Sequence[str] | None
) -> None:
    """Refuse a mask that none of the scans has."""
    if not layers:
        return
    listed = reader.columns
    rows = ScanSelection.of(scans=scan_ids).rows(listed, reader.name)
    present = {name for cell in listed.take(rows)["masks"] for name in cell.split()}
    for name in layers:
        if name == LABEL:
            raise UsageError(f"--layers {LABEL}: a derived store has this mask in any case.")
        if name not in present:
            raise UsageError(
                f"{reader.name}: none of the chosen scans has a mask {name!r}; beside {LABEL} they "
                f"have {', '.join(sorted(present)) or 'none'}."
            )


def _sources(
    reader: StoreReader,
    scan_ids: Sequence[str],
    layers: Sequence[str] | None,
    derivation: Derivation,
) -> tuple[list[StoredSource], list[tuple[str, str]]]:
    """Return the sources of the scans, and the scans that cannot be derived with the reason."""
    sources: list[StoredSource] = []
    failing: list[tuple[str, str]] = []
    with suppress(SpinezarrError):  # the loop finds the scan again and reports it
        reader.prefetch_scans(scan_ids)
    for scan_id in scan_ids:
        try:
            scan = reader.scan(scan_id)
            origin = ScanOrigin.of(reader.name, scan, _masks(scan, layers), derivation)
            sources.append(StoredSource.of(origin))
        except SpinezarrError as problem:
            failing.append((scan_id, str(problem)))
    return sources, failing


def _masks(scan: ScanHandle, layers: Sequence[str] | None) -> list[str]:
    """Return the names of the further masks of a scan that are carried over."""
    return [name for name in scan.masks if layers is None or name in layers]
