"""How does a store become files of other formats?"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any, Final

from spinezarr.errors import SpinezarrError, UnknownMaskError, UsageError
from spinezarr.export.atomic_file import make_folder
from spinezarr.export.nifti import ExportedScan, check_no_conflicting_file, export_scan, file_name
from spinezarr.export.nnunet import NnunetExport
from spinezarr.processors import cpu_count
from spinezarr.progress import OnProgress, ProgressCounter
from spinezarr.redaction import redact_url
from spinezarr.store.layout import IMAGE, LABEL
from spinezarr.store.reader import StoreReader
from spinezarr.store.selection import ScanSelection
from spinezarr.stream.read.engine import Engine
from spinezarr.text import did_you_mean
from spinezarr.verbs.sizes import uncompressed_bytes
from spinezarr.view.ome_export import export_ome_zarr, ome_zarr_location

__all__ = [
    "ExportReport",
    "allows_derivatives",
    "check_has_mask",
    "restricted_masks",
    "scans_to_share",
    "write_nifti_files",
    "write_nnunet_dataset",
    "write_ome_zarr_images",
]

_OnBytes = Callable[[int], None]
_NO_DERIVATIVES: Final = re.compile(r"\bCC[- ]BY(-NC)?-ND\b", re.IGNORECASE)
"""Licenses of Creative Commons without derivatives (https://creativecommons.org/licenses/)."""


@dataclass(frozen=True, slots=True)
class ExportReport:
    """Files that an export wrote, and scans that it could not write."""

    out: str = field(repr=False)
    """Folder or URL of the files."""
    done: tuple[ExportedScan, ...]
    """The scans that were written, in the order of the store."""
    failed: dict[str, str]
    """Why each of the other scans could not be written, by scan id."""
    left_out: dict[str, str] = field(default_factory=dict)
    """License of each scan that was left out, because it allows no derivatives, by scan id."""
    left_out_masks: dict[str, dict[str, str]] = field(default_factory=dict)
    """License of each further mask that was left out for the same reason, by mask and scan id."""
    files: tuple[str, ...] = ()
    """Paths of files that describe the whole dataset, such as ``dataset.json``."""

    @property
    def exit_code(self) -> int:
        """0 if every scan was written, else 1."""
        return 1 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """Return the report as values that JSON has."""
        done = [
            {"scan_id": scan.scan_id, "files": list(scan.files), "notes": list(scan.notes)}
            for scan in self.done
        ]
        return {
            "done": done,
            "failed": self.failed,
            "left_out": self.left_out,
            "left_out_masks": self.left_out_masks,
        }


def write_nifti_files(
    reader: StoreReader,
    engine: Engine,
    selection: ScanSelection,
    out: str | os.PathLike[str],
    *,
    masks: tuple[str, ...],
    compressed: bool,
    exact: bool,
    overwrite: bool,
    include_restricted: bool,
    on_progress: OnProgress,
) -> ExportReport:
    """Write each scan as NIfTI; see :meth:`spinezarr.Store.export_nifti`."""
    folder = Path(out)
    for name in masks:
        check_has_mask(reader, selection, name)
    scan_ids, left_out = scans_to_share(reader, selection, include_restricted=include_restricted)
    restricted = {} if include_restricted else restricted_masks(reader, scan_ids, masks)
    make_folder(folder)
    for scan_id in scan_ids:
        for array in (IMAGE, *masks):
            path = folder / file_name(scan_id, array, compressed=compressed)
            check_no_conflicting_file(path)
            _check_free(path, overwrite=overwrite)

    def export(scan_id: str, on_bytes: _OnBytes) -> ExportedScan:
        return export_scan(
            reader.scan(scan_id),
            engine,
            folder,
            masks=[name for name in masks if scan_id not in restricted.get(name, ())],
            compressed=compressed,
            exact=exact,
            on_bytes=on_bytes,
        )

    report = _export_each(reader, scan_ids, str(folder), export, on_progress)
    return replace(report, left_out=left_out, left_out_masks=restricted)


def write_nnunet_dataset(
    reader: StoreReader,
    engine: Engine,
    selection: ScanSelection,
    out: str | os.PathLike[str],
    *,
    mask: str,
    dataset_id: int,
    name: str | None,
    preprocessed: str | os.PathLike[str] | None,
    compressed: bool,
    overwrite: bool,
    include_restricted: bool,
    on_progress: OnProgress,
) -> ExportReport:
    """Write a raw dataset of nnU-Net v2; see :meth:`spinezarr.Store.export_nnunet`."""
    check_has_mask(reader, selection, mask)
    scan_ids, left_out = scans_to_share(reader, selection, include_restricted=include_restricted)
    if not include_restricted:
        # A scan without its mask would become a case to predict, so it is left out, too.
        left_out |= restricted_masks(reader, scan_ids, [mask]).get(mask, {})
        scan_ids = [scan_id for scan_id in scan_ids if scan_id not in left_out]
    plan = NnunetExport.plan(
        reader,
        engine,
        Path(out),
        ScanSelection(scans=tuple(scan_ids)) if left_out else selection,
        mask=mask,
        dataset_id=dataset_id,
        name=name,
        preprocessed=None if preprocessed is None else Path(preprocessed),
        compressed=compressed,
    )
    plan.make_folders(overwrite=overwrite)
    report = _export_each(reader, plan.scan_ids, str(plan.folder), plan.write, on_progress)
    report = replace(report, left_out=left_out)
    if report.failed:
        return report  # nnU-Net accepts complete datasets only
    files = tuple(str(path) for path in plan.finish())
    return replace(report, files=files)


def write_ome_zarr_images(
    reader: StoreReader,
    engine: Engine,
    selection: ScanSelection,
    out: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None,
    link: bool,
    overwrite: bool,
    include_restricted: bool,
    on_progress: OnProgress,
) -> ExportReport:
    """Write each scan as an OME-Zarr image; see :meth:`spinezarr.Store.export_ome_zarr`."""
    target = os.fspath(out)
    scan_ids, left_out = scans_to_share(reader, selection, include_restricted=include_restricted)
    if "://" not in target:
        make_folder(Path(target))
        for scan_id in scan_ids:
            _check_free(Path(ome_zarr_location(target, scan_id)), overwrite=overwrite)

    names = {name for scan_id in scan_ids for name in reader.scan(scan_id).masks}
    restricted = {} if include_restricted else restricted_masks(reader, scan_ids, sorted(names))

    def export(scan_id: str, on_bytes: _OnBytes) -> ExportedScan:
        masks = [
            name
            for name in reader.scan(scan_id).mask_names
            if scan_id not in restricted.get(name, ())
        ]
        return export_ome_zarr(
            reader,
            engine,
            scan_id,
            target,
            storage_options=storage_options if "://" in target else None,
            link=link,
            overwrite=overwrite,
            masks=masks,
            on_bytes=on_bytes,
        )

    report = _export_each(reader, scan_ids, redact_url(target), export, on_progress)
    return replace(report, left_out=left_out, left_out_masks=restricted)


def scans_to_share(
    reader: StoreReader, selection: ScanSelection, *, include_restricted: bool
) -> tuple[list[str], dict[str, str]]:
    """Return the scans to export or derive, and the license of each scan that is left out.

    The result is a derivative that people share, so a license without derivatives excludes a scan.

    Raises
    ------
    UsageError
        If no scan remains.
    """
    scan_ids = selection.some_scan_ids(reader.columns, reader.name)
    if include_restricted:
        return scan_ids, {}
    licenses = {scan_id: reader.scan(scan_id).attributes.license for scan_id in scan_ids}
    left_out = {
        scan_id: license for scan_id, license in licenses.items() if not allows_derivatives(license)
    }
    if left_out and len(left_out) == len(scan_ids):
        raise UsageError(
            f"{reader.name}: the license of each of the {len(scan_ids)} scans allows no "
            f"derivatives ({next(iter(left_out.values()))}). If you do not share the files, give "
            "--include-restricted (include_restricted=True)."
        )
    return [scan_id for scan_id in scan_ids if scan_id not in left_out], left_out


def allows_derivatives(license: str) -> bool:
    """Whether a license allows to share what is made from the data.

    Examples
    --------
    >>> allows_derivatives("CC BY-NC 4.0"), allows_derivatives("CC-BY-NC-ND-4.0")
    (True, False)
    """
    return _NO_DERIVATIVES.search(license) is None


def check_has_mask(reader: StoreReader, selection: ScanSelection, name: str) -> None:
    """Check that at least one of the chosen scans has a further mask.

    Raises
    ------
    UnknownMaskError
        If none has it.
    """
    if name == LABEL:
        return
    rows = selection.rows(reader.columns, reader.name)
    cells = reader.columns.take(rows)["masks"]
    if not any(name in cell.split() for cell in cells):
        names = sorted({mask for cell in cells for mask in cell.split()})
        raise UnknownMaskError(
            f"{reader.name}: no chosen scan has a mask {name!r}; further masks are: "
            f"{', '.join(names) or 'none'}.{did_you_mean(name, names)}"
        )


def restricted_masks(
    reader: StoreReader, scan_ids: Sequence[str], masks: Sequence[str]
) -> dict[str, dict[str, str]]:
    """Return the licenses of further masks that allow no derivatives, by mask and scan id."""
    restricted: dict[str, dict[str, str]] = {}
    for scan_id in scan_ids:
        records = reader.scan(scan_id).attributes.masks
        for name in masks:
            license = records[name].license if name in records else ""
            if not allows_derivatives(license):
                restricted.setdefault(name, {})[scan_id] = license
    return restricted


def _check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to write if a file or folder of that name exists."""
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists already. Choose another folder, or give --overwrite.")


def _export_each(
    reader: StoreReader,
    scan_ids: Sequence[str],
    out: str,
    export: Callable[[str, _OnBytes], ExportedScan],
    on_progress: OnProgress,
) -> ExportReport:
    """Export several scans at once. A scan that fails does not stop the others."""
    total = uncompressed_bytes(reader.table.sel(scan=list(scan_ids)))
    counter = ProgressCounter(on_progress, "export", total=total)
    done: list[ExportedScan] = []
    failed: dict[str, str] = {}
    interrupted = Event()

    def advance(size_bytes: int) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        counter.add(size_bytes)

    def attempt(scan_id: str) -> ExportedScan | str:
        try:
            return export(scan_id, advance)
        except SpinezarrError as problem:
            return str(problem)

    pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix="spinezarr-export")
    try:
        for scan_id, result in zip(scan_ids, pool.map(attempt, scan_ids), strict=True):
            if isinstance(result, ExportedScan):
                done.append(result)
            else:
                failed[scan_id] = result
    except BaseException:
        interrupted.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    return ExportReport(out, tuple(done), failed)
