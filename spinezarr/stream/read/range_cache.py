"""How are bytes of remote shards kept in a folder that processes share?

Each shard has a sparse file in the folder, its *mirror*. It has the bytes of the shard at their own
offsets, and holes where nothing was kept yet. After them it has one byte, a *mark*, for each page
of 4 KiB: the mark says whether the page was written. For example, a shard of 10,000 bytes has pages
at 0, 4096 and 8192, and its marks are the bytes 12,288 to 12,290 of the mirror.

A page is marked after it is written. A process that is killed in between leaves a page without a
mark, never a mark without a page. Marks are bytes instead of bits, so that two processes that keep
neighboring pages write different bytes, and need no lock.

A mark disappears in two cases only, so each process may remember the marks that it has seen:

- The page was damaged. A process that remembers the mark reads the damaged bytes, which the
  checksum of the chunk exposes, or the good bytes that were written since.
- The file was removed to make room. Its bytes remain for processes that have it open.

After a power loss, a mark may be on disk without its page. Checksums of chunks and shard indices
expose incomplete pages; the reader then calls :meth:`RangeCache.forget`, and these pages are
fetched again.
"""

import errno
import fcntl
import hashlib
import math
import os
import re
import secrets
import stat
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from typing_extensions import Buffer

from spinezarr.errors import UsageError
from spinezarr.forks import PerProcess, ProcessLock
from spinezarr.text import to_printable

__all__ = [
    "NO_CACHE",
    "CacheSettings",
    "CacheWarning",
    "Mirror",
    "RangeCache",
    "shared_range_cache",
]

_VERSION: Final = "v1"
"""Folder of this layout inside the cache; another layout needs another folder."""
_MIRROR_NAME: Final = re.compile(r"[0-9a-f]{40}\.ranges")
"""Names of mirrors; files with other names are neither counted nor removed."""
_LOCK_NAME: Final = "lock"
_PAGE_BYTES: Final = 4096
_MARK: Final = 0xB5
"""Mark of a written page. A file with bytes other than this and 0 among its marks is damaged or
foreign. So that such files are recognized, the mark is neither text nor 255."""
_CLEAR_OTHERS: Final = bytes(_MARK if byte == _MARK else 0 for byte in range(256))
"""Table for :meth:`bytes.translate` that turns all bytes but marks into 0."""
_USE_TIME_TOLERANCE_S: Final = 60.0
"""Largest error of the time of last use of a file, in seconds."""
_EVICT_ABOVE, _EVICT_DOWN_TO = 0.9, 0.8
"""Above the first fraction of the size, files are removed down to the second fraction."""
_MAX_UNCOUNTED: Final = 0.01
"""Largest fraction of the size that a process writes before it measures the folder again."""
_OPEN_ATTEMPTS: Final = 5
"""Attempts to open a file while other processes remove it."""


class CacheWarning(UserWarning):
    """The cache keeps nothing more, because the disk is full or fails. Reading continues."""


@dataclass(frozen=True)
class CacheSettings:
    """Settings of the two caches of a store, in a folder on disk and in memory.

    Parameters
    ----------
    folder
        Folder that keeps the compressed bytes of stores in buckets and on web servers, for the next
        epoch and for other processes of this machine. It is made for its owner alone if it does not
        exist, and holds no URL and no credentials. None keeps nothing on disk.
    folder_bytes
        Disk space of the folder, in bytes. The least recently used files are removed first.
    memory_bytes
        Memory for decoded chunks, in bytes for each process. It helps where the same places are
        read again. Random patches of a larger store are read faster without it, so it is off by
        default.

    Raises
    ------
    UsageError
        If the folder cannot be made or written, or a size is out of range.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     CacheSettings(Path(folder, "ranges"), folder_bytes=10**9).folder_bytes
    1000000000
    """

    folder: Path | None = None
    folder_bytes: int = 50 * 10**9
    memory_bytes: int = 0

    def __post_init__(self) -> None:
        if self.folder_bytes <= 0:
            raise UsageError(f"folder_bytes {self.folder_bytes}: must be at least 1.")
        if self.memory_bytes < 0:
            raise UsageError(f"memory_bytes {self.memory_bytes}: must not be negative.")
        if self.folder is None:
            return
        folder = Path(self.folder)
        try:
            folder = folder.expanduser().absolute()
            object.__setattr__(self, "folder", folder)
            _make_folder(folder, _VERSION)
            os.close(_open(folder / _VERSION / _LOCK_NAME, create=True))
        except (OSError, RuntimeError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise UsageError(
                f"{folder}: cannot be used as a cache: {reason}. Give a folder on a local disk "
                "that can be made and written."
            ) from problem


NO_CACHE: Final = CacheSettings()
"""Settings that keep nothing."""


class Mirror:
    """The file with the kept bytes of one shard; see the module for its layout.

    The descriptor stays open while this object exists, even if the file is removed.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.used_s = 0.0
        self._recorded_s = -math.inf
        self._path = path
        self._size = size
        self._marks_start = _round_up(size)
        self._marks = bytearray(_n_pages(size))
        weakref.finalize(self, os.close, descriptor).atexit = False

    @classmethod
    def open(cls, path: Path, size: int, *, create: bool) -> "Mirror | None":
        """Open a mirror; None if there is none.

        With ``create``, a new file is made. If something else lies in its place, it is removed, and
        None is returned. The caller then tries again.

        Raises
        ------
        OSError
            If it cannot be opened.
        """
        try:
            mirror = cls(path, _open(path, create=create), size)
            if mirror._has_valid_file(create=create) and mirror._read_all_marks():
                if hasattr(os, "posix_fadvise"):
                    # Chunks lie far apart, so reading ahead would be wasted.
                    os.posix_fadvise(mirror.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                return mirror if mirror.is_current() else None
        except FileNotFoundError:
            return None
        except OSError as problem:
            if problem.errno != errno.ELOOP:  # a symbolic link, which is not followed
                raise
        if create:
            path.unlink(missing_ok=True)
        return None

    def _has_valid_file(self, *, create: bool) -> bool:
        """Whether the open file is a regular file of the right size."""
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False  # a second name means that it belongs to another program
        file_bytes = self._marks_start + len(self._marks)
        if status.st_size < file_bytes and create:
            # The file is new or was cut. Every process extends it to one size, and 0 is no mark.
            os.ftruncate(self.descriptor, file_bytes)
            return True
        return status.st_size == file_bytes

    def is_current(self) -> bool:
        """Whether the file is still in the folder; if so, record the time of its last use there."""
        try:
            listed, opened = os.lstat(self._path), os.fstat(self.descriptor)
        except OSError:
            return False
        if not os.path.samestat(listed, opened) or not self._has_valid_file(create=False):
            return False
        error_s = abs(time.time() - listed.st_mtime)
        if self.used_s > self._recorded_s and error_s > _USE_TIME_TOLERANCE_S:
            with suppress(OSError):
                os.utime(self.descriptor)
        self._recorded_s = self.used_s
        return True

    def has(self, start: int, stop: int) -> bool:
        """Whether all bytes ``start <= i < stop`` are kept."""
        if not 0 <= start <= stop <= self._size:
            return False
        first, last = start // _PAGE_BYTES, _n_pages(stop)
        if self._marks.find(0, first, last) < 0:
            return True
        self._read_marks(first, last)
        return self._marks.find(0, first, last) < 0

    def read(self, start: int, stop: int) -> bytes | None:
        """Return bytes that are kept; None if the disk fails."""
        try:
            data = os.pread(self.descriptor, stop - start, start)
        except OSError:
            return None
        return data if len(data) == stop - start else None

    def write(self, first: int, pages: memoryview) -> None:
        """Write the pages that are not kept yet, then mark them."""
        last = first + _n_pages(len(pages))
        self._read_marks(first, last)
        while (begin := self._marks.find(0, first, last)) >= 0:
            end = self._marks.find(_MARK, begin, last)
            end = last if end < 0 else end
            part = pages[(begin - first) * _PAGE_BYTES : (end - first) * _PAGE_BYTES]
            _write(self.descriptor, part, begin * _PAGE_BYTES)
            self._set_marks(begin, bytes([_MARK]) * (end - begin))

    def unmark(self, start: int, stop: int) -> None:
        """Remove the marks of all pages that overlap ``start <= i < stop``."""
        first, last = start // _PAGE_BYTES, min(_n_pages(stop), len(self._marks))
        self._set_marks(first, bytes(max(0, last - first)))

    def _set_marks(self, first: int, marks: bytes) -> None:
        _write(self.descriptor, memoryview(marks), self._marks_start + first)
        self._marks[first : first + len(marks)] = marks

    def _read_marks(self, first: int, last: int) -> None:
        marks = os.pread(self.descriptor, last - first, self._marks_start + first)
        if len(marks) == last - first:
            self._marks[first:last] = marks.translate(_CLEAR_OTHERS)

    def _read_all_marks(self) -> bool:
        """Read the marks; False if other bytes are in their place."""
        marks = os.pread(self.descriptor, len(self._marks), self._marks_start)
        if len(marks) < len(self._marks) or marks.translate(None, bytes([0, _MARK])):
            return False
        self._marks[:] = marks
        return True


class RangeCache:
    """Keeps ranges of shards in a folder on disk. Threads and forked processes may share it.

    A shard is identified by a key that depends on its content, and by its size in bytes. A disk
    that fails raises no error: ranges are then not found, or not kept.

    Parameters
    ----------
    settings
        Folder and its size.
    max_open_files
        Largest number of files that this process keeps open; every system allows at least 256.
    check_s
        Seconds between two checks whether the open files are still in the folder.
    clock
        Monotonic time in seconds.
    """

    def __init__(
        self,
        settings: CacheSettings,
        *,
        max_open_files: int = 128,
        check_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if settings.folder is None:
            raise ValueError("a cache of ranges needs a folder")
        self.settings = settings
        self.folder = settings.folder
        self._max_open_files = max_open_files
        self._check_s = check_s
        self._clock = clock
        self._folder = settings.folder / _VERSION
        self._lock = ProcessLock()
        self._open: dict[tuple[str, int], Mirror] = {}
        self._distrusted: set[tuple[str, int]] = set()
        self._checked_s = -math.inf
        self._is_writing = True
        # Forks that shared their parent's count would all measure the folder at the same moment.
        self._uncounted = PerProcess(_UncountedBytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_range_cache, (self.settings,)

    def locate(
        self, key: str, size: int, ranges: Sequence[tuple[int, int]]
    ) -> tuple[Mirror | None, list[bool]]:
        """Find the ranges of a shard that are kept.

        Parameters
        ----------
        key, size
            Key and size in bytes of the shard.
        ranges
            ``(start, stop)`` for each range of bytes ``start <= i < stop``.

        Returns
        -------
        mirror
            The file with the ranges; None if nothing of the shard is kept.
        found
            Whether each range is kept. The bytes of a kept range are read from
            ``mirror.descriptor`` at offset ``start``.
        """
        try:
            mirror = self._mirror(key, size, create=False)
            if mirror is not None:
                return mirror, [mirror.has(start, stop) for start, stop in ranges]
        except OSError:
            pass  # the disk fails, so no range is found
        return None, [False] * len(ranges)

    def find(self, key: str, size: int, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Return the bytes of each range of a shard; None for a range that is not kept."""
        mirror, are_kept = self.locate(key, size, ranges)
        if mirror is None:
            return [None] * len(ranges)
        contents: list[bytes | None] = []
        for (start, stop), is_kept in zip(ranges, are_kept, strict=True):
            data = mirror.read(start, stop) if is_kept else None
            if is_kept and data is None:
                self.forget(key, size, start, stop)
            contents.append(data)
        return contents

    @staticmethod
    def widen(start: int, stop: int, size: int) -> tuple[int, int]:
        """Return start and stop of the smallest range of whole pages around a range."""
        return start // _PAGE_BYTES * _PAGE_BYTES, min(_round_up(stop), size)

    def keep(self, key: str, size: int, start: int, data: Buffer) -> None:
        """Keep the whole pages in some bytes of a shard; see :meth:`widen`.

        Parameters
        ----------
        key, size
            Key and size in bytes of the shard.
        start
            Offset of ``data`` in the shard.
        data
            The bytes.

        Warns
        -----
        CacheWarning
            If the disk is full or fails. Nothing more is kept then.
        """
        content = memoryview(data).cast("B")
        stop = start + len(content)
        if not 0 <= start <= stop <= size:
            raise ValueError(f"bytes {start} to {stop} of a shard of {size}")
        aligned, end = _round_up(start), stop if stop == size else stop - stop % _PAGE_BYTES
        needed = end - aligned + _PAGE_BYTES  # one more page for the marks
        if not self._is_writing or aligned >= end or needed > self.settings.folder_bytes:
            return
        try:
            mirror = self._mirror(key, size, create=True) if self._has_room(needed) else None
            if mirror is not None:
                mirror.write(aligned // _PAGE_BYTES, content[aligned - start : end - start])
        except FileNotFoundError:
            pass  # another process is removing the folder; later bytes will be kept
        except OSError as problem:
            self._stop_keeping(problem)

    def forget(self, key: str, size: int, start: int, stop: int) -> None:
        """Forget damaged bytes ``start <= i < stop`` of a shard, in all processes."""
        try:
            mirror = self._mirror(key, size, create=False)
            if mirror is not None:
                mirror.unmark(start, stop)
        except OSError:
            # The marks cannot be removed on disk, so this process no longer uses the file.
            with self._lock:
                self._distrusted.add((key, size))
                self._open.pop((key, size), None)

    def usage_bytes(self) -> int:
        """Return the disk space in use."""
        return sum(size for _, size, _ in self._files())

    def _mirror(self, key: str, size: int, *, create: bool) -> Mirror | None:
        shard, now_s = (key, size), self._clock()
        mirror = self._open.get(shard)
        if mirror is None or now_s - self._checked_s > self._check_s:
            with self._lock:
                if now_s - self._checked_s > self._check_s:
                    self._check_open_files()
                mirror = self._open.get(shard)
                if mirror is None and shard not in self._distrusted:
                    mirror = self._open_file(shard, create=create)
        if mirror is not None:
            mirror.used_s = now_s
        return mirror

    def _open_file(self, shard: tuple[str, int], *, create: bool) -> Mirror | None:
        key, size = shard
        name = hashlib.sha256(f"{size} {key}".encode()).hexdigest()[:40]
        path = self._folder / name[:2] / f"{name}.ranges"
        for _ in range(_OPEN_ATTEMPTS if create else 1):
            mirror = Mirror.open(path, size, create=create)
            if mirror is not None:
                if len(self._open) >= self._max_open_files:
                    del self._open[min(self._open, key=lambda other: self._open[other].used_s)]
                self._open[shard] = mirror
                return mirror
            if create:
                _make_folder(self.folder, _VERSION, name[:2])
        return None

    def _check_open_files(self) -> None:
        """Close files that were removed or cut, and record the last use of the others."""
        self._checked_s = self._clock()
        for shard, mirror in list(self._open.items()):
            if not mirror.is_current():
                del self._open[shard]

    def _has_room(self, n_bytes: int) -> bool:
        """Whether ``n_bytes`` may be written; the folder is measured and cleared from time to time.

        It is False while another process makes room, so that all written bytes are counted.
        """
        limit = self.settings.folder_bytes
        with self._lock:
            uncounted = self._uncounted.get()
            uncounted.left -= n_bytes
            if uncounted.left >= 0:
                return True
            uncounted.left = secrets.randbelow(int(limit * _MAX_UNCOUNTED) + 1)
        _make_folder(self.folder, _VERSION)
        with _try_lock(self._folder / _LOCK_NAME) as is_locked:
            if is_locked:
                self._evict(n_bytes)
                return True
        with self._lock:
            uncounted.left = 0
        return False

    def _evict(self, n_bytes: int) -> None:
        """Remove the least recently used files if ``n_bytes`` more do not fit."""
        limit = self.settings.folder_bytes
        files = sorted(self._files())
        usage = n_bytes + sum(size for _, size, _ in files)
        if usage <= _EVICT_ABOVE * limit:
            return
        for _, size, path in files:
            if usage <= _EVICT_DOWN_TO * limit:
                break
            with suppress(OSError):  # the file may belong to another user
                path.unlink(missing_ok=True)
                usage -= size
        with self._lock:
            self._check_open_files()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, disk space and path of each mirror."""
        for folder in _list_entries(self._folder):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):  # noqa: PLR2004
                continue
            for file in _list_entries(folder):
                if _MIRROR_NAME.fullmatch(file.name):
                    with suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        yield status.st_mtime, status.st_blocks * 512, Path(file.path)

    def _stop_keeping(self, problem: OSError) -> None:
        with self._lock:
            was_writing, self._is_writing = self._is_writing, False
        if was_writing:
            warnings.warn(
                to_printable(
                    f"{self.folder}: the cache keeps nothing more: {problem.strerror}. "
                    "Reading goes on without it; make room, or give another folder."
                ),
                CacheWarning,
                stacklevel=3,
            )


class _UncountedBytes:
    """Bytes that this process may still write before it measures the folder."""

    def __init__(self) -> None:
        self.left = 0


@cache
def shared_range_cache(settings: CacheSettings) -> RangeCache:
    """Return the one cache of this process with these settings."""
    return RangeCache(settings)


def _n_pages(n_bytes: int) -> int:
    return -(-n_bytes // _PAGE_BYTES)


def _round_up(n_bytes: int) -> int:
    return _n_pages(n_bytes) * _PAGE_BYTES


def _make_folder(folder: Path, *below: str) -> None:
    """Make a folder, and folders in it, with access for their owner only."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for name in ("", *below):
        folder /= name
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)


def _open(path: Path, *, create: bool) -> int:
    """Open a file for reading and writing. Links are not followed, and pipes do not block."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    return os.open(path, flags, 0o600)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``."""
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _list_entries(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _try_lock(path: Path) -> Iterator[bool]:
    """Try to hold a lock that ends with the process; yield whether it is held."""
    descriptor = _open(path, create=True)
    try:
        # Unlike flock(), a fork does not keep this lock when the process that holds it is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
