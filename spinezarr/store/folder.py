"""How is a store on disk read without opening anything but its own files?

A store may come from somebody else. Its folder may hold a link to a private file of the user, a
pipe on which a reader waits forever, or an endless device. Therefore no link below the folder is
followed, and only regular files are opened. The path of the folder itself may contain links.
"""

import ctypes
import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import CorruptStoreError
from spinezarr.regular_file import describe_irregular_mode
from spinezarr.remote.settings import METADATA_BYTES

__all__ = ["NOT_REGULAR", "StoreFileSystem", "StoreFolder"]

NOT_REGULAR: Final = -1
"""Size that stands for a link or a special file; no manifest contains it."""
_READ: Final = (
    os.O_RDONLY
    | os.O_NONBLOCK  # opening a pipe would wait for a writer
    | os.O_NOFOLLOW
    | os.O_CLOEXEC
)
_ADVICE: Final = (
    "A store holds plain files and folders only, and links in it are not followed. Copy it with "
    "the files that links lead to ('cp -aL') if you trust them, or delete it"
)


@dataclass(frozen=True, slots=True)
class StoreFolder:
    """Folder of a store on disk."""

    path: str
    """Absolute path as the user gave it; paths of the store's files begin with it."""
    root: str
    """Absolute path with all links resolved."""

    @classmethod
    def at(cls, path: str) -> Self:
        """Return the folder at a path; it need not exist yet."""
        return cls(path, os.path.realpath(path))

    def open(self, path: str) -> int:
        """Open a file of the store for reading.

        Parameters
        ----------
        path
            Path of the file, below :attr:`path`.

        Returns
        -------
        int
            A file descriptor; the caller closes it.

        Raises
        ------
        CorruptStoreError
            If the file is not regular, may not be read, or lies behind a link.
        FileNotFoundError
            If the file is absent.
        OSError
            If the system fails for another reason.
        """
        descriptor = _opener()(self, path)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise _irregular_error(path, status.st_mode)
        return descriptor

    @contextmanager
    def opened(self, path: str) -> Iterator[BinaryIO]:
        """Open a file of the store for reading as long as the context lasts; see :meth:`open`."""
        with os.fdopen(self.open(path), "rb") as file:
            yield file

    def read(self, path: str, limit_bytes: int = METADATA_BYTES) -> bytes:
        """Read a whole file of the store.

        Raises
        ------
        CorruptStoreError
            If the file has more than ``limit_bytes`` bytes, or for a reason of :meth:`open`.
        FileNotFoundError
            If the file is absent.
        """
        with self.opened(path) as file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise CorruptStoreError(
                f"{path}: has more than {limit_bytes} bytes, which no file of its kind has. "
                "Copy the store again."
            )
        return data

    def check_folder(self, path: str, *, make: bool = False) -> None:
        """Check that a folder of the store is not a link and does not lie behind one.

        Parameters
        ----------
        path
            Path of the folder.
        make
            Whether to create the folder and those above it if they are absent.

        Raises
        ------
        CorruptStoreError
            If the folder, or one above it in the store, is not a folder.
        """
        # mkdir takes longer, even if there is nothing to do.
        if make and not Path(self.root).is_dir():
            Path(self.root).mkdir(parents=True, exist_ok=True)
        inside = self.root
        for part in self._parts(path):
            inside = f"{inside}/{part}"
            try:
                mode = os.lstat(inside).st_mode
            except FileNotFoundError:
                if not make:
                    return
                Path(inside).mkdir(exist_ok=True)
                mode = os.lstat(inside).st_mode
            if not stat.S_ISDIR(mode):
                raise _irregular_error(inside, mode)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the sizes of all files below a folder in bytes, by their paths relative to it.

        Links are not followed; they and special files have the size :data:`NOT_REGULAR`.
        """
        self.check_folder(folder)
        return dict(_sizes(folder, ""))

    def _parts(self, path: str) -> list[str]:
        """Return the components of a path relative to the store."""
        inside = f"{self.path.rstrip('/')}/"
        parts = [part for part in f"{path}/"[len(inside) :].split("/") if part]
        if not f"{path}/".startswith(inside) or ".." in parts or "." in parts:
            raise CorruptStoreError(f"{path}: lies outside of the store {self.path}.")
        return parts


def _sizes(folder: str, prefix: str) -> Iterator[tuple[str, int]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        key = prefix + entry.name
        if entry.is_dir(follow_symlinks=False):
            yield from _sizes(entry.path, f"{key}/")
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # the file was removed meanwhile
            continue
        yield key, status.st_size if stat.S_ISREG(status.st_mode) else NOT_REGULAR


def _irregular_error(path: str, mode: int) -> CorruptStoreError:
    kind = describe_irregular_mode(mode) or "a file where a folder belongs"
    if stat.S_ISDIR(mode):
        kind = "a folder where a file belongs"
    return CorruptStoreError(f"{path}: is {kind}. {_ADVICE}.")


def _open_error(folder: StoreFolder, path: str, code: int) -> OSError:
    """Return the error for a file that the system could not open."""
    if code == errno.ELOOP:
        return _irregular_error(path, stat.S_IFLNK)
    if code == errno.ENXIO:
        return _irregular_error(path, stat.S_IFSOCK)
    if code == errno.ENOTDIR:
        with suppress(NotADirectoryError):  # raised if the store itself is a file
            folder.check_folder(path.rpartition("/")[0])
        code = errno.ENOENT
    if code in {errno.EACCES, errno.EPERM}:
        return CorruptStoreError(
            f"{path}: cannot be read: {os.strerror(code)}. Let its owner allow it (chmod a+r), or "
            "copy the store again."
        )
    return OSError(code, os.strerror(code), path)


_Opener = Callable[[StoreFolder, str], int]

_OPENAT2: Final = 437
"""Number of the system call ``openat2``, the same on every architecture."""
_AT_FDCWD: Final = -100
_RESOLVE_NO_SYMLINKS: Final = 0x04


class _OpenHow(ctypes.Structure):
    """``struct open_how``, https://man7.org/linux/man-pages/man2/openat2.2.html."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


@cache
def _opener() -> _Opener:
    """Return a function that opens files without following links, with ``openat2`` if possible."""
    if sys.platform != "linux":
        return _open_step_by_step
    try:
        call = ctypes.CDLL(None, use_errno=True).syscall
    except (OSError, AttributeError):
        return _open_step_by_step
    how = _OpenHow(_READ, 0, _RESOLVE_NO_SYMLINKS)
    size = ctypes.c_size_t(ctypes.sizeof(how))
    number, cwd, reference = ctypes.c_long(_OPENAT2), ctypes.c_int(_AT_FDCWD), ctypes.byref(how)

    def open_at_once(folder: StoreFolder, path: str) -> int:
        within = "/".join((folder.root, *folder._parts(path)))  # noqa: SLF001
        descriptor = int(call(number, cwd, os.fsencode(within), reference, size))
        if descriptor >= 0:
            return descriptor
        raise _open_error(folder, path, ctypes.get_errno())

    try:
        os.close(open_at_once(StoreFolder("/", "/"), "/"))
    except OSError:  # the kernel is older, or forbids the call
        return _open_step_by_step
    return open_at_once


def _open_step_by_step(folder: StoreFolder, path: str) -> int:
    parts = folder._parts(path)  # noqa: SLF001
    within = "/".join((folder.root, *parts))
    try:
        folder.check_folder("/".join((folder.path, *parts[:-1])))
        mode = os.lstat(within).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise _irregular_error(path, mode)
        return os.open(within, _READ)
    except CorruptStoreError:
        raise
    except OSError as problem:
        raise _open_error(folder, path, problem.errno or 0) from None


class StoreFileSystem(LocalFileSystem):  # type: ignore[misc]  # fsspec is untyped
    """Local file system of fsspec that opens files through a :class:`StoreFolder`.

    Parameters
    ----------
    folder
        Path of the store.
    """

    def __init__(self, folder: str, **options: Any) -> None:  # noqa: ANN401
        super().__init__(folder=folder, **options)
        self.folder = StoreFolder.at(folder)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """Read a small file."""
        return self.folder.read(path)[start:end]

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:  # noqa: ANN401
        if mode != "rb":
            raise NotImplementedError("the files of a store are only written as a whole")
        return os.fdopen(self.folder.open(path), "rb")
