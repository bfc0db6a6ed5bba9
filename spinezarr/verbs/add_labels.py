"""How do the mask files of a folder become further masks of the scans of a store?"""

import hashlib
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from spinezarr.errors import LostLockError, SpinezarrError, UsageError
from spinezarr.formats.limits import Limits
from spinezarr.formats.volume import open_volume
from spinezarr.geometry import Grid
from spinezarr.ingestion.discovery.raw_folder import RawFolder
from spinezarr.ingestion.masks import MaskFacts, MaskSource, write_mask
from spinezarr.ingestion.run import FailedScan
from spinezarr.ingestion.scan import source_record
from spinezarr.ingestion.voxels.align import aligned_label_grid
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.recipe import PathPattern
from spinezarr.redaction import redact_url, redact_urls_in
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.store.writer import StoreWriter
from spinezarr.text import describe_os_error, to_printable
from spinezarr.verbs.labels import (
    check_mask_name,
    encoding_threads,
    update_table,
    writing_masks,
)

__all__ = ["AddLabelsOptions", "AddLabelsReport", "add_labels"]

_SCAN: Final = "scan"
_SPECIAL: Final = "{*"
"""Characters with which the part of a pattern begins that differs between files."""
_TABLE_INTERVAL_S: Final = 60.0
"""Seconds between two updates of the scan table, for concurrent readers."""


@dataclass(frozen=True, slots=True)
class AddLabelsOptions:
    """The user's choices, which apply to all scans."""

    facts: MaskFacts
    """What the user says about the masks."""
    take_image_grid: bool
    """Whether a mask takes the affine of its image if both have the same shape."""
    limits: Limits
    """Upper limits on the files."""
    scratch: str | None
    """Folder for scratch files; None for that of a local store."""
    wait_s: float
    """Seconds to wait for other programs that write the store."""


@dataclass(frozen=True, slots=True)
class AddLabelsReport:
    """What became of the mask files of a folder."""

    store: str
    """Path or URL of the store, without secrets."""
    name: str
    """Name of the mask."""
    done: tuple[str, ...]
    """Scans whose mask was written."""
    skipped: tuple[str, ...]
    """Scans that had this mask already, from the same file."""
    failed: tuple[FailedScan, ...]
    """Scans whose file could not be used; an earlier mask of that name stays."""
    without_file: tuple[str, ...]
    """Chosen scans for which the folder has no file. They do not count as failures."""
    without_scan: tuple[str, ...]
    """Files that fit the pattern, and whose scan is not in the store."""
    unlisted: Mapping[str, str]
    """Folders that could not be listed, each with the reason."""
    notes: Mapping[str, tuple[str, ...]]
    """Notes for the user on scans that are done, by scan id."""
    stored_bytes: int
    """Size of the files of the masks that were written."""
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 if each file is a mask in the store, else 1."""
        return 1 if self.failed or self.without_scan or self.unlisted else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that JSON has."""
        return {**asdict(self), "exit_code": self.exit_code}


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
    started = time.monotonic()
    folder, template = _listed_folder(pattern, raw_options)
    scan_ids = selection.scan_ids(reader.columns, reader.name)
    files = {scan_id: folder.find(template, {_SCAN: scan_id}) for scan_id in scan_ids}
    if not any(files.values()):
        raise UsageError(
            f"{redact_url(pattern)}: no file fits, for any of the {len(scan_ids)} chosen scans of "
            f"{reader.name}. {{scan}} stands for the scan id, such as {scan_ids[0]!r}."
        )
    run = _Run(reader, name, folder, options)
    counter = ProgressCounter(on_progress, "add-labels", "scans", sum(map(bool, files.values())))
    with (
        encoding_threads() as pool,
        writing_masks(reader, "'spinezarr add-labels'", wait_s=options.wait_s) as store,
    ):
        try:
            for scan_id, paths in files.items():
                if paths:
                    run.add(store, scan_id, paths, pool)
                    counter.add(1)
        finally:
            run.write_table(store)
    known = set(reader.columns["scan"].tolist())
    return replace(
        run.report(time.monotonic() - started),
        without_file=tuple(scan_id for scan_id, paths in files.items() if not paths),
        without_scan=tuple(_without_scan(folder, template, known)),
    )


def _listed_folder(pattern: str, raw_options: Mapping[str, Any]) -> tuple[RawFolder, str]:
    """List the folder of a pattern, and return the rest of the pattern below it."""
    start = min((pattern.index(mark) for mark in _SPECIAL if mark in pattern), default=len(pattern))
    root, slash, _ = pattern[:start].rpartition("/")
    root, template = root + slash or ".", pattern[len(root) + len(slash) :]
    try:
        names = PathPattern(template).names
    except ValueError as problem:
        raise UsageError(f"--labels: {problem}.") from problem
    if names != {_SCAN}:
        raise UsageError(
            f"--labels {redact_url(pattern)}: must have {{scan}} for the scan id, and no other "
            "name, such as 'pred/{scan}.nii.gz'."
        )
    fs, path = open_filesystem(root, raw_options)
    try:
        return RawFolder.list(fs, path), template
    except OSError as problem:
        raise UsageError(
            f"{redact_url(root)}: cannot be listed: {problem.strerror or problem}. Give a folder "
            "or URL with the masks."
        ) from problem


def _without_scan(folder: RawFolder, template: str, known: set[str]) -> Iterable[str]:
    """Yield the files that fit a pattern and whose scan is not in the store."""
    pattern = PathPattern(template)
    for path in folder.sizes:
        texts = pattern.match(path)
        if texts is not None and texts[_SCAN] not in known:
            yield path


class _Run:
    """The state of one run."""

    def __init__(
        self, reader: StoreReader, name: str, folder: RawFolder, options: AddLabelsOptions
    ) -> None:
        self._reader = reader
        self._name = name
        self._folder = folder
        self._options = options
        self._done: dict[str, ScanAttributes] = {}
        self._unlisted: dict[str, ScanAttributes] = {}
        """Scans whose mask is not yet in the scan table."""
        self._skipped: list[str] = []
        self._failed: list[FailedScan] = []
        self._table_written = time.monotonic()

    def add(self, store: StoreWriter, scan_id: str, paths: tuple[str, ...], pool: Executor) -> None:
        """Write the mask of one scan, unless it is there already, or record why that failed."""
        try:
            if len(paths) > 1:
                raise UsageError(f"{len(paths)} files fit: {', '.join(paths)}; expected one.")
            scan = self._write(store, scan_id, paths[0], pool)
        except LostLockError:
            raise
        except (SpinezarrError, OSError) as problem:
            self._failed.append(FailedScan(scan_id, _reason(problem)))
            return
        if scan is None:
            self._skipped.append(scan_id)
            return
        self._done[scan_id] = self._unlisted[scan_id] = scan
        if time.monotonic() - self._table_written > _TABLE_INTERVAL_S:
            self.write_table(store)

    def _write(
        self, store: StoreWriter, scan_id: str, path: str, pool: Executor
    ) -> ScanAttributes | None:
        """Write a mask; None if the scan has it already, from the same file."""
        writer = store.scans.start_mask(scan_id, self._name)
        scan, options = writer.scan, self._options
        key = self._source_key(scan, path)
        if self._name in scan.masks and scan.masks[self._name].source_key == key:
            return None
        volume = open_volume(self._folder.fs, f"{self._folder.root}/{path}", options.limits)
        image = scan.image_source
        image_grid = Grid(image.shape_ijk, np.array(image.affine_ijk))
        grid = aligned_label_grid(
            image_grid,
            volume.grid,
            image_path=image.file,
            label_path=path,
            take_image_grid=options.take_image_grid,
        )
        notes = [f"mask: {note}" for note in volume.notes]
        if grid is image_grid:
            notes.append("the mask was given the affine of the image (--take-image-grid)")

        def describe() -> dict[str, Any] | None:
            if store.root.pseudonym_key is not None:
                return None  # the name of a file may tell whose scan it is
            return source_record(path, volume, volume.source_file(), grid)

        return write_mask(
            writer,
            options.facts,
            MaskSource(volume, grid, describe, key, notes),
            pool=pool,
            memory=MemoryBudget(),
            scratch=options.scratch or store.local_folder,
        )

    def _source_key(self, scan: ScanAttributes, path: str) -> str:
        """Return a hash of all that the mask depends on, without opening its file."""
        facts = self._options.facts
        parts = (
            scan.content_checksum,
            self._folder.stamp_of([path]),
            sorted(facts.scheme.names.items()),
            facts.to_record(),
            self._options.take_image_grid,
        )
        return hashlib.sha256(canonical_json(parts).encode()).hexdigest()[:32]

    def write_table(self, store: StoreWriter) -> None:
        """Write the rows of the scans whose mask is not yet in the scan table."""
        update_table(store, [*self._unlisted.values()])
        self._unlisted = {}
        self._table_written = time.monotonic()

    def report(self, seconds: float) -> AddLabelsReport:
        """Return the report without the files and scans that do not fit."""
        masks = {scan_id: scan.masks[self._name] for scan_id, scan in self._done.items()}
        stored = (
            entry.size_bytes
            for scan in self._done.values()
            for key, entry in scan.manifest.items()
            if key not in scan.without_masks([self._name]).manifest
        )
        return AddLabelsReport(
            store=self._reader.name,
            name=self._name,
            done=tuple(self._done),
            skipped=tuple(self._skipped),
            failed=tuple(self._failed),
            without_file=(),
            without_scan=(),
            unlisted=self._folder.unlisted,
            notes={scan_id: mask.notes for scan_id, mask in masks.items() if mask.notes},
            stored_bytes=sum(stored),
            seconds=seconds,
        )


def _reason(problem: SpinezarrError | OSError) -> str:
    if isinstance(problem, SpinezarrError):
        return str(problem)
    return to_printable(redact_urls_in(describe_os_error(problem)))
