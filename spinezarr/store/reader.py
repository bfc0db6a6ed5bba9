"""How is a store read: its dataset, its scan table, and the metadata of each scan?

The reader returns plain values; reading voxels is left to :mod:`spinezarr.stream.read`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from spinezarr.errors import (
    CorruptStoreError,
    DamagedMetadataError,
    ScanChangedError,
    ScanRewrittenError,
    StoreNotFoundError,
    UnknownScanError,
)
from spinezarr.place import INGEST_ADVICE, describe_place, enclosing_store
from spinezarr.redaction import redact_url
from spinezarr.remote.errors import NoSuchBucketError
from spinezarr.remote.settings import DEFAULT_REMOTE_SETTINGS, RemoteSettings
from spinezarr.store.array_metadata import chunk_key
from spinezarr.store.attributes import (
    OtherFormatError,
    RootAttributes,
    ScanAttributes,
    is_scan_id,
    parse_root,
)
from spinezarr.store.bundle import TABLE_BUNDLE, unbundle_files
from spinezarr.store.layout import (
    IMAGE,
    LABEL,
    TABLE,
    chunk_grid,
    counts_key,
    scan_key,
)
from spinezarr.store.manifest import checked_content
from spinezarr.store.objects import Objects, open_objects
from spinezarr.store.scan_handle import ArraySpec, ScanHandle, parse_scan
from spinezarr.store.scan_table import ScanTable
from spinezarr.store.selection import unknown_scan
from spinezarr.store.sharding import ChunkDamagedError, decode_chunk
from spinezarr.store.table import update_table
from spinezarr.store.table_reader import TableRow, read_table, rows_of
from spinezarr.text import to_nfc

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["StoreReader"]

T = TypeVar("T")

_DAMAGED: Final = (DamagedMetadataError, OtherFormatError, CorruptStoreError)
"""Errors of reading and parsing a damaged file."""
_GIVE_STORE: Final = "Give the folder that 'spinezarr ingest' named with --out."
_CACHED_SCANS: Final = 4096
"""Number of scans whose metadata are kept in memory, at some 30 kB each."""


class StoreReader:
    """Reads one store.

    It can be shared between threads and pickled.

    Parameters
    ----------
    url
        Path or fsspec URL.
    storage_options
        Options for the file system of ``url``; see
        :func:`spinezarr.remote.filesystem.open_filesystem`.
    with_table
        Whether :attr:`table` will probably be read; it is then fetched with the root if the store
        is remote.
    remote
        Bounds on the requests, if the store is remote.
    rows
        Rows of a table that was read before, by scan id.
    objects
        Open reader of the store's files to share; None to open a new one.

    Raises
    ------
    StoreNotFoundError
        If there is no spinezarr store.
    CorruptStoreError
        If the root of the store is damaged.
    """

    def __init__(
        self,
        url: str,
        storage_options: Mapping[str, Any] | None = None,
        *,
        with_table: bool = True,
        remote: RemoteSettings = DEFAULT_REMOTE_SETTINGS,
        rows: Mapping[str, TableRow] | None = None,
        objects: Objects | None = None,
    ) -> None:
        self.url = url
        self.storage_options = storage_options
        self._remote = remote
        self.objects = objects or open_objects(url, storage_options, remote)
        self.path = self.objects.path
        self._bundle: bytes | None = None
        """Bundle that was fetched with the root; empty if it is absent, None if not fetched."""
        self.root = self._read_root(with_table=with_table and self.objects.is_remote)
        self._rows = dict(rows or {})
        self._newer: frozenset[str] = frozenset()
        """Scans whose rows in :attr:`table` are made from the scans, as the stored rows are older.
        """
        self._opened: set[str] = set()
        self._scans = lru_cache(_CACHED_SCANS)(self._read_scan)
        self._label_chunks = lru_cache(_CACHED_SCANS)(self._read_label_chunks)

    def __reduce__(
        self,
    ) -> tuple[
        Callable[..., "StoreReader"],
        tuple[str, Mapping[str, Any] | None, RemoteSettings, dict[str, TableRow]],
    ]:
        return _reopen, (self.url, self.storage_options, self._remote, self._rows)

    @property
    def name(self) -> str:
        """Path or URL of the store for messages, without user, password or signature."""
        return redact_url(self.url)

    def _read(
        self, path: str, parse: Callable[[bytes], T], fetched: bytes | None = None
    ) -> T | None:
        """Read and parse a file; None if it is absent. A damaged remote file is read again.

        ``fetched`` is its content if it has been fetched before.
        """
        for rereads_left in reversed(range(1 + self.objects.rereads)):
            data = fetched or self.objects.read([path]).get(path)
            if data is None:
                return None
            try:
                return parse(data)
            except _DAMAGED:
                fetched = None
                if not rereads_left:
                    raise
        return None

    def _read_root(self, *, with_table: bool) -> RootAttributes:
        path = f"{self.path}/zarr.json"
        try:
            files = self.objects.read([path, self._bundle_path] if with_table else [path])
        except NoSuchBucketError as problem:
            raise StoreNotFoundError(
                f"{self.name}: there is no store: {problem.strerror}."
            ) from problem
        if with_table:
            self._bundle = files.get(self._bundle_path, b"")
        if path not in files:
            self._refuse_without_root("is missing")
            place = (
                INGEST_ADVICE if self.objects.is_remote else f" {describe_place(Path(self.path))}"
            )
            raise StoreNotFoundError(f"{self.name}: there is no store.{place}")
        try:
            root = self._read(path, parse_root, files[path])
        except OtherFormatError as problem:
            raise StoreNotFoundError(f"{self.name}: {problem}") from problem
        except DamagedMetadataError as problem:
            self._refuse_without_root("is damaged")
            raise StoreNotFoundError(
                f"{self.name}: is not a store that spinezarr wrote ({problem}). "
                f"{self._enclosing_store() or _GIVE_STORE}"
            ) from problem
        if root is None:
            raise StoreNotFoundError(f"{self.name}: was removed just now.")
        return root

    def _enclosing_store(self) -> str:
        return "" if self.objects.is_remote else enclosing_store(Path(self.path))

    def _refuse_without_root(self, problem: str) -> None:
        """Raise CorruptStoreError if there is a scan table, as only the root is then lost."""
        if self.objects.read([f"{self.path}/{TABLE}/zarr.json"]):
            raise CorruptStoreError(
                f"{self.objects.name(self.path)}/zarr.json: the root of the store {problem}. Run "
                "the same 'spinezarr ingest' or 'spinezarr derive' again with --repair to write "
                "the root anew."
            )

    @cached_property
    def table(self) -> "xr.Dataset":
        """The scan table as a dataset of xarray; see :attr:`columns`."""
        return self.columns.to_xarray()

    @cached_property
    def columns(self) -> ScanTable:
        """The scan table, in memory.

        Raises
        ------
        CorruptStoreError
            If a file of the table is missing or damaged.
        """
        try:
            table = self._read_table()
        except CorruptStoreError:
            # An ingest may have replaced the table while it was read.
            table = self._read_table()
        rows = rows_of(table)
        if rows != self._rows:
            self._rows = rows
            self.forget_scans()
        return table

    def row(self, scan_id: str) -> TableRow | None:
        """Return a scan's row of the table; None without such a row, or if no table was read."""
        return self._rows.get(scan_id)

    def forget_table(self) -> None:
        """Read the scan table again at its next use."""
        self.__dict__.pop("columns", None)
        self.__dict__.pop("table", None)

    @property
    def _bundle_path(self) -> str:
        return f"{self.path}/{TABLE_BUNDLE}"

    def _read_table(self) -> ScanTable:
        """Read the table from its bundle, or from its own files if the bundle is unusable."""
        folder = f"{self.path}/{TABLE}"

        def parse(bundle: bytes) -> ScanTable:
            files = {f"{folder}/{key}": data for key, data in unbundle_files(bundle).items()}
            return read_table(lambda _: files, folder, self.name)

        bundle, self._bundle = self._bundle, None
        with suppress(*_DAMAGED):
            table = None if bundle == b"" else self._read(self._bundle_path, parse, bundle)
            if table is not None:
                return table
        return read_table(self.objects.read, folder, self.name)

    def scan(self, scan_id: str) -> ScanHandle:
        """Open the stored version of one scan; its metadata are kept in memory.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        CorruptStoreError
            If its metadata are damaged, or spinezarr did not write them.
        """
        return self._scans(scan_id)

    def _read_scan(self, scan_id: str) -> ScanHandle:
        """Read the metadata of one scan; see :meth:`scan`."""
        scan_id = to_nfc(scan_id)
        folder = f"{self.path}/{scan_key(scan_id)}"
        if not is_scan_id(scan_id):
            raise UnknownScanError(f"{self.name}: {scan_id!r} is no scan id.")
        path = f"{folder}/zarr.json"
        change = _ChangeFinder(self.url, self.storage_options, self._remote, self)

        def parse(raw: bytes) -> ScanHandle:
            scan = parse_scan(raw, folder, find_change=change)
            self._check_identity(scan.attributes, scan_id)
            return scan

        try:
            scan = self._read(path, parse)
        except _DAMAGED as problem:
            raise CorruptStoreError(
                f"{self.objects.name(path)}: is not what spinezarr writes ({problem}). "
                "Ingest this scan again."
            ) from problem
        if scan is None:
            raise unknown_scan(self.name, scan_id)
        return scan

    def listed_scan(self, scan_id: str) -> ScanHandle:
        """Open one scan and check that it is the version that the scan table lists.

        So a plan that was made from the table never gets voxels of another version.

        Raises
        ------
        ScanChangedError
            If the table lists another version than the stored one.
        UnknownScanError, CorruptStoreError
            As for :meth:`scan`.
        """
        scan = self.scan(scan_id)
        scan_id, stored = scan.attributes.scan_id, scan.content_checksum
        row = self._rows.get(scan_id)
        if row is None:
            return scan
        if row.content_checksum != stored:
            raise self._change_error(scan_id, stored)
        if row.shape_zyx != scan.image.shape_zyx:
            raise CorruptStoreError(
                f"{self.name}: the scan table says that {scan_id!r} has {row.shape_zyx} voxels, "
                f"and it has {scan.image.shape_zyx}. Copy the store again, or run the same "
                "'spinezarr ingest' or 'spinezarr derive' again with --repair."
            )
        return scan

    def listed_mask(self, scan_id: str, name: str) -> ArraySpec:
        """Return a mask of a scan, and check that it is the version that the scan table lists.

        Parameters
        ----------
        scan_id
            The scan.
        name
            ``label``, or the name of a further mask.

        Raises
        ------
        ScanChangedError
            If the table lists another version of the scan or of the mask than the stored one.
        UnknownMaskError
            If the scan has no such mask.
        UnknownScanError, CorruptStoreError
            As for :meth:`scan`.
        """
        scan = self.listed_scan(scan_id)
        row = self._rows.get(scan.attributes.scan_id)
        listed = {} if row is None else dict(row.mask_checksums)
        if name in listed and (
            name not in scan.masks or scan.masks[name].content_checksum != listed[name]
        ):
            raise self._mask_change_error(scan.attributes.scan_id, name)
        return scan.mask(name)

    def find_change(self, array: ArraySpec) -> ScanChangedError | None:
        """Find out whether an array could not be read because its scan has changed.

        Returns
        -------
        ScanChangedError or None
            The error to raise; None if the store still has the same version.
        """
        try:
            current = self._read_scan(array.scan_id)
        except UnknownScanError:
            return ScanChangedError(
                f"{self.name}: scan {array.scan_id!r} is no longer in the store. Open the store "
                "again.",
                array.scan_id,
            )
        except (CorruptStoreError, OSError):
            return None
        specs = {spec.name: spec for spec in current.all_arrays}
        spec = specs.get(array.name)
        if spec is not None and (spec.separator, spec.shards) == (array.separator, array.shards):
            return None
        self.forget_scans()
        if spec is not None and spec.content_checksum == array.content_checksum:
            return ScanRewrittenError(
                f"{self.name}: scan {array.scan_id!r} was written again meanwhile, with the same "
                "voxels. Open it again.",
                array.scan_id,
            )
        if array.name not in {IMAGE, LABEL}:
            return self._mask_change_error(array.scan_id, array.name)
        return self._change_error(array.scan_id, current.content_checksum)

    def _mask_change_error(self, scan_id: str, name: str) -> ScanChangedError:
        """Return the error for a further mask that was replaced or removed."""
        return ScanChangedError(
            f"{self.name}: the mask {name!r} of scan {scan_id!r} was replaced or removed since the "
            "store was opened. Open the store again.",
            scan_id,
        )

    def _change_error(self, scan_id: str, stored: str) -> ScanChangedError:
        """Return the error for a scan whose stored ``content_checksum`` is now ``stored``."""
        scan = f"{self.name}: scan {scan_id!r}"
        listed: str | None = stored
        with suppress(CorruptStoreError, OSError):
            row = rows_of(self._read_table()).get(scan_id)
            listed = None if row is None else row.content_checksum
        if listed == stored:
            return ScanChangedError(
                f"{scan} has changed since the store was opened. Open the store again.", scan_id
            )
        return ScanChangedError(
            f"{scan} is another version than the scan table describes: an ingest is running, or "
            "was cut off. Wait for its end, or run the same 'spinezarr ingest' again. Then open "
            "the store again.",
            scan_id,
        )

    def reopened(self, changed: str) -> "StoreReader":
        """Return a reader of the store as it is now.

        Parameters
        ----------
        changed
            Id of a scan that has changed. If the ingest that replaced it still runs, the row of the
            scan in the table is older. That row is then made from the scan, and so are the rows of
            scans that had changed before.

        Raises
        ------
        StoreNotFoundError, UnknownScanError
            If the store or that scan no longer exists.
        CorruptStoreError
            If the table or the scan cannot be read.
        """
        new = StoreReader(self.url, self.storage_options, remote=self._remote)
        table, newer = new.table, {}
        for scan_id in self._newer | {changed}:
            scan = new.scan(scan_id).attributes
            row = new._rows.get(scan_id)
            if row is None or row.content_checksum != scan.content_checksum:
                newer[scan_id] = scan
        if newer:
            table = update_table(new.root, table, newer, {})
            new.__dict__.update(table=table, columns=ScanTable.of(table))
            new._rows = rows_of(new.columns)
            new._newer = frozenset(newer)
        return new

    def forget_scans(self) -> None:
        """Read the metadata of each scan again at its next use."""
        self._scans.cache_clear()
        self._label_chunks.cache_clear()
        self._opened.clear()

    def prefetch_scans(self, scan_ids: Iterable[str]) -> None:
        """Open scans concurrently and keep their metadata, so :meth:`scan` returns at once.

        Raises
        ------
        ScanChangedError, UnknownScanError, CorruptStoreError
            As for :meth:`listed_scan`.
        """
        new = [scan_id for scan_id in dict.fromkeys(scan_ids) if scan_id not in self._opened]
        if len(new) > 1:
            self.objects.each(self.listed_scan, new)
        self._opened.update(new)

    def _check_identity(self, scan: ScanAttributes, scan_id: str) -> None:
        """Refuse a scan that lies in the folder of another scan or dataset."""
        found, expected = (scan.dataset, scan.scan_id), (self.root.dataset, scan_id)
        if found != expected:
            raise DamagedMetadataError(f"dataset and scan {found}", f"{expected}")

    def label_chunks(self, scan_id: str, mask: str = LABEL) -> npt.NDArray[np.uint32]:
        """Return the voxel count of each label in each chunk of a scan's mask.

        Parameters
        ----------
        scan_id
            The scan.
        mask
            Name of the mask.

        Returns
        -------
        numpy.ndarray
            uint32 of shape ``(n, 5)``: label value, chunk index z, y, x, voxel count; ordered by
            label, then chunk. Empty for a scan without that mask. It is kept in memory and shared,
            so it must not be changed.

        Raises
        ------
        ScanChangedError
            If the store now has another version of the scan.
        UnknownScanError, CorruptStoreError
            As for :meth:`scan`, or if the counts are missing or damaged.
        """
        return self._label_chunks(scan_id, mask)

    def _read_label_chunks(self, scan_id: str, mask: str) -> npt.NDArray[np.uint32]:
        """Read the voxel counts of one mask; see :meth:`label_chunks`."""
        scan = self.scan(scan_id)
        out = np.empty((scan.label_chunk_rows.get(mask, 0), 5), np.uint32)
        if not len(out):
            return out
        array = scan.mask(mask)
        key = f"{counts_key(mask)}/{chunk_key((0, 0), array.separator)}"
        path = f"{self.path}/{scan_key(scan.attributes.scan_id)}/{key}"

        def parse(data: bytes | None) -> npt.NDArray[np.uint32]:
            checked = checked_content(path, data, scan.attributes.manifest[key])
            try:
                decode_chunk(checked, out)
            except ChunkDamagedError as problem:
                raise CorruptStoreError(f"{path}: {problem}.") from problem
            _check_label_chunks(path, out, array, scan.label_voxels(mask))
            return out

        try:
            rows = self._read(path, parse)
            return parse(None) if rows is None else rows
        except CorruptStoreError as problem:
            raise self.find_change(array) or problem from problem


def _check_label_chunks(
    path: str, rows: npt.NDArray[np.uint32], array: ArraySpec, label_voxels: Mapping[int, int]
) -> None:
    """Check that the labels and chunks of voxel counts exist, and check the sums of the counts."""
    grid = chunk_grid(array.shape_zyx, array.chunk_shape_zyx)
    is_valid = (
        (rows[:, 0] >= 1)
        & (rows[:, 0] <= np.iinfo(np.uint8).max)
        & (rows[:, 1:4] < grid).all(axis=1)
        & (rows[:, 4] >= 1)
        & (rows[:, 4] <= math.prod(array.chunk_shape_zyx))
    )
    if not is_valid.all():
        row = rows[int(np.flatnonzero(~is_valid)[0])].tolist()
        raise CorruptStoreError(
            f"{path}: has the row {row}, which cannot be a label, chunk and count of this mask. "
            "Ingest this scan again."
        )
    sums = np.bincount(rows[:, 0], rows[:, 4], minlength=1)
    counts = {value: int(sums[value]) for value in np.flatnonzero(sums).tolist()}
    if counts != {value: n for value, n in label_voxels.items() if n}:
        raise CorruptStoreError(
            f"{path}: its voxel counts of labels differ from those in the metadata of the scan. "
            "Ingest this scan again."
        )


@dataclass(frozen=True, slots=True, eq=False)
class _ChangeFinder:
    """Calls :meth:`StoreReader.find_change`; in another process it first opens the store."""

    url: str = field(repr=False)
    storage_options: Mapping[str, Any] | None = field(repr=False)
    remote: RemoteSettings
    reader: StoreReader | None = None

    def __call__(self, array: ArraySpec) -> ScanChangedError | None:
        reader = self.reader or _reopen(self.url, self.storage_options, self.remote, {})
        return reader.find_change(array)

    def __reduce__(self) -> tuple[Callable[..., "_ChangeFinder"], tuple[Any, ...]]:
        return _ChangeFinder, (self.url, self.storage_options, self.remote)


def _reopen(
    url: str,
    storage_options: Mapping[str, Any] | None,
    remote: RemoteSettings,
    rows: Mapping[str, TableRow],
) -> StoreReader:
    """Open a store for a reader that another process has sent."""
    return StoreReader(url, storage_options, with_table=False, remote=remote, rows=rows)
