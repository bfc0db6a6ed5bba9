"""What does a worker do for one scan, in this process or on another machine?

Workers share nothing but the files.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from spinezarr.errors import LostLockError, SpinezarrError
from spinezarr.formats.volume import Volume
from spinezarr.ingestion.discovery.annotations import CompanionFiles, read_companion_files
from spinezarr.ingestion.discovery.discover import ScanSource
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
from spinezarr.redaction import redact_urls_in
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.writer import StoreWriter
from spinezarr.text import describe_os_error, to_printable

__all__ = ["IngestJob", "Outcome", "ScanResult", "ScanTask", "run_task"]

Outcome = Literal["done", "updated", "already in the store", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class IngestJob:
    """Settings that all scans of one ingest share."""

    recipe: Recipe
    raw: str = field(repr=False)
    """Folder or URL of the source files."""
    raw_options: Mapping[str, Any] = field(repr=False)
    store: StoreWriter
    options: ScanOptions


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


def run_task(
    job: IngestJob, task: ScanTask, pool: Executor, on_share: Callable[[float], None]
) -> ScanResult:
    """Ingest one scan; if that fails, return the reason.

    Parameters
    ----------
    job, task
        Settings of the ingest, and the scan.
    pool
        Threads that encode chunks.
    on_share
        Called with each further share of the scan that is done (0 to 1).

    Raises
    ------
    LostLockError
        If another run has taken over the store.
    """
    try:
        return _run_task(job, task, pool, on_share)
    except LostLockError:
        raise
    except Exception as error:  # noqa: BLE001  one bad scan never stops the others
        reason, unclean = _failure_reason(error), not isinstance(error, SpinezarrError)
        return ScanResult(task.source.scan_id, "failed", reason=reason, unclean=unclean)


def _run_task(
    job: IngestJob, task: ScanTask, pool: Executor, on_share: Callable[[float], None]
) -> ScanResult:
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
        source, job.recipe, companions, stored_scan.other_labels, stored_scan.notes
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
