"""How are all scans of a run written, such as those of an ingest, and what is reported?

Each scan is a task for workers. A scan that fails does not stop the others. Only this process
writes the files that all scans share: the scan table and the ledger.
"""

import time
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, fields
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol

from spinezarr.errors import LostLockError, ReadOnlyStoreError, UsageError
from spinezarr.ingestion.discovery.discover import (
    Discovery,
    MissingScans,
    PathNote,
    TableUse,
    UnpairedImage,
)
from spinezarr.ingestion.job import (
    Job,
    Outcome,
    ScanInput,
    ScanResult,
    ScanTask,
    Source,
    run_task,
)
from spinezarr.ingestion.pseudonyms import Pseudonyms
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.ingestion.task import IngestJob
from spinezarr.processors import cpu_count
from spinezarr.recipe import Recipe
from spinezarr.redaction import redact_url
from spinezarr.store.attributes import RootAttributes, ScanAttributes
from spinezarr.store.audit_log import scan_identity
from spinezarr.store.layout import FORMAT_VERSION, LARGEST_SCANS, profile_named
from spinezarr.store.ledger import FolderRecord, LedgerEntry
from spinezarr.store.table import natural_key, table_attributes
from spinezarr.store.writer import StoreWriter

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "FailedScan",
    "IngestReport",
    "Listener",
    "LocalThreads",
    "RunReport",
    "Workers",
    "ingest",
    "open_writer",
    "run_job",
]

_CANNOT_REPAIR: Final = (
    "its stored files are damaged, and its source files are not in the raw folder. Put them there "
    "and run the command again, or copy the scan from an undamaged store."
)
_TABLE_INTERVAL_S: Final = 60.0
"""Seconds between two updates of the scan table during an ingest, for concurrent readers."""


@dataclass(frozen=True, slots=True)
class FailedScan:
    """A scan that could not be written, and why."""

    scan_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class RunReport:
    """The result of a run that writes scans."""

    store: str
    """Path or URL of the store, without secrets."""
    done: tuple[str, ...]
    updated: tuple[str, ...]
    """Scans of which only metadata have changed, such as those from recipe, splits or tables."""
    skipped: tuple[str, ...]
    """Scans that were already up to date in the store."""
    failed: tuple[FailedScan, ...]
    from_earlier_runs: tuple[str, ...]
    """Scans from earlier runs that are not among those of this run; they stay in the store."""
    notes: dict[str, tuple[str, ...]]
    """Notes for the user on scans that are done or updated, by scan id."""
    source_bytes: int
    """Size of the sources of the scans that are done."""
    stored_bytes: int
    seconds: float
    problem: str
    """Reason why the scan table could not be written; empty if it was written.

    The scans that are done are in the store in any case.
    """

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if each scan of the run is in the store and its table, else 1."""
        return 1 if self.failed or self.problem else 0


@dataclass(frozen=True, slots=True)
class IngestReport(RunReport):
    """The result of an ingest."""

    without_mask: tuple[UnpairedImage, ...]
    """Images that should have a mask and have none; they count as failed."""
    without_image: tuple[PathNote, ...]
    """Masks whose image is absent."""
    orphans_expected: bool
    """Whether the recipe expects masks without an image. If so, they do not count as failures."""
    unlisted: tuple[PathNote, ...]
    """Folders that could not be listed."""
    ignored: tuple[PathNote, ...]
    """All other files that belong to no scan."""
    absent: tuple[str, ...]
    """Scans that the split file lists and that are not in the raw folder."""
    tables: tuple[TableUse, ...]
    """Every table of the recipe, with the rows that belong to no scan."""
    missing: tuple[MissingScans, ...] = ()
    """Splits that are incomplete, with the downloads that have the other scans."""
    nii_gz_bytes: int | None = None
    """Estimated size that the scans that are done would have as ``.nii.gz``.

    None if their files are ``.nii.gz`` already.
    """

    @property
    def orphans_failed(self) -> bool:
        """Whether masks lack an image although the recipe expects one for each."""
        return bool(self.without_image) and not self.orphans_expected

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if each scan of the raw folder is in the store and its table, else 1."""
        left_out = self.failed or self.orphans_failed or self.unlisted
        return 1 if left_out or self.problem else 0


class Listener(Protocol):
    """Receives the progress of a run, in the thread that runs it."""

    def started(self, source: ScanInput) -> None:
        """Handle the start of a scan."""

    def advanced(self, source: ScanInput, share: float) -> None:
        """Handle that a further ``share`` (0 to 1) of a scan is done.

        The share is negative if a part is repeated.
        """

    def finished(self, source: ScanInput, outcome: Outcome) -> None:
        """Handle the end of a scan."""


class _SilentListener:
    """A listener that reports nothing."""

    def started(self, source: ScanInput) -> None: ...

    def advanced(self, source: ScanInput, share: float) -> None: ...

    def finished(self, source: ScanInput, outcome: Outcome) -> None: ...


class Workers(Protocol):
    """Runs tasks, and limits how many are under way."""

    def run(
        self, job: Job[Source], tasks: Iterable[ScanTask[Source]], listener: Listener
    ) -> Generator[ScanResult]:
        """Yield results as they arrive; take a further task whenever a worker is free.

        Once the generator is closed, no worker writes any more files.
        """
        ...


class LocalThreads:
    """Makes one scan after the other in this process; all cores encode its chunks."""

    def run(
        self, job: Job[Source], tasks: Iterable[ScanTask[Source]], listener: Listener
    ) -> Generator[ScanResult]:
        """See :class:`Workers`."""
        threads = cpu_count()
        with ThreadPoolExecutor(threads, thread_name_prefix="spinezarr-encode") as pool:
            for task in tasks:
                listener.started(task.source)
                yield run_task(job, task, pool, partial(listener.advanced, task.source))


def ingest(
    recipe: Recipe,
    discovery: Discovery,
    out: str,
    *,
    options: ScanOptions | None = None,
    license: str | None = None,
    codec: str | None = None,
    listener: Listener | None = None,
    workers: Workers | None = None,
    raw_options: Mapping[str, Any] | None = None,
    out_options: Mapping[str, Any] | None = None,
    find_damaged: Callable[[], Collection[str]] | None = None,
) -> IngestReport:
    """Ingest every scan of ``discovery`` into the store at ``out``.

    Scans that are in the store and whose files have not changed are skipped. A second run therefore
    does only what is missing. An image whose mask is absent counts as failed, and so does a scan
    whose file names cannot be used.

    Parameters
    ----------
    recipe
        Recipe of the dataset.
    discovery
        Scans and files that :func:`spinezarr.ingestion.discovery.discover.discover` found.
    out
        Path or URL of the store, which is created if it does not exist.
    options
        Options for all scans.
    license
        License of the data, if it differs from the recipe's.
    codec
        Name of the codec profile; by default that of the store, or ``balanced`` for a new one.
    listener
        Receives the progress. By default, progress is not reported.
    workers
        Workers that ingest the scans. By default, threads of this process.
    raw_options, out_options
        Options for the file systems of the raw folder and of the store.
    find_damaged
        Function that returns the scans with a damaged stored file, such as
        :attr:`spinezarr.verify.store.Verification.damaged_scans`. It is called once the store is
        locked. These scans are read again from their source files, and the table and the ledger are
        written anew. Without it, the stored files are not checked.

    Raises
    ------
    UsageError
        If something other than a store lies at ``out``, if the store cannot be written or has
        another codec profile, or if no scan is in a format that spinezarr reads.
    StoreBusyError
        If another process is writing the store.
    LostLockError
        If another process has taken over the store during the ingest.
    """
    if license is not None:
        recipe = recipe.model_copy(update={"license": license})
    discovery.check_formats()
    if len(discovery.scans) > LARGEST_SCANS:
        raise UsageError(
            f"{discovery.raw}: has {len(discovery.scans)} scans, and a store holds at most "
            f"{LARGEST_SCANS}. Make several stores, with a recipe for each part."
        )
    options = options or ScanOptions()
    repair = find_damaged is not None
    store = _open_store(recipe, out, codec, options.pseudonyms, out_options, repair=repair)
    report = run_job(
        IngestJob(recipe, discovery.raw, raw_options or {}, store, options),
        discovery.scans,
        purpose="an ingest",
        failing=discovery.failing,
        # Records of headers may name a series. Pseudonyms must hide such names.
        folders={} if options.pseudonyms else discovery.folders,
        listener=listener,
        workers=workers,
        find_damaged=find_damaged,
    )
    return IngestReport(
        **{item.name: getattr(report, item.name) for item in fields(report)},
        without_mask=discovery.without_mask,
        without_image=discovery.without_image,
        orphans_expected=discovery.orphans_expected,
        unlisted=discovery.unlisted,
        ignored=discovery.ignored,
        absent=discovery.absent,
        tables=discovery.tables,
        missing=discovery.missing,
    )


def run_job(
    job: Job[Source],
    sources: Sequence[Source],
    *,
    purpose: str,
    failing: Iterable[tuple[str, str]] = (),
    folders: Mapping[str, FolderRecord] = MappingProxyType({}),
    listener: Listener | None = None,
    workers: Workers | None = None,
    find_damaged: Callable[[], Collection[str]] | None = None,
) -> RunReport:
    """Write the scans of a job into its store, then the scan table and the ledger.

    Parameters
    ----------
    job
        Settings of the run.
    sources
        Sources of the scans. Those with unchanged inputs are skipped.
    purpose
        Operation that needs the lock of the store, such as "an ingest", for messages.
    failing
        Ids of scans that cannot be written, and why.
    folders
        Records of folders of DICOM files for the ledger.
    listener, workers, find_damaged
        See :func:`ingest`.

    Raises
    ------
    UsageError
        If the store cannot be written.
    StoreBusyError, LostLockError
        If another process is writing the store, or has taken it over during the run.
    """
    started = time.monotonic()
    listener, store = listener or _SilentListener(), job.store
    repair = find_damaged is not None
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(store.lock(purpose))
        except ReadOnlyStoreError as problem:
            raise UsageError(str(problem)) from problem
        if repair:
            store.registry.drop_damaged_audit_log()
        store.registry.audit_log()  # a damaged log ends the run before any work is done
        state = _StoreState.load(store, recover=lock.took_over, repair=repair)
        damaged = frozenset(find_damaged() if find_damaged is not None else ())
        state.record_folders(dict(folders))
        run = _Run(job, sources, state, failing=list(failing), listener=listener, damaged=damaged)
        try:
            with closing((workers or LocalThreads()).run(job, run.tasks(), listener)) as results:
                for result in results:
                    run.record(result)
        except LostLockError:
            raise
        except BaseException:
            run.record_unreported()
            run.write_table()
            raise
        run.write_table()
        return run.report(time.monotonic() - started)


def _open_store(
    recipe: Recipe,
    out: str,
    codec: str | None,
    pseudonyms: Pseudonyms | None,
    storage_options: Mapping[str, Any] | None,
    *,
    repair: bool,
) -> StoreWriter:
    root = RootAttributes(
        format_version=FORMAT_VERSION,
        dataset=recipe.name,
        title=recipe.title,
        license=recipe.license,
        citation=recipe.citation,
        homepage=recipe.homepage,
        codec_profile=None if codec is None else profile_named(codec).name,
        pseudonym_key=None if pseudonyms is None else pseudonyms.fingerprint,
    )
    return open_writer(out, root, storage_options, repair=repair)


def open_writer(
    out: str,
    root: RootAttributes,
    storage_options: Mapping[str, Any] | None,
    *,
    repair: bool = False,
) -> StoreWriter:
    """Open a store for a run, or start a new one; see :class:`.StoreWriter`.

    Raises
    ------
    UsageError
        If it cannot be written, or something else lies at its place.
    """
    try:
        return StoreWriter(out, root, storage_options, repair=repair)
    except OSError as problem:
        raise UsageError(
            f"{redact_url(out)}: cannot be written: {problem.strerror or problem}. Choose another "
            "path."
        ) from problem


class _StoreState:
    """State of the store: the results of the last run, and the changes since then."""

    def __init__(
        self,
        store: StoreWriter,
        table: "xr.Dataset | None",
        entries: dict[str, LedgerEntry],
        changed: dict[str, ScanAttributes],
        folders: dict[str, FolderRecord],
    ) -> None:
        self._folders = folders
        self._store = store
        self._table = table
        self.entries = entries
        self._changed = changed
        self._is_written = table is not None and table.attrs == table_attributes(store.root)

    @classmethod
    def load(cls, store: StoreWriter, *, recover: bool, repair: bool) -> "_StoreState":
        """Read table and ledger; read the whole store if the last run did not end properly."""
        ledger = store.registry.ledger()
        if ledger is not None and not recover and not repair:
            table = store.registry.table()
            names = set() if table is None else set(table.scan.to_numpy().tolist())
            if names == ledger.scans.keys() and names <= store.scans.folder_names():
                return cls(store, table, dict(ledger.scans), {}, ledger.folders)
        old_entries = {} if ledger is None else ledger.scans
        scans = store.recover({} if ledger is None or repair else ledger.identities)
        entries: dict[str, LedgerEntry] = {}
        for scan_id, scan in scans.items():
            identity = scan_identity(scan)
            entry = old_entries.get(scan_id)
            if entry is None or entry.identity != identity:
                entry = LedgerEntry(inputs="", stamp="", identity=identity)
            entries[scan_id] = entry
        return cls(store, None, entries, scans, {})

    def change(self, scan: ScanAttributes, inputs: str, stamp: str) -> None:
        """Record a scan that a worker has published or confirmed."""
        entry = LedgerEntry(inputs=inputs, stamp=stamp, identity=scan_identity(scan))
        old_entry = self.entries.get(scan.scan_id)
        if old_entry is None or old_entry.identity != entry.identity:
            self._changed[scan.scan_id] = scan
        self.entries[scan.scan_id] = entry
        self._is_written = False

    def record_folders(self, folders: dict[str, FolderRecord]) -> None:
        """Record what the headers in folders of DICOM files state."""
        self._is_written &= folders == self._folders
        self._folders = folders

    def write(self) -> None:
        """Update the scan table of the store if anything has changed."""
        if not self._is_written:
            self._table = self._store.registry.write_table(
                self._table, self._changed, self.entries, self._folders
            )
            self._changed = {}
            self._is_written = True


class _Run(Generic[Source]):
    """The state of one run."""

    def __init__(
        self,
        job: Job[Source],
        sources: Sequence[Source],
        state: _StoreState,
        *,
        failing: Sequence[tuple[str, str]],
        listener: Listener,
        damaged: frozenset[str],
    ) -> None:
        self._job = job
        self._damaged = damaged
        self._state = state
        self._listener = listener
        self._sources = {source.scan_id: source for source in sources}
        present_ids = self._sources.keys() | {scan_id for scan_id, _ in failing}
        self._from_earlier_runs = tuple(sorted(state.entries.keys() - present_ids, key=natural_key))
        self._inputs: dict[str, str] = {}
        """Hash of the inputs of each scan that a worker has."""
        self._done: list[ScanAttributes] = []
        self._updated: list[ScanAttributes] = []
        self._skipped: list[str] = []
        self._failed = [FailedScan(scan_id, reason) for scan_id, reason in failing]
        self._failed += [
            FailedScan(scan_id, _CANNOT_REPAIR)
            for scan_id in sorted(damaged - present_ids, key=natural_key)
        ]
        self._problem = ""
        self._unclean = False
        self._table_written = time.monotonic()

    def tasks(self) -> Iterator[ScanTask[Source]]:
        """Yield the scans to write; skip those with unchanged inputs."""
        inputs_of = self._job.input_hasher()
        for source in self._sources.values():
            inputs = inputs_of(source)
            entry = self._state.entries.get(source.scan_id)
            damaged = source.scan_id in self._damaged
            if entry is not None and entry.inputs == inputs and not damaged:
                self._skipped.append(source.scan_id)
                self._listener.finished(source, "already in the store")
                continue
            self._inputs[source.scan_id] = inputs
            same_files = entry is not None and entry.stamp == self._job.stamp_of(source)
            stored = entry is not None
            yield ScanTask(source, stored=stored, same_files=same_files, damaged=damaged)

    def record(self, result: ScanResult) -> None:
        """Record the result of a task."""
        source = self._sources[result.scan_id]
        inputs = self._inputs.pop(result.scan_id)
        if result.scan is None:
            self._failed.append(FailedScan(result.scan_id, result.reason))
            self._unclean |= result.unclean
        else:
            self._state.change(result.scan, inputs, self._job.stamp_of(source))
            if result.outcome == "done":
                self._done.append(result.scan)
            elif result.outcome == "updated":
                self._updated.append(result.scan)
            else:
                self._skipped.append(result.scan_id)
        self._listener.finished(source, result.outcome)
        if time.monotonic() - self._table_written > _TABLE_INTERVAL_S:
            self.write_table()

    def record_unreported(self) -> None:
        """Record scans that workers have published but could not report."""
        for scan_id in self._inputs:
            scan = self._job.store.scans.published(scan_id)
            if scan is not None:
                self._state.change(scan, "", "")  # the next run compares it with its sources

    def write_table(self) -> None:
        """Update the scan table of the store, or record why that failed."""
        try:
            self._state.write()
            self._problem = ""
            if self._unclean:
                self._job.store.registry.forget_ledger()
        except LostLockError:
            raise
        except OSError as problem:
            self._problem = (
                f"{self._job.store.name}: the scan table could not be written: "
                f"{problem.strerror or problem}. The scans that are done are in the store: run "
                "the same command again once it can be written."
            )
            self._job.store.registry.forget_ledger()
        self._table_written = time.monotonic()

    def report(self, seconds: float) -> RunReport:
        """Return the report, in the order of the sources."""
        position = {scan_id: i for i, scan_id in enumerate(self._sources)}
        done, updated = (
            sorted(scans, key=lambda scan: position[scan.scan_id])
            for scans in (self._done, self._updated)
        )
        return RunReport(
            store=self._job.store.name,
            done=tuple(scan.scan_id for scan in done),
            updated=tuple(scan.scan_id for scan in updated),
            skipped=tuple(sorted(self._skipped, key=position.__getitem__)),
            failed=tuple(sorted(self._failed, key=lambda scan: position.get(scan.scan_id, -1))),
            from_earlier_runs=self._from_earlier_runs,
            notes={scan.scan_id: scan.notes for scan in (*done, *updated) if scan.notes},
            source_bytes=sum(scan.source_bytes for scan in done),
            stored_bytes=sum(entry.size_bytes for scan in done for entry in scan.manifest.values()),
            seconds=seconds,
            problem=self._problem,
        )
