"""Which bytes, of which version, does a key of a served store stand for?

Each answer is of one version of a scan, and its entity tag names that version. The server compares
a file with the present manifest of its scan when it opens the file, and then reads that opened
file only. It looks only for keys that a store of spinezarr can have.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from spinezarr.errors import DamagedMetadataError, SpinezarrError
from spinezarr.serve.limits import ServeLimits
from spinezarr.serve.storage import (
    METADATA,
    Identity,
    InTurn,
    Recent,
    ServedFile,
    Storage,
    UnreadableError,
    tag_of,
)
from spinezarr.store.attributes import ScanGroup, is_scan_id, parse_scan_group
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.layout import LABEL, LABEL_CHUNKS, SCANS, TABLE, chunk_grid, scan_key
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
    "part_of",
    "split_scan_key",
]

_SHARED: Final = {"zarr.json", "scans/zarr.json", TABLE_BUNDLE}
"""Files outside of scans that are served besides the table; the ingest ledger is not."""
_CHUNK: Final = re.compile(rf"(?!.*zarr[.]json){SCAN_FILE}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,5}", re.ASCII)
_KNOWN_KEYS: Final = 4096
_SEEN_S: Final = 0.1
"""Seconds after which the server looks again whether a store exists.

The files of a store are looked at for each request.
"""
_METADATA_BYTES: Final = 32 << 20
"""Memory for files of metadata of one store, in bytes."""


class GoneError(SpinezarrError):
    """A file of a scan that the store does not have, and that is no chunk of background."""


@dataclass(frozen=True, slots=True, eq=False)
class ServedScan:
    """One version of a scan.

    Attributes
    ----------
    identity
        Identity of its file of metadata.
    written
        When this file was written, in nanoseconds.
    content_checksum
        See :attr:`spinezarr.store.attributes.ScanAttributes.content_checksum`.
    group
        The parsed metadata.
    """

    identity: Identity
    written: int
    content_checksum: str
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
        Scans whose metadata are kept in memory.
    """

    def __init__(self, storage: Storage, scans: int = ServeLimits().scans) -> None:
        self._storage = storage
        self._seen_until = -math.inf
        self._scans: Recent[ServedScan] = Recent(scans)
        self._metadata: Recent[ServedFile] = Recent(_METADATA_BYTES)
        self._files: Recent[ServedFile] = Recent(storage.room)
        self._in_turn = InTurn()

    @property
    def path(self) -> str:
        """Path or URL of the store."""
        return self._storage.path

    @property
    def executor(self) -> Executor | None:
        """Executor for calls that may wait for a network; None if none may."""
        return self._storage.executor

    def is_there(self) -> bool:
        """Whether the store exists now.

        Raises
        ------
        UnreadableError
            If the bucket does not answer.
        """
        now = time.monotonic()
        if now >= self._seen_until and self.small(METADATA) is not None:
            self._seen_until = now + _SEEN_S
        return now < self._seen_until

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
        """Return the file of a key; None if stores have no such key.

        Parameters
        ----------
        key
            Key below the store, with ``/`` between its parts.
        version
            ``content_checksum`` of the wanted version of the scan; None for the present one.

        Raises
        ------
        GoneError
            If the key belongs to a scan, or a version of a scan, that the store does not have.
        UnreadableError
            If the file cannot be read, or is not the one that the manifest describes.
        """
        scan_id, within = split_scan_key(key)
        if not within:
            group, _, below = key.partition("/")
            is_made = key in _SHARED or (group == TABLE and is_table_file(below))
            return self.small(key) if is_made else None
        scan = self.scan(scan_id, version)
        if scan is None:
            if within.endswith(METADATA):
                return None
            raise GoneError(f"there is no scan {scan_id!r} in the store any more.")
        if within == METADATA:
            return self.metadata(scan_id, scan)
        found = self.file(scan_id, within, scan)
        if found is None and _CHUNK.fullmatch(within) and not _is_background(within, scan):
            raise GoneError(f"scan {scan_id!r} was replaced by another version.")
        return found

    def file(self, scan_id: str, within: str, scan: ServedScan) -> ServedFile | None:
        """Return a file of a scan; None if its manifest does not name it.

        Raises
        ------
        UnreadableError
            If the file is not the one that the manifest describes.
        """
        entry = scan.entries.get(within)
        return None if entry is None else self._file(scan_id, within, scan, entry)

    def metadata(self, scan_id: str, scan: ServedScan) -> ServedFile:
        """Return the metadata of a version of a scan.

        Raises
        ------
        UnreadableError
            If the metadata cannot be read, or belong to another version by now.
        """
        key = f"{scan_key(scan_id)}/{METADATA}"
        found = self._small(key)
        if found is None or found[0] != scan.identity:
            raise UnreadableError(f"{key} is being replaced.")
        return found[1]

    def small(self, key: str) -> ServedFile | None:
        """Return a file of metadata as it is now; None if it does not exist.

        Raises
        ------
        UnreadableError
            If the file cannot be read.
        """
        found = self._small(key)
        return None if found is None else found[1]

    def _small(self, key: str) -> tuple[Identity, ServedFile] | None:
        known = self._metadata.find(key)
        seen = self._storage.current_file(key, None if known is None else known[0])
        if seen is None or (seen.data is None and known is not None):
            return None if seen is None else known
        found = ServedFile.of(seen.data or b"")
        self._metadata.keep(key, seen.identity, found, found.size_bytes + 1)
        return seen.identity, found

    def scan(self, scan_id: str, version: str | None = None) -> ServedScan | None:
        """Return a scan as it is now; None if it does not exist.

        Raises
        ------
        GoneError
            If the scan has another version than the wanted one.
        UnreadableError
            If the metadata of the scan cannot be read.
        """
        found = self._scan(scan_id)
        if version is not None and (found is None or found.content_checksum != version):
            raise GoneError(f"scan {scan_id!r} was replaced by another version.")
        return found

    def _scan(self, scan_id: str) -> ServedScan | None:
        if not self.may_have(scan_id):
            raise UnreadableError("a scan of that name cannot exist in this store.")
        key = f"{scan_key(scan_id)}/{METADATA}"
        known = self._scans.find(scan_id)
        seen = self._storage.current_file(key, None if known is None else known[0])
        if seen is None or (seen.data is None and known is not None):
            return None if seen is None or known is None else known[1]
        try:
            group = parse_scan_group(seen.data or b"")
        except DamagedMetadataError as problem:
            raise UnreadableError(f"{key} is damaged.") from problem
        if group.attributes.scan_id != scan_id:
            raise UnreadableError(f"{key} belongs to another scan.")
        checksum = group.attributes.content_checksum
        found = ServedScan(seen.identity, seen.written, checksum, group)
        self._scans.keep(scan_id, found.identity, found)
        return found

    def _file(
        self, scan_id: str, within: str, scan: ServedScan, entry: ManifestEntry
    ) -> ServedFile:
        name = (scan_id, within)
        found = self._opened(name, scan)
        if found is not None:
            return found
        with self._in_turn.of(name):
            found = self._opened(name, scan)  # another thread has opened it meanwhile
            if found is not None:
                return found
            content = self._storage.open(f"{scan_key(scan_id)}/{within}", entry, scan.written)
            tag = f"{scan.content_checksum}-{entry.crc32}-{entry.size_bytes:x}"
            found = ServedFile(entry.size_bytes, tag_of(tag), None, content)
            self._files.keep(name, scan.identity, found, content.room)
        return found

    def _opened(self, name: tuple[str, str], scan: ServedScan) -> ServedFile | None:
        known = self._files.find(name)
        if known is None or known[0] != scan.identity:
            return None
        content = known[1].content
        return None if content is None or content.is_stale else known[1]


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


def _is_background(within: str, scan: ServedScan) -> bool:
    """Whether a chunk that the manifest does not name is background of this version."""
    arrays = scan.group.arrays
    name, _, key = within.rpartition("/c")
    if name == LABEL and arrays.label is not None:
        grid = chunk_grid(arrays.label.shape, arrays.label.shard_shape_zyx)
        return chunk_index(f"c{key}", arrays.separator, grid) is not None
    return name == LABEL_CHUNKS and key.startswith(arrays.separator)


def part_of(file: ServedFile, start: int, stop: int) -> ServedFile:
    """Return a range of a file as a file with its own entity tag."""
    tag = f"{file.etag[1:-1]}-{start:x}-{stop - start:x}"
    return ServedFile(stop - start, tag_of(tag), None, file.content, file.first + start)


@lru_cache(_KNOWN_KEYS)
def split_scan_key(key: str) -> tuple[str, str]:
    """Split a key into scan id and key within the scan; both are empty for other files."""
    group, _, rest = key.partition("/")
    scan_id, _, within = rest.partition("/")
    return (scan_id, within) if group == SCANS and is_scan_id(scan_id) else ("", "")
