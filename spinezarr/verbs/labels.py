"""How are further masks of stored scans written and removed?"""

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import (
    LostLockError,
    ReadOnlyStoreError,
    ScanChangedError,
    StoreBusyError,
    UnknownMaskError,
    UsageError,
)
from spinezarr.formats.array_volume import ArrayVolume, SliceableArray
from spinezarr.ingestion.masks import MaskFacts, MaskSource, write_mask
from spinezarr.ingestion.voxels.memory import MemoryBudget
from spinezarr.processors import cpu_count
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.layout import LABEL, is_mask_name
from spinezarr.store.lock import StoreLock
from spinezarr.store.reader import StoreReader
from spinezarr.store.records import ComparisonRecord
from spinezarr.store.scan_handle import ScanHandle
from spinezarr.store.selection import ScanSelection
from spinezarr.store.writer import StoreWriter
from spinezarr.text import describe_os_error, did_you_mean

__all__ = [
    "check_mask_name",
    "remove_labels",
    "save_comparisons",
    "update_table",
    "write_labels",
    "writing_masks",
]

_RETRY_S: Final = 0.25
"""Seconds between two tries to lock a store that another program is writing."""
_SAVE_WAIT_S: Final = 60.0
"""Seconds that the result of a comparison waits for other programs that write the store."""
_NUMERIC_KINDS: Final = "buif"


def check_mask_name(name: str) -> None:
    """Refuse a name that a further mask cannot have.

    Raises
    ------
    UsageError
        If it cannot have it.
    """
    if name == LABEL:
        raise UsageError(
            f"{LABEL!r} is the mask that an ingest writes. Give the further mask another name, "
            "such as 'prediction'."
        )
    if not is_mask_name(name):
        raise UsageError(
            f"{name!r} cannot be the name of a mask: expected a small letter and then 1 to 63 "
            "small letters, digits and underscores, and not 'image' or 'sampling'."
        )


@contextmanager
def writing_masks(
    reader: StoreReader, purpose: str, *, wait_s: float = 0.0
) -> Iterator[StoreWriter]:
    """Open a store for writing, and hold its lock while the context lasts.

    Parameters
    ----------
    reader
        The store. It forgets what it has read of the scans when the context ends.
    purpose
        Operation that needs the lock, such as "an ingest"; messages to other writers name it.
    wait_s
        Seconds to wait for other programs that write the store.

    Raises
    ------
    StoreBusyError
        If another program still writes the store after that time.
    ReadOnlyStoreError
        If the store cannot be written.
    """
    writer = StoreWriter(reader.url, reader.root, reader.storage_options)
    with ExitStack() as stack:
        lock = _enter_when_free(stack, writer, purpose, time.monotonic() + wait_s)
        if lock.took_over:
            # The next ingest then looks for the files of the run that was killed.
            writer.registry.forget_ledger()
        yield writer
    reader.forget_table()
    reader.forget_scans()


def _enter_when_free(
    stack: ExitStack, writer: StoreWriter, purpose: str, deadline: float
) -> StoreLock:
    """Take the lock of a store; try again until a time of :func:`time.monotonic`."""
    while True:
        try:
            return stack.enter_context(writer.lock(purpose))
        except StoreBusyError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(_RETRY_S)


def write_labels(
    reader: StoreReader,
    scan_id: str,
    name: str,
    values_zyx: npt.ArrayLike | SliceableArray,
    facts: MaskFacts,
    *,
    wait_s: float,
) -> None:
    """Write one further mask of one scan; see :meth:`spinezarr.Store.write_labels`."""
    check_mask_name(name)
    scan = reader.scan(scan_id)
    volume = _array_volume(values_zyx, scan)
    with (
        ThreadPoolExecutor(cpu_count(), thread_name_prefix="spinezarr-encode") as pool,
        writing_masks(reader, "a new mask", wait_s=wait_s) as store,
    ):
        writer = store.scans.start_mask(scan.attributes.scan_id, name)
        if writer.scan.content_checksum != scan.content_checksum:
            raise ScanChangedError(
                f"{reader.name}: scan {scan.attributes.scan_id!r} was replaced since the store was "
                "opened, so the values may not belong to it. Open the store again.",
                scan.attributes.scan_id,
            )
        published = write_mask(
            writer,
            facts,
            MaskSource(volume, volume.grid),
            pool=pool,
            memory=MemoryBudget(),
            scratch=store.local_folder,
        )
        update_table(store, [published])


def update_table(store: StoreWriter, scans: Sequence[ScanAttributes]) -> None:
    """Write the rows of scans whose further masks have changed.

    Raises
    ------
    ReadOnlyStoreError
        If the scan table cannot be written. The masks are in the store in any case.
    """
    try:
        store.registry.update_rows(scans)
    except LostLockError:
        raise
    except OSError as problem:
        raise ReadOnlyStoreError(
            f"{store.name}: the masks are in the store, but the scan table could not be written: "
            f"{describe_os_error(problem)}. Run the same again once it can be written."
        ) from problem


def remove_labels(
    reader: StoreReader,
    selection: ScanSelection,
    name: str,
    *,
    wait_s: float,
    on_progress: OnProgress,
) -> tuple[str, ...]:
    """Remove a further mask of some scans; see :meth:`spinezarr.Store.remove_labels`."""
    check_mask_name(name)
    with writing_masks(reader, "a removal of masks", wait_s=wait_s) as store:
        current = StoreReader(reader.url, reader.storage_options)
        scan_ids = selection.some_scan_ids(current.columns, current.name)
        present = [scan_id for scan_id in scan_ids if name in current.scan(scan_id).masks]
        if not present:
            known = _names_of_masks(current, scan_ids)
            raise UnknownMaskError(
                f"{reader.name}: none of the chosen scans has a mask {name!r}; their masks are "
                f"{', '.join(known) or 'only label'}.{did_you_mean(name, known)}"
            )
        counter = ProgressCounter(on_progress, "remove-labels", "scans", len(present))
        changed: dict[str, ScanAttributes] = {}
        try:
            for scan_id in present:
                changed[scan_id] = store.scans.remove_mask(scan_id, name)
                counter.add()
        finally:
            update_table(store, [*changed.values()])
    return tuple(present)


def save_comparisons(
    reader: StoreReader,
    name: str,
    records: Mapping[str, ComparisonRecord],
    *,
    wait_s: float = _SAVE_WAIT_S,
) -> tuple[str, ...]:
    """Save comparisons of a further mask with the metadata of its scans.

    Parameters
    ----------
    reader
        The store.
    name
        Name of the mask.
    records
        The comparisons by scan id.
    wait_s
        Seconds to wait for other programs that write the store.

    Returns
    -------
    tuple of str
        Ids of the scans whose masks are no longer those that were compared; nothing is saved there.

    Raises
    ------
    StoreBusyError
        If another program still writes the store after that time.
    ReadOnlyStoreError
        If the store cannot be written.
    """
    changed: dict[str, ScanAttributes] = {}
    replaced: list[str] = []
    with writing_masks(reader, "a comparison", wait_s=wait_s) as store:
        try:
            for scan_id, record in records.items():
                scan = store.scans.published(scan_id)
                if scan is None or name not in scan.masks:
                    replaced.append(scan_id)
                    continue
                mask = scan.masks[name].model_copy(update={"comparison": record})
                scan = scan.model_copy(update={"masks": {**scan.masks, name: mask}})
                if scan.comparison(name) is None:
                    replaced.append(scan_id)
                    continue
                changed[scan_id] = store.scans.amend(scan)
        finally:
            update_table(store, [*changed.values()])
    return tuple(replaced)


def _names_of_masks(reader: StoreReader, scan_ids: Sequence[str]) -> list[str]:
    return sorted({name for scan_id in scan_ids for name in reader.scan(scan_id).masks})


def _array_volume(values_zyx: npt.ArrayLike | SliceableArray, scan: ScanHandle) -> ArrayVolume:
    """Check that values have the shape of a scan and a type that labels can have."""
    values: Any = values_zyx if hasattr(values_zyx, "shape") else np.asarray(values_zyx)
    shape, expected = tuple(values.shape), scan.image.shape_zyx
    if shape != expected:
        is_turned = shape == expected[::-1]
        advice = (
            "They have the axes (x, y, z), as nibabel returns them: give values.transpose(2, 1, 0)."
            if is_turned
            else "Give one value for each stored voxel."
        )
        raise UsageError(
            f"values of shape {shape} for scan {scan.attributes.scan_id!r} of shape {expected} "
            f"(z, y, x). {advice}"
        )
    dtype = np.asarray(values[:0]).dtype
    if dtype.kind not in _NUMERIC_KINDS:
        raise UsageError(f"values of the type {dtype}: labels are whole numbers from 0 to 255.")
    return ArrayVolume(values, dtype)
