"""Small files that are read whole: centroids, sidecars, tables and lists."""

import fsspec

from spinezarr.errors import FormatError

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
        If it cannot be read.
    """
    with fs.open(path, "rb") as raw:
        data: bytes = raw.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise FormatError(
            f"{path}: has more than {most_bytes} bytes, which no file of its kind has. "
            "Download it again, or move it out of the folder."
        )
    return data
