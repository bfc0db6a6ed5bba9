"""How is an output file written so that it is complete or absent, and never written through a link?

An output folder may hold foreign files. A link with the name of an output file could otherwise make
an export overwrite any file of the machine.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from spinezarr.errors import UsageError
from spinezarr.redaction import redact_url, with_two_slashes
from spinezarr.store.files import PARTIAL
from spinezarr.text import add_path_to_disk_full_error

__all__ = ["check_not_link", "make_folder", "write_atomically"]


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing under a name with ``.partial``, and rename it when it is complete.

    An existing file or link of the final name is replaced. If the block raises, no file is left.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        # Mode "x" creates a new file and follows no link (open(2), O_EXCL).
        with add_path_to_disk_full_error(str(partial)), partial.open("xb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def make_folder(folder: Path) -> None:
    """Make a folder for output, or use an existing one.

    Raises
    ------
    UsageError
        If it, or one above it, is a file, or if it was a URL.
    """
    if with_two_slashes(str(folder)):
        raise UsageError(
            f"{redact_url(str(folder))}: is a URL, and these files are only written to a disk. "
            "Give a folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as problem:
        raise UsageError(
            f"{folder}: is a file, or lies below one. Give the name of a folder."
        ) from problem


def check_not_link(folder: Path) -> None:
    """Refuse a subfolder of the output folder that is a link.

    Raises
    ------
    UsageError
        If the folder is a link.
    """
    if folder.is_symlink():
        raise UsageError(
            f"{folder}: is a link, so the files would be written elsewhere. Remove it, or choose "
            "another folder."
        )
