"""How is a small file read whole from disk without hanging or filling the memory?

Only regular files are read, and only up to a given size. Opening a FIFO would wait for a writer,
and a device such as ``/dev/zero`` never ends. A path in a foreign folder may lead to either.
"""

import errno
import os
import stat
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

__all__ = ["describe_irregular_file", "describe_irregular_mode", "expand_home", "read_regular_file"]

_KINDS: Final = {
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK
"""Flags for opening a file. Without O_NONBLOCK, opening a FIFO waits for a writer."""


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Replace ``~`` by the home folder; leave ``~name`` unchanged if there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def describe_irregular_file(path: Path) -> str:
    """Describe the kind of file at a path; empty if it is a regular file or does not exist.

    Links are followed.

    Examples
    --------
    >>> describe_irregular_file(Path("/")), describe_irregular_file(Path(__file__))
    ('a folder', '')
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else ""
    except (OSError, ValueError):
        return ""
    return describe_irregular_mode(mode)


def describe_irregular_mode(mode: int) -> str:
    """Describe the kind of file that an ``st_mode`` states; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def read_regular_file(path: Traversable, max_bytes: int) -> bytes:
    """Return the bytes of a file, or its first ``max_bytes + 1`` if it has more.

    Raises
    ------
    OSError
        If the file cannot be read, or is a folder, FIFO, socket or device. The message names the
        kind.
    """
    if not isinstance(path, Path):  # a resource inside a zip file
        with path.open("rb") as packed:
            return packed.read(max_bytes + 1)
    try:
        _refuse_irregular(path.stat().st_mode, path)
        descriptor = os.open(path, _FLAGS)
    except ValueError as problem:  # a NUL in the path
        raise OSError(errno.EINVAL, str(problem), str(path)) from problem
    with os.fdopen(descriptor, "rb") as file:
        # The file may have been replaced since the first check.
        _refuse_irregular(os.fstat(descriptor).st_mode, path)
        return file.read(max_bytes + 1)


def _refuse_irregular(mode: int, path: Path) -> None:
    kind = describe_irregular_mode(mode)
    if kind:
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"is {kind}, expected a regular file", str(path))
