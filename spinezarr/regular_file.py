"""Small files that are read whole from disk: regular ones alone, and no more of them than allowed.

A FIFO keeps whoever opens it waiting, and a device such as ``/dev/zero`` never ends. Both may lie,
or a link may lead to them, where a file is looked for.
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
_FLAGS: Final = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
"""Without O_NONBLOCK, opening a FIFO waits for a writer."""


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Put the home folder for ``~``; for that of a user who is not there, nothing."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def describe_irregular_file(path: Path) -> str:
    """Say what stands under a path, if it is there and no regular file; links are followed.

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
    """Say what is no regular file, by its ``st_mode``; empty for a regular file."""
    return "" if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def read_regular_file(path: Traversable, most_bytes: int) -> bytes:
    """Return the bytes of a file, or its first ``most_bytes + 1`` if it has more.

    Raises
    ------
    OSError
        If it cannot be read, or is a folder, FIFO, socket or device; names which.
    """
    if not isinstance(path, Path):  # it ships inside a zip file
        with path.open("rb") as packed:
            return packed.read(most_bytes + 1)
    try:
        _refuse_irregular(path.stat().st_mode, path)
        descriptor = os.open(path, _FLAGS)
    except ValueError as problem:  # a NUL in the path
        raise OSError(errno.EINVAL, str(problem), str(path)) from problem
    with os.fdopen(descriptor, "rb") as file:
        # What stood there may have been exchanged.
        _refuse_irregular(os.fstat(descriptor).st_mode, path)
        return file.read(most_bytes + 1)


def _refuse_irregular(mode: int, path: Path) -> None:
    kind = describe_irregular_mode(mode)
    if kind:
        number = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(number, f"is {kind}, expected a regular file", str(path))
