"""Writing files so that each is either whole or absent, on disk and in object stores."""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem

from spinezarr.errors import UsageError

__all__ = [
    "PARTIAL",
    "is_read_only",
    "list_sizes",
    "open_filesystem",
    "publish_file",
    "read_files",
    "remove_empty_folders",
    "remove_files",
    "write_file",
    "write_files",
]

_EXTRAS: Final = {"s3": "s3", "http": "http", "https": "http"}
"""Extra of this package that brings what a kind of URL needs."""
_OPTIONS: Final[dict[str, dict[str, Any]]] = {"s3": {"use_listings_cache": False}}
"""Options of file systems that others write to while we read."""
PARTIAL: Final = ".partial"
"""Ending of a file on disk that is being written beside the place it will be moved to."""


def open_filesystem(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path there without a slash at its end.

    Parameters
    ----------
    url
        A path or fsspec URL.
    storage_options
        For the file system, as in xarray: ``{"endpoint_url": ..., "profile": ..., "anon": True}``.

    Raises
    ------
    UsageError
        If nothing reads such URLs, or the package that does is not installed.
    """
    scheme = url.partition("://")[0]
    try:
        fs, path = fsspec.url_to_fs(url, **_OPTIONS.get(scheme, {}), **(storage_options or {}))
    except (ImportError, ValueError) as problem:
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
    """Write ``path`` and the folders above it; a reader may meet half of it on disk.

    On disk it is there to stay when this returns, whatever happens to the machine.
    """
    if isinstance(fs, LocalFileSystem):
        fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        with Path(path).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    else:
        with _naming(path):
            fs.pipe_file(path, data)


def write_files(fs: fsspec.AbstractFileSystem, files: Mapping[str, bytes]) -> None:
    """Write many small files; in an object store, side by side."""
    if isinstance(fs, LocalFileSystem):
        for path, data in files.items():
            write_file(fs, path, data)
    elif files:
        with _naming(os.path.commonpath(list(files))):
            fs.pipe(dict(files))


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Add to an error from afar which file it is about."""
    try:
        yield
    except OSError as problem:
        if problem.filename is not None:
            raise
        code, text = problem.errno or errno.EIO, problem.strerror or str(problem).rstrip(".")
        raise OSError(code, text, path) from problem


def read_files(fs: fsspec.AbstractFileSystem, paths: Iterable[str]) -> dict[str, bytes]:
    """Read many small files; from afar, side by side. Those that are absent are left out.

    Raises
    ------
    OSError
        If one that is there cannot be read.
    """
    found: dict[str, bytes] = {}
    wanted = list(paths)
    if isinstance(fs, LocalFileSystem):
        for path in wanted:
            with suppress(FileNotFoundError, NotADirectoryError):
                found[path] = Path(path).read_bytes()
        return found
    answers = fs.cat_ranges(wanted, None, None, on_error="return") if wanted else []
    for path, answer in zip(wanted, answers, strict=True):
        if isinstance(answer, FileNotFoundError):
            continue
        if isinstance(answer, Exception):
            raise answer
        found[path] = answer
    return found


def publish_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write ``path`` at once: a reader sees what was there before, or the whole new file.

    An object store does that by itself; on disk the file is renamed into place.
    """
    if not isinstance(fs, LocalFileSystem):
        write_file(fs, path, data)
        return
    new = Path(path + PARTIAL)
    try:
        write_file(fs, str(new), data)
        new.replace(path)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    folder = os.open(path.rsplit("/", 1)[0], os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def list_sizes(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, int]:
    """Return the sizes of all files below a folder, by their paths relative to it."""
    return {
        path[len(folder) + 1 :]: int(info["size"] or 0)
        for path, info in fs.find(folder, detail=True).items()
    }


def remove_files(fs: fsspec.AbstractFileSystem, folder: str, keys: Iterable[str]) -> None:
    """Delete files below a folder, and on disk the folders that become empty, its own included."""
    paths = [f"{folder}/{key}" for key in keys]
    if not isinstance(fs, LocalFileSystem):
        if paths:
            with suppress(FileNotFoundError):
                fs.rm(paths)
        return
    for path in paths:
        with suppress(FileNotFoundError, NotADirectoryError):
            Path(path).unlink()
    above = {parent for path in paths for parent in Path(path).parents}
    inside = [parent for parent in above if parent.is_relative_to(folder)]
    for parent in sorted(inside, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):  # not empty
            parent.rmdir()


def remove_empty_folders(fs: fsspec.AbstractFileSystem, folder: str) -> None:
    """Delete the folders below a folder that hold no file; object stores have none."""
    if isinstance(fs, LocalFileSystem):
        for place, folders, _ in os.walk(folder, topdown=False):
            for name in folders:
                with suppress(OSError):  # not empty, or a link
                    Path(place, name).rmdir()
