"""Do the stored voxels equal those of the source files?

Images and masks are compared slab by slab.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from spinezarr.errors import SpinezarrError, UsageError
from spinezarr.formats.dicom import DicomSeriesVolume
from spinezarr.formats.limits import DEFAULT_LIMITS, Limits
from spinezarr.formats.volume import Volume, open_volume
from spinezarr.geometry import AxisMap, Grid, ShapeZYX
from spinezarr.ingestion.label_file import LabelFiles, open_label
from spinezarr.ingestion.voxels.chunks import stored_labels
from spinezarr.processors import cpu_count
from spinezarr.redaction import redact_url
from spinezarr.remote.filesystem import open_filesystem
from spinezarr.store.attributes import ImageSourceRecord, LabelSourceRecord, SourceRecord
from spinezarr.store.layout import SCANS
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.text import count_noun
from spinezarr.verify.fault import Fault
from spinezarr.verify.files import OnBytes

__all__ = ["compare_with_source"]


def compare_with_source(
    url: str,
    raw: str,
    scans: Sequence[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    raw_options: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_total: OnBytes = lambda _: None,
    on_bytes: OnBytes = lambda _: None,
) -> list[Fault]:
    """Read the source files of scans again and compare each voxel with the stored one.

    Parameters
    ----------
    url
        Path or URL of the store.
    raw
        Folder or URL that the paths of the source files are relative to.
    scans
        Ids of the scans.
    storage_options, raw_options
        Options for the file systems of the store and of ``raw``.
    limits
        Limits for the source files.
    on_total
        Called first with the size in bytes of all voxels to compare, as they are stored.
    on_bytes
        Called with the size in bytes of each compared slab, from several threads.

    Returns
    -------
    list
        One fault for each array that differs and each source file that cannot be read.

    Raises
    ------
    UsageError
        If ``raw`` is not a folder, the store has pseudonyms, or the format of a file needs a
        package that is not installed.
    CorruptStoreError, UnknownScanError
        If a scan cannot be read.
    """
    reader = StoreReader(url, storage_options)
    if reader.root.pseudonym_key is not None:
        raise UsageError(
            f"{redact_url(url)}: does not hold the names of its source files, so they cannot be "
            f"found in {redact_url(raw)}. Compare a store that was made without --pseudonymize."
        )
    fs, root = open_filesystem(raw, raw_options)
    if not fs.isdir(root):
        raise UsageError(
            f"{redact_url(raw)!r} is not a folder. Give the raw folder that was ingested."
        )
    handles = [reader.scan(name) for name in scans]
    _refuse_derived(reader.name, handles)
    specs = [spec for scan in handles for spec in scan.arrays]
    on_total(sum(math.prod(spec.shape_zyx) * spec.stored_dtype.itemsize for spec in specs))
    engine = Engine(fetcher_for(reader.objects))

    def compare(scan: ScanHandle) -> list[Fault]:
        source = scan.attributes.image_source
        image = Grid(source.shape_ijk, np.array(source.affine_ijk))
        return [*_compare_scan(scan, engine, partial(_open, fs, root, limits, image), on_bytes)]

    pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix="spinezarr-compare")
    try:
        return [fault for faults in pool.map(compare, handles) for fault in faults]
    finally:
        pool.shutdown(cancel_futures=True)


def _refuse_derived(store: str, scans: Sequence[ScanHandle]) -> None:
    """Refuse scans whose voxels are not those of a source file."""
    for scan in scans:
        origin = scan.attributes.derived_from
        if origin is not None and scan.attributes.image_source.file.startswith(f"{SCANS}/"):
            raise UsageError(
                f"{store}: scan {origin.scan_id!r} was derived from {origin.store}, so its voxels "
                "are in no source file. Compare that store with the source files."
            )


def _compare_scan(
    scan: ScanHandle,
    engine: Engine,
    open_source: Callable[[SourceRecord], Volume],
    on_bytes: OnBytes,
) -> Iterator[Fault]:
    facts = scan.attributes
    records = {"image": facts.image_source, "label": facts.label_source}
    for spec in scan.arrays:
        record = records[spec.name]
        if record is None:
            continue
        try:
            yield from _compare_array(spec, record, open_source(record), engine, on_bytes)
        except UsageError:
            raise
        except (SpinezarrError, OSError) as problem:
            problem_text = (
                "no such file" if isinstance(problem, FileNotFoundError) else str(problem)
            )
            yield Fault(facts.scan_id, record.file, "source", problem_text, _described(record))


def _described(record: SourceRecord) -> str:
    return f"{record.size_bytes} bytes with sha256 {record.sha256}"


def _open(
    fs: fsspec.AbstractFileSystem, root: str, limits: Limits, image: Grid, record: SourceRecord
) -> Volume:
    if isinstance(record, LabelSourceRecord):
        files = LabelFiles(record.file, record.parts, record.values, record.segments)
        return open_label(fs, root, files, image, limits)
    path = f"{root}/{record.file}"
    if isinstance(record, ImageSourceRecord) and record.series is not None:
        return DicomSeriesVolume.open(fs, path, limits, series=record.series)
    return open_volume(fs, path, limits)


@dataclass(slots=True)
class _Difference:
    """Number of voxels that differ, and the first of them."""

    count: int = 0
    first_zyx: ShapeZYX | None = None
    values_text: tuple[str, str] = ("", "")

    def add(self, stored: npt.NDArray[Any], source: npt.NDArray[Any], start_zyx: ShapeZYX) -> None:
        differs = stored != source
        if stored.dtype.kind == "f":
            differs &= ~(np.isnan(stored) & np.isnan(source))
        if not differs.any():
            return
        self.count += int(np.count_nonzero(differs))
        index = np.unravel_index(int(differs.argmax()), differs.shape)
        z, y, x = (int(i) + start for i, start in zip(index, start_zyx, strict=True))
        if self.first_zyx is None or (z, y, x) < self.first_zyx:
            self.first_zyx = (z, y, x)
            self.values_text = (str(stored[index]), str(source[index]))


def _compare_array(
    spec: ArraySpec, record: SourceRecord, volume: Volume, engine: Engine, on_bytes: OnBytes
) -> Iterator[Fault]:
    """Compare one array with its source. The values of a mask are mapped as in the ingest."""
    grid = (volume.grid.shape_ijk, volume.grid.affine_ijk.tolist())
    if grid != (record.shape_ijk, [list(row) for row in record.affine_ijk]):
        found = f"another grid: {volume.grid.describe()}"
        yield Fault(spec.scan_id, record.file, "source", found, _described(record))
        return
    axis_map = AxisMap.from_axcodes(record.orientation)
    boxes = axis_map.slab_boxes(spec.shape_zyx, spec.chunk_shape_zyx)
    axis = axis_map.source_axis_zyx.index(2)
    difference = _Difference()
    slabs = volume.slabs([box.shape_zyx[axis] for box in boxes])
    # With strict, one more slab is requested, so the volume checks its file to the end.
    for box, slab in zip(boxes, slabs, strict=True):
        source = axis_map.to_zyx(slab)
        if isinstance(record, LabelSourceRecord):
            source, _ = stored_labels(source, record.values)
        stored = np.empty(box.shape_zyx, spec.dtype)
        engine.read_into(spec, box, stored)
        difference.add(stored, source, box.start_zyx)
        on_bytes(stored.size * spec.stored_dtype.itemsize)
    file = volume.source_file()
    if (file.size_bytes, file.sha256) != (record.size_bytes, record.sha256):
        found = f"{file.size_bytes} bytes with sha256 {file.sha256}"
        yield Fault(spec.scan_id, record.file, "source", found, _described(record))
    if difference.count:
        stored_value, source_value = difference.values_text
        found = (
            f"{count_noun(difference.count, 'voxel')} of another value, first {spec.name} "
            f"{difference.first_zyx} (z, y, x): {stored_value}"
        )
        yield Fault(spec.scan_id, record.file, "voxels", found, f"{source_value}, as in the source")
