"""How are many small files read at once, when most of the time is spent waiting for them?"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

__all__ = ["map_concurrently"]

_REMOTE_THREADS: Final = 16
_DISK_THREADS: Final = 4
"""Threads for local files.

More would be slower for files in the page cache, because Python's threads then only take turns.
"""
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_concurrently(
    fs: fsspec.AbstractFileSystem, work: Callable[[_Item], _Result], items: Iterable[_Item]
) -> list[_Result]:
    """Call ``work``, which reads from ``fs``, for each item in several threads.

    Returns
    -------
    list
        Results in the order of the items.

    Raises
    ------
    Exception
        The first exception of ``work`` in the order of the items. Items that have not started are
        then skipped.

    Examples
    --------
    >>> map_concurrently(LocalFileSystem(), len, ["a", "bc", ""])
    [1, 2, 0]
    """
    threads = _DISK_THREADS if isinstance(fs, LocalFileSystem) else _REMOTE_THREADS
    pool = ThreadPoolExecutor(threads, thread_name_prefix="spinezarr-read")
    try:
        return list(pool.map(work, items))
    finally:
        pool.shutdown(cancel_futures=True)
