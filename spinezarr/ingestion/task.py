"""What does a worker do to ingest one scan, in this process or on another machine?

Workers share nothing but the files.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Self

from fsspec.implementations.local import LocalFileSystem

from spinezarr.formats.volume import Volume
from spinezarr.ingestion.discovery.annotations import CompanionFiles, read_companion_files
from spinezarr.ingestion.discovery.discover import ScanSource
from spinezarr.ingestion.job import ScanResult, ScanTask, keep_voxels
from spinezarr.ingestion.label_file import open_label
from spinezarr.ingestion.scan import (
    ScanOptions,
    descriptive_metadata,
    ingest_scan,
    label_files,
    open_image,
    source_key,
)
from spinezarr.recipe import Recipe
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.canonical_json import canonical_json
from spinezarr.store.ledger import hash_inputs
from spinezarr.store.writer import StoreWriter

__all__ = ["IngestJob"]


@dataclass(frozen=True, slots=True, eq=False)
class IngestJob:
    """Settings that all scans of one ingest share; a :class:`~spinezarr.ingestion.job.Job`."""

    recipe: Recipe
    raw: str = field(repr=False)
    """Folder or URL of the source files."""
    raw_options: Mapping[str, Any] = field(repr=False)
    store: StoreWriter
    options: ScanOptions

    def input_hasher(self) -> Callable[[ScanSource], str]:
        """See :class:`~spinezarr.ingestion.job.Job`."""
        options = self.options
        shared = canonical_json((self.recipe, options.take_image_grid, options.limits))
        return lambda source: self._storable_hash(hash_inputs(shared, source))

    def stamp_of(self, source: ScanSource) -> str:
        """Return the stamp of the files of a scan as it may be stored."""
        return self._storable_hash(source.stamp)

    def _storable_hash(self, digest: str) -> str:
        """Return the hash that may be stored. It is keyed if the store has pseudonyms."""
        pseudonyms = self.options.pseudonyms
        return digest if pseudonyms is None else pseudonyms.keyed_hash(digest)

    def portable(self) -> Self:
        """See :class:`~spinezarr.ingestion.job.Job`."""
        fs, path = open_filesystem(self.raw, self.raw_options)
        return replace(self, raw=path) if isinstance(fs, LocalFileSystem) else self

    def run(
        self, task: ScanTask[ScanSource], pool: Executor, on_share: Callable[[float], None]
    ) -> ScanResult:
        """Ingest one scan; see :class:`~spinezarr.ingestion.job.Job`."""
        source = task.source
        fs, root = open_filesystem(self.raw, self.raw_options)
        companions = read_companion_files(fs, root, source, self.options.limits)
        # Another worker may have published the scan in this very run, and died before its report.
        scans = self.store.scans
        stored_scan = (scans.published if task.stored else scans.complete)(source.scan_id)
        if (
            stored_scan is not None
            and not task.damaged
            and self._is_current(task, stored_scan, companions)
        ):
            metadata = descriptive_metadata(
                source, self.recipe, companions, stored_scan.other_labels, stored_scan.notes
            )
            result = keep_voxels(self.store, stored_scan, metadata)
            return result if task.stored else replace(result, outcome="done")
        scan = ingest_scan(
            source,
            self.recipe,
            fs,
            root,
            self.store,
            companions=companions,
            pool=pool,
            options=self.options,
            on_share=on_share,
        )
        return ScanResult(source.scan_id, "done", scan)

    def _is_current(
        self, task: ScanTask[ScanSource], stored_scan: ScanAttributes, companions: CompanionFiles
    ) -> bool:
        """Return whether the stored scan was made from the present files."""
        source = task.source
        present_state = (source.size_bytes, self._storable_hash(source_key(source, companions)))
        if (stored_scan.source_bytes, stored_scan.source_key) != present_state:
            return False
        if task.same_files:
            return True
        # Names and sizes are the same, but times differ. Only the content can show a change.
        fs, root = open_filesystem(self.raw, self.raw_options)
        hashes = [stored_scan.image_source.sha256]
        volumes: list[Volume] = [open_image(fs, root, source, self.options.limits)]
        files = label_files(source)
        if files is not None and stored_scan.label_source is not None:
            hashes.append(stored_scan.label_source.sha256)
            volumes.append(open_label(fs, root, files, volumes[0].grid, self.options.limits))
        return hashes == [self._storable_hash(_sha256(volume)) for volume in volumes]


def _sha256(volume: Volume) -> str:
    """Read a source file to its end, and return its hash."""
    for _ in volume.slabs([1] * volume.grid.shape_ijk[2]):
        pass
    return volume.source_file().sha256
