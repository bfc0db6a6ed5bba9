"""What does a worker do for one scan, in this process or on another machine?

A task is all work on one scan: an ingest reads it with its masks, and ``add-labels`` adds a mask to
it. Workers share nothing but the files.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, Protocol, Self, TypeVar

from spinezarr.errors import LostLockError, SpinezarrError
from spinezarr.formats.volume import Volume
from spinezarr.ingestion.discovery.annotations import CompanionFiles, read_companion_files
from spinezarr.ingestion.discovery.discover import ScanLayer, ScanSource
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
from spinezarr.redaction import redact_urls_in
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.table import ERRATUM_APPLIED
from spinezarr.store.writer import StoreWriter
from spinezarr.text import describe_os_error, to_printable

__all__ = [
    "IngestJob",
    "Job",
    "LayerResult",
    "MaskJob",
    "MaskSourceFiles",
    "MaskTask",
    "Outcome",
    "ScanResult",
    "ScanTask",
    "Task",
    "TaskSource",
]

Outcome = Literal["done", "updated", "already in the store", "failed"]


class TaskSource(Protocol):
    """What a task reads."""

    @property
    def scan_id(self) -> str:
        """Id of the scan."""
        ...

    @property
    def read_bytes(self) -> int:
        """Size of all files in bytes, for progress."""
        ...


class Task(Protocol):
    """All work on one scan."""

    @property
    def source(self) -> TaskSource:
        """What the task reads."""
        ...

    @property
    def masks(self) -> Collection[str]:
        """Names of the further masks that the task writes."""
        ...


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What became of a further mask of a scan that an ingest has read."""

    name: str
    outcome: Literal["done", "already in the store", "failed"]
    reason: str = ""
    """Why it failed."""


@dataclass(frozen=True, slots=True)
class ScanResult:
    """How the task of a scan ended."""

    scan_id: str
    outcome: Outcome
    scan: ScanAttributes | None = None
    """Stored attributes of the scan.

    None if it failed. An earlier version then stays in the store.
    """
    reason: str = ""
    """Why it failed."""
    unclean: bool = False
    """Whether a write may have been cut off. If so, the store may hold leftover files."""
    layers: tuple[LayerResult, ...] = ()
    """Further masks of the scan that an ingest has read."""


TaskT_contra = TypeVar("TaskT_contra", contravariant=True)


class Job(Protocol[TaskT_contra]):
    """Settings that all tasks of one run share. It is sent to workers with each task."""

    @property
    def raw(self) -> str:
        """Folder or URL of the source files."""
        ...

    @property
    def raw_options(self) -> Mapping[str, Any]:
        """Options for the file system of the source files."""
        ...

    @property
    def store(self) -> StoreWriter:
        """The store."""
        ...

    def with_raw(self, raw: str) -> Self:
        """Return the job with another path of the source files."""
        ...

    def run(
        self, task: TaskT_contra, pool: Executor, on_share: Callable[[float], None]
    ) -> ScanResult:
        """Do a task; if that fails, return the reason.

        Parameters
        ----------
        task
            The task.
        pool
            Threads that encode chunks.
        on_share
            Called with each further share of the task that is done (0 to 1).

        Raises
        ------
        LostLockError
            If another run has taken over the store.
        """
        ...


@dataclass(frozen=True, slots=True)
class ScanTask:
    """A scan that may have to be read."""

    source: ScanSource
    stored: bool
    """Whether the store has a scan of this id."""
    same_files: bool
    """Whether all files still have the sizes and times that they had when the scan was stored."""
    damaged: bool = False
    """Whether its stored files are damaged. If so, it is read again in any case."""
    damaged_masks: frozenset[str] = frozenset()
    """Further masks whose stored files are damaged. They are read again in any case."""

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the further masks that the task writes."""
        return tuple(layer.name for layer in self.source.layers)


@dataclass(frozen=True, slots=True, eq=False)
class IngestJob:
    """Settings that all scans of one ingest share."""

    recipe: Recipe
    raw: str = field(repr=False)
    """Folder or URL of the source files."""
    raw_options: Mapping[str, Any] = field(repr=False)
    store: StoreWriter
    options: ScanOptions

    def with_raw(self, raw: str) -> Self:
        """Return the job with another path of the source files."""
        return replace(self, raw=raw)

    def run(self, task: ScanTask, pool: Executor, on_share: Callable[[float], None]) -> ScanResult:
        """Ingest one scan and its further masks; see :class:`Job`."""
        source = task.source
        layer_bytes = source.read_bytes - source.size_bytes
        own_share = source.size_bytes / source.read_bytes if layer_bytes else 1.0
        try:
            result = _ingest(self, task, pool, partial(_scaled, on_share, own_share))
            layers = []
            for layer in source.layers:
                layer_share = layer.size_bytes / source.read_bytes if layer_bytes else 0.0
                scan, layer_result = _write_layer(
                    self, task, layer, pool, partial(_scaled, on_share, layer_share)
                )
                layers.append(layer_result)
                result = replace(result, scan=scan or result.scan, layers=tuple(layers))
        except LostLockError:
            raise
        except Exception as error:  # noqa: BLE001  one bad scan never stops the others
            return _failed(source.scan_id, error)
        return result


def _scaled(on_share: Callable[[float], None], factor: float, share: float) -> None:
    on_share(share * factor)


def _failed(scan_id: str, error: Exception) -> ScanResult:
    unclean = not isinstance(error, SpinezarrError)
    return ScanResult(scan_id, "failed", reason=_failure_reason(error), unclean=unclean)


def _write_layer(
    job: IngestJob,
    task: ScanTask,
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
    described = job.recipe.layouts[layer.layout].layers[layer.name]
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
        fs, root = open_filesystem(job.raw, job.raw_options)
        scan = write_mask_files(
            job.store,
            task.source.scan_id,
            layer.name,
            files,
            facts,
            fs=fs,
            root=root,
            options=job.options,
            pool=pool,
            on_share=on_share,
            again=layer.name in task.damaged_masks,
            named_by="recipe",
        )
    except LostLockError:
        raise
    except Exception as error:  # noqa: BLE001  one bad mask never stops the others
        return None, LayerResult(layer.name, "failed", _failure_reason(error))
    return scan, LayerResult(layer.name, "already in the store" if scan is None else "done")


def _ingest(
    job: IngestJob,
    task: ScanTask,
    pool: Executor,
    on_share: Callable[[float], None],
) -> ScanResult:
    """Ingest image and label of a scan, unless they are in the store."""
    source = task.source
    fs, root = open_filesystem(job.raw, job.raw_options)
    companions = read_companion_files(fs, root, source, job.options.limits)
    # Another worker may have published the scan in this very run, and died before its report.
    stored_scan = (job.store.scans.published if task.stored else job.store.scans.complete)(
        source.scan_id
    )
    if (
        stored_scan is not None
        and not task.damaged
        and _is_current(job, task, stored_scan, companions)
    ):
        result = _keep_voxels(job, source, stored_scan, companions)
        return result if task.stored else replace(result, outcome="done")
    scan = ingest_scan(
        source,
        job.recipe,
        fs,
        root,
        job.store,
        companions=companions,
        pool=pool,
        options=job.options,
        on_share=on_share,
    )
    return ScanResult(source.scan_id, "done", scan)


def _is_current(
    job: IngestJob, task: ScanTask, stored_scan: ScanAttributes, companions: CompanionFiles
) -> bool:
    """Return whether the stored scan was made from the present files."""
    source, pseudonyms = task.source, job.options.pseudonyms

    def as_stored(digest: str) -> str:
        return digest if pseudonyms is None else pseudonyms.keyed_hash(digest)

    present_state = (source.size_bytes, as_stored(source_key(source, companions)))
    if (stored_scan.source_bytes, stored_scan.source_key) != present_state:
        return False
    if task.same_files:
        return True
    # Names and sizes are the same, but times differ. Only the content can show a change.
    fs, root = open_filesystem(job.raw, job.raw_options)
    hashes = [stored_scan.image_source.sha256]
    volumes: list[Volume] = [open_image(fs, root, source, job.options.limits)]
    files = label_files(source)
    if files is not None and stored_scan.label_source is not None:
        hashes.append(stored_scan.label_source.sha256)
        volumes.append(open_label(fs, root, files, volumes[0].grid, job.options.limits))
    return hashes == [as_stored(_sha256(volume)) for volume in volumes]


def _sha256(volume: Volume) -> str:
    """Read a source file to its end, and return its hash."""
    for _ in volume.slabs([1] * volume.grid.shape_ijk[2]):
        pass
    return volume.source_file().sha256


def _keep_voxels(
    job: IngestJob, source: ScanSource, stored_scan: ScanAttributes, companions: CompanionFiles
) -> ScanResult:
    """Keep the stored voxels; update the metadata of the scan if they have changed."""
    metadata = descriptive_metadata(
        source,
        job.recipe,
        companions,
        stored_scan.other_labels,
        stored_scan.notes,
        correction=stored_scan.columns.get(ERRATUM_APPLIED, "")
        if source.correction is not None
        else "",
    )
    scan = ScanAttributes.model_validate({**dict(stored_scan), **metadata})
    # Texts are compared, because the order of columns counts too.
    if scan.model_dump_json() == stored_scan.model_dump_json():
        return ScanResult(source.scan_id, "already in the store", stored_scan)
    return ScanResult(source.scan_id, "updated", job.store.scans.amend(scan))


def _failure_reason(error: Exception) -> str:
    if isinstance(error, SpinezarrError):
        return str(error)
    description = (
        describe_os_error(error)
        if isinstance(error, OSError)
        else f"unexpected {type(error).__name__}: {error}. Please report this."
    )
    return to_printable(redact_urls_in(" ".join(description.split())))


@dataclass(frozen=True, slots=True)
class MaskSourceFiles:
    """The files of a further mask that is added to a stored scan."""

    scan_id: str
    files: MaskFiles
    read_bytes: int
    """Size of the files in bytes."""


@dataclass(frozen=True, slots=True)
class MaskTask:
    """A further mask that is added to a stored scan."""

    source: MaskSourceFiles
    masks: tuple[str, ...]
    """Name of the mask."""


@dataclass(frozen=True, slots=True, eq=False)
class MaskJob:
    """Settings that all scans share to which a mask is added."""

    name: str
    """Name of the mask."""
    facts: MaskFacts
    raw: str = field(repr=False)
    """Folder or URL of the files."""
    raw_options: Mapping[str, Any] = field(repr=False)
    store: StoreWriter
    options: ScanOptions

    def with_raw(self, raw: str) -> Self:
        """Return the job with another path of the source files."""
        return replace(self, raw=raw)

    def run(self, task: MaskTask, pool: Executor, on_share: Callable[[float], None]) -> ScanResult:
        """Add the mask to one scan; see :class:`Job`."""
        scan_id = task.source.scan_id
        try:
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
        except LostLockError:
            raise
        except Exception as error:  # noqa: BLE001  one bad scan never stops the others
            return _failed(scan_id, error)
        if scan is None:
            return ScanResult(scan_id, "already in the store", self.store.scans.published(scan_id))
        return ScanResult(scan_id, "done", scan)
