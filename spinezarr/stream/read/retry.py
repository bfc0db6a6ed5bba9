"""Reads that are made again where a scan was written again meanwhile."""

from collections.abc import Callable
from typing import Final, TypeVar

from spinezarr.errors import ScanRewrittenError

__all__ = ["retry_if_rewritten"]

T = TypeVar("T")
_REREADS: Final = 3
"""How often a scan may be written again while it is read."""


def retry_if_rewritten(read: Callable[[], T]) -> T:
    """Call ``read`` again where a scan was written again meanwhile, with the same voxels."""
    for _ in range(_REREADS):
        try:
            return read()
        except ScanRewrittenError:
            continue
    return read()
