"""How are the tasks of a run done on a Dask cluster?

Each scan is one task. A bounded number of tasks is under way at a time. A task is repeated if its
worker dies. A task needs the source files and the store, and nothing from other tasks. The cluster
needs ``spinezarr`` in the same versions as this process, which is checked first.
"""

import secrets
import signal
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from itertools import count
from logging import ERROR, Filter, LogRecord, getLogger
from queue import Empty, SimpleQueue
from typing import Any, Final, Generic

import dask
from distributed import (
    Client,
    Future,
    KilledWorker,
    LocalCluster,
    Worker,
    WorkerPlugin,
    get_worker,
    wait,
)
from distributed.versions import VersionMismatchWarning

from spinezarr.errors import LostClusterError, LostLockError, SpinezarrError, UsageError
from spinezarr.forks import PerProcess
from spinezarr.ingestion.job import Job, ScanResult, TaskT, run_task
from spinezarr.ingestion.run import Listener
from spinezarr.processors import cpu_count
from spinezarr.redaction import redact_url, redact_urls_in
from spinezarr.text import to_printable

__all__ = [
    "CLUSTER_SETTINGS",
    "ClusterSettings",
    "DaskWorkers",
    "existing_cluster",
    "local_cluster",
]

_TASKS_PER_THREAD: Final = 2
"""Number of tasks for each worker thread.

One is under way, and the other can start while the client writes the scan table.
"""
_MAX_RESUBMISSIONS: Final = 3
"""Largest number of times that a scan is submitted again if it only waited on workers that died."""
_MATCHING_PACKAGES: Final = ("spinezarr", "dask", "distributed", "numcodecs")
"""Packages that must have the same version everywhere.

The same source gives the same bytes only with one version of numcodecs.
"""
_MEMORY_SETTINGS: Final = {
    f"distributed.worker.memory.{key}": False for key in ("target", "spill", "pause")
}
"""Settings that stop Dask from pausing workers and spilling results.

The voxels of a scan are not results that Dask could write to disk, so a paused worker would wait
forever. Dask still ends a worker that uses nearly all of its memory, before the system ends another
process.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Times that a run waits for a Dask cluster, and between its messages, in seconds.

    Attributes
    ----------
    connect_s
        Time within which the scheduler must answer. A wrong address is reported after this time.
    first_worker_s
        Time within which the scheduler must have a worker. Workers are often started together with
        the scheduler, and a batch system may start them a little later.
    poll_s
        Time between two counts of the worker threads, and between two checks that the scheduler is
        still there while no message arrives.
    progress_s
        Time between two progress messages of a scan. All of them pass through the scheduler, which
        must not get too many.
    stop_s
        Time that workers get to leave their scans after an interrupt. A worker leaves its scan when
        it next has progress to report.
    """

    connect_s: float = 10.0
    first_worker_s: float = 60.0
    poll_s: float = 1.0
    progress_s: float = 1.0
    stop_s: float = 60.0


CLUSTER_SETTINGS: Final = ClusterSettings()
"""The settings of a run, unless a caller chooses others."""


class _InterruptFilter(Filter):
    """Drops a log record that Dask writes if Ctrl-C arrives before a call has begun.

    ``distributed.utils.sync`` (2026.8) names the future in a callback before the future exists.
    """

    def filter(self, record: LogRecord) -> bool:
        problem = record.exc_info[1] if record.exc_info else None
        return not (
            isinstance(problem, NameError) and "sync.<locals>.cancel" in record.getMessage()
        )


_INTERRUPT_FILTER: Final = _InterruptFilter()


class _HeartbeatFilter(Filter):
    """Drops a log record with a traceback, which a worker writes if its scheduler ends first."""

    def filter(self, record: LogRecord) -> bool:
        return "communicate with scheduler during heartbeat" not in record.getMessage()


_HEARTBEAT_FILTER: Final = _HeartbeatFilter()


class DaskWorkers:
    """Does tasks on a Dask cluster; see :class:`spinezarr.ingestion.run.Workers`.

    Parameters
    ----------
    client
        A client that is connected to the cluster. It stays open.
    encode_threads
        Number of threads in each worker process that encode chunks. By default, as many as the
        process runs tasks.
    settings
        Times to wait for the cluster, and between its messages.

    Raises
    ------
    UsageError
        If there is no worker, or if scheduler or workers have other versions than this process.
    """

    def __init__(
        self,
        client: Client,
        *,
        encode_threads: int | None = None,
        settings: ClusterSettings = CLUSTER_SETTINGS,
    ) -> None:
        try:
            client.wait_for_workers(1, timeout=settings.first_worker_s)
        except TimeoutError as problem:
            raise UsageError(
                f"the Dask scheduler at {_address(client)} has had no worker for "
                f"{settings.first_worker_s:.0f} seconds. Start workers, then run the command again."
            ) from problem
        _check_versions(client)
        getLogger("tornado.application").addFilter(_INTERRUPT_FILTER)
        self._client = client
        self._encode_threads = encode_threads
        self._settings = settings

    @property
    def dashboard(self) -> str | None:
        """URL of the dashboard of the cluster; None if it has none."""
        link: str | None = self._client.dashboard_link
        return link or None

    def run(
        self, job: Job[TaskT], tasks: Iterable[TaskT], listener: Listener
    ) -> Generator[ScanResult]:
        """See :class:`spinezarr.ingestion.run.Workers`.

        Raises
        ------
        LostClusterError
            If the scheduler is gone.
        LostLockError
            If another run has taken over the store.
        """
        run = _Run(self._client, job.portable(), listener, self._encode_threads, self._settings)
        try:
            yield from run.results(iter(tasks))
        except KeyboardInterrupt:
            run.stop()
            yield from run.finished_results()
            raise
        finally:
            run.close()


@contextmanager
def local_cluster(
    n_workers: int, *, settings: ClusterSettings = CLUSTER_SETTINGS
) -> Iterator[DaskWorkers]:
    """Start worker processes that share the cores of this machine, and end them afterward.

    Parameters
    ----------
    n_workers
        Number of scans that are ingested at once.
    settings
        Times to wait for the workers, and between their messages.
    """
    with warnings.catch_warnings(), dask.config.set(_MEMORY_SETTINGS):
        # If the dashboard's usual port is taken, Dask uses another one.
        warnings.filterwarnings("ignore", "Port .* is already in use", UserWarning)
        cluster = LocalCluster(
            n_workers=n_workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address="127.0.0.1:8787" if find_spec("bokeh") else None,
            silence_logs=ERROR,
        )
    with cluster, Client(cluster, set_as_default=False) as client:
        client.register_plugin(_OwnWorker())
        encode_threads = max(1, cpu_count() // n_workers)
        yield DaskWorkers(client, encode_threads=encode_threads, settings=settings)


@contextmanager
def existing_cluster(
    scheduler: str | Client, *, settings: ClusterSettings = CLUSTER_SETTINGS
) -> Iterator[DaskWorkers]:
    """Use a cluster that is running, and leave it running.

    Parameters
    ----------
    scheduler
        Address of its scheduler, such as ``tcp://10.0.0.1:8786``, or a client that is connected to
        it and stays open.
    settings
        Times to wait for the cluster, and between its messages.

    Raises
    ------
    UsageError
        If the cluster cannot be reached or cannot be used; see :class:`DaskWorkers`.
    """
    if isinstance(scheduler, Client):
        yield DaskWorkers(scheduler, settings=settings)
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", VersionMismatchWarning)  # DaskWorkers raises
            client = Client(scheduler, timeout=settings.connect_s, set_as_default=False)
    except (OSError, ValueError, TypeError) as problem:
        raise UsageError(
            f"no Dask scheduler answers at {redact_url(scheduler)} within "
            f"{settings.connect_s:.0f} seconds: {problem}. Give the address that the scheduler "
            "prints when it starts, such as tcp://10.0.0.1:8786, and check that this machine "
            "can reach it."
        ) from problem
    with client:
        yield DaskWorkers(client, settings=settings)


class _OwnWorker(WorkerPlugin):
    """Makes workers ignore Ctrl-C, which reaches every process of a terminal.

    The client stops scheduler and workers, in any order.
    """

    name = "spinezarr-own-worker"

    def setup(self, worker: Worker) -> None:  # noqa: ARG002  as Dask calls it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        getLogger("distributed.worker").addFilter(_HEARTBEAT_FILTER)


def _address(client: Client) -> str:
    return "?" if client.scheduler is None else str(client.scheduler.address)


def _check_versions(client: Client) -> None:
    problems = []
    for package in _MATCHING_PACKAGES:
        own_version = version(package)
        versions: dict[str, Any] = client.run(version, package, on_error="return")
        try:
            versions["the scheduler"] = client.run_on_scheduler(version, package)
        except PackageNotFoundError as problem:
            versions["the scheduler"] = problem
        for process, other_version in versions.items():
            if isinstance(other_version, PackageNotFoundError):
                problems.append(f"{process} has no {package}")
            elif other_version != own_version:
                problems.append(
                    f"{process} has {package} {other_version}, not {own_version} as here"
                )
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""  # noqa: PLR2004
        raise UsageError(
            f"the cluster at {_address(client)} cannot do this work: "
            f"{'; '.join(problems[:3])}{more}. Install the same versions for scheduler, workers "
            "and this command, for example from one container image."
        )


@dataclass(frozen=True, slots=True)
class _ProgressMessage:
    """Message that a worker has started a scan, or has finished a further part of it."""

    scan_id: str
    share: float | None


@dataclass(frozen=True, slots=True)
class _EndMessage:
    """Message that the task of a scan has ended, with a result or without."""

    scan_id: str


@dataclass(slots=True)
class _Submission(Generic[TaskT]):
    """A scan that was submitted to the cluster."""

    task: TaskT
    future: "Future[ScanResult]"  # a text, because older versions of distributed do not know it
    resubmissions: int
    """Number of times that it was submitted before."""
    starts: int = 0
    """Number of workers that have started it."""
    share: float = 0.0


class _Run(Generic[TaskT]):
    """The client's side of one run."""

    def __init__(
        self,
        client: Client,
        job: Job[TaskT],
        listener: Listener,
        encode_threads: int | None,
        settings: ClusterSettings,
    ) -> None:
        self._client = client
        self._job = job
        self._listener = listener
        self._encode_threads = encode_threads
        self._settings = settings
        self._token = secrets.token_hex(4)
        self._in_flight: dict[str, _Submission[TaskT]] = {}
        self._restarted: dict[str, tuple[TaskT, ScanResult]] = {}
        """Results of scans that several workers have started."""
        self._started: set[str] = set()
        """Scans whose start was reported to the listener."""
        self._inbox: SimpleQueue[_ProgressMessage | _EndMessage] = SimpleQueue()
        self._submission_numbers = count()
        self._n_threads = 0
        self._threads_counted_at: float | None = None
        client.subscribe_topic(_topic_of(self._token), self._on_event)

    def results(self, tasks: Iterator[TaskT]) -> Iterator[ScanResult]:
        """Keep a bounded number of tasks submitted, and yield results as they arrive."""
        exhausted = False
        while True:
            while not exhausted and len(self._in_flight) < self._max_in_flight():
                task = next(tasks, None)
                if task is None:
                    exhausted = True
                else:
                    self._submit(task)
            if self._in_flight or not exhausted:
                yield from self._next_result()
            elif self._restarted:
                yield from self._check_restarted()
            else:
                return

    def finished_results(self) -> Iterator[ScanResult]:
        """Yield the results of submitted scans that are whole in the store; skip the others."""
        for scan_id, submission in self._in_flight.items():
            if submission.future.status == "finished":
                result = submission.future.result()
                if result.scan is not None:
                    self._restarted[scan_id] = (submission.task, result)
        self._in_flight = {}
        for scan_id, (task, result) in self._restarted.items():
            if self._job.store.recover_scan(scan_id, task.masks) is not None:
                yield result

    def stop(self) -> None:
        """Tell the workers to leave their scans, and wait until they have."""
        futures = [submission.future for submission in self._in_flight.values()]
        with suppress(OSError, TimeoutError, CancelledError):
            self._client.run(_stop_run, self._token, on_error="ignore")
            with self._client.as_current():
                wait(futures, timeout=self._settings.stop_s)

    def close(self) -> None:
        """Stop listening to workers, and cancel the tasks that are under way."""
        if self._in_flight:
            self.stop()
        with suppress(OSError, ValueError):
            self._client.unsubscribe_topic(_topic_of(self._token))
            self._client.cancel([submission.future for submission in self._in_flight.values()])

    def _on_event(self, event: tuple[float, dict[str, Any]]) -> None:
        """Take an event from a worker; called in a thread of the client."""
        _, content = event
        self._inbox.put(_ProgressMessage(content["scan"], content["share"]))

    def _max_in_flight(self) -> int:
        """Return the largest number of scans to submit, which follows the number of threads."""
        now = time.monotonic()
        if (
            self._threads_counted_at is None
            or now - self._threads_counted_at > self._settings.poll_s
        ):
            self._n_threads = sum(self._client.nthreads().values())
            self._threads_counted_at = now
        return _TASKS_PER_THREAD * self._n_threads

    def _submit(self, task: TaskT, resubmissions: int = 0) -> None:
        scan_id = task.source.scan_id
        future = self._client.submit(
            _run_on_worker,
            self._job,
            task,
            self._token,
            self._encode_threads,
            self._settings.progress_s,
            # The scheduler keeps no result under this key. It groups tasks by the part of the key
            # before the first part that is not a word.
            key=f"ingest-{self._token}{next(self._submission_numbers)}-{scan_id}",
            pure=False,
        )
        self._in_flight[scan_id] = _Submission(task, future, resubmissions)
        self._await_end(scan_id, future)

    def _await_end(self, scan_id: str, future: "Future[ScanResult]") -> None:
        future.add_done_callback(lambda _: self._inbox.put(_EndMessage(scan_id)))

    def _next_result(self) -> Iterator[ScanResult]:
        """Process one message; yield nothing if none arrives soon."""
        if self._client.status == "closed":
            raise LostClusterError(_lost_cluster_message())
        try:
            message = self._inbox.get(timeout=self._settings.poll_s)
        except Empty:
            return
        submission = self._in_flight.get(message.scan_id)
        if submission is None:
            return
        if isinstance(message, _ProgressMessage):
            self._progress(submission, message.share)
        elif submission.future.done():
            del self._in_flight[message.scan_id]
            yield from self._take_result(submission)
        else:  # the worker died with the result, and Dask runs the task again
            self._await_end(message.scan_id, submission.future)

    def _progress(self, submission: _Submission[TaskT], share: float | None) -> None:
        source = submission.task.source
        if share is not None:
            submission.share += share
            self._listener.advanced(source, share)
            return
        submission.starts += 1
        if source.scan_id not in self._started:
            self._started.add(source.scan_id)
            self._listener.started(source)
        elif submission.share:
            self._listener.advanced(source, -submission.share)
        submission.share = 0.0

    def _take_result(self, submission: _Submission[TaskT]) -> Iterator[ScanResult]:
        scan_id = submission.task.source.scan_id
        try:
            result = submission.future.result()
        except KilledWorker as problem:
            yield from self._resubmit_killed(submission, problem)
        except CancelledError as problem:
            raise LostClusterError(_lost_cluster_message()) from problem
        except LostLockError:
            raise
        except Exception as error:  # noqa: BLE001  one bad worker never stops the others
            message = to_printable(redact_urls_in(" ".join(str(error).split())))
            reason = f"its worker could not start it ({type(error).__name__}: {message})."
            yield ScanResult(scan_id, "failed", reason=reason)
        else:
            if submission.starts > 1 and result.scan is not None:
                self._restarted[scan_id] = (submission.task, result)
            else:
                yield result

    def _resubmit_killed(
        self, submission: _Submission[TaskT], problem: KilledWorker
    ) -> Iterator[ScanResult]:
        """Submit the scan again, or report it as failed.

        A worker crash counts only against the scans it had started. A scan that only waited on such
        a worker is submitted again.
        """
        deaths = problem.allowed_failures + 1
        if submission.starts < deaths and submission.resubmissions < _MAX_RESUBMISSIONS:
            self._submit(submission.task, submission.resubmissions + 1)
            return
        scan_id = submission.task.source.scan_id
        self._job.store.recover_scan(scan_id, submission.task.masks)
        reason = (
            f"{deaths} workers died while they ran it, the last at {problem.last_worker.address}. "
            "The usual cause is too little memory. Look at the logs of the workers, give each more "
            "memory, and run the same command again."
        )
        yield ScanResult(scan_id, "failed", reason=reason)

    def _check_restarted(self) -> Iterator[ScanResult]:
        """Yield the results of scans that are whole, and submit the others again.

        The scheduler may give up a worker that still runs for a moment, and then removes its files.
        The worker that repeats the scan writes files of the same names. By now, the first worker
        has ended.
        """
        restarted, self._restarted = self._restarted, {}
        for scan_id, (task, result) in restarted.items():
            if self._job.store.recover_scan(scan_id, task.masks) is None:
                self._submit(task)
            else:
                yield result


def _lost_cluster_message() -> str:
    return (
        "the Dask scheduler is gone. The scans that are done are in the store: run the same "
        "command again once there is a scheduler."
    )


def _topic_of(token: str) -> str:
    return f"spinezarr-ingest-{token}"


_STOPPED: Final[set[str]] = set()
"""Tokens of the runs that this worker process must stop."""


def _stop_run(token: str) -> None:
    """Make this worker process stop its work for a run."""
    _STOPPED.add(token)


class _StoppedError(SpinezarrError):
    """Raised in a worker when the client has stopped the run."""


def _run_on_worker(
    job: Job[TaskT],
    task: TaskT,
    token: str,
    encode_threads: int | None,
    progress_s: float,
) -> ScanResult:
    worker = get_worker()
    scan_id = task.source.scan_id
    if token in _STOPPED:
        return ScanResult(scan_id, "failed", reason="the run was stopped.")

    def send(share: float | None) -> None:
        worker.log_event(_topic_of(token), {"scan": scan_id, "share": share})

    send(None)
    pool = _encode_pool(encode_threads or worker.state.nthreads).get()
    return run_task(job, task, pool, _ProgressReporter(token, send, progress_s))


class _ProgressReporter:
    """Reports the progress of a scan about once a second; raises if the run was stopped."""

    def __init__(self, token: str, send: Callable[[float], None], period_s: float) -> None:
        self._token = token
        self._send = send
        self._period_s = period_s
        self._unreported = 0.0
        self._reported_at = time.monotonic()

    def __call__(self, share: float) -> None:
        if self._token in _STOPPED:
            raise _StoppedError
        self._unreported += share
        now = time.monotonic()
        if now - self._reported_at > self._period_s:
            self._send(self._unreported)
            self._unreported, self._reported_at = 0.0, now


@cache
def _encode_pool(threads: int) -> PerProcess[ThreadPoolExecutor]:
    """Return the pool that encodes chunks; all scans of a worker share it."""
    return PerProcess(partial(ThreadPoolExecutor, threads, "spinezarr-encode"))
