"""Files for other programs, each there whole or not at all, and never written through a link.

What lies in a folder for output may be a stranger's: a link by the name of a file to come would
have another file overwritten, anywhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from spinezarr.errors import UsageError
from spinezarr.store.files import PARTIAL
from spinezarr.text import add_path_to_disk_full_error

__all__ = ["check_not_link", "write_atomically"]


@contextmanager
def write_atomically(path: Path) -> Iterator[BinaryIO]:
    """Write a file under a name ending in ``.partial``, and rename it when it is whole.

    A file, or a link, that is there is replaced.
    """
    partial = path.with_name(path.name + PARTIAL)
    partial.unlink(missing_ok=True)
    try:
        # Exclusive: it is made anew, and no link is followed (open(2), O_EXCL).
        with add_path_to_disk_full_error(str(partial)), partial.open("xb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def check_not_link(folder: Path) -> None:
    """Refuse a folder below that for output which is a link to another.

    Raises
    ------
    UsageError
        If it is one.
    """
    if folder.is_symlink():
        raise UsageError(
            f"{folder}: is a link, so what is written would lie elsewhere. Remove it, or choose "
            "another folder."
        )
