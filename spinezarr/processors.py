"""How many threads can compute at once here, and how much memory may they use?

``os.cpu_count()`` counts the processors of the machine. A job of SLURM, a container or ``taskset``
may use fewer, and more threads would only wait for each other. ``dask.system.cpu_count`` returns
the same number, but its import takes longer than reading a first batch.
"""

import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

__all__ = ["MemoryLimit", "cpu_count", "cpu_quota", "machine_cpu_count", "memory_limit"]

_CGROUP_FILE: Final = Path("/proc/self/cgroup")
_CGROUP_ROOT: Final = Path("/sys/fs/cgroup")
_NO_LIMIT_BYTES: Final = 1 << 60
"""Version 1 of control groups names such a large number if there is no limit."""


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


def machine_cpu_count() -> int:
    """Return how many processors the machine has, whoever may use them."""
    return os.cpu_count() or 1


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
    for folder, is_first_version in _group_folders(groups, root, "cpu"):
        with suppress(OSError, ValueError):  # no such group here, or its quota is "max"
            if is_first_version:
                quota, period = (
                    int((folder / f"cpu.cfs_{name}_us").read_text(encoding="utf-8"))
                    for name in ("quota", "period")
                )
            else:
                quota, period = map(int, (folder / "cpu.max").read_text("utf-8").split())
            if quota > 0 and period > 0:  # -1 stands for no quota
                yield quota / period


def _group_folders(groups: str, root: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each group of a controller and of those that enclose it.

    The second value says whether the group is of version 1.
    """
    for line in groups.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        group_path = PurePosixPath(path).relative_to("/")
        for group in (group_path, *group_path.parents):
            yield root / controllers / group, bool(controllers)


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """Memory that a control group allows."""

    limit_bytes: int
    free_bytes: int
    """Bytes that are not used. Pages of files that the system can drop count as free."""


def memory_limit(groups: str | None = None, root: Path = _CGROUP_ROOT) -> MemoryLimit | None:
    """Return the tightest memory limit of the control groups; None if there is no limit.

    Parameters
    ----------
    groups, root
        As for :func:`cpu_quota`; by default, those of this process.

    References
    ----------
    ``memory.max``: https://docs.kernel.org/admin-guide/cgroup-v2.html
    ``memory.limit_in_bytes``: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    if groups is None:
        try:
            groups = _CGROUP_FILE.read_text(encoding="utf-8")
        except OSError:
            return None
    limits = list(_memory_limits(groups, root))
    return min(limits, key=lambda limit: limit.free_bytes) if limits else None


def _memory_limits(groups: str, root: Path) -> Iterator[MemoryLimit]:
    """Yield the limit of each group that has one."""
    for folder, is_first_version in _group_folders(groups, root, "memory"):
        limit_name, used_name, dropped_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            if is_first_version
            else ("memory.max", "memory.current", "inactive_file")
        )
        with suppress(OSError, ValueError):  # no such group here, or its limit is "max"
            limit_bytes = int((folder / limit_name).read_text(encoding="utf-8"))
            used_bytes = int((folder / used_name).read_text(encoding="utf-8"))
            rows = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
            used_bytes -= int(dict(row.split() for row in rows).get(dropped_name, 0))
            if limit_bytes < _NO_LIMIT_BYTES:
                yield MemoryLimit(limit_bytes, max(0, limit_bytes - used_bytes))
