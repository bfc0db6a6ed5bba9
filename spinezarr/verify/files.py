"""How does a check list the files of a store, and read them whole in bounded memory?"""

import errno
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, BinaryIO, Final, Self, cast

import fsspec
from typing_extensions import Buffer

from spinezarr.errors import DamagedMetadataError
from spinezarr.remote.requests import RemoteObjects
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, RemoteSettings
from spinezarr.remote.transport import NoRangesError
from spinezarr.store.files import is_read_only, list_sizes, open_store, read_files
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.sealed import parse_json, seal, unseal
from spinezarr.store.sharding import crc32
from spinezarr.verify.fault import Fault

__all__ = ["OnBytes", "StoreFiles", "group_problem", "read_error", "seal_problem", "unreadable"]

OnBytes = Callable[[int], None]
"""Called with the number of bytes of each read, from several threads."""

_BLOCK_BYTES: Final = 1 << 22
_EMPTY_GROUP: Final = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


class StoreFiles:
    """The files of one store.

    Parameters
    ----------
    fs
        File system of the store.
    path
        Path of the store in ``fs``.
    sizes
        Size in bytes of every file by key; None if files cannot be listed, as on a web server.
    objects
        Reads the files of a web server, with retries, in place of ``fs``.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        path: str,
        sizes: Mapping[str, int] | None,
        objects: RemoteObjects | None = None,
    ) -> None:
        self.fs = fs
        self.path = path
        self.sizes = sizes
        self._objects = objects

    @classmethod
    def of_url(
        cls,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        remote: RemoteSettings = DEFAULT_REMOTE_SETTINGS,
    ) -> Self:
        """List the files of a store. There are none if the path does not exist."""
        fs, path = open_store(url, storage_options)
        if is_read_only(fs):
            objects = RemoteObjects(url, storage_options, remote)
            return cls(fs, objects.path, None, objects)
        fs.invalidate_cache()
        return cls(fs, path, list_sizes(fs, path))

    def exists(self, key: str) -> bool:
        """Whether there is a file with this key."""
        if self.sizes is not None:
            return key in self.sizes
        path = f"{self.path}/{key}"
        return path in self.read_paths([path])

    def read(self, key: str) -> bytes:
        """Return the content of a small file."""
        path = f"{self.path}/{key}"
        if self._objects is None:
            data: bytes = self.fs.cat_file(path)
            return data
        contents = self._objects.read([path])
        if path not in contents:
            raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
        return contents[path]

    def read_paths(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Return the contents of small files by path; absent files are left out."""
        return read_files(self.fs, paths) if self._objects is None else self._objects.read(paths)

    @contextmanager
    def open(self, key: str, size_bytes: int) -> Iterator[BinaryIO]:
        """Open a file that may be large and should have ``size_bytes`` bytes."""
        path = f"{self.path}/{key}"
        if self._objects is None:
            with self.fs.open(path, "rb") as raw:
                yield raw
        elif size_bytes <= self._objects.settings.longest_range_bytes:
            yield io.BytesIO(self.read(key))
        else:
            remote = _RemoteFile(self._objects, path, size_bytes)
            yield cast(
                "BinaryIO", io.BufferedReader(remote, self._objects.settings.longest_range_bytes)
            )

    def check(
        self, scan_id: str | None, key: str, entry: ManifestEntry, on_bytes: OnBytes
    ) -> list[Fault]:
        """Read a whole file and compare it with its manifest entry."""
        expected = f"{entry.size_bytes} bytes with crc32 {entry.crc32}"
        try:
            with self.open(key, entry.size_bytes) as raw:
                size, checksum = 0, 0
                while block := raw.read(_BLOCK_BYTES):
                    size, checksum = size + len(block), crc32(block, checksum)
                    on_bytes(len(block))
        except OSError as problem:
            return [read_error(scan_id, key, problem, expected)]
        if (size, f"{checksum:08x}") == (entry.size_bytes, entry.crc32):
            return []
        found = f"{size} bytes with crc32 {checksum:08x}"
        return [Fault(scan_id, key, "damaged", found, expected)]


class _RemoteFile(io.RawIOBase):
    """An object of a web server as a file, read by range requests."""

    def __init__(self, objects: RemoteObjects, path: str, expected_bytes: int) -> None:
        self._objects = objects
        self._path = path
        self._expected_bytes = expected_bytes
        self._offset = 0

    @cached_property
    def _size_bytes(self) -> int:
        """Size in bytes. Two requests for one byte check whether it is the expected one."""
        n = self._expected_bytes
        ends_there = bool(n) and self._range(n - 1, n) and not self._range(n, n + 1)
        return n if ends_there else len(self._objects.read([self._path])[self._path])

    def _range(self, start: int, stop: int) -> bytes:
        with self._objects.ranges([(self._path, start, stop)]) as (data,):
            return bytes(data)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to an offset and return it."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._offset}.get(whence)
        self._offset = offset + (self._size_bytes if origin is None else origin)
        return self._offset

    def readinto(self, buffer: Buffer, /) -> int:
        """Read bytes into a buffer and return how many."""
        view = memoryview(buffer).cast("B")
        stop = min(self._offset + len(view), self._size_bytes)
        data = self._range(self._offset, stop) if stop > self._offset else b""
        view[: len(data)] = data
        self._offset += len(data)
        return len(data)


def read_error(scan_id: str | None, key: str, problem: OSError, expected: str) -> Fault:
    """Return the fault of a file that is missing or cannot be read.

    Raises
    ------
    NoRangesError, ConnectionError
        If the fault is that of the server and not of the file.
    """
    if isinstance(problem, NoRangesError | ConnectionError):
        raise problem
    if isinstance(problem, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return Fault(scan_id, key, "missing", "no such file", expected)
    return Fault(scan_id, key, "damaged", f"cannot be read: {problem}", expected)


def unreadable(problem: Exception) -> str:
    """Return the text of a fault for metadata that cannot be parsed."""
    return f"unreadable metadata ({str(problem).partition(chr(10))[0]})"


def seal_problem(data: bytes) -> str | None:
    """Return the problem of sealed metadata; None if each byte is as it was written."""
    try:
        metadata = unseal(data)
        sealed = seal(metadata)
    except DamagedMetadataError as problem:
        return unreadable(problem)
    # The checksum does not cover the white space around itself.
    return None if sealed == data else "other bytes for the same values"


def group_problem(data: bytes) -> str | None:
    """Return the problem of the group of all scans, which has no checksum; None if it has none."""
    try:
        group = parse_json(data)
    except DamagedMetadataError as problem:
        return str(problem)
    written = {json.dumps(group, indent=indent).encode() for indent in (None, 2)}
    return None if group == _EMPTY_GROUP and data in written else "other bytes"
