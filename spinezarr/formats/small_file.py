"""Small files that are read whole: centroids, sidecars, tables and lists."""

from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import FormatError
from spinezarr.regular_file import read_regular_file

__all__ = ["read_small_file"]


def read_small_file(fs: fsspec.AbstractFileSystem, path: str, most_bytes: int) -> bytes:
    """Return the bytes of a file that has at most so many.

    Parameters
    ----------
    fs, path
        Where it is.
    most_bytes
        Of :class:`spinezarr.formats.limits.Limits`; no more are read, however long the file is.

    Raises
    ------
    FormatError
        If it has more.
    OSError
        If it cannot be read, or is no regular file: a FIFO would keep whoever reads it waiting.
    """
    if isinstance(fs, LocalFileSystem):
        data = read_regular_file(Path(path), most_bytes)
    else:
        with fs.open(path, "rb") as raw:
            data = raw.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise FormatError(
            f"{path}: has more than {most_bytes} bytes, which no file of its kind has. "
            "Download it again, or move it out of the folder."
        )
    return data
