"""Which bytes belong to a key of a served store, and to which version of a scan?

Each answer holds bytes of one version of a scan, and its entity tag names that version. The server
compares a file with the current manifest of its scan when it opens the file, and then reads only
the opened file. It looks only for keys that a store of spinezarr can have.
"""

import math
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import lru_cache
from time import monotonic
from typing import Final

from spinezarr.errors import DamagedMetadataError, SpinezarrError
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.storage import (
    Identity,
    KeyLocks,
    ServedFile,
    Storage,
    UnreadableError,
    VersionCache,
    strong_etag,
)
from spinezarr.store.attributes import ScanGroup, is_scan_id, parse_scan_group
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.layout import IMAGE, METADATA, SAMPLING, SCANS, TABLE, chunk_grid, scan_key
from spinezarr.store.manifest import SCAN_FILE, ManifestEntry
from spinezarr.store.reader import StoreReader
from spinezarr.store.table_file import is_table_file

__all__ = [
    "GoneError",
    "ServedFile",
    "ServedFolder",
    "ServedScan",
    "UnreadableError",
    "chunk_index",
    "file_range",
    "split_scan_key",
]

_SHARED_FILES: Final = {METADATA, f"{SCANS}/{METADATA}", TABLE_BUNDLE}
"""Files outside scans that are served in addition to the table. The ingest ledger is not served."""
_CHUNK: Final = re.compile(rf"(?!.*zarr[.]json){SCAN_FILE}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
_CACHED_KEYS: Final = 4096
_EXISTS_S: Final = 0.1
"""Seconds for which the result that a store exists is valid.

The files of a store are checked for each request.
"""
_METADATA_BYTES: Final = 32 << 20
"""Memory for the metadata files of one store, in bytes."""


class GoneError(SpinezarrError):
    """The store does not have a file of a scan, and the file is not a chunk of background."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedScan:
    """One version of a scan.

    Attributes
    ----------
    identity
        Identity of its metadata file.
    written_at
        When this file was written; see :class:`spinezarr.serve.storage.CurrentFile`.
    content_checksum
        See :attr:`spinezarr.store.attributes.ScanAttributes.content_checksum`.
    mask_checksums
        See :meth:`spinezarr.store.attributes.ScanAttributes.mask_checksum`, by mask.
    group
        The parsed metadata.
    """

    identity: Identity
    written_at: int
    content_checksum: str
    mask_checksums: Mapping[str, str]
    group: ScanGroup = field(repr=False)

    @property
    def entries(self) -> Mapping[str, ManifestEntry]:
        """The manifest: the files of the scan by key."""
        return self.group.attributes.manifest


class ServedFolder:
    """The files of a store; safe to share between threads.

    Parameters
    ----------
    storage
        Disk or bucket with the files.
    scans
        Number of scans whose metadata are kept in memory.
    """

    def __init__(self, storage: Storage, scans: int = ServeLimits().scans) -> None:
        self._storage = storage
        self._exists_until_s = -math.inf
        self._scans: VersionCache[ServedScan] = VersionCache(scans)
        self._metadata: VersionCache[ServedFile] = VersionCache(_METADATA_BYTES)
        self._files: VersionCache[ServedFile] = VersionCache(storage.capacity)
        self._key_locks = KeyLocks()

    @property
    def path(self) -> str:
        """Path or URL of the store."""
        return self._storage.path

    @property
    def executor(self) -> Executor | None:
        """Executor for calls that may wait for a network; None if no call does."""
        return self._storage.executor

    def exists(self) -> bool:
        """Whether the store exists now.

        Raises
        ------
        UnreadableError
            If the bucket does not answer.
        """
        now = monotonic()
        if now >= self._exists_until_s and self.current_file(METADATA) is not None:
            self._exists_until_s = now + _EXISTS_S
        return now < self._exists_until_s

    def reader(self, *, with_table: bool) -> StoreReader:
        """Open the store.

        Raises
        ------
        SpinezarrError, OSError
            If the store cannot be read.
        """
        return self._storage.reader(with_table=with_table)

    def may_have(self, scan_id: str) -> bool:
        """Whether a scan of that name can exist in this store."""
        return self._storage.may_have(scan_id)

    def find(self, key: str, version: str | None = None) -> ServedFile | None:
        """Return the file of a key; None if it does not exist.

        Parameters
        ----------
        key
            Key below the store, with ``/`` between its parts.
        version
            ``content_checksum`` of the version of the scan; None for the current one.

        Raises
        ------
        GoneError
            If the key belongs to a scan, or a version of a scan, that the store does not have.
        UnreadableError
            If the file cannot be read, or is not the one that the manifest describes.
        """
        scan_id, key_in_scan = split_scan_key(key)
        if not key_in_scan:
            group, _, key_in_table = key.partition("/")
            is_served = key in _SHARED_FILES or (group == TABLE and is_table_file(key_in_table))
            return self.current_file(key) if is_served else None
        scan = self.scan(scan_id, version)
        if scan is None:
            if key_in_scan.endswith(METADATA):
                return None
            raise GoneError(f"there is no scan {scan_id!r} in the store any more.")
        if key_in_scan == METADATA:
            return self.metadata(scan_id, scan)
        file = self.file(scan_id, key_in_scan, scan)
        if file is None and _CHUNK.fullmatch(key_in_scan) and not _is_background(key_in_scan, scan):
            raise GoneError(f"scan {scan_id!r} was replaced by another version.")
        return file

    def file(self, scan_id: str, key_in_scan: str, scan: ServedScan) -> ServedFile | None:
        """Return a file of a scan; None if its manifest does not name it.

        Raises
        ------
        UnreadableError
            If the file is not the one that the manifest describes.
        """
        entry = scan.entries.get(key_in_scan)
        return None if entry is None else self._file(scan_id, key_in_scan, scan, entry)

    def metadata(self, scan_id: str, scan: ServedScan) -> ServedFile:
        """Return the metadata of a version of a scan.

        Raises
        ------
        UnreadableError
            If the metadata cannot be read, or now belong to another version.
        """
        key = f"{scan_key(scan_id)}/{METADATA}"
        current = self._current_file(key)
        if current is None or current[0] != scan.identity:
            raise UnreadableError(f"{key} is being replaced.")
        return current[1]

    def current_file(self, key: str) -> ServedFile | None:
        """Return the current metadata file of a key; None if it does not exist.

        Raises
        ------
        UnreadableError
            If the file cannot be read.
        """
        current = self._current_file(key)
        return None if current is None else current[1]

    def _current_file(self, key: str) -> tuple[Identity, ServedFile] | None:
        cached = self._metadata.find(key)
        current = self._storage.current_file(key, None if cached is None else cached[0])
        if current is None or (current.data is None and cached is not None):
            return None if current is None else cached
        file = ServedFile.of(current.data or b"")
        self._metadata.keep(key, current.identity, file, file.size_bytes + 1)
        return current.identity, file

    def scan(self, scan_id: str, version: str | None = None) -> ServedScan | None:
        """Return the current version of a scan; None if the scan does not exist.

        Raises
        ------
        GoneError
            If ``version`` is given, and it is not the current version.
        UnreadableError
            If the metadata of the scan cannot be read.
        """
        scan = self._scan(scan_id)
        if version is not None and (scan is None or scan.content_checksum != version):
            raise GoneError(f"scan {scan_id!r} was replaced by another version.")
        return scan

    def _scan(self, scan_id: str) -> ServedScan | None:
        if not self.may_have(scan_id):
            raise UnreadableError("a scan of that name cannot exist in this store.")
        key = f"{scan_key(scan_id)}/{METADATA}"
        cached = self._scans.find(scan_id)
        current = self._storage.current_file(key, None if cached is None else cached[0])
        if current is None or (current.data is None and cached is not None):
            return None if current is None or cached is None else cached[1]
        try:
            group = parse_scan_group(current.data or b"")
        except DamagedMetadataError as problem:
            raise UnreadableError(f"{key} is damaged.") from problem
        if group.attributes.scan_id != scan_id:
            raise UnreadableError(f"{key} belongs to another scan.")
        facts = group.attributes
        scan = ServedScan(
            current.identity,
            current.written_at,
            facts.content_checksum,
            {name: facts.mask_checksum(name) for name in facts.masks},
            group,
        )
        self._scans.keep(scan_id, scan.identity, scan)
        return scan

    def _file(
        self, scan_id: str, key_in_scan: str, scan: ServedScan, entry: ManifestEntry
    ) -> ServedFile:
        name = (scan_id, key_in_scan)
        file = self._cached_file(name, scan)
        if file is not None:
            return file
        with self._key_locks.hold(name):
            file = self._cached_file(name, scan)  # another thread may have opened it meanwhile
            if file is not None:
                return file
            content = self._storage.open(
                f"{scan_key(scan_id)}/{key_in_scan}", entry, scan.written_at
            )
            tag = f"{scan.content_checksum}-{entry.crc32}-{entry.size_bytes:x}"
            file = ServedFile(entry.size_bytes, strong_etag(tag), None, content)
            self._files.keep(name, scan.identity, file, content.cost)
        return file

    def _cached_file(self, name: tuple[str, str], scan: ServedScan) -> ServedFile | None:
        cached = self._files.find(name)
        if cached is None or cached[0] != scan.identity:
            return None
        content = cached[1].content
        return None if content is None or content.is_stale else cached[1]


def chunk_index(key: str, separator: str, grid: Sequence[int]) -> tuple[int, ...] | None:
    """Parse the key of a chunk below its array; None if the grid has no such chunk.

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


def _is_background(key_in_scan: str, scan: ServedScan) -> bool:
    """Whether a chunk that the manifest does not name is background in this version."""
    arrays = scan.group.arrays
    name, _, chunk = key_in_scan.rpartition("/c")
    volume = arrays.volumes.get(name)
    if volume is not None and name != IMAGE:
        grid = chunk_grid(volume.shape, volume.shard_shape_zyx)
        return chunk_index(f"c{chunk}", volume.separator, grid) is not None
    counts = arrays.by_key.get(name) if name.startswith(f"{SAMPLING}/") else None
    return counts is not None and chunk.startswith(counts.separator)


def file_range(file: ServedFile, start: int, stop: int) -> ServedFile:
    """Return the bytes ``start <= i < stop`` of a file, as a file with another entity tag."""
    etag = f"{file.etag[1:-1]}-{start:x}-{stop - start:x}"
    return ServedFile(stop - start, strong_etag(etag), None, file.content, file.first + start)


@lru_cache(_CACHED_KEYS)
def split_scan_key(key: str) -> tuple[str, str]:
    """Split a key into scan id and key within the scan; both are empty for other files."""
    group, _, rest = key.partition("/")
    scan_id, _, key_in_scan = rest.partition("/")
    return (scan_id, key_in_scan) if group == SCANS and is_scan_id(scan_id) else ("", "")
