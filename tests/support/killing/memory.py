"""A folder in memory, for tests that kill processes and never the machine."""

import os
import shutil
from typing import Final

__all__ = ["in_memory"]

_FREE_BYTES: Final = 2 << 30
"""Containers may have a small one."""


def in_memory() -> str | None:
    """Name a folder in memory, if there is one: a killed process loses nothing by that.

    Stores are forced to disk file by file, which takes most of the time elsewhere.
    """
    place = "/dev/shm"  # noqa: S108  made by the system
    has_room = os.access(place, os.W_OK) and shutil.disk_usage(place).free > _FREE_BYTES
    return place if has_room else None
