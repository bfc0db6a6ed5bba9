"""A whole dataset: every scan once, none stopped by another, and a report of what happened."""

import os
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.ingest.annotations import BesideImage, read_beside
from spinezarr.ingest.discover import Discovery, ScanSource
from spinezarr.ingest.scan import ScanOptions, ingest_scan, said_of, source_key
from spinezarr.recipe import Recipe
from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.files import open_filesystem
from spinezarr.store.layout import FORMAT_VERSION
from spinezarr.store.table import natural_key
from spinezarr.store.writer import StoreWriter

__all__ = ["FailedScan", "IngestReport", "Listener", "Outcome", "ingest"]

_TABLE_EVERY_S: Final = 60.0
"""How often the scan table is renewed during a long ingest, for those who read along."""


Outcome = Literal["done", "updated", "already in the store", "failed"]


@dataclass(frozen=True, slots=True)
class FailedScan:
    """A scan that is not in the store, and why."""

    scan_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What an ingest did."""

    store: str
    done: tuple[str, ...]
    updated: tuple[str, ...]
    """Whole in the store; what the recipe, splits, tables and sidecars say of them is new."""
    skipped: tuple[str, ...]
    """Already whole in the store."""
    failed: tuple[FailedScan, ...]
    others: tuple[str, ...]
    """In the store from before, and not found in the raw folder; they stay."""
    notes: dict[str, tuple[str, ...]]
    """What a user should know of scans that are done or were there."""
    source_bytes: int
    """Of the files of the scans that are done."""
    stored_bytes: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 if every scan is in the store, else 1."""
        return 1 if self.failed else 0


class Listener(Protocol):
    """Hears how an ingest goes; called from the thread that runs it."""

    def started(self, source: ScanSource) -> None:
        """Hear that a scan begins."""

    def advanced(self, share: float) -> None:
        """Hear that a further ``share`` of the current scan is done."""

    def finished(self, source: ScanSource, outcome: Outcome) -> None:
        """Hear how a scan ended."""


class _Silent:
    def started(self, source: ScanSource) -> None: ...

    def advanced(self, share: float) -> None: ...

    def finished(self, source: ScanSource, outcome: Outcome) -> None: ...


def ingest(
    recipe: Recipe,
    discovery: Discovery,
    out: str,
    *,
    options: ScanOptions | None = None,
    licence: str | None = None,
    listener: Listener | None = None,
) -> IngestReport:
    """Bring every scan of ``discovery`` into the store at ``out``.

    Scans that are already whole there are skipped, so that running it again does only what is
    missing. An image whose mask is absent counts as failed.

    Parameters
    ----------
    recipe
        Of the dataset.
    discovery
        What :func:`spinezarr.ingest.discover.discover` found.
    out
        Path or URL of the store; made if it is not there.
    options
        Choices for all scans.
    licence
        Licence of the data, where it differs from the recipe's.
    listener
        Hears of progress.

    Raises
    ------
    UsageError
        If something else lies at ``out``, or it cannot be written.
    """
    if licence is not None:
        recipe = recipe.model_copy(update={"licence": licence})
    started = time.monotonic()
    store = _open_store(recipe, out)
    run = _Run(recipe, discovery, store, options or ScanOptions(), listener or _Silent())
    threads = os.cpu_count() or 1
    with ThreadPoolExecutor(threads, thread_name_prefix="spinezarr-encode") as pool:
        try:
            for source in discovery.scans:
                run.one(source, pool)
        finally:
            run.write_table()
    return run.report(time.monotonic() - started)


def _open_store(recipe: Recipe, out: str) -> StoreWriter:
    root = RootAttributes(
        format_version=FORMAT_VERSION,
        dataset=recipe.name,
        title=recipe.title,
        licence=recipe.licence,
        citation=recipe.citation,
        homepage=recipe.homepage,
    )
    try:
        store = StoreWriter(out, root)
    except OSError as problem:
        raise UsageError(f"{out}: cannot be written: {problem.strerror or problem}.") from problem
    store.audit_log()  # the table shows it: met before any work is done if it is damaged
    return store


class _Run:
    """The state of one ingest."""

    def __init__(
        self,
        recipe: Recipe,
        discovery: Discovery,
        store: StoreWriter,
        options: ScanOptions,
        listener: Listener,
    ) -> None:
        self._recipe = recipe
        self._discovery = discovery
        self._store = store
        self._options = options
        self._listener = listener
        self._raw = open_filesystem(discovery.raw)
        self._scans = {scan.scan_id: scan for scan in store.published()}
        here = {source.scan_id for source in discovery.scans}
        here |= {image.scan_id for image in discovery.without_mask}
        self._others = tuple(sorted(self._scans.keys() - here, key=natural_key))
        self._done: list[ScanAttributes] = []
        self._updated: list[str] = []
        self._skipped: list[str] = []
        self._failed = [FailedScan(image.scan_id, image.reason) for image in discovery.without_mask]
        self._table_written = time.monotonic()

    def one(self, source: ScanSource, pool: Executor) -> None:
        """Ingest one scan, whatever happens."""
        self._listener.started(source)
        try:
            outcome = self._ingest(source, pool)
        except Exception as error:  # noqa: BLE001  one bad scan never stops the others
            self._failed.append(FailedScan(source.scan_id, _reason(error)))
            outcome = "failed"
        self._listener.finished(source, outcome)
        if time.monotonic() - self._table_written > _TABLE_EVERY_S:
            self.write_table()

    def _ingest(self, source: ScanSource, pool: Executor) -> Outcome:
        beside = read_beside(*self._raw, source, self._options.limits)
        known = self._scans.get(source.scan_id)
        if known is not None and _same_files(known, source, beside):
            return self._keep(known, source, beside)
        scan = ingest_scan(
            source,
            self._recipe,
            self._discovery.raw,
            self._store,
            beside=beside,
            pool=pool,
            options=self._options,
            on_share=self._listener.advanced,
        )
        self._scans[source.scan_id] = scan
        self._done.append(scan)
        return "done"

    def _keep(self, known: ScanAttributes, source: ScanSource, beside: BesideImage) -> Outcome:
        """Skip a scan whose voxels are stored; renew what is said of it, if that has changed."""
        said = said_of(source, self._recipe, beside, known.other_labels, known.notes)
        scan = ScanAttributes.model_validate({**dict(known), **said})
        # As text: the order of columns counts too.
        if scan.model_dump_json() == known.model_dump_json():
            self._skipped.append(source.scan_id)
            return "already in the store"
        self._scans[source.scan_id] = self._store.amend(scan)
        self._updated.append(source.scan_id)
        return "updated"

    def write_table(self) -> None:
        """Bring the store's scan table up to date."""
        self._store.write_table(self._scans.values())
        self._table_written = time.monotonic()

    def report(self, seconds: float) -> IngestReport:
        """Sum up."""
        kept = (self._scans[scan_id] for scan_id in (*self._updated, *self._skipped))
        mentioned = [*self._done, *kept]
        return IngestReport(
            store=self._store.url,
            done=tuple(scan.scan_id for scan in self._done),
            updated=tuple(self._updated),
            skipped=tuple(self._skipped),
            failed=tuple(self._failed),
            others=self._others,
            notes={scan.scan_id: scan.notes for scan in mentioned if scan.notes},
            source_bytes=sum(scan.source_bytes for scan in self._done),
            stored_bytes=sum(
                entry.size_bytes for scan in self._done for entry in scan.manifest.values()
            ),
            seconds=seconds,
        )


def _same_files(scan: ScanAttributes, source: ScanSource, beside: BesideImage) -> bool:
    """Whether a stored scan was made from the files that are there now; of voxels, by size."""
    now = (source.size_bytes, source_key(source, beside))
    return (scan.source_bytes, scan.source_key) == now


def _reason(error: Exception) -> str:
    if isinstance(error, SpinezarrError):
        return str(error)
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}."
    return f"unexpected {type(error).__name__}: {error}. Please report this."
