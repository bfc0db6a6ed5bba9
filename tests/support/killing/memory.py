"""A folder in memory, for tests that kill processes and never the machine."""

import os
import shutil
from typing import Final

__all__ = ["in_memory"]

_FREE_BYTES: Final = 2 << 30
"""Bytes that must be free, because containers may have a small memory disk."""


def in_memory() -> str | None:
    """Return a folder in memory, if there is one; a killed process loses no data there.

    On a disk, forcing each file of a store to disk would take most of the time.
    """
    place = "/dev/shm"  # noqa: S108  made by the system
    has_room = os.access(place, os.W_OK) and shutil.disk_usage(place).free > _FREE_BYTES
    return place if has_room else None
