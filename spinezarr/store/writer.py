"""Writing a store: scans one by one, each visible only when it is whole; then the table.

One write of ``zarr.json`` makes a scan, or the table, what readers see. What replaces one that is
there is written beside it first, under chunk keys with the other separator.
"""

import json
import os
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, Final

import fsspec
import numpy as np
import numpy.typing as npt
import xarray as xr
from typing_extensions import Buffer

from spinezarr.errors import (
    CorruptStoreError,
    LostLockError,
    ReadOnlyStoreError,
    UsageError,
)
from spinezarr.geometry import ShapeZYX, axis_positions_mm
from spinezarr.public_url import public_url
from spinezarr.scaling import Scaling
from spinezarr.store.array_metadata import ScanArrays, Separator, chunk_key, other_separator
from spinezarr.store.attributes import (
    ManifestEntry,
    OtherFormatError,
    RootAttributes,
    ScanAttributes,
    ScanGroup,
    ShardEntry,
    parse_root,
    parse_scan_group,
    seal,
    unseal,
)
from spinezarr.store.audit_log import AUDIT_FILE, AuditLog, scan_identity
from spinezarr.store.bundle import TABLE_BUNDLE, bundle_files, unbundle_files
from spinezarr.store.files import (
    PARTIAL,
    Holding,
    is_read_only,
    list_sizes,
    open_store,
    publish_file,
    read_files,
    remove_empty_folders,
    remove_files,
    write_files,
)
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.layout import (
    BALANCED,
    FORMAT_VERSION,
    SCANS,
    TABLE,
    Profile,
    profile_named,
    scan_key,
)
from spinezarr.store.ledger import LEDGER_FILE, FolderRecord, Ledger, LedgerEntry
from spinezarr.store.lock import LATE_FILE, LockGuard, StoreLock
from spinezarr.store.metadata import (
    root_files,
    scan_files,
    table_files,
    with_stored_encoding,
)
from spinezarr.store.reader import read_table
from spinezarr.store.sharding import CHECKSUM_BYTES, chunk_rows, crc32
from spinezarr.store.table import build_table, renew_table, root_of_table, with_audit
from spinezarr.store.table_file import parse_table
from spinezarr.store.uploads import Uploads
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["ScanWriter", "StoreWriter", "stored_root"]

_METADATA: Final = "zarr.json"
_OURS: Final = re.compile(
    r"zarr\.json\.partial|(image|label|z|y|x|sampling|sampling/label_chunks)/(c[./].*|zarr\.json.*)"
)
"""What a killed run may leave in the folder of a scan."""


def stored_root(
    url: str, storage_options: Mapping[str, Any] | None = None
) -> RootAttributes | None:
    """Return what a store says of itself; None if there is none that can be read.

    Whether something else lies there is for :class:`StoreWriter` to judge.
    """
    fs, path = open_store(url, storage_options)
    try:
        return parse_root(fs.cat_file(f"{path}/{_METADATA}"))
    except (OSError, ValueError, OtherFormatError):
        return None


class StoreWriter:
    """Writes one dataset's store. Can be pickled; a worker's copy writes scans only.

    Parameters
    ----------
    url
        Path or URL of the store.
    root
        The dataset; a store that exists must be of the same one. If it names no codec profile, that
        of the store is taken, or the default for a new one.
    storage_options
        For the file system of ``url``.
    repair
        Take what the scan table says of the dataset where the store's root is gone or damaged,
        and write the root anew.

    Raises
    ------
    UsageError
        If something else lies at ``url``, or it is written with another codec profile.
    """

    def __init__(
        self,
        url: str,
        root: RootAttributes,
        storage_options: Mapping[str, Any] | None = None,
        *,
        repair: bool = False,
    ) -> None:
        self.url = url
        self.root = root
        self._repair = repair
        self._fs, self._path = open_store(url, storage_options)
        self._guard: LockGuard | None = None
        self._written_late = False
        """Whether a run wrote after it had lost the lock, since the store was last looked at."""
        self._claim()

    @property
    def name(self) -> str:
        """Its path or URL, for messages: without user, password or signature."""
        return public_url(self.url)

    @contextmanager
    def lock(self, what: str) -> Iterator[StoreLock]:
        """Be the only writer; ``what`` is told to others who want to be.

        Raises
        ------
        StoreBusyError
            If there is another one.
        ReadOnlyStoreError
            If the store cannot be written.
        """
        with ExitStack() as stack:
            try:
                if is_read_only(self._fs):
                    raise PermissionError("web servers are only read")
                lock = stack.enter_context(StoreLock(self._fs, self._path, self.name, what))
                self._written_late = self._fs.exists(f"{self._path}/{LATE_FILE}")
                lock.took_over |= self._written_late
            except CorruptStoreError:
                raise
            except (OSError, NotImplementedError) as problem:
                raise ReadOnlyStoreError(f"{self.name}: cannot be written: {problem}.") from problem
            self._claim()  # another one may have made a store here just now
            self._guard = lock.guard
            yield lock

    @property
    def _holding(self) -> Holding:
        """Makes a context in which the store may be changed."""
        return nullcontext if self._guard is None else self._guard.holding

    @property
    def profile(self) -> Profile:
        """Chunks and codecs of new scans."""
        return profile_named(self.root.codec_profile)

    def _claim(self) -> None:
        metadata = f"{self._path}/{_METADATA}"
        stored = found = self._stored_root()
        if found is None and self._taken():
            stored = found = self._stored_root()  # another one may have made it meanwhile
            if found is None:
                found = self._root_of_table()
        if found is not None:
            self._check_root(found)
        profile = profile_named((found or self.root).codec_profile).name
        self.root = self.root.model_copy(update={"codec_profile": profile})
        files = root_files(self.root.model_dump(mode="json"))
        if stored != self.root:
            publish_file(self._fs, metadata, files[_METADATA])
        below = {f"{self._path}/{key}": data for key, data in files.items() if key != _METADATA}
        there = read_files(self._fs, below)
        for path, data in below.items():
            if there.get(path) != data:
                publish_file(self._fs, path, data)

    def _stored_root(self) -> RootAttributes | None:
        """Read the root; None if there is none that is whole."""
        try:
            data = self._fs.cat_file(f"{self._path}/{_METADATA}")
        except FileNotFoundError:
            return None
        try:
            if self._repair:
                unseal(data)  # or a flipped digit would pass for another format
            return parse_root(data)
        except OtherFormatError as problem:
            raise UsageError(
                f"{self.name}: is a store in format {problem.version}, not {FORMAT_VERSION}. "
                "Choose another place, or a matching version of spinezarr."
            ) from problem
        except ValueError:
            return None

    def _root_of_table(self) -> RootAttributes:
        """Return what the scan table says of the dataset, where the root is gone or damaged."""
        places = [f"{self._path}/{TABLE}/{_METADATA}", f"{self._path}/{TABLE_BUNDLE}"]
        found = read_files(self._fs, places)
        if not found:
            raise UsageError(
                f"{self.name}: exists and is not a store. Choose an empty or new folder."
            )
        if not self._repair:
            raise UsageError(
                f"{self.name}: the root of the store, zarr.json, is missing or damaged. Run the "
                "same command again with --repair: it writes it anew from the scan table."
            )
        for path, data in found.items():
            with suppress(ValueError):
                is_bundle = path.endswith(TABLE_BUNDLE)
                metadata = unbundle_files(data).get(_METADATA, b"") if is_bundle else data
                return root_of_table(parse_table(metadata).attributes)
        raise UsageError(
            f"{self.name}: the root of the store and its scan table are both damaged. Copy one of "
            "them, zarr.json or table/zarr.json, from another copy of the store, or ingest into a "
            "new place."
        )

    def _check_root(self, found: RootAttributes) -> None:
        """Refuse a store of another dataset, codec profile or key."""
        if _identity(found) != _identity(self.root):
            raise UsageError(
                f"{self.name}: holds {_describe(found)}, not {_describe(self.root)}. "
                "One store holds one dataset: choose another place."
            )
        asked, held = self.root.codec_profile, profile_named(found.codec_profile).name
        if asked is not None and asked != held:
            raise UsageError(
                f"{self.name}: is written with the codec profile {held!r}, not {asked!r}. "
                "One store has one profile: leave --codec out, or choose another place."
            )
        if found.pseudonym_key != self.root.pseudonym_key:
            made = "without pseudonyms" if found.pseudonym_key is None else "with pseudonyms"
            raise UsageError(
                f"{self.name}: was made {made}, or those of another key. Give --pseudonymize and "
                "--pseudonyms as before, or choose another place."
            )

    def _taken(self) -> bool:
        """Whether anything lies there but the beginning of a store that was cut off."""
        if not self._fs.exists(self._path):
            return False
        if self._fs.isfile(self._path):
            return True
        names = {path.rsplit("/", 1)[1] for path in self._fs.ls(self._path, detail=False)}
        return bool(names - {_METADATA + PARTIAL})

    @property
    def local_folder(self) -> str | None:
        """Folder of a store on this machine's disks; None for one in a bucket."""
        return self._path if isinstance(self._fs, StoreFileSystem) else None

    def ledger(self) -> Ledger | None:
        """Read what the last ingest knew; None if none ended as it should."""
        try:
            return Ledger.of_file(self._fs.cat_file(f"{self._path}/{LEDGER_FILE}"))
        except (FileNotFoundError, ValueError):
            return None

    def forget_ledger(self) -> None:
        """Let the next ingest look at every file: this one could not end as it should."""
        try:
            self._remove(self._path, [LEDGER_FILE])
        except LostLockError:
            raise
        except OSError:  # buckets may allow writing and no deleting
            with suppress(OSError):
                publish_file(self._fs, f"{self._path}/{LEDGER_FILE}", Ledger().to_file())

    def table(self) -> xr.Dataset | None:
        """Read the scan table; None if there is none that is whole."""
        try:
            read = partial(read_files, self._fs)
            return read_table(read, f"{self._path}/{TABLE}", self.name)
        except CorruptStoreError:
            return None

    def published_scan(self, scan_id: str) -> ScanAttributes | None:
        """Read the attributes of a scan; None if it is not published."""
        try:
            data = self._fs.cat_file(f"{self._path}/{scan_key(scan_id)}/{_METADATA}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        group = _parse(data)
        return None if group is None else group.attributes

    def whole_scan(self, scan_id: str) -> ScanAttributes | None:
        """Read the attributes of a scan; None if it, or a file that its manifest names, is not."""
        scan = self.published_scan(scan_id)
        if scan is None:
            return None
        sizes = list_sizes(self._fs, f"{self._path}/{scan_key(scan_id)}")
        return scan if _is_whole(scan, sizes) else None

    def scan_folders(self) -> set[str]:
        """List the names of the folders that hold scans, without looking into them."""
        place = f"{self._path}/{SCANS}"
        if isinstance(self._fs, StoreFileSystem):
            self._fs.folder.check_folder(place)
            with os.scandir(place) as entries:
                return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        paths: list[str] = self._fs.ls(place, detail=False)
        return {path.rstrip("/").rsplit("/", 1)[1] for path in paths}

    def recover(self, trusted: Mapping[str, str] | None = None) -> dict[str, ScanAttributes]:
        """List the whole store, remove what killed runs left, and return all whole scans.

        A scan is whole if every file that its manifest names is there with its size. Others stay as
        they are, and are not returned.

        Parameters
        ----------
        trusted
            Identities of scans that were whole when a run wrote the ledger; of others, metadata of
            arrays are read too.
        """
        place = f"{self._path}/{SCANS}"
        folders: dict[str, dict[str, int]] = defaultdict(dict)
        for key, size in list_sizes(self._fs, place).items():
            scan_id, slash, name = key.partition("/")
            if slash:
                folders[scan_id][name] = size
        metadata = read_files(self._fs, [f"{place}/{name}/{_METADATA}" for name in folders])
        found: dict[str, ScanAttributes] = {}
        for scan_id, sizes in folders.items():
            data = metadata.get(f"{place}/{scan_id}/{_METADATA}")
            scan = self._recover_scan(scan_id, sizes, data, (trusted or {}).get(scan_id))
            if scan is not None:
                found[scan_id] = scan
        self._recover_rest()
        return found

    def tidy_scan(self, scan_id: str) -> ScanAttributes | None:
        """Remove what workers that died left of one scan; return it if it is whole."""
        folder = f"{self._path}/{scan_key(scan_id)}"
        sizes = list_sizes(self._fs, folder)
        metadata = read_files(self._fs, [f"{folder}/{_METADATA}"]).get(f"{folder}/{_METADATA}")
        scan = self._recover_scan(scan_id, sizes, metadata, None)
        remove_empty_folders(self._fs, folder)
        return scan

    def _recover_rest(self) -> None:
        """Remove what killed runs left outside the scans, and folders without files."""
        place = f"{self._path}/{TABLE}"
        named = {_METADATA}
        with suppress(FileNotFoundError, ValueError):
            named |= parse_table(self._fs.cat_file(f"{place}/{_METADATA}")).manifest.keys()
        self._remove(place, list_sizes(self._fs, place).keys() - named)
        if isinstance(self._fs, StoreFileSystem):
            own = (_METADATA, f"{SCANS}/{_METADATA}", TABLE_BUNDLE, AUDIT_FILE, LEDGER_FILE)
            remove_files(self._fs, self._path, (key + PARTIAL for key in own))
        remove_empty_folders(self._fs, self._path)

    def _remove(self, folder: str, keys: Iterable[str]) -> None:
        """Delete files, while no other run can take the store over and write them."""
        wanted = list(keys)
        if wanted:
            with self._holding():
                remove_files(self._fs, folder, wanted)

    def _recover_scan(
        self, scan_id: str, sizes: dict[str, int], metadata: bytes | None, trusted: str | None
    ) -> ScanAttributes | None:
        folder = f"{self._path}/{scan_key(scan_id)}"
        group = None if metadata is None else _parse(metadata)
        if metadata is None or group is None or group.attributes.scan_id != scan_id:
            if metadata is None:
                self._remove(folder, filter(_OURS.fullmatch, sizes))
            return None
        scan = group.attributes
        if scan_identity(scan) != trusted:
            sizes |= self._renew_metadata(group, metadata)
        extra = [key for key in sizes if key not in scan.manifest and _OURS.fullmatch(key)]
        self._remove(folder, extra)
        return scan if _is_whole(scan, sizes) else None

    def _renew_metadata(self, group: ScanGroup, metadata: bytes) -> dict[str, int]:
        """Write those metadata of arrays again that a killed run left as they were; their sizes."""
        scan = group.attributes
        folder = f"{self._path}/{scan_key(scan.scan_id)}"
        files = {
            f"{folder}/{key}": data
            for key, data in _metadata_files(scan, group.arrays, metadata).items()
            if scan.manifest.get(key) == ManifestEntry.of(data)
        }
        there = read_files(self._fs, files)
        changed = {path: data for path, data in files.items() if there.get(path) != data}
        with self._holding() if changed else nullcontext():
            for path, data in changed.items():
                publish_file(self._fs, path, data)
        return {path[len(folder) + 1 :]: len(data) for path, data in changed.items()}

    def new_scan(self, scan_id: str) -> "ScanWriter":
        """Start a scan from nothing; one that is published stays as it is until the new one is."""
        folder = f"{self._path}/{scan_key(scan_id)}"
        try:
            metadata = self._fs.cat_file(f"{folder}/{_METADATA}")
        except (FileNotFoundError, NotADirectoryError):
            return ScanWriter(self._fs, folder, None, self.profile, self._guard)
        group = _parse(metadata)
        if group is not None:
            return ScanWriter(self._fs, folder, group, self.profile, self._guard)
        # Damaged metadata: nobody can read this scan.
        left = filter(_OURS.fullmatch, list_sizes(self._fs, folder))
        self._remove(folder, [_METADATA, *left])
        return ScanWriter(self._fs, folder, None, self.profile, self._guard)

    def amend(self, scan: ScanAttributes) -> ScanAttributes:
        """Write the metadata of a published scan anew; its voxels stay as they are.

        Returns
        -------
        ScanAttributes
            What is published now: the manifest names the new metadata.
        """
        folder = f"{self._path}/{scan_key(scan.scan_id)}"
        metadata = self._fs.cat_file(f"{folder}/{_METADATA}")
        files = _metadata_files(scan, parse_scan_group(metadata).arrays, metadata)
        entries = {key: ManifestEntry.of(data) for key, data in files.items() if key != _METADATA}
        changed = {key: entry for key, entry in entries.items() if scan.manifest[key] != entry}
        scan = scan.model_copy(update={"manifest": {**scan.manifest, **changed}})
        renewed = seal({**json.loads(files[_METADATA]), "attributes": scan.to_json()})
        with self._holding():
            publish_file(self._fs, f"{folder}/{_METADATA}", renewed)
            for key in changed:
                publish_file(self._fs, f"{folder}/{key}", files[key])
        return scan

    def write_table(
        self,
        known: xr.Dataset | None,
        changed: Mapping[str, ScanAttributes],
        entries: Mapping[str, LedgerEntry],
        folders: Mapping[str, FolderRecord] | None = None,
    ) -> xr.Dataset:
        """Write the scan table and the ledger anew.

        Parameters
        ----------
        known
            The table as it is; its rows stay but those of scans in ``changed``.
        changed
            Scans that are new or other than in ``known``.
        entries
            What is known of every scan of the store.
        folders
            What is known of folders of DICOM files.

        Raises
        ------
        CorruptStoreError
            If the results of the last audit, which the table shows, are damaged.
        """
        ledger = Ledger(
            scans=dict(sorted(entries.items())), folders=dict(sorted((folders or {}).items()))
        )
        audited = self.audit_log().current(ledger.identities)
        if known is None:
            table = build_table(self.root, changed.values(), audited)
        else:
            table = renew_table(self.root, known, changed, audited)
        with self._holding():
            self._publish_table(table)
            publish_file(self._fs, f"{self._path}/{LEDGER_FILE}", ledger.to_file())
            if self._written_late:
                remove_files(self._fs, self._path, [LATE_FILE])
                self._written_late = False
        return table

    def _publish_table(self, table: xr.Dataset) -> None:
        place = f"{self._path}/{TABLE}"
        old = list_sizes(self._fs, place).keys()
        separator: Separator = "/"
        with suppress(FileNotFoundError, ValueError):
            stored = parse_table(self._fs.cat_file(f"{place}/{_METADATA}"))
            separator = other_separator(stored.separator)
        files = table_files(table, separator)
        # Removed first: whoever finds it there finds in it what the folder holds.
        self._remove_bundle()
        _switch(self._fs, place, files, replaces=_METADATA in old)
        bundled = {key: data for key, data in files.items() if not key.endswith(f"/{_METADATA}")}
        publish_file(self._fs, f"{self._path}/{TABLE_BUNDLE}", bundle_files(bundled))
        remove_files(self._fs, place, old - files.keys())

    def _remove_bundle(self) -> None:
        """Let readers ask for the table's own files."""
        try:
            remove_files(self._fs, self._path, [TABLE_BUNDLE])
        except OSError:  # buckets may allow writing and no deleting
            publish_file(self._fs, f"{self._path}/{TABLE_BUNDLE}", b"")

    def audit_log(self) -> AuditLog:
        """Read what the last audits found; empty if there was none.

        Raises
        ------
        CorruptStoreError
            If it is damaged.
        """
        path = f"{self._path}/{AUDIT_FILE}"
        try:
            return AuditLog.of_file(self._fs.cat_file(path))
        except FileNotFoundError:
            return AuditLog()
        except ValueError as problem:
            raise CorruptStoreError(
                f"{path}: is not what spinezarr writes ({problem}). "
                f"Run 'spinezarr audit {self.name}' over all scans again: it writes it anew."
            ) from problem

    def drop_damaged_audit(self) -> None:
        """Forget what audits found where it cannot be read; the next audit finds it again."""
        try:
            self.audit_log()
        except CorruptStoreError:
            self._remove(self._path, [AUDIT_FILE])

    def write_audit(
        self, log: AuditLog, table: xr.Dataset, scans: Mapping[str, ScanAttributes]
    ) -> None:
        """Keep the results of an audit, then show them in the scan table.

        Parameters
        ----------
        log
            All results.
        table
            The scan table as it was read; keeps its rows.
        scans
            What the store holds of the scans in ``log``.

        Raises
        ------
        ReadOnlyStoreError
            If the store cannot be written.
        """
        identities = {scan_id: scan_identity(scan) for scan_id, scan in scans.items()}
        with self._holding():
            try:
                publish_file(self._fs, f"{self._path}/{AUDIT_FILE}", log.to_file())
            except OSError as problem:
                raise ReadOnlyStoreError(f"{self.name}: cannot be written: {problem}.") from problem
            self._publish_table(with_audit(table, log.current(identities)))


def _identity(root: RootAttributes) -> tuple[str, str]:
    return root.dataset, root.title


def _describe(root: RootAttributes) -> str:
    return f"the dataset {root.dataset!r} ({root.title})"


def _parse(metadata: bytes) -> ScanGroup | None:
    """Read a scan's ``zarr.json``; None if it is damaged."""
    try:
        return parse_scan_group(metadata)
    except ValueError:
        return None


def _is_whole(scan: ScanAttributes, sizes: Mapping[str, int]) -> bool:
    return all(sizes.get(key) == entry.size_bytes for key, entry in scan.manifest.items())


def _small_files(
    scan: ScanAttributes,
    label_chunks: npt.NDArray[np.uint32] | None,
    profile: Profile,
    separator: Separator,
) -> dict[str, bytes]:
    """Return all files of a scan but its shards; the attributes of its group are left out."""
    values = {VALUE_OF_NAME[name] for name in scan.vertebrae} | set(map(int, scan.other_labels))
    return scan_files(
        profile,
        shape_zyx=scan.shape_zyx,
        image_dtype=np.dtype(scan.image_stored_dtype),
        image_scaling=None if scan.image_scaling is None else Scaling(*scan.image_scaling),
        coordinates_mm=axis_positions_mm(np.array(scan.affine), scan.shape_zyx),
        label_chunks=label_chunks,
        label_values=tuple(sorted(values)),
        structures=scan.structures,
        separator=separator,
    )


def _metadata_files(scan: ScanAttributes, arrays: ScanArrays, metadata: bytes) -> dict[str, bytes]:
    """Return the metadata of a published scan as they should be, without those of its chunks.

    Parameters
    ----------
    scan
        What they say.
    arrays
        Of the scan, from ``metadata``, which is its ``zarr.json``.
    """
    counts = arrays.label_chunks
    label_chunks = None if counts is None else np.zeros(counts.shape, np.uint32)
    # The sampling's voxel counts stay: only the metadata are taken of what is made here.
    files = _small_files(scan, label_chunks, BALANCED, arrays.separator)
    files = with_stored_encoding(files, unseal(metadata)["consolidated_metadata"]["metadata"])
    return {key: data for key, data in files.items() if key.endswith(_METADATA)}


def _switch(
    fs: fsspec.AbstractFileSystem, folder: str, files: Mapping[str, bytes], *, replaces: bool
) -> None:
    """Write the files of a group; its own metadata make them visible at once.

    Metadata of arrays have one name in both versions. They are written last where there was a
    version before: readers take them from the group's.
    """
    paths = {f"{folder}/{key}": data for key, data in files.items() if key != _METADATA}
    members = {path: data for path, data in paths.items() if path.endswith(f"/{_METADATA}")}
    chunks = {path: data for path, data in paths.items() if path not in members}
    write_files(fs, chunks if replaces else paths)
    publish_file(fs, f"{folder}/{_METADATA}", files[_METADATA])
    if replaces:
        for path, data in members.items():
            publish_file(fs, path, data)


class ScanWriter:
    """Writes one scan; nothing of it is visible before :meth:`publish`.

    Parameters
    ----------
    fs, folder
        Where the scan lies.
    replaced
        The version that is published; None if there is none.
    profile
        Chunks and codecs of image and mask.
    guard
        Raises if another run has taken the store over.
    """

    def __init__(
        self,
        fs: fsspec.AbstractFileSystem,
        folder: str,
        replaced: ScanGroup | None,
        profile: Profile,
        guard: LockGuard | None,
    ) -> None:
        self.profile = profile
        self._fs = fs
        self._folder = folder
        self._guard = guard
        self._replaces = replaced is not None
        self._old: set[str] = set()
        self._separator: Separator = "/"
        if replaced is not None:
            self._old = set(replaced.attributes.manifest)
            self._separator = other_separator(replaced.arrays.separator)
        self._started: set[str] = set()
        """Keys of shards that are written, or that a thread began to write."""
        self._manifest: dict[str, ManifestEntry] = {}
        self._holding: Holding = nullcontext if guard is None else guard.holding
        self._uploads = Uploads(fs, self._holding)
        self._metadata = b""

    def write_shard(self, array: str, shard_zyx: ShapeZYX, parts: Iterable[Buffer]) -> None:
        """Write a shard of ``image`` or ``label`` and enter it in the manifest.

        May be called from several threads. In a bucket it may still be under way when this returns,
        see :class:`~spinezarr.store.uploads.Uploads`.

        Parameters
        ----------
        array
            Its name.
        shard_zyx
            Index of the shard.
        parts
            Its encoded chunks in the order of their positions, then its index.
        """
        if self._guard is not None:
            self._guard()
        key = f"{array}/{chunk_key(shard_zyx, self._separator)}"
        self._started.add(key)
        size_bytes, checksum = 0, 0
        index: Buffer = b""
        ends: list[int] = []

        def counted() -> Iterator[Buffer]:
            nonlocal size_bytes, checksum, index
            for part in parts:
                index = part  # the last one is
                view = memoryview(part)
                size_bytes += view.nbytes
                checksum = crc32(view, checksum)
                ends.append(int.from_bytes(view[-CHECKSUM_BYTES:], "little"))
                yield part

        self._uploads.write(f"{self._folder}/{key}", counted())
        *chunks, index_checksum = ends
        self._manifest[key] = ShardEntry(
            size_bytes=size_bytes,
            crc32=f"{checksum:08x}",
            index_crc32c=f"{index_checksum:08x}",
            chunks=b64encode(chunk_rows(index, chunks).tobytes()).decode(),
        )

    def publish(
        self, facts: Mapping[str, Any], label_chunks: npt.NDArray[np.uint32] | None
    ) -> ScanAttributes:
        """Write what is left and, last of all, the metadata that make the scan visible.

        Parameters
        ----------
        facts
            Fields of :class:`~spinezarr.store.attributes.ScanAttributes` but the manifest.
        label_chunks
            See :func:`spinezarr.store.metadata.scan_files`.
        """
        scan = ScanAttributes.model_validate({**facts, "manifest": {}})
        files = _small_files(scan, label_chunks, self.profile, self._separator)
        metadata = json.loads(files.pop(_METADATA))
        self._manifest |= {key: ManifestEntry.of(data) for key, data in files.items()}
        scan = scan.model_copy(update={"manifest": dict(sorted(self._manifest.items()))})
        metadata["attributes"] = scan.to_json()
        self._uploads.finish()
        self._metadata = seal(metadata)
        files[_METADATA] = self._metadata
        with self._holding():
            _switch(self._fs, self._folder, files, replaces=self._replaces)
            remove_files(self._fs, self._folder, self._old - scan.manifest.keys())
        return scan

    def discard(self) -> None:
        """Remove what has been written, unless it may be published; the version before stays.

        Nothing is removed if another run has taken the store over: it may have written it anew.
        """
        self._uploads.stop()
        path = f"{self._folder}/{_METADATA}"
        written = (self._started | self._manifest.keys()) - self._old
        with suppress(OSError), self._holding():  # where nobody knows, the next run looks
            if self._metadata and read_files(self._fs, [path]).get(path) == self._metadata:
                return
            remove_files(self._fs, self._folder, written)
