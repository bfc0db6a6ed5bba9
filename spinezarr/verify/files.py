"""The files of a store as they lie there: listed, and read to their ends in bounded memory."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, Self

import fsspec

from spinezarr.store.attributes import ManifestEntry, seal, unseal
from spinezarr.store.files import is_read_only, list_sizes, open_filesystem
from spinezarr.store.sharding import crc32
from spinezarr.verify.fault import Fault

__all__ = ["OnBytes", "StoreFiles", "group_problem", "read_error", "seal_problem", "unreadable"]

OnBytes = Callable[[int], None]
"""Called with each further number of bytes that were read; from several threads."""

_BLOCK_BYTES: Final = 1 << 22
_EMPTY_GROUP: Final = {"attributes": {}, "zarr_format": 3, "node_type": "group"}


class StoreFiles:
    """The files of one store.

    Parameters
    ----------
    fs
        Where it lies.
    path
        Its path there.
    sizes
        Bytes of every file by its key; None where files cannot be listed, as on a web server.
    """

    def __init__(
        self, fs: fsspec.AbstractFileSystem, path: str, sizes: Mapping[str, int] | None
    ) -> None:
        self.fs = fs
        self.path = path
        self.sizes = sizes

    @classmethod
    def of_url(cls, url: str, storage_options: Mapping[str, Any] | None = None) -> Self:
        """List a store; a path that is absent has no files."""
        fs, path = open_filesystem(url, storage_options)
        if is_read_only(fs):
            return cls(fs, path, None)
        fs.invalidate_cache()
        return cls(fs, path, list_sizes(fs, path))

    def read(self, key: str) -> bytes:
        """Return the content of a small file."""
        data: bytes = self.fs.cat_file(f"{self.path}/{key}")
        return data

    @contextmanager
    def open(self, key: str) -> Iterator[BinaryIO]:
        """Open a file that may be large."""
        with self.fs.open(f"{self.path}/{key}", "rb") as raw:
            yield raw

    def check(
        self, scan_id: str | None, key: str, entry: ManifestEntry, on: OnBytes
    ) -> list[Fault]:
        """Read a whole file and compare it with what the manifest says of it."""
        expected = f"{entry.size_bytes} bytes with crc32 {entry.crc32}"
        try:
            with self.open(key) as raw:
                size, checksum = 0, 0
                while block := raw.read(_BLOCK_BYTES):
                    size, checksum = size + len(block), crc32(block, checksum)
                    on(len(block))
        except OSError as problem:
            return [read_error(scan_id, key, problem, expected)]
        if (size, f"{checksum:08x}") == (entry.size_bytes, entry.crc32):
            return []
        found = f"{size} bytes with crc32 {checksum:08x}"
        return [Fault(scan_id, key, "damaged", found, expected)]


def read_error(scan_id: str | None, key: str, problem: OSError, expected: str) -> Fault:
    """Say that a file is not there, or cannot be read."""
    if isinstance(problem, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return Fault(scan_id, key, "missing", "no such file", expected)
    return Fault(scan_id, key, "damaged", f"cannot be read: {problem}", expected)


def unreadable(problem: Exception) -> str:
    """Say in one line that metadata which are whole are not such as spinezarr reads."""
    return f"unreadable metadata ({type(problem).__name__}: {str(problem).partition(chr(10))[0]})"


def seal_problem(data: bytes) -> str | None:
    """Say how the bytes of a group's metadata differ from what their seal stands for."""
    try:
        metadata = unseal(data)
        sealed = seal(metadata)
    except (ValueError, KeyError, TypeError, AttributeError) as problem:
        return unreadable(problem)
    # The seal's own white space and spelling can change beside it.
    return None if sealed == data else "other bytes for the same values"


def group_problem(data: bytes) -> str | None:
    """Say how the bytes of the group of all scans, which has no seal, differ from the only ones."""
    try:
        group = json.loads(data)
    except ValueError as problem:
        return str(problem)
    written = {json.dumps(group, indent=indent).encode() for indent in (None, 2)}
    return None if group == _EMPTY_GROUP and data in written else "other bytes"
