"""What is the work of a run on many scans, and how does the task of one scan end?

A run does one task for each scan of a store. A task is all work on one scan: an ingest reads it
from the files of a raw folder, ``derive`` makes it from another store, and ``add-labels`` adds a
mask to it. Workers and progress need not know which of these it is.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, Self, TypeVar

from spinezarr.errors import LostLockError, SpinezarrError
from spinezarr.redaction import redact_urls_in
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.writer import StoreWriter
from spinezarr.text import describe_os_error, to_printable

__all__ = [
    "Job",
    "LayerOutcome",
    "LayerResult",
    "Outcome",
    "ScanInput",
    "ScanJob",
    "ScanResult",
    "ScanTask",
    "Source",
    "Task",
    "TaskSource",
    "TaskT",
    "failure_reason",
    "keep_voxels",
    "run_task",
]

Outcome = Literal["done", "updated", "already in the store", "failed"]
LayerOutcome = Literal["done", "already in the store", "failed"]


class TaskSource(Protocol):
    """What a task reads."""

    @property
    def scan_id(self) -> str:
        """Id of the scan in the store that is written."""
        ...

    @property
    def read_bytes(self) -> int:
        """Number of bytes that are read, for progress."""
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


TaskT = TypeVar("TaskT", bound=Task)
TaskT_contra = TypeVar("TaskT_contra", bound=Task, contravariant=True)


@dataclass(frozen=True, slots=True)
class LayerResult:
    """What became of a further mask of a scan that was written or confirmed."""

    name: str
    outcome: LayerOutcome
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
    """Further masks that were written with the scan."""


class Job(Protocol[TaskT_contra]):
    """Settings that all tasks of one run share. It is sent to workers with each task."""

    @property
    def store(self) -> StoreWriter:
        """Store that is written."""
        ...

    def portable(self) -> Self:
        """Return the job with absolute paths, so that workers may run in other folders."""
        ...

    def run(
        self, task: TaskT_contra, pool: Executor, on_share: Callable[[float], None]
    ) -> ScanResult:
        """Do a task; see :func:`run_task`. It may raise any error."""
        ...


class ScanInput(TaskSource, Protocol):
    """What a run that writes scans knows of the source of one scan before it is read."""

    @property
    def mask_names(self) -> tuple[str, ...]:
        """Names of the further masks that are written with the scan."""
        ...


Source = TypeVar("Source", bound=ScanInput)
"""What a job knows of the source of a scan."""


@dataclass(frozen=True, slots=True)
class ScanTask(Generic[Source]):
    """A scan that may have to be read."""

    source: Source
    stored: bool
    """Whether the store has a scan of this id."""
    same_files: bool
    """Whether the stamp of the source is the one that it had when the scan was stored."""
    damaged: bool = False
    """Whether its stored files are damaged. If so, it is read again in any case."""
    damaged_masks: frozenset[str] = frozenset()
    """Further masks whose stored files are damaged. They are read again in any case."""

    @property
    def masks(self) -> tuple[str, ...]:
        """Names of the further masks that the task writes."""
        return self.source.mask_names


class ScanJob(Job[ScanTask[Source]], Protocol[Source]):
    """Settings of a run that writes scans; see :func:`spinezarr.ingestion.run.run_job`."""

    def input_hasher(self) -> Callable[[Source], str]:
        """Return a function that hashes all that is known of a scan before it is read.

        With the same hash, the job makes the same scan.
        """
        ...

    @property
    def cannot_repair(self) -> str:
        """Why a damaged scan without a source in this run is not written again, and what to do."""
        ...

    def stamp_of(self, source: Source) -> str:
        """Return a hash of the state of a source, such as names, sizes and times of its files."""
        ...


def run_task(
    job: Job[TaskT], task: TaskT, pool: Executor, on_share: Callable[[float], None]
) -> ScanResult:
    """Do the task of a scan; if that fails, return the reason.

    Parameters
    ----------
    job, task
        Settings of the run, and the work on the scan.
    pool
        Threads that encode chunks.
    on_share
        Called with each further share of the task that is done (0 to 1).

    Raises
    ------
    LostLockError
        If another run has taken over the store.
    """
    try:
        return job.run(task, pool, on_share)
    except LostLockError:
        raise
    except Exception as error:  # noqa: BLE001  one bad scan never stops the others
        reason, unclean = failure_reason(error), not isinstance(error, SpinezarrError)
        return ScanResult(task.source.scan_id, "failed", reason=reason, unclean=unclean)


def keep_voxels(
    store: StoreWriter, stored_scan: ScanAttributes, metadata: Mapping[str, Any]
) -> ScanResult:
    """Keep the voxels of a stored scan; write its metadata again if they have changed.

    Parameters
    ----------
    store
        Store of the scan.
    stored_scan
        Attributes of the scan as it is stored.
    metadata
        Attributes that do not depend on voxels, as they should be now.
    """
    scan = ScanAttributes.model_validate({**dict(stored_scan), **metadata})
    # Texts are compared, because the order of columns counts too.
    if scan.model_dump_json() == stored_scan.model_dump_json():
        return ScanResult(scan.scan_id, "already in the store", stored_scan)
    return ScanResult(scan.scan_id, "updated", store.scans.amend(scan))


def failure_reason(error: Exception) -> str:
    """Return why a scan or a mask failed, without secrets, for people."""
    if isinstance(error, SpinezarrError):
        return str(error)
    description = (
        describe_os_error(error)
        if isinstance(error, OSError)
        else f"unexpected {type(error).__name__}: {error}. Please report this."
    )
    return to_printable(redact_urls_in(" ".join(description.split())))
