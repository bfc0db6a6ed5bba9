"""Is every byte of a store as it was written, and does every voxel equal its source?"""

import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spinezarr.formats.limits import Limits
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.text import count_noun
from spinezarr.verify.store import Verification, verify_store

__all__ = ["link_folders", "verify"]


def link_folders(folders: Collection[str | os.PathLike[str]] | None) -> tuple[str, ...]:
    """Return the folders that links of source files may lead to, as absolute paths.

    Workers then find the same folders, whatever folder they run in.
    """
    return tuple(str(Path(folder).resolve()) for folder in folders or ())


def verify(
    url: str,
    selection: ScanSelection,
    *,
    against: str | os.PathLike[str] | None,
    follow_links: Collection[str | os.PathLike[str]] | None,
    storage_options: Mapping[str, Any],
    raw_storage_options: Mapping[str, Any],
    on_progress: OnProgress,
) -> Verification:
    """Check a store; see :meth:`spinezarr.Store.verify`.

    It takes the URL in place of an opened store, because damaged stores cannot be opened.
    """
    scan_ids: Collection[str] | None = selection.scans
    if not selection.names_scans_only:
        reader = StoreReader(url, storage_options)
        scan_ids = selection.scan_ids(reader.columns, reader.name)
    counter = ProgressCounter(on_progress, "verify")
    found = verify_store(
        url,
        None if scan_ids is None else list(scan_ids),
        storage_options=storage_options,
        on_total=counter.expect,
        on_bytes=counter.add,
    )
    if against is None:
        return found
    raw = os.fspath(against)
    raw_options = raw_storage_options or (storage_options if "://" in raw else {})
    return _compare(
        found,
        raw,
        Limits(link_folders=link_folders(follow_links)),
        storage_options=storage_options,
        raw_options=raw_options,
        on_progress=on_progress,
    )


def _compare(
    found: Verification,
    raw: str,
    limits: Limits,
    *,
    storage_options: Mapping[str, Any],
    raw_options: Mapping[str, Any],
    on_progress: OnProgress,
) -> Verification:
    """Compare undamaged scans with their source files."""
    broken = {fault.scan_id for fault in found.faults if fault.kind not in {"disagrees", "extra"}}
    if "zarr.json" in {fault.path for fault in found.faults}:
        broken.update(found.scans)
    whole = [name for name in found.scans if name not in broken]
    counter = ProgressCounter(on_progress, "compare")
    if len(whole) < len(found.scans):
        damaged = count_noun(len(found.scans) - len(whole), "scan")
        counter.say(f"Not compared, because they are damaged: {damaged}.")
    if not whole:
        return found
    # The readers of raw files take long to import.
    from spinezarr.verify.source import compare_with_source  # noqa: PLC0415

    faults = compare_with_source(
        found.url,
        raw,
        whole,
        storage_options=storage_options,
        raw_options=raw_options,
        limits=limits,
        on_total=counter.expect,
        on_bytes=counter.add,
    )
    return replace(found, faults=(*found.faults, *faults))
