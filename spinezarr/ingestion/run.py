"""How are all scans of a run written, such as those of an ingest, and what is reported?

Each scan is a task for workers. A scan that fails does not stop the others. Only this process
writes the files that all scans share: the scan table and the ledger.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, fields
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
    LayerResult,
    Outcome,
    ScanJob,
    ScanResult,
    ScanTask,
    Source,
    TaskSource,
    TaskT,
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
    "TABLE_INTERVAL_S",
    "Damage",
    "FailedScan",
    "IngestReport",
    "LayerReport",
    "Listener",
    "LocalThreads",
    "RunReport",
    "Workers",
    "ingest",
    "open_writer",
    "run_job",
]

TABLE_INTERVAL_S: Final = 60.0
"""Seconds between two updates of the scan table during a run, for concurrent readers."""


@dataclass(frozen=True, slots=True)
class FailedScan:
    """A scan that could not be written, and why."""

    scan_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one further mask of all scans of a run."""

    name: str
    """Name of the mask."""
    done: tuple[str, ...]
    """Scans whose mask was written."""
    skipped: tuple[str, ...]
    """Scans that had this mask already, from the same source."""
    failed: tuple[FailedScan, ...]
    """Scans whose mask could not be written; an earlier mask of that name stays."""
    without_file: tuple[str, ...]
    """Scans whose source has no mask of this name. They do not count as failures."""


@dataclass(frozen=True, slots=True)
class Damage:
    """The stored files that are damaged."""

    scans: frozenset[str] = frozenset()
    """Scans of which a file of image, label or metadata is damaged."""
    masks: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Names of the further masks with a damaged file, by scan id."""


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
    layers: tuple[LayerReport, ...]
    """Each further mask that the run writes with its scans."""

    @property
    def is_incomplete(self) -> bool:
        """Whether a scan of the run or one of its masks is not in the store or its table."""
        return bool(self.failed or any(layer.failed for layer in self.layers) or self.problem)

    @property
    def exit_code(self) -> int:
        """Exit code: 0 if all scans of the run are in the store with their masks, else 1."""
        return 1 if self.is_incomplete else 0


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
        """Exit code: 0 if all scans of the raw folder are in the store with their masks, else 1."""
        return 1 if self.is_incomplete or self.orphans_failed or self.unlisted else 0


class Listener(Protocol):
    """Receives the progress of a run, in the thread that runs it."""

    def started(self, source: TaskSource) -> None:
        """Handle the start of a scan."""

    def advanced(self, source: TaskSource, share: float) -> None:
        """Handle that a further ``share`` (0 to 1) of a scan is done.

        The share is negative if a part is repeated.
        """

    def finished(self, source: TaskSource, outcome: Outcome) -> None:
        """Handle the end of a scan."""


class _SilentListener:
    """A listener that reports nothing."""

    def started(self, source: TaskSource) -> None: ...

    def advanced(self, source: TaskSource, share: float) -> None: ...

    def finished(self, source: TaskSource, outcome: Outcome) -> None: ...


class Workers(Protocol):
    """Runs tasks, and limits how many are under way."""

    def run(
        self, job: Job[TaskT], tasks: Iterable[TaskT], listener: Listener
    ) -> Generator[ScanResult]:
        """Yield results as they arrive; take a further task whenever a worker is free.

        Once the generator is closed, no worker writes any more files.
        """
        ...


class LocalThreads:
    """Does one task after the other in this process; all cores encode its chunks."""

    def run(
        self, job: Job[TaskT], tasks: Iterable[TaskT], listener: Listener
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
    find_damaged: Callable[[], Damage] | None = None,
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
        Function that returns the damaged files of the store. It is called once the store is locked.
        These scans and masks are read again from their source files, and the table and the ledger
        are written anew. Without it, the stored files are not checked.

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
        layers=[name for layout in recipe.layouts.values() for name in layout.layers],
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
    job: ScanJob[Source],
    sources: Sequence[Source],
    *,
    purpose: str,
    layers: Iterable[str] = (),
    failing: Iterable[tuple[str, str]] = (),
    folders: Mapping[str, FolderRecord] = MappingProxyType({}),
    listener: Listener | None = None,
    workers: Workers | None = None,
    find_damaged: Callable[[], Damage] | None = None,
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
    layers
        Names of the further masks that the report names.
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
        damage = Damage() if find_damaged is None else find_damaged()
        state.record_folders(dict(folders))
        run = _Run(job, sources, state, failing=list(failing), listener=listener, damage=damage)
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
        return run.report(time.monotonic() - started, layers)


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
        self._masks = {} if table is None else _listed_masks(table)
        self._masks |= {scan_id: frozenset(scan.masks) for scan_id, scan in changed.items()}
        """Names of the further masks of each scan."""
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

    def masks_of(self, scan_id: str) -> frozenset[str]:
        """Return the names of the further masks of a scan; empty if it is not in the store."""
        return self._masks.get(scan_id, frozenset())

    def change(
        self, scan: ScanAttributes, inputs: str, stamp: str, *, has_new_masks: bool = False
    ) -> None:
        """Record a scan that a worker has published or confirmed."""
        entry = LedgerEntry(inputs=inputs, stamp=stamp, identity=scan_identity(scan))
        old_entry = self.entries.get(scan.scan_id)
        is_changed = old_entry is None or old_entry.identity != entry.identity
        if is_changed or has_new_masks or scan.scan_id in self._changed:
            self._changed[scan.scan_id] = scan
        self._masks[scan.scan_id] = frozenset(scan.masks)
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


def _listed_masks(table: "xr.Dataset") -> dict[str, frozenset[str]]:
    """Return the names of the further masks of each scan of a scan table."""
    columns = (table[name].to_numpy().tolist() for name in ("scan", "masks"))
    return {scan_id: frozenset(masks.split()) for scan_id, masks in zip(*columns, strict=True)}


class _Run(Generic[Source]):
    """The state of one run."""

    def __init__(
        self,
        job: ScanJob[Source],
        sources: Sequence[Source],
        state: _StoreState,
        *,
        failing: Sequence[tuple[str, str]],
        listener: Listener,
        damage: Damage,
    ) -> None:
        self._job = job
        self._damage = damage
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
        self._layers: dict[str, tuple[LayerResult, ...]] = {}
        """What became of the further masks of each scan that is in the store."""
        self._layer_notes: dict[str, tuple[str, ...]] = {}
        """Notes on masks that were written, by scan id."""
        self._failed = [FailedScan(scan_id, reason) for scan_id, reason in failing]
        self._failed += [
            FailedScan(scan_id, job.cannot_repair)
            for scan_id in sorted(damage.scans - present_ids, key=natural_key)
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
            damaged = source.scan_id in self._damage.scans
            damaged_masks = self._damage.masks.get(source.scan_id, frozenset())
            names = source.mask_names
            is_whole = not damaged and damaged_masks.isdisjoint(names)
            is_whole = is_whole and self._state.masks_of(source.scan_id).issuperset(names)
            if entry is not None and entry.inputs == inputs and is_whole:
                self._skipped.append(source.scan_id)
                self._layers[source.scan_id] = tuple(
                    LayerResult(name, "already in the store") for name in names
                )
                self._listener.finished(source, "already in the store")
                continue
            self._inputs[source.scan_id] = inputs
            yield ScanTask(
                source,
                stored=entry is not None,
                same_files=entry is not None and entry.stamp == self._job.stamp_of(source),
                damaged=damaged,
                damaged_masks=damaged_masks,
            )

    def record(self, result: ScanResult) -> None:
        """Record the result of a task."""
        source = self._sources[result.scan_id]
        inputs = self._inputs.pop(result.scan_id)
        if result.scan is None:
            self._failed.append(FailedScan(result.scan_id, result.reason))
            self._unclean |= result.unclean
        else:
            self._layers[result.scan_id] = result.layers
            self._layer_notes[result.scan_id] = tuple(
                f"{layer.name}: {note}"
                for layer in result.layers
                if layer.outcome == "done"
                for note in result.scan.masks[layer.name].notes
            )
            outcomes = {layer.outcome for layer in result.layers}
            if "failed" in outcomes:
                inputs = ""  # the next run tries the layer again
            stamp = self._job.stamp_of(source)
            self._state.change(result.scan, inputs, stamp, has_new_masks="done" in outcomes)
            if result.outcome == "done":
                self._done.append(result.scan)
            elif result.outcome == "updated":
                self._updated.append(result.scan)
            else:
                self._skipped.append(result.scan_id)
        self._listener.finished(source, result.outcome)
        if time.monotonic() - self._table_written > TABLE_INTERVAL_S:
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

    def report(self, seconds: float, layers: Iterable[str]) -> RunReport:
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
            notes=self._notes(done, updated),
            source_bytes=sum(scan.source_bytes for scan in done),
            stored_bytes=sum(entry.size_bytes for scan in done for entry in scan.manifest.values()),
            seconds=seconds,
            problem=self._problem,
            layers=tuple(map(self._layer_report, dict.fromkeys(layers))),
        )

    def _notes(
        self, done: Sequence[ScanAttributes], updated: Sequence[ScanAttributes]
    ) -> dict[str, tuple[str, ...]]:
        """Return the notes on scans that are new or updated, and on new masks, by scan id."""
        notes = {scan.scan_id: scan.notes for scan in (*done, *updated)}
        for scan_id, new_notes in self._layer_notes.items():
            notes[scan_id] = (*notes.get(scan_id, ()), *new_notes)
        return {scan_id: texts for scan_id, texts in notes.items() if texts}

    def _layer_report(self, name: str) -> LayerReport:
        scans: dict[str, list[str]] = defaultdict(list)
        failed: list[FailedScan] = []
        for scan_id in self._sources:
            for layer in self._layers.get(scan_id, ()):
                if layer.name == name and layer.outcome == "failed":
                    failed.append(FailedScan(scan_id, layer.reason))
                elif layer.name == name:
                    scans[layer.outcome].append(scan_id)
        return LayerReport(
            name,
            done=tuple(scans["done"]),
            skipped=tuple(scans["already in the store"]),
            failed=tuple(failed),
            without_file=tuple(
                scan_id
                for scan_id, source in self._sources.items()
                if name not in source.mask_names
            ),
        )
