"""How does a server read stores that lie on disk?"""

import os
from pathlib import Path
from typing import Final

from spinezarr.errors import CorruptStoreError
from spinezarr.remote.settings import METADATA_BYTES
from spinezarr.serve.storage import Content, CurrentFile, Identity, Storage, UnreadableError
from spinezarr.store.folder import StoreFolder
from spinezarr.store.layout import METADATA
from spinezarr.store.manifest import ManifestEntry, ShardEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.sharding import crc32

__all__ = ["Descriptor", "DiskStorage", "stores_on_disk"]

_OPEN_FILES: Final = 256
_READ_BYTES: Final = 1 << 20


def stores_on_disk(path: Path, suffix: str) -> list[str]:
    """Return the path if it is a store, else the paths of the stores that the folder holds now."""
    is_store = (path / METADATA).exists() or path.suffix == suffix
    paths = (path,) if is_store else sorted(path.glob(f"*{suffix}"))
    return [str(candidate) for candidate in paths if (candidate / METADATA).exists()]


class Descriptor(Content):
    """An open file. It is closed when the last reference to it is deleted.

    Attributes
    ----------
    number
        Number of the file descriptor.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)

    def read(self, start: int, stop: int) -> bytes:
        """See :class:`~spinezarr.serve.storage.Content`."""
        try:
            data = os.pread(self.number, stop - start, start)
        except OSError as problem:
            raise UnreadableError(f"a file cannot be read: {problem.strerror}.") from problem
        if len(data) != stop - start:
            raise UnreadableError("a file was truncated.")
        return data

    def read_from_memory(self, start: int, stop: int) -> bytearray | None:
        """See :class:`~spinezarr.serve.storage.Content`; reads only from the page cache."""
        nowait_flag: int | None = getattr(os, "RWF_NOWAIT", None)
        if nowait_flag is None:  # not on Linux
            return None
        data = bytearray(stop - start)
        try:
            size = os.preadv(self.number, [data], start, nowait_flag)
        except OSError:  # the bytes are not in the page cache, or the file system cannot say
            return None
        return data if size == len(data) else None


class DiskStorage(Storage):
    """The files of a store on disk.

    A file is opened once and then read through its descriptor, so a file that replaces it is not
    read by mistake.

    Parameters
    ----------
    path
        Path of the store.
    """

    capacity = _OPEN_FILES

    def __init__(self, path: str) -> None:
        self.path = path
        self._folder = StoreFolder.at(path)

    def current_file(self, key: str, known: Identity | None) -> CurrentFile | None:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        try:
            status = os.lstat(f"{self._folder.root}/{key}")
            identity = status.st_ino, status.st_mtime_ns, status.st_size, status.st_ctime_ns
            is_known = identity == known
            data = None if is_known else self._folder.read(f"{self.path}/{key}", METADATA_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (CorruptStoreError, OSError) as problem:
            raise UnreadableError(f"{key} cannot be read.") from problem
        return CurrentFile(identity, status.st_mtime_ns, data)

    def open(self, key: str, entry: ManifestEntry, written_at: int) -> Descriptor:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        try:
            descriptor = Descriptor(self._folder.open(f"{self.path}/{key}"))
            status = os.fstat(descriptor.number)
        except (CorruptStoreError, OSError) as problem:
            raise UnreadableError(f"{key} cannot be read, or is being replaced.") from problem
        if status.st_size != entry.size_bytes or not (
            (isinstance(entry, ShardEntry) and status.st_mtime_ns <= written_at)
            or _checksum(descriptor) == entry.crc32
        ):
            raise UnreadableError(f"{key} is damaged, or is being replaced.")
        return descriptor

    def reader(self, *, with_table: bool) -> StoreReader:
        """See :class:`~spinezarr.serve.storage.Storage`."""
        return StoreReader(self.path, with_table=with_table)


def _checksum(descriptor: Descriptor) -> str:
    offset = checksum = 0
    while data := os.pread(descriptor.number, _READ_BYTES, offset):
        checksum, offset = crc32(data, checksum), offset + len(data)
    return f"{checksum:08x}"
