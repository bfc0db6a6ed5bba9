"""How do the mask files of a folder become further masks of the scans of a store?"""

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from spinezarr.errors import UsageError
from spinezarr.ingestion.discovery.raw_folder import RawFolder, names_of
from spinezarr.ingestion.job import ScanResult
from spinezarr.ingestion.label_file import LabelFiles
from spinezarr.ingestion.masks import MaskFacts, MaskFiles
from spinezarr.ingestion.run import TABLE_INTERVAL_S, FailedScan
from spinezarr.ingestion.scan import ScanOptions
from spinezarr.ingestion.task import MaskJob, MaskSourceFiles, MaskTask
from spinezarr.progress import OnProgress
from spinezarr.recipe import PathPattern
from spinezarr.redaction import redact_url
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.store.writer import StoreWriter
from spinezarr.text import MultilineText, count_noun
from spinezarr.verbs.ingest_progress import IngestProgress
from spinezarr.verbs.labels import check_mask_name, update_table, writing_masks
from spinezarr.verbs.workers import check_worker_options, chosen_workers

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["AddLabelsOptions", "AddLabelsReport", "add_labels"]

_SCAN: Final = "scan"
_PART: Final = "part"
_SPECIAL: Final = "{*"
"""Characters with which the part of a pattern begins that differs between files."""
_MAX_SHOWN: Final = 3
"""Largest number of files that a message names."""
_STEP: Final = "add-labels"


@dataclass(frozen=True, slots=True)
class AddLabelsOptions:
    """The user's choices, which apply to all scans."""

    facts: MaskFacts
    """What the user says about the masks."""
    scan: ScanOptions
    """How files are read."""
    wait_s: float
    """Seconds to wait for other programs that write the store."""
    dry_run: bool = False
    """Whether to find the files, and to write nothing."""
    workers: int | None = None
    """Number of processes to start on this machine."""
    scheduler: "str | Client | None" = None
    """Running Dask cluster."""


@dataclass(frozen=True, slots=True)
class AddLabelsReport:
    """What became of the mask files of a folder, or what would become of them."""

    store: str
    """Path or URL of the store, without secrets."""
    name: str
    """Name of the mask."""
    dry_run: bool
    """Whether nothing was written."""
    files: Mapping[str, tuple[str, ...]]
    """Files of each scan; several if there is one for each structure."""
    done: tuple[str, ...]
    """Scans whose mask was written; empty in a dry run."""
    skipped: tuple[str, ...]
    """Scans that had this mask already, from the same files."""
    failed: tuple[FailedScan, ...]
    """Scans whose files could not be used; an earlier mask of that name stays."""
    without_file: tuple[str, ...]
    """Chosen scans for which the folder has no file. They do not count as failures."""
    without_scan: tuple[str, ...]
    """Files that fit the pattern, and whose scan is not in the store."""
    unmatched: tuple[str, ...]
    """All other files of the folder. They do not count as failures."""
    unlisted: Mapping[str, str]
    """Folders that could not be listed, each with the reason."""
    notes: Mapping[str, tuple[str, ...]]
    """Notes for the user on scans that are done, by scan id."""
    stored_bytes: int
    """Size of the files of the masks that were written."""
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 if each file that fits is a mask in the store, else 1; 0 in a dry run."""
        is_incomplete = self.failed or self.without_scan or self.unlisted
        return 1 if is_incomplete and not self.dry_run else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that JSON has."""
        return asdict(self)


def add_labels(
    reader: StoreReader,
    selection: ScanSelection,
    name: str,
    pattern: str,
    options: AddLabelsOptions,
    *,
    raw_options: Mapping[str, Any],
    on_progress: OnProgress,
) -> AddLabelsReport:
    """Write the masks that a pattern names; see :meth:`spinezarr.Store.add_labels`."""
    check_mask_name(name)
    check_worker_options(options.workers, options.scheduler, options.scan.scratch)
    started = time.monotonic()
    folder = _MaskFolder.list(pattern, raw_options, options.facts, on_progress)
    scan_ids = selection.some_scan_ids(reader.columns, reader.name)
    found = [folder.of_scan(scan_id) for scan_id in scan_ids]
    if not any(scan.paths for scan in found):
        raise UsageError(
            f"{redact_url(pattern)}: no file fits, for any of the {len(scan_ids)} chosen scans of "
            f"{reader.name}. {{scan}} stands for the scan id, such as {scan_ids[0]!r}. "
            f"{folder.description}"
        )
    run = _Run(reader, name, options, folder, found)
    if options.dry_run:
        run.plan()
        return run.report(time.monotonic() - started)
    progress = IngestProgress(run.sources, on_progress, _STEP)
    with (
        writing_masks(reader, "'spinezarr add-labels'", wait_s=options.wait_s) as store,
        chosen_workers(options.workers, options.scheduler, _STEP, on_progress) as workers,
    ):
        job = MaskJob(name, options.facts, folder.root, raw_options, store, options.scan)
        try:
            with closing(workers.run(job, run.tasks, progress)) as results:
                for result in results:
                    run.record(store, result)
                    progress.finished(run.source_of(result.scan_id), result.outcome)
        finally:
            run.write_table(store)
    return run.report(time.monotonic() - started)


@dataclass(frozen=True, slots=True)
class _FoundFiles:
    """The files of one scan."""

    scan_id: str
    paths: tuple[str, ...]
    """Files of the mask; empty if there are none."""
    parts: tuple[tuple[int, str], ...] = ()
    """Value and path of each structure that has a file of its own."""
    absent_parts: tuple[str, ...] = ()
    """Structures of the scheme without a file although others have one."""
    problem: str = ""
    """Why the files cannot be used; empty if they can."""


class _MaskFolder:
    """The folder of a pattern, and how its files are named.

    Parameters
    ----------
    root
        Path or URL of the folder.
    folder
        Its files.
    template
        Pattern of the masks below the folder.
    facts
        What the user says about the masks.
    """

    def __init__(self, root: str, folder: RawFolder, template: str, facts: MaskFacts) -> None:
        self.root = root
        self.folder = folder
        self._template = template
        self._pattern = PathPattern(template)
        self._values = facts.scheme.values if _PART in self._pattern.names else {}
        self._vertebrae = facts.scheme.vertebrae

    @classmethod
    def list(
        cls,
        pattern: str,
        raw_options: Mapping[str, Any],
        facts: MaskFacts,
        on_progress: OnProgress,
    ) -> "_MaskFolder":
        """List the folder of a pattern."""
        start = min(
            (pattern.index(mark) for mark in _SPECIAL if mark in pattern), default=len(pattern)
        )
        root, slash, _ = pattern[:start].rpartition("/")
        root, template = root + slash or ".", pattern[len(root) + len(slash) :]
        try:
            names = PathPattern(template).names
        except ValueError as problem:
            raise UsageError(f"--masks: {problem}.") from problem
        if _SCAN not in names or names - {_SCAN, _PART}:
            raise UsageError(
                f"--masks {redact_url(pattern)}: must have {{scan}} for the scan id, may have "
                "{part} for the name of a structure in its scheme, and no other name, such as "
                "'pred/{scan}.nii.gz'."
            )
        fs, path = open_filesystem(root, raw_options)
        try:
            return cls(root, RawFolder.list(fs, path, on_progress), template, facts)
        except OSError as problem:
            raise UsageError(
                f"{redact_url(root)}: cannot be listed: {problem.strerror or problem}. Give a "
                "folder or URL with the masks."
            ) from problem

    @property
    def description(self) -> str:
        """A sentence on the files of the folder."""
        files = [*self.folder.sizes]
        if not files:
            return f"{redact_url(self.root)} has no files."
        examples = ", ".join(files[:_MAX_SHOWN])
        return f"{redact_url(self.root)} has {count_noun(len(files), 'file')}, e.g. {examples}."

    def of_scan(self, scan_id: str) -> _FoundFiles:
        """Find the files of a scan."""
        if not self._values:
            paths = self.folder.find(self._template, {_SCAN: scan_id})
            problem = _several_message(paths) if len(paths) > 1 else ""
            return _FoundFiles(scan_id, paths, problem=problem)
        parts: list[tuple[int, str]] = []
        absent: list[str] = []
        problem = ""
        for part, value in self._values.items():
            paths = self.folder.find(self._template, {_SCAN: scan_id, _PART: part})
            if len(paths) > 1:
                problem = problem or f"{part}: {_several_message(paths)}"
            if paths:
                parts.append((value, paths[0]))
            else:
                absent.append(part)
        return _FoundFiles(
            scan_id,
            tuple(path for _, path in parts),
            tuple(parts),
            tuple(absent) if parts else (),
            problem,
        )

    def source_of(self, found: _FoundFiles) -> MaskSourceFiles:
        """Return the files of a scan for a task."""
        label = LabelFiles.of(found.paths[0], found.parts, vertebrae=self._vertebrae)
        files = MaskFiles(label, self.folder.stamp_of(found.paths), found.absent_parts)
        size_bytes = sum(map(self.folder.size_of, found.paths))
        return MaskSourceFiles(found.scan_id, files, size_bytes)

    def others(
        self, found: Iterable[_FoundFiles], known: set[str]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the files of unknown scans, and the files that do not fit the pattern.

        Parameters
        ----------
        found
            Files of the chosen scans.
        known
            Ids of all scans of the store.
        """
        used = self.folder.files_of_all(path for scan in found for path in scan.paths)
        without_scan, unmatched = [], []
        for path in self.folder.sizes:
            if path in used:
                continue
            scan_id = self._scan_of(path)
            if scan_id is None:
                unmatched.append(path)
            elif scan_id not in known:
                without_scan.append(path)
        return tuple(without_scan), tuple(unmatched)

    def _scan_of(self, path: str) -> str | None:
        """Return the id of the scan whose mask a file is, by its name; None if it is none."""
        for name in names_of(path):
            texts = self._pattern.match(name)
            if texts is not None and (not self._values or texts[_PART] in self._values):
                return texts[_SCAN]
        return None


def _several_message(paths: tuple[str, ...]) -> str:
    return MultilineText(
        f"{len(paths)} files fit: {', '.join(paths)}; expected one.",
        "Move the others away, or make the pattern more specific.",
    )


class _Run:
    """The state of one run."""

    def __init__(
        self,
        reader: StoreReader,
        name: str,
        options: AddLabelsOptions,
        folder: _MaskFolder,
        found: list[_FoundFiles],
    ) -> None:
        self._reader = reader
        self._name = name
        self._options = options
        self._folder = folder
        self._found = found
        self._failed = [FailedScan(scan.scan_id, scan.problem) for scan in found if scan.problem]
        self._sources = {
            scan.scan_id: folder.source_of(scan)
            for scan in found
            if scan.paths and not scan.problem
        }
        self._done: dict[str, ScanAttributes] = {}
        self._unlisted: dict[str, ScanAttributes] = {}
        """Scans whose mask is not yet in the scan table."""
        self._skipped: list[str] = []
        self._table_written = time.monotonic()

    @property
    def sources(self) -> list[MaskSourceFiles]:
        """Files of the scans whose mask may have to be written."""
        return [*self._sources.values()]

    @property
    def tasks(self) -> Iterator[MaskTask]:
        """A task for each of them."""
        return (MaskTask(source, (self._name,)) for source in self._sources.values())

    def source_of(self, scan_id: str) -> MaskSourceFiles:
        """Return the files of a scan."""
        return self._sources[scan_id]

    def plan(self) -> None:
        """Find the scans whose mask would be skipped."""
        for scan_id, source in self._sources.items():
            scan = self._reader.scan(scan_id).attributes
            key = source.files.source_key(
                scan, self._options.facts, take_image_grid=self._options.scan.take_image_grid
            )
            if self._name in scan.masks and scan.masks[self._name].source_key == key:
                self._skipped.append(scan_id)

    def record(self, store: StoreWriter, result: ScanResult) -> None:
        """Record the result of a task."""
        if result.scan is None:
            self._failed.append(FailedScan(result.scan_id, result.reason))
        elif result.outcome == "done":
            self._done[result.scan_id] = self._unlisted[result.scan_id] = result.scan
        else:
            self._skipped.append(result.scan_id)
        if time.monotonic() - self._table_written > TABLE_INTERVAL_S:
            self.write_table(store)

    def write_table(self, store: StoreWriter) -> None:
        """Write the rows of the scans whose mask is not yet in the scan table."""
        update_table(store, [*self._unlisted.values()])
        self._unlisted = {}
        self._table_written = time.monotonic()

    def report(self, seconds: float) -> AddLabelsReport:
        """Return the report, in the order of the scans."""
        position = {scan.scan_id: i for i, scan in enumerate(self._found)}
        done = sorted(self._done, key=position.__getitem__)
        masks = {scan_id: self._done[scan_id].masks[self._name] for scan_id in done}
        stored = (
            entry.size_bytes
            for scan in self._done.values()
            for key, entry in scan.manifest.items()
            if key not in scan.without_masks([self._name]).manifest
        )
        known = set(self._reader.columns["scan"].tolist())
        without_scan, unmatched = self._folder.others(self._found, known)
        return AddLabelsReport(
            store=self._reader.name,
            name=self._name,
            dry_run=self._options.dry_run,
            files={scan.scan_id: scan.paths for scan in self._found if scan.paths},
            done=tuple(done),
            skipped=tuple(sorted(self._skipped, key=position.__getitem__)),
            failed=tuple(sorted(self._failed, key=lambda scan: position[scan.scan_id])),
            without_file=tuple(scan.scan_id for scan in self._found if not scan.paths),
            without_scan=without_scan,
            unmatched=unmatched,
            unlisted=self._folder.folder.unlisted,
            notes={scan_id: mask.notes for scan_id, mask in masks.items() if mask.notes},
            stored_bytes=sum(stored),
            seconds=seconds,
        )
