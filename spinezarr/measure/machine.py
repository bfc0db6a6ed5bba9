"""What may this process use of the machine, and is it enough?"""

import multiprocessing
import resource
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

import psutil

from spinezarr.loaders.segment_limits import (
    SHARED_MEMORY,
    SegmentLimits,
    free_bytes,
    room_bytes,
)
from spinezarr.measure.finding import Finding
from spinezarr.processors import cpu_count, machine_cpu_count, memory_limit

__all__ = ["check_machine", "check_memory", "check_shared_memory", "free_memory_bytes"]

_GB: Final = 1e9
_MEMORY_BYTES: Final = 1_000_000_000
"""Free memory that a training needs for its batches: 234 MB for the process, and 512 MiB of batches
that are read ahead. An ingest needs 700 MB for each worker."""
_OPEN_FILES: Final = 1024
"""Open files that a loader needs: one for each segment of its workers, shards and connections."""
_BUSY: Final = 0.75
"""Load of others for each processor above which measured rates are too low."""


def check_machine() -> Iterator[Finding]:
    """Yield a finding for processors, memory, open files, shared memory and worker processes."""
    yield _check_processors()
    yield check_memory(*_memory())
    yield _check_open_files()
    yield check_shared_memory(free_bytes(), has_torch=find_spec("torch") is not None)
    yield _check_start_method()


def free_memory_bytes() -> int:
    """Return how much more memory this process may use, by the machine and its control groups."""
    return _memory()[1]


def _check_processors() -> Finding:
    usable, present = cpu_count(), machine_cpu_count()
    load = psutil.getloadavg()[0]
    figures = {"usable": usable, "present": present, "load": load}
    found = f"{usable} of {present}" if usable < present else f"{usable}"
    found += f", load {load:.1f}"
    if load > _BUSY * present:
        return Finding(
            "machine",
            "processors",
            found,
            status="note",
            advice="Other programs use the processors, so measured speeds are too low. Measure "
            "again when they are idle.",
            figures=figures,
        )
    return Finding("machine", "processors", found, figures=figures)


def _memory() -> tuple[int, int, bool]:
    """Return the memory that this process may use, how much is free, and whether a group limits it.

    Sizes are in bytes.
    """
    memory, limit = psutil.virtual_memory(), memory_limit()
    if limit is None or limit.limit_bytes >= memory.total:
        return memory.total, memory.available, False
    return limit.limit_bytes, min(limit.free_bytes, memory.available), True


def check_memory(total_bytes: int, free: int, is_limited: bool) -> Finding:  # noqa: FBT001  one of three facts
    """Return whether the free memory is enough for a training or an ingest."""
    by_group = ", by the limit of a control group" if is_limited else ""
    found = f"{free / _GB:.1f} GB free of {total_bytes / _GB:.1f} GB{by_group}"
    enough = free >= _MEMORY_BYTES
    advice = (
        "Read less ahead: store.patches(...).with_reading(prefetch_bytes=64 << 20). Ingest with "
        "one worker, or allow the process more memory."
    )
    return Finding(
        "machine",
        "memory",
        found,
        f"{_MEMORY_BYTES / _GB:.0f} GB free",
        "ok" if enough else "note",
        "" if enough else advice,
        {"free_bytes": free, "total_bytes": total_bytes},
    )


def _check_open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_unlimited = soft == resource.RLIM_INFINITY
    enough = is_unlimited or soft >= _OPEN_FILES
    can_raise = hard == resource.RLIM_INFINITY or hard >= _OPEN_FILES
    advice = (
        f"Run 'ulimit -n {_OPEN_FILES}' before a training."
        if can_raise
        else f"Ask for a limit of {_OPEN_FILES} or more (LimitNOFILE= of systemd, --ulimit nofile= "
        "of Docker)."
    )
    return Finding(
        "machine",
        "open files",
        "no limit" if is_unlimited else f"{soft}",
        f"{_OPEN_FILES}",
        "ok" if enough else "note",
        "" if enough else advice,
        {"limit": None if is_unlimited else soft},
    )


def check_shared_memory(free: int | None, *, has_torch: bool) -> Finding:
    """Return whether the workers of a PyTorch loader have room for their batches.

    Parameters
    ----------
    free
        Free bytes of shared memory; None if the system does not limit it.
    has_torch
        Whether PyTorch is installed. Nothing else uses this memory.
    """
    limits = SegmentLimits()
    name, place = "shared memory", str(SHARED_MEMORY)
    if free is None:
        return Finding("machine", name, f"this system has no {place}, and needs none")
    room = room_bytes(limits, free)
    needed_bytes = 2 * limits.n_bytes
    figures = {"free_bytes": free, "room_bytes": room}
    found = f"{free / _GB:.1f} GB free in {place}"
    needed = f"{needed_bytes / _GB:.1f} GB free"
    if room == limits.n_bytes or not has_torch:
        return Finding("machine", name, found, needed, figures=figures)
    problem = (
        "Workers of a PyTorch loader have no room for memory that they use again, so they copy "
        "each batch, or end with a bus error."
        if room == 0
        else f"Workers of a PyTorch loader may use {room / _GB:.1f} GB again and again, and copy "
        "the batches for which that is too little."
    )
    return Finding(
        "machine",
        name,
        found,
        needed,
        "note",
        f"{problem} Start the container with --shm-size=5g, or mount a larger tmpfs at {place}.",
        figures,
    )


def _check_start_method() -> Finding:
    method = multiprocessing.get_start_method(allow_none=True)
    method = method or multiprocessing.get_all_start_methods()[0]
    found = method
    if method != "fork":
        found += ", so a program that starts workers needs: if __name__ == '__main__':"
    elif sys.version_info >= (3, 12):
        found += "; Python warns if threads run then, and spinezarr's are safe"
    return Finding("machine", "start of workers", found, figures={"method": method})
