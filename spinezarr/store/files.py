"""How are the files of a store written so that a reader sees each one whole or not at all?"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

import fsspec
from fsspec.implementations.local import LocalFileSystem
from typing_extensions import Buffer

from spinezarr.redaction import redact_url
from spinezarr.remote.errors import object_too_large_error
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.remote.hub import web_location
from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.layout import METADATA
from spinezarr.text import add_path_to_disk_full_error

__all__ = [
    "PARTIAL",
    "ChangeContext",
    "is_read_only",
    "list_sizes",
    "open_store",
    "publish_file",
    "publish_group",
    "read_each",
    "read_files",
    "remove_empty_folders",
    "remove_files",
    "write_file",
    "write_files",
    "write_parts",
]

PARTIAL: Final = ".partial"
"""Suffix of a file on disk that is being written, before it is renamed into place."""
ChangeContext = Callable[[], AbstractContextManager[None]]
"""Returns a context in which the store may be changed, as no other run takes it over meanwhile."""


def open_store(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system and the path of a store.

    A store on disk gets a :class:`StoreFileSystem`, which follows no links below its folder. One on
    a hub is read from the web server of the hub (:mod:`spinezarr.remote.hub`). For others see
    :func:`spinezarr.remote.filesystem.open_filesystem`.
    """
    fs, path = open_filesystem(*web_location(url, storage_options))
    return (StoreFileSystem(path) if isinstance(fs, LocalFileSystem) else fs), path


def is_read_only(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a file system can only be read, such as that of a web server."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not {"http", "https"}.isdisjoint(protocols)


def write_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file and the folders above it; a reader may see half of it on disk.

    When this returns, a loss of power does not remove the content of a file on disk.
    """
    if isinstance(fs, StoreFileSystem):
        write_parts(fs, path, [data])
    else:
        fs.pipe_file(path, data)


def write_files(fs: fsspec.AbstractFileSystem, files: Mapping[str, bytes]) -> None:
    """Write many small files, to object stores concurrently."""
    if isinstance(fs, StoreFileSystem):
        for path, data in files.items():
            write_file(fs, path, data)
    elif files:
        fs.pipe(dict(files))


def read_files(fs: fsspec.AbstractFileSystem, paths: Iterable[str]) -> dict[str, bytes]:
    """Read many small files, from remote stores concurrently.

    Returns
    -------
    dict
        Contents by path; absent files are left out.

    Raises
    ------
    OSError
        If a file exists and cannot be read.
    """
    contents: dict[str, bytes] = {}
    paths = list(paths)
    for path, result in zip(paths, read_each(fs, paths), strict=True):
        if isinstance(result, FileNotFoundError):
            continue
        if isinstance(result, Exception):
            raise result
        contents[path] = result
    return contents


def read_each(
    fs: fsspec.AbstractFileSystem, paths: Sequence[str], limit_bytes: int = METADATA_BYTES
) -> list[bytes | Exception]:
    """Read many small files, from remote stores concurrently.

    Returns
    -------
    list
        The content of each file in the order of ``paths``, or the exception that its read raised.
    """
    if not paths:
        return []
    if isinstance(fs, StoreFileSystem):
        return [_read_local(fs, path) for path in paths]
    # One byte more than the limit tells whether an object is too large.
    results: list[bytes | Exception] = fs.cat_ranges(
        list(paths), 0, limit_bytes + 1, on_error="return"
    )
    return [
        object_too_large_error(redact_url(fs.unstrip_protocol(path)), limit_bytes)
        if isinstance(result, bytes) and len(result) > limit_bytes
        else result
        for path, result in zip(paths, results, strict=True)
    ]


def _read_local(fs: StoreFileSystem, path: str) -> bytes | OSError:
    try:
        return fs.folder.read(path)
    except OSError as problem:
        return problem


def write_parts(
    fs: StoreFileSystem, path: str, parts: Iterable[Buffer], changing: ChangeContext = nullcontext
) -> None:
    """Write a file on disk as :func:`write_file` does, one part in memory at a time.

    ``changing`` returns the context in which a file of that name may be replaced.
    """
    fs.folder.check_folder(path.rsplit("/", 1)[0], make=True)
    with add_path_to_disk_full_error(path), ExitStack() as opened:
        with changing():
            # An old file may be a link, or a file outside of the store may be a link to it.
            Path(path).unlink(missing_ok=True)
            file = opened.enter_context(Path(path).open("xb"))
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())


def publish_file(fs: fsspec.AbstractFileSystem, path: str, data: bytes) -> None:
    """Write a file atomically: a reader sees the old file or the whole new one.

    On disk the file is renamed into place; object stores write atomically.
    """
    if not isinstance(fs, StoreFileSystem):
        write_file(fs, path, data)
        return
    partial = Path(path + PARTIAL)
    try:
        write_file(fs, str(partial), data)
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise
    folder = os.open(path.rsplit("/", 1)[0], os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def publish_group(
    fs: fsspec.AbstractFileSystem, folder: str, files: Mapping[str, bytes], *, replaces: bool
) -> None:
    """Write the files of a Zarr group; its own ``zarr.json`` makes them visible at once.

    The metadata files of its arrays have the same names in the old and the new version. Readers
    take these metadata from the group's ``zarr.json``, so the old files are replaced after it.

    Parameters
    ----------
    fs
        File system of the store.
    folder
        Path of the group.
    files
        Contents of the files by their keys below ``folder``.
    replaces
        Whether readers see an older version of the group until the write.
    """
    paths = {f"{folder}/{key}": data for key, data in files.items() if key != METADATA}
    members = {path: data for path, data in paths.items() if path.endswith(f"/{METADATA}")}
    chunks = {path: data for path, data in paths.items() if path not in members}
    write_files(fs, chunks if replaces else paths)
    publish_file(fs, f"{folder}/{METADATA}", files[METADATA])
    if replaces:
        for path, data in members.items():
            publish_file(fs, path, data)


def list_sizes(fs: fsspec.AbstractFileSystem, folder: str) -> dict[str, int]:
    """Return the sizes of all files below a folder in bytes, by their paths relative to it.

    On disk, links and special files have the size :data:`spinezarr.store.folder.NOT_REGULAR`.
    """
    if isinstance(fs, StoreFileSystem):
        return fs.folder.sizes(folder)
    return {
        path[len(folder) + 1 :]: int(info["size"] or 0)
        for path, info in fs.find(folder, detail=True).items()
    }


def remove_files(fs: fsspec.AbstractFileSystem, folder: str, keys: Iterable[str]) -> None:
    """Delete files below a folder, and on disk also this and other folders that become empty."""
    paths = [f"{folder}/{key}" for key in keys]
    if not isinstance(fs, StoreFileSystem):
        if paths:
            with suppress(FileNotFoundError):
                fs.rm(paths)
        return
    for path in paths:
        fs.folder.check_folder(path.rsplit("/", 1)[0])
        with suppress(FileNotFoundError):
            Path(path).unlink()
    above = {parent for path in paths for parent in Path(path).parents}
    inside = [parent for parent in above if parent.is_relative_to(folder)]
    for parent in sorted(inside, key=lambda parent: -len(parent.parts)):
        with suppress(OSError):  # the folder is not empty
            parent.rmdir()


def remove_empty_folders(fs: fsspec.AbstractFileSystem, folder: str) -> None:
    """Delete a folder and the folders below it if they are on disk and hold no file."""
    if isinstance(fs, StoreFileSystem):
        fs.folder.check_folder(folder)
        for path, _, _ in os.walk(folder, topdown=False):
            with suppress(OSError):  # the folder is not empty
                Path(path).rmdir()
