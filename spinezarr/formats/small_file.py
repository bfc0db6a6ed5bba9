"""How is a small source file (centroids, sidecar, table or list) read whole, up to a limit?"""

from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import FormatError
from spinezarr.regular_file import read_regular_file

__all__ = ["read_small_file"]


def read_small_file(fs: fsspec.AbstractFileSystem, path: str, max_bytes: int) -> bytes:
    """Return the content of a file of at most ``max_bytes`` bytes.

    Parameters
    ----------
    fs, path
        File system and path of the file.
    max_bytes
        Limit of :class:`spinezarr.formats.limits.Limits`. No more than this is read.

    Raises
    ------
    FormatError
        If the file has more bytes.
    OSError
        If the file cannot be read, or is no regular file. A FIFO would block the reader.
    """
    if isinstance(fs, LocalFileSystem):
        data = read_regular_file(Path(path), max_bytes)
    else:
        with fs.open(path, "rb") as raw:
            data = raw.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise FormatError(
            f"{path}: has more than {max_bytes} bytes, which no file of its kind has. "
            "Download it again, or move it out of the folder."
        )
    return data
