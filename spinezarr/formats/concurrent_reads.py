"""Reading many small files side by side: what takes time is waiting for a disk or a server."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["map_concurrently"]

_THREADS: Final = 16
_THREADS_ON_DISK: Final = 4
"""More cost time where files are in the page cache, as Python's threads then only take turns."""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_concurrently(
    fs: fsspec.AbstractFileSystem, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> list[_Result]:
    """Do ``work``, which reads from ``fs``, for each item; return the results in their order.

    Raises
    ------
    Exception
        The first that ``work`` raises, in the order of the items; what has not begun is left.

    Examples
    --------
    >>> map_concurrently(LocalFileSystem(), len, ["a", "bc", ""])
    [1, 2, 0]
    """
    threads = _THREADS_ON_DISK if isinstance(fs, LocalFileSystem) else _THREADS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="spinezarr-read")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)
