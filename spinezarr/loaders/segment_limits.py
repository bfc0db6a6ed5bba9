"""How much shared memory may the workers of a data loader take?

This module imports no PyTorch, so that a program can ask before it starts a loader.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["SHARED_MEMORY", "SegmentLimits", "free_bytes", "room_bytes"]

SHARED_MEMORY: Final = Path("/dev/shm")  # noqa: S108  only asked for its free space
"""File system of shared memory on Linux. Other systems have none."""
_RESERVE_BYTES: Final = 512 << 20
"""Bytes of shared memory to leave for what PyTorch sends. Containers often have only 64 MB."""


@dataclass(frozen=True, slots=True)
class SegmentLimits:
    """How much the segments of all workers of a loader may take together."""

    n_bytes: int = 2 << 30
    n_segments: int = 256
    """Each takes a file descriptor in both processes."""


def free_bytes() -> int | None:
    """Return the free bytes of shared memory; None if the system does not limit it."""
    if not SHARED_MEMORY.exists():
        return None
    status = os.statvfs(SHARED_MEMORY)
    return status.f_frsize * status.f_bavail


def room_bytes(limits: SegmentLimits, free: int | None) -> int:
    """Return how many bytes segments may take if so many bytes of shared memory are free.

    Examples
    --------
    A container with 64 MB has no room for segments.

    >>> room_bytes(SegmentLimits(), 64 << 20), room_bytes(SegmentLimits(), 4 << 30)
    (0, 2147483648)
    """
    if free is None:
        return limits.n_bytes
    return max(0, min(limits.n_bytes, free // 2, free - _RESERVE_BYTES))
