"""Is a store intact, and does every voxel equal its source?"""

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from spinezarr.errors import UsageError
from spinezarr.formats.limits import Limits
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.text import count_noun
from spinezarr.verify.store import Verification, verify_store

__all__ = ["Folders", "link_folders", "verify"]

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One folder or URL, or several."""


def link_folders(folders: Collection[str | os.PathLike[str]] | None) -> tuple[str, ...]:
    """Return the folders that links of source files may lead to, as absolute paths.

    So workers in other working folders find the same folders.
    """
    return tuple(str(Path(folder).resolve()) for folder in folders or ())


def verify(
    url: str,
    selection: ScanSelection,
    *,
    against: Folders | None,
    follow_links: Collection[str | os.PathLike[str]] | None,
    storage_options: Mapping[str, Any],
    raw_storage_options: Mapping[str, Any],
    on_progress: OnProgress,
) -> Verification:
    """Check a store; see :meth:`spinezarr.Store.verify`.

    The argument is a URL and not an opened store, because damaged stores cannot be opened.
    """
    scan_ids: Collection[str] | None = selection.scans
    if not selection.names_scans_only:
        reader = StoreReader(url, storage_options)
        scan_ids = selection.some_scan_ids(reader.columns, reader.name)
    counter = ProgressCounter(on_progress, "verify")
    verification = verify_store(
        url,
        None if scan_ids is None else list(scan_ids),
        storage_options=storage_options,
        on_total=counter.expect,
        on_bytes=counter.add,
    )
    if against is None:
        return verification
    folders = [against] if isinstance(against, str | os.PathLike) else against
    raw = [os.fspath(folder) for folder in folders]
    if not raw:
        raise UsageError("against: names no folder.")
    is_remote = any("://" in folder for folder in raw)
    raw_options = raw_storage_options or (storage_options if is_remote else {})
    return _compare(
        verification,
        raw,
        Limits(link_folders=link_folders(follow_links)),
        storage_options=storage_options,
        raw_options=raw_options,
        on_progress=on_progress,
    )


def _compare(
    verification: Verification,
    raw: Sequence[str],
    limits: Limits,
    *,
    storage_options: Mapping[str, Any],
    raw_options: Mapping[str, Any],
    on_progress: OnProgress,
) -> Verification:
    """Compare undamaged scans with their source files."""
    damaged = {
        fault.scan_id for fault in verification.faults if fault.kind not in {"disagrees", "extra"}
    }
    if "zarr.json" in {fault.path for fault in verification.faults}:
        damaged.update(verification.scans)
    intact = [name for name in verification.scans if name not in damaged]
    counter = ProgressCounter(on_progress, "compare")
    if len(intact) < len(verification.scans):
        damaged_text = count_noun(len(verification.scans) - len(intact), "scan")
        counter.say(f"Not compared, because they are damaged: {damaged_text}.")
    if not intact:
        return verification
    # The readers of raw files take long to import.
    from spinezarr.verify.source import compare_with_source  # noqa: PLC0415

    comparison = compare_with_source(
        verification.url,
        raw,
        intact,
        storage_options=storage_options,
        raw_options=raw_options,
        limits=limits,
        on_total=counter.expect,
        on_bytes=counter.add,
    )
    return replace(
        verification,
        faults=(*verification.faults, *comparison.faults),
        not_compared=comparison.not_compared,
    )
