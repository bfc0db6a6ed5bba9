"""How many threads can compute at once here?

``os.cpu_count()`` counts the processors of the machine. A job of SLURM, a container or ``taskset``
may use fewer, and more threads would only wait for each other. ``dask.system.cpu_count`` returns
the same number, but its import takes longer than reading a first batch.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["cpu_count", "cpu_quota"]

_CGROUP_FILE: Final = Path("/proc/self/cgroup")
_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")


def cpu_count() -> int:
    """Return how many processors this process may use, at least 1.

    It is the smallest of three numbers: the processors of the machine, those that the process is
    bound to (its affinity), and the quota of its control groups (cgroup v1 or v2), rounded up.
    Affinity and quota may change while a process runs, so call this when a pool is made, and not on
    import.
    """
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota = cpu_quota(_CGROUP_FILE.read_text(encoding="utf-8"), _CGROUP_ROOT)
        count = min(count, quota or count)
    return max(1, count)


def cpu_quota(groups: str, root: Path) -> int | None:
    """Return how many processors control groups allow, rounded up; None for no limit.

    The quotas of the enclosing groups also apply to a group.

    Parameters
    ----------
    groups
        Groups of the process, as ``/proc/self/cgroup`` lists them: ``0::/PATH`` for version 2, and
        ``NUMBER:CONTROLLERS:/PATH`` for version 1.
    root
        Folder in which the groups are mounted.

    References
    ----------
    Control groups: https://man7.org/linux/man-pages/man7/cgroups.7.html
    ``cpu.max``: https://docs.kernel.org/admin-guide/cgroup-v2.html
    ``cpu.cfs_quota_us``: https://docs.kernel.org/scheduler/sched-bwc.html
    """
    quotas = list(_quotas(groups, root))
    return math.ceil(min(quotas)) if quotas else None


def _quotas(groups: str, root: Path) -> Iterator[float]:
    """Yield the quota of each group that has one, in processors."""
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group_path = PurePosixPath(path).relative_to("/")
        for group in (group_path, *group_path.parents):
            folder = root / controllers / group
            with suppress(OSError, ValueError):  # no such group here, or its quota is "max"
                if controllers:
                    quota, period = (
                        int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8"))
                        for name in ("quota", "period")
                    )
                else:
                    quota, period = map(int, (folder / "cpu.max").read_text("utf-8").split())
                if quota > 0 and period > 0:  # -1 stands for no quota
                    yield quota / period
