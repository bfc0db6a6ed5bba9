"""What does a worker do to ingest one scan or to add a mask to it, here or on another machine?

Workers share nothing but the files.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import LostLockError
from spinezarr.formats.volume import Volume
from spinezarr.ingestion.discovery.annotations import CompanionFiles, read_companion_files
from spinezarr.ingestion.discovery.discover import ScanLayer, ScanSource
from spinezarr.ingestion.job import (
    LayerResult,
    ScanResult,
    ScanTask,
    failure_reason,
    keep_voxels,
)
from spinezarr.ingestion.label_file import LabelFiles, open_label
from spinezarr.ingestion.masks import MaskFacts, MaskFiles, write_mask_files
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
from spinezarr.store.table import ERRATUM_APPLIED
from spinezarr.store.writer import StoreWriter

__all__ = ["IngestJob", "MaskJob", "MaskSourceFiles", "MaskTask"]


@dataclass(frozen=True, slots=True, eq=False)
class IngestJob:
    """Settings that all scans of one ingest share; a :class:`~spinezarr.ingestion.job.ScanJob`."""

    recipe: Recipe
    raw: str = field(repr=False)
    """Folder or URL of the source files."""
    raw_options: Mapping[str, Any] = field(repr=False)
    store: StoreWriter
    options: ScanOptions

    def input_hasher(self) -> Callable[[ScanSource], str]:
        """See :class:`~spinezarr.ingestion.job.ScanJob`."""
        options = self.options
        shared = canonical_json((self.recipe, options.take_image_grid, options.limits))
        return lambda source: self._storable_hash(hash_inputs(shared, source))

    @property
    def cannot_repair(self) -> str:
        """See :class:`~spinezarr.ingestion.job.ScanJob`."""
        return (
            "its stored files are damaged, and its source files are not in the raw folder. Put "
            "them there and run the command again, or copy the scan from an undamaged store."
        )

    def stamp_of(self, source: ScanSource) -> str:
        """Return the stamp of the files of a scan as it may be stored."""
        return self._storable_hash(source.stamp)

    def _storable_hash(self, digest: str) -> str:
        """Return the hash that may be stored. It is keyed if the store has pseudonyms."""
        pseudonyms = self.options.pseudonyms
        return digest if pseudonyms is None else pseudonyms.keyed_hash(digest)

    def portable(self) -> Self:
        """See :class:`~spinezarr.ingestion.job.Job`."""
        return replace(self, raw=_absolute(self.raw, self.raw_options))

    def run(
        self, task: ScanTask[ScanSource], pool: Executor, on_share: Callable[[float], None]
    ) -> ScanResult:
        """Ingest one scan and its further masks; see :class:`~spinezarr.ingestion.job.Job`."""
        source = task.source
        total_bytes = max(1, source.read_bytes)
        own_share = 1 - sum(layer.size_bytes for layer in source.layers) / total_bytes
        result = self._ingest(task, pool, partial(_scaled, on_share, own_share))
        for layer in source.layers:
            on_layer_share = partial(_scaled, on_share, layer.size_bytes / total_bytes)
            scan, layer_result = self._write_layer(task, layer, pool, on_layer_share)
            layers = (*result.layers, layer_result)
            result = replace(result, scan=scan or result.scan, layers=layers)
        return result

    def _ingest(
        self, task: ScanTask[ScanSource], pool: Executor, on_share: Callable[[float], None]
    ) -> ScanResult:
        """Ingest image and label of a scan, unless they are in the store."""
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
            correction = stored_scan.columns.get(ERRATUM_APPLIED, "")
            metadata = descriptive_metadata(
                source,
                self.recipe,
                companions,
                stored_scan.other_labels,
                stored_scan.notes,
                correction=correction if source.correction is not None else "",
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

    def _write_layer(
        self,
        task: ScanTask[ScanSource],
        layer: ScanLayer,
        pool: Executor,
        on_share: Callable[[float], None],
    ) -> tuple[ScanAttributes | None, LayerResult]:
        """Write a further mask of a scan that is in the store; the scan stays if that fails.

        Returns
        -------
        scan
            Attributes of the scan as published; None if the mask was not written.
        result
            What became of the mask.
        """
        if layer.problem:
            return None, LayerResult(layer.name, "failed", layer.problem)
        described = self.recipe.layouts[layer.layout].layers[layer.name]
        scheme = described.label_scheme
        files = MaskFiles(
            LabelFiles.of(
                layer.label,
                [(part.value, part.path) for part in layer.parts],
                described.stored_values,
                described.stored_segments,
                scheme.vertebrae,
            ),
            layer.stamp,
            layer.absent_parts,
        )
        facts = MaskFacts(
            scheme, described.license, described.author, described.model, described.label_state
        )
        try:
            fs, root = open_filesystem(self.raw, self.raw_options)
            scan = write_mask_files(
                self.store,
                task.source.scan_id,
                layer.name,
                files,
                facts,
                fs=fs,
                root=root,
                options=self.options,
                pool=pool,
                on_share=on_share,
                again=layer.name in task.damaged_masks,
                named_by="recipe",
            )
        except LostLockError:
            raise
        except Exception as error:  # noqa: BLE001  one bad mask never stops the others
            return None, LayerResult(layer.name, "failed", failure_reason(error))
        return scan, LayerResult(layer.name, "already in the store" if scan is None else "done")


def _absolute(raw: str, raw_options: Mapping[str, Any]) -> str:
    """Return the absolute path of a folder of this machine; a URL is returned as it is."""
    fs, path = open_filesystem(raw, raw_options)
    return path if isinstance(fs, LocalFileSystem) else raw


def _scaled(on_share: Callable[[float], None], factor: float, share: float) -> None:
    on_share(share * factor)


def _sha256(volume: Volume) -> str:
    """Read a source file to its end, and return its hash."""
    for _ in volume.slabs([1] * volume.grid.shape_ijk[2]):
        pass
    return volume.source_file().sha256


@dataclass(frozen=True, slots=True)
class MaskSourceFiles:
    """The files of a further mask that is added to a stored scan."""

    scan_id: str
    files: MaskFiles
    read_bytes: int
    """Size of the files in bytes."""


@dataclass(frozen=True, slots=True)
class MaskTask:
    """A further mask that is added to a stored scan; a :class:`~spinezarr.ingestion.job.Task`."""

    source: MaskSourceFiles
    masks: tuple[str, ...]
    """Name of the mask."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskJob:
    """Settings of all scans to which a mask is added; a :class:`~spinezarr.ingestion.job.Job`."""

    name: str
    """Name of the mask."""
    facts: MaskFacts
    raw: str = field(repr=False)
    """Folder or URL of the files."""
    raw_options: Mapping[str, Any] = field(repr=False)
    store: StoreWriter
    options: ScanOptions

    def portable(self) -> Self:
        """See :class:`~spinezarr.ingestion.job.Job`."""
        return replace(self, raw=_absolute(self.raw, self.raw_options))

    def run(self, task: MaskTask, pool: Executor, on_share: Callable[[float], None]) -> ScanResult:
        """Add the mask to one scan; see :class:`~spinezarr.ingestion.job.Job`."""
        scan_id = task.source.scan_id
        fs, root = open_filesystem(self.raw, self.raw_options)
        scan = write_mask_files(
            self.store,
            scan_id,
            self.name,
            task.source.files,
            self.facts,
            fs=fs,
            root=root,
            options=self.options,
            pool=pool,
            on_share=on_share,
        )
        if scan is None:
            return ScanResult(scan_id, "already in the store", self.store.scans.published(scan_id))
        return ScanResult(scan_id, "done", scan)
