"""Do the stored voxels equal those of the source files?

Images and masks are compared slab by slab. The file of a further mask may be in another folder than
that of the image, and a program may have written a mask without a file. The voxels of a derived
scan are in no file, but further masks may have been added to it from files.
"""

import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

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
from spinezarr.store.layout import IMAGE, LABEL, scan_key
from spinezarr.store.reader import StoreReader
from spinezarr.store.scan_handle import ArraySpec, ScanHandle
from spinezarr.stream.read.engine import Engine
from spinezarr.stream.read.fetch import fetcher_for
from spinezarr.text import count_noun
from spinezarr.verify.fault import Fault
from spinezarr.verify.files import OnBytes

__all__ = ["SourceComparison", "compare_with_source"]

_NO_FILE: Final = "a program wrote the voxels, and there is no file"
_NOT_FOUND: Final = "no given folder has the file; name its folder with another --against"
_DERIVED: Final = (
    "the voxels were derived from another store; compare that store with its source files"
)
"""Why an image or mask is not compared."""


@dataclass(frozen=True, slots=True)
class SourceComparison:
    """Result of the comparison of scans with their source files."""

    faults: tuple[Fault, ...]
    """One fault for each array that differs and each source file that cannot be read."""
    not_compared: Mapping[str, int]
    """Number of images and masks that were not compared, by the reason."""


def compare_with_source(
    url: str,
    raw: Sequence[str],
    scans: Sequence[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    raw_options: Mapping[str, Any] | None = None,
    limits: Limits = DEFAULT_LIMITS,
    on_total: OnBytes = lambda _: None,
    on_bytes: OnBytes = lambda _: None,
) -> SourceComparison:
    """Read the source files of scans again and compare each voxel with the stored one.

    Parameters
    ----------
    url
        Path or URL of the store.
    raw
        Folders or URLs that the paths of the source files are relative to. A file is read in the
        first one that has it.
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
    SourceComparison
        Faults, and the number of images and masks that were not compared.

    Raises
    ------
    UsageError
        If ``raw`` is not a folder, the store has pseudonyms, all voxels were derived, or the
        format of a file needs a package that is not installed.
    CorruptStoreError, UnknownScanError
        If a scan cannot be read.
    """
    reader = StoreReader(url, storage_options)
    if reader.root.pseudonym_key is not None:
        raise UsageError(
            f"{redact_url(url)}: does not hold the names of its source files, so they cannot be "
            f"found in {redact_url(raw[0])}. Compare a store that was made without --pseudonymize."
        )
    sources = _Sources.open(raw, raw_options, limits)
    handles = [reader.scan(name) for name in scans]
    own_files = {
        record.file
        for scan in handles
        for record in (scan.attributes.image_source, scan.attributes.label_source)
        if record is not None
    }
    not_compared: Counter[str] = Counter()
    planned = [
        _SourceFile(scan, *found)
        for scan in handles
        for found in _source_files(scan, sources, own_files, not_compared)
    ]
    if not planned:
        _refuse_derived(reader.name, handles)
    specs = [source.spec for source in planned]
    on_total(sum(math.prod(spec.shape_zyx) * spec.stored_dtype.itemsize for spec in specs))
    engine = Engine(fetcher_for(reader.objects))

    def compare(source: _SourceFile) -> list[Fault]:
        return [*_compare_file(source, engine, sources, on_bytes)]

    pool = ThreadPoolExecutor(cpu_count(), thread_name_prefix="spinezarr-compare")
    try:
        faults = tuple(fault for faults in pool.map(compare, planned) for fault in faults)
        return SourceComparison(faults, dict(not_compared))
    finally:
        pool.shutdown(cancel_futures=True)


def _refuse_derived(store: str, scans: Sequence[ScanHandle]) -> None:
    """Refuse scans of which nothing came from a source file."""
    for scan in scans:
        origin = scan.attributes.derived_from
        if origin is not None and _is_sampled(scan):
            raise UsageError(
                f"{store}: scan {origin.scan_id!r} was derived from {origin.store}, so its voxels "
                "are in no source file. Compare that store with the source files."
            )


def _is_sampled(scan: ScanHandle) -> bool:
    """Whether the voxels of a scan were computed from those of another store."""
    facts = scan.attributes
    is_array = facts.image_source.file == f"{scan_key(facts.scan_id)}/{IMAGE}"
    return facts.derived_from is not None and is_array


@dataclass(frozen=True, slots=True)
class _SourceFile:
    """The source file of a stored array."""

    scan: ScanHandle
    spec: ArraySpec
    record: SourceRecord
    folder: "_Folder"
    """Folder that has the file; the first one if none has it."""


def _source_files(
    scan: ScanHandle,
    sources: "_Sources",
    own_files: Collection[str],
    not_compared: Counter[str],
) -> Iterator[tuple[ArraySpec, SourceRecord, "_Folder"]]:
    """Yield the source of each array of a scan that has one, and count the others.

    Parameters
    ----------
    scan
        The scan.
    sources
        Folders with source files.
    own_files
        Paths of images and of files of ``label``. A further mask may have the same path in
        another folder, so such a file counts as that of the mask only if it has its size.
    not_compared
        Counter of images and masks without a file, by the reason.
    """
    facts = scan.attributes
    records = {IMAGE: facts.image_source, LABEL: facts.label_source}
    is_sampled = _is_sampled(scan)
    for spec in scan.arrays:
        record = records[spec.name]
        if is_sampled:
            not_compared[_DERIVED] += 1
        elif record is not None:
            yield spec, record, sources.folder_or_first(record)
    carried = () if facts.derived_from is None else facts.derived_from.mask_checksums
    for name, spec in scan.masks.items():
        source = facts.masks[name].source
        if source is None:
            not_compared[_DERIVED if is_sampled and name in carried else _NO_FILE] += 1
            continue
        folder = sources.folder_of(source, same_size=True)
        if folder is None and source.file not in own_files:
            folder = sources.folder_of(source)
        if folder is None:
            not_compared[_NOT_FOUND] += 1
        else:
            yield spec, source, folder


def _compare_file(
    source: _SourceFile, engine: Engine, sources: "_Sources", on_bytes: OnBytes
) -> Iterator[Fault]:
    record, scan_id = source.record, source.scan.attributes.scan_id
    try:
        volume = sources.volume(source)
        yield from _compare_array(source.spec, record, volume, engine, on_bytes)
    except UsageError:
        raise
    except (SpinezarrError, OSError) as problem:
        problem_text = "no such file" if isinstance(problem, FileNotFoundError) else str(problem)
        yield Fault(scan_id, record.file, "source", problem_text, _described(record))


def _described(record: SourceRecord) -> str:
    return f"{record.size_bytes} bytes with sha256 {record.sha256}"


@dataclass(frozen=True, slots=True)
class _Folder:
    """A folder with source files."""

    fs: fsspec.AbstractFileSystem
    path: str

    def size_bytes(self, record: SourceRecord) -> int | None:
        """Return the size of a file, of the first one if there are several; None without it."""
        parts = record.parts if isinstance(record, LabelSourceRecord) else ()
        file = parts[0][1] if parts else record.file
        try:
            info = self.fs.info(f"{self.path}/{file}")
        except OSError:
            return None
        return int(info["size"] or 0)


@dataclass(frozen=True, slots=True)
class _Sources:
    """Folders with source files, and limits for the files."""

    folders: tuple[_Folder, ...]
    limits: Limits

    @classmethod
    def open(
        cls, raw: Sequence[str], options: Mapping[str, Any] | None, limits: Limits
    ) -> "_Sources":
        folders = []
        for url in raw:
            fs, path = open_filesystem(url, options)
            if not fs.isdir(path):
                raise UsageError(
                    f"{redact_url(url)!r} is not a folder. Give the raw folder that was ingested."
                )
            folders.append(_Folder(fs, path))
        return cls(tuple(folders), limits)

    def folder_of(self, record: SourceRecord, *, same_size: bool = False) -> _Folder | None:
        """Return the first folder that has a file, or else None."""
        for folder in self.folders:
            size = folder.size_bytes(record)
            if size is not None and (not same_size or size == record.size_bytes):
                return folder
        return None

    def folder_or_first(self, record: SourceRecord) -> _Folder:
        """Return the folder that has a file, or the first one, where it is then missing."""
        found = None if len(self.folders) == 1 else self.folder_of(record)
        return found or self.folders[0]

    def volume(self, source: _SourceFile) -> Volume:
        """Open the file of an array as it was read for the store."""
        record, fs, root = source.record, source.folder.fs, source.folder.path
        path = f"{root}/{record.file}"
        if isinstance(record, ImageSourceRecord) and record.series is not None:
            return DicomSeriesVolume.open(fs, path, self.limits, series=record.series)
        if isinstance(record, LabelSourceRecord) and (
            source.spec.name == LABEL or record.parts or record.segments
        ):
            image = source.scan.attributes.image_source
            grid = Grid(image.shape_ijk, np.array(image.affine_ijk))
            files = LabelFiles(record.file, record.parts, record.values, record.segments)
            return open_label(fs, root, files, grid, self.limits)
        return open_volume(fs, path, self.limits)


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
