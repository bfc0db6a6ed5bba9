"""Scans as NIfTI files that hold the source's voxels in its axis order.

Every program should read them, and place their voxels alike. So a file of a NIfTI source has its
type and header's place bit for bit where all programs understand these; every other file is
NIfTI-1, in the narrowest type that holds the source's values. ``exact`` asks for the source's own
type and affine bit for bit, which some programs do not read.

A file is written slab by slab, under a name ending in ``.partial``, and renamed when it is whole.
An image that is stored as the numbers of its file gives these. Other values that the source scaled
by a slope and an intercept are scaled back where that gives the same values again, checked on every
one of them.

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

# Both carry few annotations; strict mypy would refuse each call.
_nib: Any = nib
_igzip: Any = igzip

_SUFFIXES: Final = {"image": "ct", "label": "seg"}
_GZIP_LEVEL: Final = 2
"""Between speed and size for ISA-L, whose levels are 0 to 3."""
_SINGLE_FILE: Final = {1: b"n+1", 2: b"n+2"}
_WIDENED: Final[dict[str, np.dtype[Any]]] = {
    "bool": np.dtype(np.uint8),
    "float16": np.dtype(np.float32),
}
"""Types that NIfTI lacks, and those that hold their numbers."""
_WIDELY_READ: Final = frozenset({"u1", "i1", "u2", "i2", "u4", "i4", "f4", "f8"})
"""Types that all programs read, in either byte order. 64-bit integers are not among them: AFNI, FSL
and ITK 4 lack them [1]_.

References
----------
.. [1] https://github.com/nipy/nibabel/issues/1089
"""
_INTEGERS: Final = ("u1", "i1", "i2", "u2", "i4", "u4")
"""Those of integers, the narrowest first."""
_FLOAT64_INTEGERS: Final = 2**53
"""Up to which float64 holds every integer."""


class _NotScaledBackError(Exception):
    """Values that no number of the source's type gives with its slope and intercept."""


@dataclass(frozen=True, slots=True)
class ExportedScan:
    """What was written of one scan."""

    scan_id: str
    files: tuple[str, ...]
    """Paths."""
    notes: tuple[str, ...]
    """How a file differs from its source, where it does."""


def file_name(scan_id: str, array: str, *, compressed: bool) -> str:
    """Return the name of the file of ``image`` or ``label``.

    Examples
    --------
    >>> file_name("liver_0", "label", compressed=True)
    'liver_0_seg.nii.gz'
    """
    return f"{scan_id}_{_SUFFIXES[array]}{'.nii.gz' if compressed else '.nii'}"


def check_no_conflicting_file(path: Path) -> None:
    """Refuse a place for ``a.nii.gz`` beside an ``a.nii``, or the other way around.

    nifti_clib, and so ITK, would read the voxels of ``a.nii`` for both.

    Raises
    ------
    UsageError
        If there is such a file.
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

    One slab of stored voxels is in memory, one chunk thick.

    Parameters
    ----------
    scan
        The scan.
    voxels
        Reads its voxels.
    folder
        Where the files go; it is there.
    compressed
        Write ``.nii.gz``, else ``.nii``.
    exact
        Keep the source's type and affine bit for bit, even if not all programs read them so.
    on_bytes
        Called with each further number of bytes of stored voxels that are done.

    Returns
    -------
    ExportedScan
        The files. A file of that name that was there is replaced.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged; nothing is left of that file.
    UsageError
        If a file of such a name and the other ending lies there.
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
    """Write one array of a scan; return how the file differs from its source.

    Parameters
    ----------
    path
        Ends in ``.nii.gz`` or ``.nii``; a file that is there is replaced.
    spec, facts
        The array, and what is known of its scan.
    voxels, exact, on_bytes
        As in :func:`export_scan`.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged; nothing is left of the file.
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
    """Yield the content of the file that :func:`write_nifti` writes, before it is packed.

    One slab of stored voxels is in memory. Where the source's numbers are computed from stored
    values, all of them are read once before, to see that these give the values again.

    Parameters
    ----------
    spec, facts
        The array, and what is known of its scan.
    voxels
        Reads it.

    Raises
    ------
    CorruptStoreError
        While it is iterated, if stored bytes are missing or damaged: what came is no whole file.
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
    """Write a mask as uint8 in the axes and with the affine of its image's file.

    Parameters
    ----------
    path, facts, voxels, on_bytes
        As in :func:`write_nifti`.
    spec
        The mask.
    values
        ``(256,)``: what is written for each stored label.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged; nothing is left of the file.
    """
    form = replace(_Form.on_image(facts, np.dtype(np.uint8)), values=values)
    _write(path, spec, form, voxels, on_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """How a file is written."""

    record: SourceRecord
    """The file whose axes it has."""
    place: NiftiPlacement
    dtype: np.dtype[Any]
    """Of the numbers in the file, with byte order."""
    scaling: tuple[float, float] | None
    notes: tuple[str, ...] = ()
    """How it differs from the source."""
    values: npt.NDArray[np.uint8] | None = None
    """``(256,)``: what is written for each stored label; None: as it is."""
    takes_numbers: bool = False
    """Whether it is given the file's own numbers, before their scaling."""

    @classmethod
    def exact(cls, spec: ArraySpec, facts: ScanAttributes) -> "_Form":
        """Choose the form that is nearest to the source."""
        record = _record(spec, facts)
        mapped = _notes_on_labels(record)
        dtype, scaling = np.dtype(record.stored_dtype), record.scaling
        if mapped:
            dtype, scaling = np.dtype(np.uint8), None
        place = NiftiPlacement.exact(record)
        return cls(record, place, dtype, scaling, (*mapped, *place.notes))

    @classmethod
    def portable(cls, spec: ArraySpec, facts: ScanAttributes) -> "_Form":
        """Choose the nearest form that every program reads alike."""
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
        """Choose the form of other numbers that lie as the exported image does."""
        record = facts.image_source
        return cls(record, NiftiPlacement.portable(record), dtype, None)

    def with_values(self) -> "_Form":
        """Choose the form that holds the values, and not the source's numbers."""
        return replace(self, dtype=np.dtype(self.record.dtype), scaling=None)

    def header(self) -> bytes:
        """Compose the header, and that no extension follows."""
        order = ">" if self.dtype.byteorder == ">" else "<"
        header = self.place.header(self.record.shape_ijk, order)
        header.set_data_dtype(self.dtype)
        header["magic"] = _SINGLE_FILE[self.place.fields.version]
        header["vox_offset"] = header.single_vox_offset
        header["scl_slope"], header["scl_inter"] = self.scaling or (1, 0)
        start: bytes = header.binaryblock
        return start.ljust(header.single_vox_offset, b"\0")

    def numbers(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn stored values into the numbers of the file."""
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
    """Say what was made of a mask's values; nothing if they are its source's."""
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
    """Return the affine that a mask took from its image, whose voxels its own does not match."""
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
    """Choose the narrowest type that holds all values and that every program reads."""
    types = [spec.dtype, np.dtype(record.dtype)]
    if isinstance(record, LabelSourceRecord):
        types = [spec.dtype]
    readable = [dtype for dtype in types if _is_widely_read(dtype)]
    if readable:
        return min(readable, key=lambda dtype: dtype.itemsize).newbyteorder("<")
    low, high = image_range or (0, 0)
    return _integer_type(int(low), int(high)) or spec.dtype


def _integer_type(low: int, high: int) -> np.dtype[Any] | None:
    """Return the narrowest widely read type that holds integers of a range, or None."""
    for name in _INTEGERS:
        limits = np.iinfo(name)
        if limits.min <= low and high <= limits.max:
            return np.dtype(name)
    return np.dtype(np.float64) if -low <= _FLOAT64_INTEGERS >= high else None


def _as_stored(spec: ArraySpec, form: _Form) -> tuple[ArraySpec, _Form]:
    """Read the stored numbers themselves, if these are what the file holds."""
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
    """Write one file, packed if its name ends so; it is there whole, or not at all."""
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
    """Yield the stored values in the source's axis order ``(i, j, k)``, k by k."""
    axis_map = AxisMap.from_axcodes(form.record.orientation)
    for box in axis_map.slab_boxes(spec.shape_zyx, spec.chunk_shape_zyx):
        block = np.empty(box.shape_zyx, spec.dtype)
        voxels.read_into(spec, box, block)
        yield axis_map.from_zyx(block)


def write_on_image_grid(path: Path, scan: ScanHandle, values_zyx: npt.NDArray[Any]) -> None:
    """Write numbers on a scan's grid, in the axes and with the affine of its image's file.

    Parameters
    ----------
    path
        Ends in ``.nii.gz`` or ``.nii``; a file that is there is replaced.
    scan
        The scan.
    values_zyx
        A number for each stored voxel. Booleans become uint8, float16 float32, and 64-bit
        integers, which not all programs read, the narrowest type that holds them.

    Raises
    ------
    UsageError
        If the name ends otherwise, a file of that name and the other ending lies there, the shape
        is not the scan's, or no type holds the values.
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
    """Choose the type for numbers of a caller; their own, if every program reads it."""
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
    """Numbers that a caller has."""

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
        # No name and no time: the same scan gives the same bytes.
        packed = _igzip.IGzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0)
        with packed:
            yield cast("BinaryIO", packed)
