"""What did a writer that died leave in the store, and which scans are whole?

A scan is whole if its metadata can be read and every file that its manifest names exists with its
size. Leftovers are deleted. A damaged scan stays as it is until it is ingested again.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Mapping
from contextlib import nullcontext, suppress
from typing import Final

from spinezarr.errors import DamagedMetadataError
from spinezarr.store.attributes import ScanAttributes, ScanGroup, parse_scan_group
from spinezarr.store.audit_log import AUDIT_FILE, scan_identity
from spinezarr.store.bundle import TABLE_BUNDLE
from spinezarr.store.files import (
    PARTIAL,
    list_sizes,
    publish_file,
    read_files,
    remove_empty_folders,
    remove_files,
)
from spinezarr.store.folder import StoreFileSystem
from spinezarr.store.layout import MASK_NAME, METADATA, SCANS, TABLE, counts_key
from spinezarr.store.ledger import LEDGER_FILE
from spinezarr.store.manifest import ManifestEntry
from spinezarr.store.scan_metadata import metadata_files
from spinezarr.store.table_file import parse_table
from spinezarr.store.writable import WritableStore

__all__ = ["is_scan_file", "is_whole", "readable_group", "recover_scan", "recover_store"]

_SCAN_FILE: Final = re.compile(
    rf"zarr\.json\.partial|({MASK_NAME}|[zyx]|{counts_key(MASK_NAME)})/(c[./].*|zarr\.json.*)"
)
"""Pattern of the keys of a scan's files; ``image``, ``label`` and ``sampling`` fit a mask's."""


def recover_store(
    store: WritableStore, trusted: Mapping[str, str] | None = None
) -> dict[str, ScanAttributes]:
    """List the whole store, delete the leftovers of dead writers, and return all whole scans.

    Parameters
    ----------
    store
        Store to look through.
    trusted
        Identities of scans that were whole when a run wrote the ledger, by scan id. For other
        scans, the metadata of the arrays are read too.

    Returns
    -------
    dict
        Attributes of the whole scans by scan id.
    """
    scans = f"{store.path}/{SCANS}"
    folders: dict[str, dict[str, int]] = defaultdict(dict)
    for key, size in list_sizes(store.fs, scans).items():
        scan_id, slash, name = key.partition("/")
        if slash:
            folders[scan_id][name] = size
    metadata = read_files(store.fs, [f"{scans}/{name}/{METADATA}" for name in folders])
    whole: dict[str, ScanAttributes] = {}
    for scan_id, sizes in folders.items():
        data = metadata.get(f"{scans}/{scan_id}/{METADATA}")
        scan = _clean_scan(store, scan_id, sizes, data, (trusted or {}).get(scan_id))
        if scan is not None:
            whole[scan_id] = scan
    _clean_outside_scans(store)
    return whole


def recover_scan(
    store: WritableStore, scan_id: str, masks: Collection[str] = ()
) -> ScanAttributes | None:
    """Delete leftovers of dead workers in one scan; return its attributes if it is whole.

    ``masks`` are the further masks that must be whole too, if the scan has them.
    """
    folder = store.scan_folder(scan_id)
    sizes = list_sizes(store.fs, folder)
    metadata = read_files(store.fs, [f"{folder}/{METADATA}"]).get(f"{folder}/{METADATA}")
    scan = _clean_scan(store, scan_id, sizes, metadata, None)
    remove_empty_folders(store.fs, folder)
    return scan if scan is None or is_whole(scan, sizes, masks) else None


def is_whole(scan: ScanAttributes, sizes: Mapping[str, int], masks: Collection[str] = ()) -> bool:
    """Whether every file that the manifest of a scan names exists with its size.

    Files of further masks count only if they are named, because reading the scan again does not
    bring the others back.

    Parameters
    ----------
    scan
        Attributes of the scan.
    sizes
        Sizes in bytes of the files in its folder, by key.
    masks
        Names of further masks whose files count.
    """
    manifest = scan.without_masks(scan.masks.keys() - set(masks)).manifest
    return all(sizes.get(key) == entry.size_bytes for key, entry in manifest.items())


def is_scan_file(key: str) -> bool:
    """Whether a key is that of a file of a scan, other than its ``zarr.json``."""
    return _SCAN_FILE.fullmatch(key) is not None


def readable_group(metadata: bytes) -> ScanGroup | None:
    """Parse the ``zarr.json`` of a scan; None if it is damaged."""
    try:
        return parse_scan_group(metadata)
    except DamagedMetadataError:
        return None


def _clean_scan(
    store: WritableStore,
    scan_id: str,
    sizes: dict[str, int],
    metadata: bytes | None,
    trusted: str | None,
) -> ScanAttributes | None:
    """Delete the leftovers of a dead writer in one scan; return the scan if it is whole."""
    folder = store.scan_folder(scan_id)
    if metadata is None:
        store.remove(folder, filter(is_scan_file, sizes))
        return None
    group = readable_group(metadata)
    if group is None or group.attributes.scan_id != scan_id:
        return None
    scan = group.attributes
    if scan.masks or scan_identity(scan) != trusted:  # the identity does not cover masks
        sizes |= _finish_amending(store, group, metadata)
    store.remove(folder, [key for key in sizes if key not in scan.manifest and is_scan_file(key)])
    return scan if is_whole(scan, sizes) else None


def _finish_amending(store: WritableStore, group: ScanGroup, metadata: bytes) -> dict[str, int]:
    """Write the metadata of arrays that a killed run left outdated; return their sizes in bytes."""
    scan = group.attributes
    folder = store.scan_folder(scan.scan_id)
    files = {
        f"{folder}/{key}": data
        for key, data in metadata_files(scan, group.arrays, metadata).items()
        if scan.manifest.get(key) == ManifestEntry.of(data)
    }
    present = read_files(store.fs, files)
    changed = {path: data for path, data in files.items() if present.get(path) != data}
    with store.changing() if changed else nullcontext():
        for path, data in changed.items():
            publish_file(store.fs, path, data)
    return {path[len(folder) + 1 :]: len(data) for path, data in changed.items()}


def _clean_outside_scans(store: WritableStore) -> None:
    """Delete the leftovers of dead writers outside of the scans, and folders without files."""
    table = f"{store.path}/{TABLE}"
    keys = {METADATA}
    with suppress(FileNotFoundError, DamagedMetadataError):
        keys |= parse_table(store.fs.cat_file(f"{table}/{METADATA}")).manifest.keys()
    store.remove(table, list_sizes(store.fs, table).keys() - keys)
    if isinstance(store.fs, StoreFileSystem):
        files = (METADATA, f"{SCANS}/{METADATA}", TABLE_BUNDLE, AUDIT_FILE, LEDGER_FILE)
        remove_files(store.fs, store.path, (key + PARTIAL for key in files))
    remove_empty_folders(store.fs, store.path)
