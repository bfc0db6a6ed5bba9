"""Measures reads of files that are not in memory: evicts files, and counts what is in memory."""

import ctypes
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_PAGE = mmap.PAGESIZE
_MADV_DONTNEED = 4
"""Constant of Linux, from ``<asm-generic/mman-common.h>``."""


def evict(files: Sequence[Path]) -> None:
    """Drop files from the page cache, after this process has released its mappings of them."""
    names = {str(path) for path in files}
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[5] in names:  # noqa: PLR2004  the last field is the path
            start, stop = (int(text, 16) for text in fields[0].split("-"))
            _LIBC.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_DONTNEED)
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # pages that are not yet on disk cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def cached_bytes(files: Sequence[Path]) -> int:
    """Return the number of bytes of files in the page cache, by ``mincore``."""
    total = 0
    for path in files:
        size = path.stat().st_size
        if not size:
            continue
        with path.open("rb") as file, mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE) as mapped:
            pages = (ctypes.c_ubyte * -(-size // _PAGE))()
            at = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            if _LIBC.mincore(ctypes.c_void_p(at), ctypes.c_size_t(size), pages):
                raise OSError(ctypes.get_errno(), f"{path}: mincore")
            total += sum(page & 1 for page in pages) * _PAGE
    return total
