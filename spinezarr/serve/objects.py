"""Which bytes a key of a served store stands for, and which version of them.

Every answer is of one version of a scan, and its tag names that version. A file of a scan is
compared with the manifest of the scan as it is now when it is opened, and is then read through its
descriptor: what replaces it is another file. Only keys that a store of ours has are looked for.
"""

import hashlib
import math
import os
import re
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Final

from spinezarr.errors import CorruptStoreError, SpinezarrError
from spinezarr.store.attributes import (
    SCAN_FILE,
    ManifestEntry,
    ScanGroup,
    ShardEntry,
    is_scan_id,
    parse_scan_group,
)
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.layout import (
    LABEL,
    LABEL_CHUNKS,
    METADATA_BYTES,
    SCANS,
    TABLE,
    chunk_grid,
    scan_key,
)
from spinezarr.store.sharding import crc32
from spinezarr.store.store_folder import StoreFolder
from spinezarr.store.table_file import is_table_file

__all__ = [
    "GoneError",
    "ServedFile",
    "ServedFolder",
    "ServedScan",
    "UnreadableError",
    "chunk_index",
    "part_of",
    "split_key",
]

_METADATA: Final = "zarr.json"
_SHARED: Final = {"zarr.json", "scans/zarr.json", TABLE_BUNDLE}
"""Files beside the table that no scan's manifest names. What an ingest keeps is not served."""
_CHUNK: Final = re.compile(rf"(?!.*zarr[.]json){SCAN_FILE}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
_OPEN_FILES: Final = 256
_KNOWN_SCANS: Final = 4096
_KNOWN_KEYS: Final = 4096
_SEEN_S: Final = 0.1
"""A store that was there is looked for again after so long. Its files are looked at each time."""
_READ_BYTES: Final = 1 << 20
_FROM_MEMORY: Final[int | None] = getattr(os, "RWF_NOWAIT", None)

Identity = tuple[int, int, int, int]
"""Of a file that stands under a name: another file there has another."""


class GoneError(SpinezarrError):
    """A file of a scan that is not in the store: not a chunk that holds background."""


class UnreadableError(SpinezarrError):
    """A file that is there and cannot be read, or is no longer, or not yet, what its scan says."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedFile:
    """Bytes of one version.

    Attributes
    ----------
    size_bytes
        Of the whole.
    etag
        Strong, with its quotes.
    data
        The bytes, of a small file; None for one that is read through its descriptor.
    descriptor
        Open as long as this object lives.
    first
        Where the bytes begin in the open file.
    """

    size_bytes: int
    etag: str
    data: bytes | None = None
    descriptor: "_Descriptor | None" = None
    first: int = 0

    @classmethod
    def of(cls, data: bytes) -> "ServedFile":
        """Describe bytes that are here, by their hash."""
        return cls(len(data), _tag(hashlib.sha256(data).hexdigest()[:32]), data)

    def read(self, start: int, stop: int) -> bytes:
        """Read a part.

        Raises
        ------
        UnreadableError
            If it cannot be read.
        """
        if self.data is not None:
            return self.data[start:stop]
        if self.descriptor is None:
            return b""
        try:
            found = os.pread(self.descriptor.number, stop - start, self.first + start)
        except OSError as problem:
            raise UnreadableError(f"a file cannot be read: {problem.strerror}.") from problem
        if len(found) != stop - start:
            raise UnreadableError("a file has become shorter.")
        return found

    def read_from_memory(self, start: int, stop: int) -> bytearray | None:
        """Read a part if the system holds it in memory; None if it does not, or cannot say."""
        if self.descriptor is None or _FROM_MEMORY is None:
            return None
        found = bytearray(stop - start)
        try:
            size = os.preadv(self.descriptor.number, [found], self.first + start, _FROM_MEMORY)
        except OSError:  # not in memory, or a file system that does not know
            return None
        return found if size == len(found) else None


class _Descriptor:
    """An open file, closed when nobody holds it any more."""

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@dataclass(frozen=True, slots=True, eq=False)
class ServedScan:
    """One version of a scan.

    Attributes
    ----------
    identity
        Of its metadata.
    content_checksum
        See :attr:`spinezarr.store.attributes.ScanAttributes.content_checksum`.
    group
        Its metadata.
    """

    identity: Identity
    content_checksum: str
    group: ScanGroup = field(repr=False)

    @property
    def entries(self) -> Mapping[str, ManifestEntry]:
        """Its files."""
        return self.group.attributes.manifest


class ServedFolder:
    """The files of a store on disk; safe to share between threads.

    Parameters
    ----------
    path
        Of the store.
    """

    def __init__(self, path: str) -> None:
        self._folder = StoreFolder.at(path)
        self._seen_until = -math.inf
        self._scans: OrderedDict[str, ServedScan] = OrderedDict()
        self._files: OrderedDict[tuple[str, str], tuple[Identity, ServedFile]] = OrderedDict()
        self._lock = Lock()

    @property
    def path(self) -> str:
        """Of the store."""
        return self._folder.path

    def is_there(self) -> bool:
        """Whether there is a store now."""
        now = time.monotonic()
        if now >= self._seen_until and Path(self._folder.root, _METADATA).exists():
            self._seen_until = now + _SEEN_S
        return now < self._seen_until

    def find(self, key: str, version: str | None = None) -> ServedFile | None:
        """Return what stands under a key, or None if a store has no such key.

        Parameters
        ----------
        key
            Below the store, with ``/`` between its parts.
        version
            ``content_checksum`` that a scan must have; None for whatever it has.

        Raises
        ------
        GoneError
            If it belongs to a scan, or a version of one, that is not in the store.
        UnreadableError
            If it cannot be read as what it should be.
        """
        scan_id, within = split_key(key)
        if not within:
            group, _, below = key.partition("/")
            is_made = key in _SHARED or (group == TABLE and is_table_file(below))
            return self.small(key) if is_made else None
        scan = self.scan(scan_id, version)
        if within == _METADATA:
            return self.small(key)
        if scan is None:
            if within.endswith(_METADATA):
                return None
            raise GoneError(f"there is no scan {scan_id!r} in the store, or no longer.")
        found = self.file(scan_id, within, scan)
        if found is None and _CHUNK.fullmatch(within) and not _is_background(within, scan):
            raise GoneError(f"scan {scan_id!r} is no longer in the store as it was.")
        return found

    def file(self, scan_id: str, within: str, scan: ServedScan) -> ServedFile | None:
        """Return a file that a scan's manifest names; None if it names none such.

        Raises
        ------
        UnreadableError
            If it is not there as the manifest says.
        """
        entry = scan.entries.get(within)
        return None if entry is None else self._file(scan_id, within, scan, entry)

    def _path(self, key: str) -> str:
        return f"{self._folder.path}/{key}"

    def small(self, key: str) -> ServedFile | None:
        """Return a file of metadata; None if there is none."""
        data = self._read(key)
        if data is None:
            return None
        return ServedFile.of(data)

    def _read(self, key: str) -> bytes | None:
        try:
            return self._folder.read(self._path(key), METADATA_BYTES)
        except FileNotFoundError:
            return None
        except (CorruptStoreError, OSError) as problem:
            raise UnreadableError(f"{key} cannot be read.") from problem

    def scan(self, scan_id: str, version: str | None = None) -> ServedScan | None:
        """Return a scan as it is now; None if there is no such scan.

        Raises
        ------
        GoneError
            If it has no such version.
        UnreadableError
            If its metadata cannot be read.
        """
        found = self._scan(scan_id)
        if version is not None and (found is None or found.content_checksum != version):
            raise GoneError(f"scan {scan_id!r} is no longer in the store as it was.")
        return found

    def _scan(self, scan_id: str) -> ServedScan | None:
        key = f"{scan_key(scan_id)}/{_METADATA}"
        try:
            identity = _identity(os.lstat(f"{self._folder.root}/{key}"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as problem:
            raise UnreadableError(f"{key} cannot be read.") from problem
        with self._lock:
            known = self._scans.get(scan_id)
            if known is not None and known.identity == identity:
                self._scans.move_to_end(scan_id)
                return known
        data = self._read(key)
        if data is None:
            return None
        try:
            group = parse_scan_group(data)
        except ValueError as problem:
            raise UnreadableError(f"{key} is damaged.") from problem
        if group.attributes.scan_id != scan_id:
            raise UnreadableError(f"{key} is another scan's.")
        found = ServedScan(identity, group.attributes.content_checksum, group)
        with self._lock:
            self._scans[scan_id] = found
            while len(self._scans) > _KNOWN_SCANS:
                self._scans.popitem(last=False)
        return found

    def _file(
        self, scan_id: str, within: str, scan: ServedScan, entry: ManifestEntry
    ) -> ServedFile:
        name = (scan_id, within)
        with self._lock:
            known = self._files.get(name)
            if known is not None and known[0] == scan.identity:
                self._files.move_to_end(name)
                return known[1]
        found = self._opened(f"{scan_key(scan_id)}/{within}", scan, entry)
        with self._lock:
            self._files[name] = scan.identity, found
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        return found

    def _opened(self, key: str, scan: ServedScan, entry: ManifestEntry) -> ServedFile:
        try:
            descriptor = _Descriptor(self._folder.open(self._path(key)))
            found = os.fstat(descriptor.number)
        except (CorruptStoreError, OSError) as problem:
            raise UnreadableError(f"{key} cannot be read, or is being replaced.") from problem
        if found.st_size != entry.size_bytes or not (
            (isinstance(entry, ShardEntry) and found.st_mtime_ns <= scan.identity[1])
            or _checksum(descriptor) == entry.crc32
        ):
            raise UnreadableError(f"{key} is damaged, or is being replaced.")
        tag = f"{scan.content_checksum}-{entry.crc32}-{entry.size_bytes:x}"
        return ServedFile(entry.size_bytes, _tag(tag), None, descriptor)


def chunk_index(key: str, separator: str, grid: Sequence[int]) -> tuple[int, ...] | None:
    """Return which chunk of a grid a key below its array names; None if none.

    Examples
    --------
    >>> chunk_index("c/0/12", "/", (1, 13)), chunk_index("c/0/13", "/", (1, 13))
    ((0, 12), None)
    """
    parts = key.split(separator)[1:]
    if len(parts) != len(grid) or not all(map(_NUMBER.fullmatch, parts)):
        return None
    index = tuple(map(int, parts))
    fits = all(i < n for i, n in zip(index, grid, strict=True))
    return index if fits and key == separator.join(("c", *parts)) else None


def _is_background(within: str, scan: ServedScan) -> bool:
    """Whether a chunk that the manifest does not name is one of this version."""
    arrays = scan.group.arrays
    name, _, key = within.rpartition("/c")
    if name == LABEL and arrays.label is not None:
        grid = chunk_grid(arrays.label.shape, arrays.label.shard_shape_zyx)
        return chunk_index(f"c{key}", arrays.separator, grid) is not None
    return name == LABEL_CHUNKS and key.startswith(arrays.separator)


def part_of(file: ServedFile, start: int, stop: int) -> ServedFile:
    """Return a part of a file as a file of its own."""
    tag = f"{file.etag[1:-1]}-{start:x}-{stop - start:x}"
    return ServedFile(stop - start, _tag(tag), None, file.descriptor, file.first + start)


@lru_cache(_KNOWN_KEYS)
def split_key(key: str) -> tuple[str, str]:
    """Return scan id and key within the scan; empty for the key of another file."""
    group, _, rest = key.partition("/")
    scan_id, _, within = rest.partition("/")
    return (scan_id, within) if group == SCANS and is_scan_id(scan_id) else ("", "")


def _checksum(descriptor: _Descriptor) -> str:
    at = checksum = 0
    while data := os.pread(descriptor.number, _READ_BYTES, at):
        checksum, at = crc32(data, checksum), at + len(data)
    return f"{checksum:08x}"


def _identity(found: os.stat_result) -> Identity:
    return found.st_ino, found.st_mtime_ns, found.st_size, found.st_ctime_ns


def _tag(text: str) -> str:
    return f'"{text}"'
