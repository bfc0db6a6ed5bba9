"""Writing files so that each is either whole or absent, on disk and in object stores."""

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from typing_extensions import Buffer

from spinezarr.errors import UsageError

__all__ = [
    "PARTIAL",
    "is_read_only",
    "open_filesystem",
    "publish_file",
    "remove_folder",
    "replace_folder",
    "superseded",
    "write_file",
    "write_parts",
]

_EXTRAS: Final = {"s3": "s3", "http": "http", "https": "http"}
"""Extra of this package that brings what a kind of URL needs."""
PARTIAL: Final = ".partial"
"""Ending of names that are not yet, or no longer, part of a store."""


def open_filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path there without a slash at its end.

    Raises
    ------
    UsageError
        If nothing reads such URLs, or the package that does is not installed.
    """
    try:
        fs, path = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as problem:
        scheme = url.partition("://")[0]
        extra = _EXTRAS.get(scheme)
        advice = f" Install it with: pip install 'spinezarr[{extra}]'" if extra else ""
        raise UsageError(f"{url}: URLs with {scheme}:// cannot be read: {problem}.{advice}") from (
            problem
        )
    return fs, path.rstrip("/") or path


def is_read_only(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether nothing can be written there whoever asks: a web server."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not {"http", "https"}.isdisjoint(protocols)


def write_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write ``path`` and the folders above it; a reader may meet half of it."""
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.pipe_file(path, data)


def write_parts(fs: fsspec.AbstractFileSystem, path: str, parts: Iterable[Buffer]) -> None:
    """Write a file as :func:`write_file` does, without ever holding it whole."""
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    with fs.open(path, "wb") as file:
        for part in parts:
            file.write(part)


def publish_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write ``path`` at once: a reader sees what was there before, or the whole new file.

    An object store does that by itself; on disk the file is renamed into place.
    """
    if isinstance(fs, LocalFileSystem):
        write_file(fs, path + PARTIAL, data)
        Path(path + PARTIAL).replace(path)
    else:
        fs.pipe_file(path, data)


def replace_folder(fs: fsspec.AbstractFileSystem, new: str, place: str) -> None:
    """Move the folder ``new`` to ``place``, over what is there."""
    old = superseded(place)
    remove_folder(fs, old)
    if fs.exists(place):
        fs.mv(place, old, recursive=True)
    fs.mv(new, place, recursive=True)
    remove_folder(fs, old)


def superseded(place: str) -> str:
    """Name the place of a folder that a newer one is replacing."""
    return place + ".old" + PARTIAL


def remove_folder(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Delete a folder with all in it, if it is there."""
    if fs.exists(path):
        fs.rm(path, recursive=True)
