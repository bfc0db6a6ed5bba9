"""Which scans does the store hold, and how does a writer start, replace or amend one?"""

import json
import os
from collections.abc import Collection

from spinezarr.errors import CorruptStoreError
from spinezarr.store.attributes import ScanAttributes, parse_scan_group
from spinezarr.store.files import list_sizes, publish_file
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.layout import METADATA, SCANS, Profile
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.mask_writer import MaskWriter, remove_mask
from spinezarr.store.recovery import is_scan_file, is_whole, readable_group
from spinezarr.store.scan_metadata import metadata_files
from spinezarr.store.scan_writer import ScanWriter
from spinezarr.store.sealed import seal
from spinezarr.store.selection import unknown_scan
from spinezarr.store.writable import WritableStore

__all__ = ["StoredScans"]


class StoredScans:
    """The scans of a store, as its writer sees them.

    Parameters
    ----------
    store
        Files of the store.
    profile
        Chunks and codecs of new scans.
    """

    def __init__(self, store: WritableStore, profile: Profile) -> None:
        self._store = store
        self._profile = profile

    def folder_names(self) -> set[str]:
        """List the names of the folders that hold scans, without looking into them."""
        path = f"{self._store.path}/{SCANS}"
        fs = self._store.fs
        if isinstance(fs, StoreFileSystem):
            fs.folder.check_folder(path)
            with os.scandir(path) as entries:
                return {entry.name for entry in entries if entry.is_dir(follow_symlinks=False)}
        paths: list[str] = fs.ls(path, detail=False)
        return {path.rstrip("/").rsplit("/", 1)[1] for path in paths}

    def published(self, scan_id: str) -> ScanAttributes | None:
        """Read the attributes of a scan; None if the scan is not published, or is damaged."""
        metadata = self._read_metadata(scan_id)
        group = None if metadata is None else readable_group(metadata)
        return None if group is None else group.attributes

    def _read_metadata(self, scan_id: str) -> bytes | None:
        """Read the ``zarr.json`` of a scan; None if there is none."""
        try:
            data: bytes = self._store.fs.cat_file(f"{self._store.scan_folder(scan_id)}/{METADATA}")
        except (FileNotFoundError, NotADirectoryError):
            return None
        return data

    def complete(self, scan_id: str) -> ScanAttributes | None:
        """Read the attributes of a scan; None if a file of it is missing or has another size."""
        scan = self.published(scan_id)
        if scan is None:
            return None
        sizes = list_sizes(self._store.fs, self._store.scan_folder(scan_id))
        return scan if is_whole(scan, sizes) else None

    def has_files_of(self, scan: ScanAttributes, mask: str) -> bool:
        """Whether each file of a further mask exists with its size."""
        sizes = list_sizes(self._store.fs, self._store.scan_folder(scan.scan_id))
        others = scan.without_masks([mask]).manifest
        own = {key: entry for key, entry in scan.manifest.items() if key not in others}
        return all(sizes.get(key) == entry.size_bytes for key, entry in own.items())

    def start(self, scan_id: str, masks: Collection[str] = ()) -> ScanWriter:
        """Start to write a scan; a published version stays until the new one is published.

        Parameters
        ----------
        scan_id
            The scan.
        masks
            Names of further masks that the new version replaces or removes.
        """
        folder = self._store.scan_folder(scan_id)
        metadata = self._read_metadata(scan_id)
        if metadata is not None and readable_group(metadata) is None:
            # No reader can use a scan with damaged metadata, so all of its files are deleted.
            keys = filter(is_scan_file, list_sizes(self._store.fs, folder))
            self._store.remove(folder, [METADATA, *keys])
            metadata = None
        return ScanWriter(self._store, folder, metadata, self._profile, masks)

    def start_mask(self, scan_id: str, name: str) -> MaskWriter:
        """Start to write a further mask of a scan; a published version of it stays until then.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        CorruptStoreError
            If the metadata of the scan are damaged.
        """
        folder, metadata = self._store.scan_folder(scan_id), self._readable_metadata(scan_id)
        return MaskWriter(self._store, folder, name, metadata, self._profile)

    def remove_mask(self, scan_id: str, name: str) -> ScanAttributes:
        """Remove a further mask of a scan, and return the published attributes of the scan.

        Raises
        ------
        UnknownScanError
            If the store has no such scan.
        CorruptStoreError
            If the metadata of the scan are damaged.
        """
        folder = self._store.scan_folder(scan_id)
        return remove_mask(self._store, folder, name, self._readable_metadata(scan_id))

    def _readable_metadata(self, scan_id: str) -> bytes:
        """Read the ``zarr.json`` of a scan that readers can use."""
        metadata = self._read_metadata(scan_id)
        if metadata is None:
            raise unknown_scan(self._store.name, scan_id)
        if readable_group(metadata) is None:
            raise CorruptStoreError(
                f"{self._store.name}: the metadata of scan {scan_id!r} are damaged. Ingest this "
                "scan again."
            )
        return metadata

    def amend(self, scan: ScanAttributes) -> ScanAttributes:
        """Write the metadata of a published scan again; its voxels stay as they are.

        Returns
        -------
        ScanAttributes
            The published attributes, with a manifest that names the new metadata.
        """
        fs, folder = self._store.fs, self._store.scan_folder(scan.scan_id)
        metadata = fs.cat_file(f"{folder}/{METADATA}")
        files = metadata_files(scan, parse_scan_group(metadata).arrays, metadata)
        entries = {key: ManifestEntry.of(data) for key, data in files.items() if key != METADATA}
        changed = {key: entry for key, entry in entries.items() if scan.manifest[key] != entry}
        scan = scan.model_copy(update={"manifest": {**scan.manifest, **changed}})
        renewed = seal({**json.loads(files[METADATA]), "attributes": scan.to_json()})
        with self._store.changing():
            publish_file(fs, f"{folder}/{METADATA}", renewed)
            for key in changed:
                publish_file(fs, f"{folder}/{key}", files[key])
        return scan
