"""Which workers does a command use: this process, others of this machine, or a Dask cluster?"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from spinezarr.errors import UsageError
from spinezarr.ingestion.run import LocalThreads, Workers
from spinezarr.progress import OnProgress, Progress
from spinezarr.redaction import redact_url

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["check_worker_options", "chosen_workers"]


def check_worker_options(
    n_workers: int | None, scheduler: "str | Client | None", scratch: str | None
) -> None:
    """Refuse options of workers that contradict each other.

    Raises
    ------
    UsageError
        If both kinds of workers are chosen, or the scratch folder is not on this machine although
        the workers are.
    """
    if n_workers is not None and scheduler is not None:
        raise UsageError(
            "--workers starts a cluster, and --scheduler uses a running one. Give one of them."
        )
    if scratch is not None and scheduler is None and not Path(scratch).is_dir():
        raise UsageError(
            f"--scratch {scratch}: is not a folder. Make it, or give one with free space."
        )


@contextmanager
def chosen_workers(
    n_workers: int | None, scheduler: "str | Client | None", step: str, on_progress: OnProgress
) -> Iterator[Workers]:
    """Start or use the chosen workers, and report their dashboard.

    Parameters
    ----------
    n_workers
        Number of processes to start on this machine.
    scheduler
        Running Dask cluster: a client, or the address of a scheduler. Without either, the threads
        of this process work.
    step
        Name of the task in progress reports.
    on_progress
        Called with the dashboard.
    """
    if n_workers is None and scheduler is None:
        yield LocalThreads()
        return
    # Dask's scheduler takes half a second to import.
    from spinezarr.ingestion.cluster import existing_cluster, local_cluster  # noqa: PLC0415

    with (
        local_cluster(n_workers) if n_workers is not None else existing_cluster(scheduler or "")
    ) as cluster:
        if cluster.dashboard:
            message = f"Dashboard: {redact_url(cluster.dashboard)}"
            on_progress(Progress(step, 0, None, message=message))
        yield cluster
