"""Which bytes come from a disk, and which from memory?

The system keeps what it has read of files in memory, in the page cache. A speed that is measured
there is that of memory. So pages are dropped first, and the system's own count of bytes that a
process has read from disks says whether that worked. It does not on file systems in memory, where
another program holds the pages, or where a file system has a cache of its own.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

__all__ = ["disk_bytes", "drop_pages", "share_from_disk"]

_COUNTS: Final = Path("/proc/self/io")


def disk_bytes() -> int | None:
    """Return the bytes that this process has read from disks; None if the system does not say."""
    try:
        lines = _COUNTS.read_text(encoding="ascii").splitlines()
        return int(dict(line.split(": ") for line in lines)["read_bytes"])
    except (OSError, KeyError, ValueError):
        return None


def drop_pages(descriptor: int, start: int = 0, size: int = 0) -> None:
    """Ask the system to forget the pages of a file; it keeps those that are not on disk yet.

    Parameters
    ----------
    descriptor
        The open file.
    start, size
        Range in bytes; a size of 0 means up to the end.
    """
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_DONTNEED)


def share_from_disk(before: int | None, after: int | None, n_bytes: int) -> float | None:
    """Return which share of some bytes came from a disk, by two counts; None if it is not known.

    Examples
    --------
    >>> share_from_disk(1000, 1500, 2000)
    0.25
    """
    if before is None or after is None or not n_bytes:
        return None
    return min(1.0, (after - before) / n_bytes)
