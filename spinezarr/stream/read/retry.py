"""What happens if a scan is written again while it is read?

Its voxels are the same, but its files have other names. So the read is repeated with the new names.
"""

from collections.abc import Callable
from typing import Final, TypeVar

from spinezarr.errors import ScanRewrittenError

__all__ = ["retry_if_rewritten"]

T = TypeVar("T")
_RETRIES: Final = 3
"""Number of times that a read is repeated."""


def retry_if_rewritten(read: Callable[[], T]) -> T:
    """Return what ``read`` returns; call it again if a scan was rewritten with the same voxels.

    Raises
    ------
    ScanRewrittenError
        If a scan was rewritten during every call.
    """
    for _ in range(_RETRIES):
        try:
            return read()
        except ScanRewrittenError:
            continue
    return read()
