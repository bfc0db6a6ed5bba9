"""How is a scan written as NIfTI files with the source's voxels in its axis order?

Every program should read the files and place their voxels in the same way. If the source is NIfTI
and all programs understand its type and geometry, both are kept bit for bit. Every other file is
NIfTI-1 in the narrowest type that holds the source's values. The option ``exact`` always keeps the
type and affine of the source, which some programs do not read.

A file is written slab by slab under a name with ``.partial``, and renamed when it is complete. If
the store holds the numbers of the source file, these are written. Otherwise values with a slope and
an intercept are scaled back, if this gives the same values again; every value is checked.

References
----------
NIfTI-1: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h;
NIfTI-2: https://nifti.nimh.nih.gov/pub/dist/doc/nifti2.h
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from spinezarr.errors import UsageError
from spinezarr.export.atomic_file import write_atomically
from spinezarr.export.nifti_placement import NiftiPlacement
from spinezarr.export.voxel_reader import VoxelReader
from spinezarr.geometry import GRID_TOLERANCE, AxisMap, Box, Grid, max_corner_distance_mm
from spinezarr.scaling import Scaling
from spinezarr.store.attributes import LabelSourceRecord, ScanAttributes, SourceRecord
from spinezarr.store.reader import ArraySpec, ScanHandle
from spinezarr.text import count_noun

__all__ = [
    "ExportedScan",
    "check_no_conflicting_file",
    "export_scan",
    "file_name",
    "iter_nifti_bytes",
    "write_label_on_image",
    "write_nifti",
    "write_on_image_grid",
]

# Both packages have few annotations, so strict mypy would refuse each call.
_nib: Any = nib
_igzip: Any = igzip

_SUFFIXES: Final = {"image": "ct", "label": "seg"}
_GZIP_LEVEL: Final = 2
"""Compression level of ISA-L (0 to 3), a compromise of speed and size."""
_SINGLE_FILE: Final = {1: b"n+1", 2: b"n+2"}
_WIDENED: Final[dict[str, np.dtype[Any]]] = {
    "bool": np.dtype(np.uint8),
    "float16": np.dtype(np.float32),
}
"""For each type that NIfTI lacks, a type that holds its values."""
_WIDELY_READ: Final = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"})
"""Types that all programs read, in either byte order.

AFNI, FSL and ITK 4 lack 64-bit integers [1]_.

References
----------
.. [1] https://github.com/nipy/nibabel/issues/1089
"""
_INTEGERS: Final = ("u1", "i1", "i2", "u2", "i4", "u4")
"""Widely read integer types, the narrowest first."""
_FLOAT64_INTEGERS: Final = 2**53
"""Largest magnitude up to which float64 holds every integer."""


class _NotScaledBackError(Exception):
    """Some values are not reproduced by numbers of the source's type, slope and intercept."""


@dataclass(frozen=True, slots=True)
class ExportedScan:
    """The files written for one scan."""

    scan_id: str
    files: tuple[str, ...]
    """Paths of the files."""
    notes: tuple[str, ...]
    """Remarks on how files differ from their sources."""


def file_name(scan_id: str, array: str, *, compressed: bool) -> str:
    """Return the file name for the array ``image`` or ``label``.

    Examples
    --------
    >>> file_name("liver_0", "label", compressed=True)
    'liver_0_seg.nii.gz'
    """
    return f"{scan_id}_{_SUFFIXES[array]}{'.nii.gz' if compressed else '.nii'}"


def check_no_conflicting_file(path: Path) -> None:
    """Refuse to write ``a.nii.gz`` next to an ``a.nii``, or vice versa.

    nifti_clib, and so ITK, would read the voxels of ``a.nii`` for both.

    Raises
    ------
    UsageError
        If the other file exists.
    """
    name = path.name
    twin = path.with_name(name.removesuffix(".gz") if name.endswith(".gz") else f"{name}.gz")
    if twin.exists():
        raise UsageError(
            f"{twin}: lies where {name} goes, and SimpleITK and ITK-SNAP would take the voxels of "
            "one for those of the other. Remove it, or choose another folder."
        )


def export_scan(
    scan: ScanHandle,
    voxels: VoxelReader,
    folder: Path,
    *,
    compressed: bool = True,
    exact: bool = False,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> ExportedScan:
    """Write image and mask of a scan as NIfTI files.

    Only one slab of stored voxels, one chunk thick, is in memory.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reader of its voxels.
    folder
        Existing folder for the files. Existing files of the same names are replaced.
    compressed
        Whether to write ``.nii.gz`` rather than ``.nii``.
    exact
        Whether to keep the type and affine of the source bit for bit, even if some programs do not
        read them.
    on_bytes
        Called with the number of bytes of stored voxels after each slab.

    Returns
    -------
    ExportedScan
        Paths of the files, and remarks.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged. The file is then not written.
    UsageError
        If a file of the same name with the other ending exists.
    """
    facts = scan.attributes
    files: list[str] = []
    notes: list[str] = []
    for spec in scan.arrays:
        path = folder / file_name(facts.scan_id, spec.name, compressed=compressed)
        notes += write_nifti(path, spec, facts, voxels, on_bytes, exact=exact)
        files.append(str(path))
    return ExportedScan(facts.scan_id, tuple(files), tuple(notes))


def write_nifti(
    path: Path,
    spec: ArraySpec,
    facts: ScanAttributes,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
    *,
    exact: bool = False,
) -> list[str]:
    """Write one array of a scan as a NIfTI file.

    Parameters
    ----------
    path
        Path ending in ``.nii.gz`` or ``.nii``. An existing file is replaced.
    spec, facts
        The array, and the attributes of its scan.
    voxels, exact, on_bytes
        As for :func:`export_scan`.

    Returns
    -------
    list of str
        Remarks on how the file differs from its source.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged. The file is then not written.
    UsageError
        If a file of the same name with the other ending exists.
    """
    form = _Form.exact(spec, facts) if exact else _Form.portable(spec, facts)
    notes = [f"{path.name}: {note}" for note in form.notes]
    try:
        _write(path, spec, form, voxels, on_bytes)
    except _NotScaledBackError:
        form = form.with_values()
        notes.append(f"{path.name}: holds the scaled values, which its slope does not give")
        _write(path, spec, form, voxels, on_bytes)
    return notes


def iter_nifti_bytes(
    spec: ArraySpec, facts: ScanAttributes, voxels: VoxelReader
) -> Iterator[bytes]:
    """Yield the uncompressed content of the file that :func:`write_nifti` writes.

    Only one slab of stored voxels is in memory. If the numbers of the source are computed from
    stored values, all values are first read once to check that the numbers reproduce them.

    Parameters
    ----------
    spec, facts
        The array, and the attributes of its scan.
    voxels
        Reader of its voxels.

    Yields
    ------
    bytes
        Parts of the file in sequence.

    Raises
    ------
    CorruptStoreError
        During iteration, if stored bytes are missing or damaged. The yielded parts are then
        incomplete.
    """
    spec, form = _as_stored(spec, _Form.portable(spec, facts))
    if form.scaling is not None and not form.takes_numbers:
        try:
            for slab in _slabs(spec, form, voxels):
                form.numbers(slab)
        except _NotScaledBackError:
            form = form.with_values()
    yield form.header()
    for slab in _slabs(spec, form, voxels):
        for k in range(slab.shape[2]):
            yield form.numbers(slab[..., k]).tobytes(order="F")


def write_label_on_image(
    path: Path,
    spec: ArraySpec,
    facts: ScanAttributes,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
    *,
    values: npt.NDArray[np.uint8],
) -> None:
    """Write a mask as uint8 with the axes and the affine of the exported image.

    Parameters
    ----------
    path, facts, voxels, on_bytes
        As for :func:`write_nifti`.
    spec
        The mask.
    values
        Value to write for each stored label, of shape (256,).

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged. The file is then not written.
    """
    form = replace(_Form.on_image(facts, np.dtype(np.uint8)), values=values)
    _write(path, spec, form, voxels, on_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """Type, scaling and geometry in which a file is written."""

    record: SourceRecord
    """Source file whose axes the file has."""
    place: NiftiPlacement
    dtype: np.dtype[Any]
    """Type of the numbers in the file, with byte order."""
    scaling: tuple[float, float] | None
    """Slope and intercept in the header; None if values are written unscaled."""
    notes: tuple[str, ...] = ()
    """Remarks on how the file differs from its source."""
    values: npt.NDArray[np.uint8] | None = None
    """Value to write for each stored label, of shape (256,); None to keep labels."""
    takes_numbers: bool = False
    """Whether :meth:`numbers` gets numbers before their scaling, rather than values."""

    @classmethod
    def exact(cls, spec: ArraySpec, facts: ScanAttributes) -> "_Form":
        """Return the form that is nearest to the source."""
        record = _record(spec, facts)
        mapped = _notes_on_labels(record)
        dtype, scaling = np.dtype(record.stored_dtype), record.scaling
        if mapped:
            dtype, scaling = np.dtype(np.uint8), None
        place = NiftiPlacement.exact(record)
        return cls(record, place, dtype, scaling, (*mapped, *place.notes))

    @classmethod
    def portable(cls, spec: ArraySpec, facts: ScanAttributes) -> "_Form":
        """Return the form nearest to the source that every program reads in the same way."""
        record = _record(spec, facts)
        mapped = _notes_on_labels(record)
        place = NiftiPlacement.portable(record, _affine_of_image(record, facts))
        notes = [*mapped, *place.notes]
        stored = np.dtype(record.stored_dtype)
        gives_back_type = record.nifti is not None and not mapped
        if gives_back_type and _is_widely_read(stored):
            return cls(record, place, stored, record.scaling, tuple(notes))
        if spec.scaling is not None and _is_widely_read(spec.stored_dtype):
            scaling = (spec.scaling.slope, spec.scaling.intercept)
            if all(float(np.float32(n)) == n for n in scaling):  # as NIfTI-1 holds them
                return cls(record, place, spec.stored_dtype, scaling, tuple(notes))
        dtype = _narrowest(spec, record, facts.image_range_hu)
        if not _is_widely_read(dtype):
            notes.append(f"is {dtype.name}, which not all programs read: no other type holds it")
        elif gives_back_type:
            notes.append(f"is {dtype.name}, not {stored.name}, which not all programs read")
        return cls(record, place, dtype, None, tuple(notes))

    @classmethod
    def on_image(cls, facts: ScanAttributes, dtype: np.dtype[Any]) -> "_Form":
        """Return the form for other values on the grid of the exported image."""
        record = facts.image_source
        return cls(record, NiftiPlacement.portable(record), dtype, None)

    def with_values(self) -> "_Form":
        """Return the form that holds scaled values instead of the numbers of the source."""
        return replace(self, dtype=np.dtype(self.record.dtype), scaling=None)

    def header(self) -> bytes:
        """Return the bytes of the header, which state that no extension follows."""
        order = ">" if self.dtype.byteorder == ">" else "<"
        header = self.place.header(self.record.shape_ijk, order)
        header.set_data_dtype(self.dtype)
        header["magic"] = _SINGLE_FILE[self.place.fields.version]
        header["vox_offset"] = header.single_vox_offset
        header["scl_slope"], header["scl_inter"] = self.scaling or (1, 0)
        start: bytes = header.binaryblock
        return start.ljust(header.single_vox_offset, b"\0")

    def numbers(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert stored values to the numbers of the file."""
        if self.values is not None:
            values = self.values[values]
        if self.scaling is None or self.takes_numbers:
            return values.astype(self.dtype, copy=False)
        slope, inter = self.scaling
        native = self.dtype.newbyteorder("=")
        numbers = (values.astype(np.float64) - inter) / slope
        if native.kind in "iu":
            numbers = np.rint(numbers)
        with np.errstate(invalid="ignore", over="ignore"):
            back = numbers.astype(native)
        again = Scaling(slope, inter).values(back)
        if not np.array_equal(again, values, equal_nan=values.dtype.kind == "f"):
            raise _NotScaledBackError
        return back.astype(self.dtype, copy=False)


def _record(spec: ArraySpec, facts: ScanAttributes) -> SourceRecord:
    record = facts.image_source if spec.name == "image" else facts.label_source
    if record is None:
        raise ValueError(f"scan {facts.scan_id!r} has a mask and no record of its source")
    return record


def _notes_on_labels(record: SourceRecord) -> tuple[str, ...]:
    """Return remarks on changes of the mask's values by the ingest; none if there are none."""
    if not isinstance(record, LabelSourceRecord):
        return ()
    if record.values:
        return ("holds the labels of the scheme, in which the source's values were mapped",)
    if record.parts:
        return (f"is one mask, made of the {len(record.parts)} of {record.file}",)
    if record.rounded_voxels:
        voxels = count_noun(record.rounded_voxels, "voxel")
        return (f"holds whole numbers, where {voxels} of its source had a rounding error",)
    return ()


def _affine_of_image(record: SourceRecord, facts: ScanAttributes) -> npt.NDArray[np.float64] | None:
    """Return the affine of the image if the source's own affine does not match it, else None."""
    image = facts.image_source
    grids = [Grid(one.shape_ijk, np.array(one.affine_ijk)) for one in (record, image)]
    same_axes = (record.shape_ijk, record.orientation) == (image.shape_ijk, image.orientation)
    near = GRID_TOLERANCE * min(facts.spacing_zyx_mm)
    if same_axes and max_corner_distance_mm(*grids) > near:
        return grids[1].affine
    return None


def _is_widely_read(dtype: np.dtype[Any]) -> bool:
    return dtype.str[1:] in _WIDELY_READ


def _narrowest(
    spec: ArraySpec, record: SourceRecord, image_range: tuple[float, float] | None
) -> np.dtype[Any]:
    """Return the narrowest type that holds all values and that every program reads."""
    types = [spec.dtype, np.dtype(record.dtype)]
    if isinstance(record, LabelSourceRecord):
        types = [spec.dtype]
    readable = [dtype for dtype in types if _is_widely_read(dtype)]
    if readable:
        return min(readable, key=lambda dtype: dtype.itemsize).newbyteorder("<")
    low, high = image_range or (0, 0)
    return _integer_type(int(low), int(high)) or spec.dtype


def _integer_type(low: int, high: int) -> np.dtype[Any] | None:
    """Return the narrowest widely read type that holds the integers of a range; None if none."""
    for name in _INTEGERS:
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return np.dtype(name)
    return np.dtype(np.float64) if -low <= _FLOAT64_INTEGERS >= high else None


def _as_stored(spec: ArraySpec, form: _Form) -> tuple[ArraySpec, _Form]:
    """Return array and form for reading stored numbers without scaling, if the file holds these."""
    if spec.scaling is not None and form.scaling == (spec.scaling.slope, spec.scaling.intercept):
        return spec.unscaled(), replace(form, takes_numbers=True)
    return spec, form


def _write(
    path: Path,
    spec: ArraySpec,
    form: _Form,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
) -> None:
    """Write one complete file or none, compressed if its name ends in ``.gz``."""
    check_no_conflicting_file(path)
    spec, form = _as_stored(spec, form)
    done = 0
    try:
        with _output(path, compressed=path.name.endswith(".gz")) as file:
            file.write(form.header())
            for slab in _slabs(spec, form, voxels):
                for k in range(slab.shape[2]):
                    file.write(form.numbers(slab[..., k]).tobytes(order="F"))
                slab_bytes = slab.size * spec.stored_dtype.itemsize
                done += slab_bytes
                on_bytes(slab_bytes)
    except BaseException:
        on_bytes(-done)
        raise


def _slabs(spec: ArraySpec, form: _Form, voxels: VoxelReader) -> Iterator[npt.NDArray[Any]]:
    """Yield slabs of stored values in the source's axis order ``(i, j, k)``, with ascending k."""
    axis_map = AxisMap.from_axcodes(form.record.orientation)
    for box in axis_map.slab_boxes(spec.shape_zyx, spec.chunk_shape_zyx):
        block = np.empty(box.shape_zyx, spec.dtype)
        voxels.read_into(spec, box, block)
        yield axis_map.from_zyx(block)


def write_on_image_grid(path: Path, scan: ScanHandle, values_zyx: npt.NDArray[Any]) -> None:
    """Write values on the grid of a scan, with the axes and the affine of the exported image.

    Parameters
    ----------
    path
        Path ending in ``.nii.gz`` or ``.nii``. An existing file is replaced.
    scan
        The scan.
    values_zyx
        One value for each stored voxel, with axes ``(z, y, x)``. Booleans are written as uint8,
        float16 as float32, and 64-bit integers, which some programs do not read, in the narrowest
        type that holds them.

    Raises
    ------
    UsageError
        If the path has another ending, a file of the same name with the other ending exists, the
        shape is not that of the scan, or no type holds the values.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path}: the name must end in .nii or .nii.gz.")
    if values_zyx.shape != scan.image.shape_zyx:
        raise UsageError(
            f"{path}: values of shape {values_zyx.shape} for scan {scan.image.scan_id!r}, which "
            f"has {scan.image.shape_zyx} (z, y, x)."
        )
    dtype = _type_to_write(values_zyx, path)
    form = _Form.on_image(scan.attributes, dtype)
    spec = replace(scan.image, stored_dtype=dtype, scaling=None)
    _write(path, spec, form, _InMemory(values_zyx), lambda _: None)


def _type_to_write(values: npt.NDArray[Any], path: Path) -> np.dtype[Any]:
    """Return the type in which values of a caller are written: their own if programs read it."""
    dtype: np.dtype[Any] = _WIDENED.get(values.dtype.name, values.dtype)
    if dtype.kind in "iu" and not _is_widely_read(dtype):
        found = _integer_type(int(values.min()), int(values.max()))
        if found is None:
            raise UsageError(
                f"{path}: values from {values.min()} to {values.max()} fit no type that all "
                "programs read; cast them."
            )
        return found
    try:
        _nib.Nifti1Header().set_data_dtype(dtype)
    except _nib.spatialimages.HeaderDataError as problem:
        raise UsageError(f"{path}: NIfTI has no type {dtype.name}; cast the values.") from problem
    return dtype


class _InMemory:
    """A voxel reader of values in memory."""

    def __init__(self, values_zyx: npt.NDArray[Any]) -> None:
        self._values_zyx = values_zyx

    def read_into(self, array: ArraySpec, box: Box, out: npt.NDArray[Any]) -> None:  # noqa: ARG002
        out[...] = self._values_zyx[box.slices]


@contextmanager
def _output(path: Path, *, compressed: bool) -> Iterator[BinaryIO]:
    with write_atomically(path) as raw:
        if not compressed:
            yield raw
            return
        # Without name and time, the same scan gives the same bytes.
        packed = _igzip.IGzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0)
        with packed:
            yield cast("BinaryIO", packed)
