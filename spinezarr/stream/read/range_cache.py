"""Compressed bytes of remote shards on disk: bounded, and shared by processes that may be killed.

The cache is a folder with one file a shard, its *mirror*: the shard's bytes at their own offsets,
holes where nothing was kept yet, and behind them one byte for each page of 4 KiB that says whether
the page is there. A page is marked only once it is written, so a process that is killed leaves
pages that are not marked, never marks without a page. Marks are bytes and not bits: two processes
that keep neighboring pages write different bytes, and no lock is needed.

A mark goes away in two ways only, so each process may remember those that it has seen. The page was
damaged: whoever remembers the mark reads bad bytes, which their own checksum gives away, or the
good ones written since. Or the whole file was removed to make room: its bytes stay for those who
have it open.

After a loss of power a mark may be on disk and its page not. Chunks and shard indices carry
checksums, so those who read them find out, and call :meth:`RangeCache.forget`.
"""

import errno
import hashlib
import math
import os
import re
import secrets
import stat
import time
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from typing_extensions import Buffer

from spinezarr.errors import UsageError
from spinezarr.forks import PerProcess, ProcessLock
from spinezarr.text import to_printable

__all__ = ["CacheWarning", "DiskCache", "Mirror", "RangeCache", "shared_range_cache"]

_VERSION: Final = "v1"
"""Folder of this layout; another layout would take another one."""
_NAME: Final = re.compile(r"[0-9a-f]{40}\.ranges")
"""Nothing else below the folder is ever counted or removed."""
_LOCK: Final = "lock"
_PAGE_BYTES: Final = 4096
_MARK: Final = 0xB5
"""A page is there. No text, no 0 or 255: a file with anything else but 0 there is not ours."""
_MARKS_ALONE: Final = bytes(_MARK if byte == _MARK else 0 for byte in range(256))
_OPEN_FILES: Final = 128
"""Most that a process keeps open; systems allow at least 256."""
_TIDY_S: Final = 5.0
"""How often a process looks whether its open files are still those in the folder."""
_RECENT_S: Final = 60.0
"""By how much a file's time of last use may be wrong."""
_FULL, _ROOM = 0.9, 0.8
"""Shares of the bound: above the first, files are removed down to the second."""
_UNSEEN: Final = 0.01
"""Partition of the bound that a process writes at most before it looks at the folder again."""
_TRIES: Final = 5
"""To open a file while others remove it."""


class CacheWarning(UserWarning):
    """A cache that keeps nothing more; reading goes on without it."""


@dataclass(frozen=True)
class DiskCache:
    """A folder on disk that keeps compressed bytes of remote stores for the next time.

    Several processes of one machine may use it at once. It holds no URL and no credentials.

    Parameters
    ----------
    folder
        Where; made if it is not there, for its owner alone.
    max_bytes
        Of disk space; what was not used for longest goes first.

    Raises
    ------
    UsageError
        If the folder cannot be made or written, or ``max_bytes`` is not positive.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     DiskCache(Path(folder, "ranges"), max_bytes=10**9).max_bytes
    1000000000
    """

    folder: Path
    max_bytes: int = 50 * 10**9

    def __post_init__(self) -> None:
        if self.max_bytes <= 0:
            raise UsageError(f"max_bytes {self.max_bytes} of a cache: must be positive.")
        if not hasattr(os, "pread"):
            raise UsageError("a cache on disk: this system lacks pread(); open without one.")
        try:
            object.__setattr__(self, "folder", Path(self.folder).expanduser().absolute())
            _make_folder(self.folder, _VERSION)
            os.close(_open(self.folder / _VERSION / _LOCK, create=True))
        except (OSError, RuntimeError) as problem:
            reason = getattr(problem, "strerror", None) or problem
            raise UsageError(
                f"{self.folder}: cannot be used as a cache: {reason}. Give a folder on a local "
                "disk that can be made and written."
            ) from problem


class Mirror:
    """A file with the bytes of a shard that are known.

    Its descriptor stays open as long as this object lives, also when the file is removed.
    """

    def __init__(self, path: Path, descriptor: int, size: int) -> None:
        self.descriptor = descriptor
        self.used_s = time.monotonic()
        self._noted_s = -math.inf
        self._path = path
        self._size = size
        self._marks_start = _round_up(size)
        self._marks = bytearray(_n_pages(size))
        weakref.finalize(self, os.close, descriptor).atexit = False

    @classmethod
    def open(cls, path: Path, size: int, *, create: bool) -> "Mirror | None":
        """Open a mirror; None if there is none.

        With ``create``, one is made, or what lies in its place is removed: try again.

        Raises
        ------
        OSError
            If it cannot be opened.
        """
        try:
            mirror = cls(path, _open(path, create=create), size)
            if mirror._is_whole(create=create) and mirror._read_all_marks():
                if hasattr(os, "posix_fadvise"):
                    # As for shards on disk: chunks lie far apart.
                    os.posix_fadvise(mirror.descriptor, 0, 0, os.POSIX_FADV_RANDOM)
                return mirror if mirror.is_current() else None
        except FileNotFoundError:
            return None
        except OSError as problem:
            if problem.errno != errno.ELOOP:  # a link, which is not followed
                raise
        if create:
            path.unlink(missing_ok=True)
        return None

    def _is_whole(self, *, create: bool) -> bool:
        """Whether a file just opened is one of ours, and as long as it must be."""
        status = os.fstat(self.descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
            return False  # with a second name, it is a file of somebody else
        file_bytes = self._marks_start + len(self._marks)
        if status.st_size < file_bytes and create:
            # New, or cut. All who find it so do the same, and what is added marks nothing.
            os.ftruncate(self.descriptor, file_bytes)
            return True
        return status.st_size == file_bytes

    def is_current(self) -> bool:
        """Whether it still lies in the folder as it was; if so, note there that it was used."""
        try:
            there, opened = os.lstat(self._path), os.fstat(self.descriptor)
        except OSError:
            return False
        if not os.path.samestat(there, opened) or not self._is_whole(create=False):
            return False
        if self.used_s > self._noted_s and abs(time.time() - there.st_mtime) > _RECENT_S:
            with suppress(OSError):
                os.utime(self.descriptor)
        self._noted_s = self.used_s
        return True

    def has(self, start: int, stop: int) -> bool:
        """Whether all of ``start <= i < stop`` is there."""
        if not 0 <= start <= stop <= self._size:
            return False
        first, last = start // _PAGE_BYTES, _n_pages(stop)
        if self._marks.find(0, first, last) < 0:
            return True
        self._read_marks(first, last)
        return self._marks.find(0, first, last) < 0

    def read(self, start: int, stop: int) -> bytes | None:
        """Return bytes that are there; None if the disk does not give them."""
        try:
            data = os.pread(self.descriptor, stop - start, start)
        except OSError:
            return None
        return data if len(data) == stop - start else None

    def write(self, first: int, pages: memoryview) -> None:
        """Write those of some pages that are not there, then mark them."""
        last = first + _n_pages(len(pages))
        self._read_marks(first, last)
        while (begin := self._marks.find(0, first, last)) >= 0:
            end = self._marks.find(_MARK, begin, last)
            end = last if end < 0 else end
            part = pages[(begin - first) * _PAGE_BYTES : (end - first) * _PAGE_BYTES]
            _write(self.descriptor, part, begin * _PAGE_BYTES)
            self._set_marks(begin, bytes([_MARK]) * (end - begin))

    def unmark(self, start: int, stop: int) -> None:
        """Take away the marks of all pages that ``start <= i < stop`` touches."""
        first, last = start // _PAGE_BYTES, min(_n_pages(stop), len(self._marks))
        self._set_marks(first, bytes(max(0, last - first)))

    def _set_marks(self, first: int, marks: bytes) -> None:
        _write(self.descriptor, memoryview(marks), self._marks_start + first)
        self._marks[first : first + len(marks)] = marks

    def _read_marks(self, first: int, last: int) -> None:
        found = os.pread(self.descriptor, last - first, self._marks_start + first)
        if len(found) == last - first:
            self._marks[first:last] = found.translate(_MARKS_ALONE)

    def _read_all_marks(self) -> bool:
        """Read the marks; False if something else stands in their place."""
        found = os.pread(self.descriptor, len(self._marks), self._marks_start)
        if len(found) < len(self._marks) or found.translate(None, bytes([0, _MARK])):
            return False
        self._marks[:] = found
        return True


class RangeCache:
    """Ranges of shards in the folder of a :class:`DiskCache`. Shared between threads and forks.

    A shard is known by a key that stands for its content, and by its size in bytes. What goes wrong
    with the disk is never an error of the reader's: ranges are not found, or not kept.

    Parameters
    ----------
    settings
        Where, and how much.
    """

    def __init__(self, settings: DiskCache) -> None:
        self.settings = settings
        self._folder = settings.folder / _VERSION
        self._lock = ProcessLock()
        self._open: dict[tuple[str, int], Mirror] = {}
        self._distrusted: set[tuple[str, int]] = set()
        self._tidied_s = -math.inf
        self._keeps = True
        # A fork that went on with its parent's count would look at the folder when all others do.
        self._unseen = PerProcess(_UnseenBytes)

    def __reduce__(self) -> tuple[Any, ...]:
        return shared_range_cache, (self.settings,)

    def locate(
        self, key: str, size: int, ranges: Sequence[tuple[int, int]]
    ) -> tuple[Mirror | None, list[bool]]:
        """Say which ranges of a shard are there.

        Parameters
        ----------
        key, size
            The shard.
        ranges
            ``(start, stop)``, bytes ``start <= i < stop`` of it.

        Returns
        -------
        mirror
            The file that has them; None if there is none.
        found
            Whether it has each range: it can be read at its own offset from ``mirror.descriptor``.
        """
        try:
            mirror = self._mirror(key, size, create=False)
            if mirror is not None:
                return mirror, [mirror.has(start, stop) for start, stop in ranges]
        except OSError:
            pass  # a disk that fails has nothing
        return None, [False] * len(ranges)

    def find(self, key: str, size: int, ranges: Sequence[tuple[int, int]]) -> list[bytes | None]:
        """Return the bytes of each range of a shard that is there, and None for the others."""
        mirror, there = self.locate(key, size, ranges)
        if mirror is None:
            return [None] * len(ranges)
        found: list[bytes | None] = []
        for (start, stop), is_there in zip(ranges, there, strict=True):
            data = mirror.read(start, stop) if is_there else None
            if is_there and data is None:
                self.forget(key, size, start, stop)
            found.append(data)
        return found

    @staticmethod
    def widen(start: int, stop: int, size: int) -> tuple[int, int]:
        """Return the smallest range around another that is kept whole."""
        return start // _PAGE_BYTES * _PAGE_BYTES, min(_round_up(stop), size)

    def keep(self, key: str, size: int, start: int, data: Buffer) -> None:
        """Keep bytes of a shard from ``start`` on: all pages that they cover; see :meth:`widen`.

        Warns
        -----
        CacheWarning
            If the disk is full or does not take them; nothing more is kept then.
        """
        content = memoryview(data).cast("B")
        stop = start + len(content)
        if not 0 <= start <= stop <= size:
            raise ValueError(f"bytes {start} to {stop} of a shard of {size}")
        aligned, end = _round_up(start), stop if stop == size else stop - stop % _PAGE_BYTES
        needed = end - aligned + _PAGE_BYTES  # and of marks
        if not self._keeps or aligned >= end or needed > self.settings.max_bytes:
            return
        try:
            mirror = self._mirror(key, size, create=True) if self._has_room(needed) else None
            if mirror is not None:
                mirror.write(aligned // _PAGE_BYTES, content[aligned - start : end - start])
        except FileNotFoundError:
            pass  # somebody is removing the folder: next time
        except OSError as problem:
            self._stop_keeping(problem)

    def forget(self, key: str, size: int, start: int, stop: int) -> None:
        """Forget bytes ``start <= i < stop`` of a shard that proved damaged, in all processes."""
        try:
            mirror = self._mirror(key, size, create=False)
            if mirror is not None:
                mirror.unmark(start, stop)
        except OSError:
            # What cannot be taken back there must not be found again here.
            with self._lock:
                self._distrusted.add((key, size))
                self._open.pop((key, size), None)

    def usage_bytes(self) -> int:
        """Return the disk space that is taken."""
        return sum(size for _, size, _ in self._files())

    def _mirror(self, key: str, size: int, *, create: bool) -> Mirror | None:
        shard, now_s = (key, size), time.monotonic()
        mirror = self._open.get(shard)
        if mirror is None or now_s - self._tidied_s > _TIDY_S:
            with self._lock:
                if now_s - self._tidied_s > _TIDY_S:
                    self._tidy()
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
        for _ in range(_TRIES if create else 1):
            mirror = Mirror.open(path, size, create=create)
            if mirror is not None:
                if len(self._open) >= _OPEN_FILES:
                    del self._open[min(self._open, key=lambda other: self._open[other].used_s)]
                self._open[shard] = mirror
                return mirror
            if create:
                _make_folder(self.settings.folder, _VERSION, name[:2])
        return None

    def _tidy(self) -> None:
        """Close files that were removed or cut, and let the others say when they were used."""
        self._tidied_s = time.monotonic()
        for shard, mirror in list(self._open.items()):
            if not mirror.is_current():
                del self._open[shard]

    def _has_room(self, n_bytes: int) -> bool:
        """See to it, now and then, that so many bytes more fit into the bound.

        Returns False while another process sees to it: nobody writes what nobody has counted.
        """
        limit = self.settings.max_bytes
        with self._lock:
            unseen = self._unseen.get()
            unseen.left -= n_bytes
            if unseen.left >= 0:
                return True
            unseen.left = secrets.randbelow(int(limit * _UNSEEN) + 1)
        _make_folder(self.settings.folder, _VERSION)
        with _alone(self._folder / _LOCK) as is_alone:
            if is_alone:
                self._evict(n_bytes)
                return True
        with self._lock:
            unseen.left = 0
        return False

    def _evict(self, n_bytes: int) -> None:
        """Remove the files that were not used for longest if so many bytes more were too many."""
        limit = self.settings.max_bytes
        files = sorted(self._files())
        usage = n_bytes + sum(size for _, size, _ in files)
        if usage <= _FULL * limit:
            return
        for _, size, path in files:
            if usage <= _ROOM * limit:
                break
            with suppress(OSError):  # another user's
                path.unlink(missing_ok=True)
                usage -= size
        with self._lock:
            self._tidy()

    def _files(self) -> Iterator[tuple[float, int, Path]]:
        """Yield time of last use, disk space and place of each mirror."""
        for folder in _listed(self._folder):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):  # noqa: PLR2004
                continue
            for file in _listed(folder):
                if _NAME.fullmatch(file.name):
                    with suppress(FileNotFoundError):
                        status = file.stat(follow_symlinks=False)
                        yield status.st_mtime, status.st_blocks * 512, Path(file.path)

    def _stop_keeping(self, problem: OSError) -> None:
        with self._lock:
            said, self._keeps = not self._keeps, False
        if not said:
            warnings.warn(
                to_printable(
                    f"{self.settings.folder}: the cache keeps nothing more: {problem.strerror}. "
                    "Reading goes on without it; make room, or give another folder."
                ),
                CacheWarning,
                stacklevel=3,
            )


class _UnseenBytes:
    """Bytes that may still be written before the size of the folder is looked at."""

    def __init__(self) -> None:
        self.left = 0


@cache
def shared_range_cache(settings: DiskCache) -> RangeCache:
    """Return the one cache of this process with these settings."""
    return RangeCache(settings)


def _n_pages(n_bytes: int) -> int:
    return -(-n_bytes // _PAGE_BYTES)


def _round_up(n_bytes: int) -> int:
    return _n_pages(n_bytes) * _PAGE_BYTES


def _make_folder(folder: Path, *below: str) -> None:
    """Make a folder, and folders in it, for their owner alone."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for name in ("", *below):
        folder /= name
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)


def _open(path: Path, *, create: bool) -> int:
    """Open a file to read and write; never through a link, and never waiting for a pipe."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | (os.O_CREAT if create else 0)
    return os.open(path, flags, 0o600)


def _write(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all of ``data``."""
    while len(data):
        written = os.pwrite(descriptor, data, offset)
        data, offset = data[written:], offset + written


def _listed(folder: os.PathLike[str]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with the process; yield whether no other process holds it."""
    import fcntl  # noqa: PLC0415  Windows has none

    descriptor = _open(path, create=True)
    try:
        # Unlike one by flock(), no fork keeps such a lock when its holder is killed.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)
