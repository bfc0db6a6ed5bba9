"""Scans as NIfTI files that hold the source's voxels, type, axis order and affine, bit for bit.

A file is written slab by slab in the order of the source's axes, under a name ending in
``.partial``, and renamed when it is whole. An image's stored type can be narrower than the
source's, never lossy, so values are cast back. Numbers that the source scaled by a slope and an
intercept are scaled back where that gives the same values again, checked on every one of them.

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
from nibabel.volumeutils import apply_read_scaling

from spinezarr.errors import UsageError
from spinezarr.export.voxels import VoxelReader
from spinezarr.geometry import AxisMap, Box
from spinezarr.store.attributes import LabelSourceRecord, NiftiRecord, SourceRecord
from spinezarr.store.files import PARTIAL
from spinezarr.store.reader import ArraySpec, ScanHandle

__all__ = [
    "ExportedScan",
    "export_scan",
    "file_name",
    "write_array",
    "write_label_on_image",
    "write_on_image_grid",
]

# Both carry few annotations; strict mypy would refuse each call.
_nib: Any = nib
_igzip: Any = igzip

_SUFFIXES: Final = {"image": "ct", "label": "seg"}
_GZIP_LEVEL: Final = 2
"""Between speed and size for ISA-L, whose levels are 0 to 3."""
_NIFTI_2: Final = 2
_SINGLE_FILE: Final = {1: b"n+1", 2: b"n+2"}
_WIDENED: Final[dict[str, np.dtype[Any]]] = {
    "bool": np.dtype(np.uint8),
    "float16": np.dtype(np.float32),
}
"""Types that NIfTI lacks, and those that hold their numbers."""
_UNITS_MM: Final = 2
"""``xyzt_units`` of millimetres."""
_SCANNER: Final = 1
"""``sform_code`` of a position in the scanner."""


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


def export_scan(
    scan: ScanHandle,
    voxels: VoxelReader,
    folder: Path,
    *,
    compressed: bool = True,
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
    """
    facts = scan.attributes
    records: dict[str, SourceRecord | None]
    records = {"image": facts.image_source, "label": facts.label_source}
    files: list[str] = []
    notes: list[str] = []
    for spec in scan.arrays:
        record = records[spec.name]
        if record is None:
            continue
        path = folder / file_name(facts.scan_id, spec.name, compressed=compressed)
        notes += write_array(path, spec, record, voxels, on_bytes)
        files.append(str(path))
    return ExportedScan(facts.scan_id, tuple(files), tuple(notes))


def write_array(
    path: Path,
    spec: ArraySpec,
    record: SourceRecord,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
) -> list[str]:
    """Write one array as its source file had it; return how the file differs from that.

    Parameters
    ----------
    path
        Ends in ``.nii.gz`` or ``.nii``; a file that is there is replaced.
    spec, record
        The array, and the file that it was made from.
    voxels, on_bytes
        As in :func:`export_scan`.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged; nothing is left of the file.
    """
    form = _Form.of(record)
    notes = [f"{path.name}: {note}" for note in form.notes]
    try:
        _write(path, spec, form, voxels, on_bytes)
    except _NotScaledBackError:
        form = replace(form, dtype=np.dtype(record.dtype), scaling=None)
        notes.append(f"{path.name}: holds the scaled values, which its slope does not give")
        _write(path, spec, form, voxels, on_bytes)
    return notes


def write_label_on_image(
    path: Path,
    spec: ArraySpec,
    image: SourceRecord,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
    *,
    values: npt.NDArray[np.uint8],
) -> None:
    """Write a mask as uint8 in the axes and with the affine of its image's file.

    Parameters
    ----------
    path, voxels, on_bytes
        As in :func:`write_array`.
    spec
        The mask.
    image
        The file that its image was made from.
    values
        ``(256,)``: what is written for each stored label.

    Raises
    ------
    CorruptStoreError
        If stored bytes are missing or damaged; nothing is left of the file.
    """
    form = _Form.of(image)
    form = replace(form, dtype=np.dtype(np.uint8), scaling=None, values=values)
    _write(path, spec, form, voxels, on_bytes)


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """How a file is written."""

    record: SourceRecord
    dtype: np.dtype[Any]
    """Of the numbers in the file, with byte order."""
    scaling: tuple[float, float] | None
    nifti: NiftiRecord
    sform: npt.NDArray[np.float64]
    notes: tuple[str, ...]
    values: npt.NDArray[np.uint8] | None = None
    """``(256,)``: what is written for each stored label; None: as it is."""

    @classmethod
    def of(cls, record: SourceRecord) -> "_Form":
        """Choose the form that is nearest to the source."""
        notes = []
        dtype, scaling = np.dtype(record.stored_dtype), record.scaling
        if isinstance(record, LabelSourceRecord) and (record.values or record.parts):
            dtype, scaling = np.dtype(np.uint8), None
            notes.append(
                "holds the labels of the scheme, in which the source's values were mapped"
                if record.values
                else f"is one mask, made of the {len(record.parts)} of {record.file}"
            )
        sform = np.array(record.affine_ijk)
        nifti = record.nifti
        if nifti is None:
            nifti = _nifti_of_affine(sform)
            if nifti.version == _NIFTI_2:
                notes.append("is NIfTI-2, as NIfTI-1 would round the affine of its source")
        return cls(record, dtype, scaling, nifti, sform, tuple(notes))

    def header(self) -> bytes:
        """Compose the header, and that no extension follows."""
        kind = _nib.Nifti1Header if self.nifti.version == 1 else _nib.Nifti2Header
        header = kind(endianness=">" if self.dtype.byteorder == ">" else "<")
        header.set_data_dtype(self.dtype)
        header.set_data_shape(self.record.shape_ijk)
        header["magic"] = _SINGLE_FILE[self.nifti.version]
        header["vox_offset"] = header.single_vox_offset
        header["scl_slope"], header["scl_inter"] = self.scaling or (1, 0)
        header["xyzt_units"] = self.nifti.xyzt_units
        header["pixdim"][:4] = self.nifti.pixdim
        header["qform_code"] = self.nifti.qform_code
        header["sform_code"] = self.nifti.sform_code
        for axis, value in zip("bcd", self.nifti.quatern_bcd, strict=True):
            header[f"quatern_{axis}"] = value
        for axis, value, row in zip("xyz", self.nifti.qoffset_xyz, self.sform, strict=False):
            header[f"qoffset_{axis}"] = value
            if self.nifti.sform_code:
                header[f"srow_{axis}"] = row
        start: bytes = header.binaryblock
        return start.ljust(header.single_vox_offset, b"\0")

    def numbers(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Turn stored values into the numbers of the file."""
        if self.values is not None:
            values = self.values[values]
        if self.scaling is None:
            return values.astype(self.dtype, copy=False)
        slope, inter = self.scaling
        native = self.dtype.newbyteorder("=")
        numbers = (values.astype(np.float64) - inter) / slope
        if native.kind in "iu":
            numbers = np.rint(numbers)
        with np.errstate(invalid="ignore", over="ignore"):
            back = numbers.astype(native)
        again = apply_read_scaling(back, slope, inter)
        if not np.array_equal(again, values, equal_nan=values.dtype.kind == "f"):
            raise _NotScaledBackError
        return back.astype(self.dtype, copy=False)


def _nifti_of_affine(affine: npt.NDArray[np.float64]) -> NiftiRecord:
    """Describe a place that no NIfTI file stated: the sform alone, in the version that holds it."""
    exact = np.array_equal(affine.astype(np.float32), affine)
    lengths: list[float] = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    return NiftiRecord(
        version=1 if exact else 2,
        sform_code=_SCANNER,
        qform_code=0,
        pixdim=(1.0, *lengths),
        quatern_bcd=(0.0, 0.0, 0.0),
        qoffset_xyz=(0.0, 0.0, 0.0),
        xyzt_units=_UNITS_MM,
    )


def _write(
    path: Path,
    spec: ArraySpec,
    form: _Form,
    voxels: VoxelReader,
    on_bytes: Callable[[int], None],
) -> None:
    """Write one file, packed if its name ends so; it is there whole, or not at all."""
    done = 0
    partial = path.with_name(path.name + PARTIAL)
    try:
        with _output(partial, compressed=path.name.endswith(".gz")) as file:
            file.write(form.header())
            for slab in _slabs(spec, form, voxels):
                for k in range(slab.shape[2]):
                    file.write(form.numbers(slab[..., k]).tobytes(order="F"))
                done += slab.nbytes
                on_bytes(slab.nbytes)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        on_bytes(-done)
        raise


def _slabs(spec: ArraySpec, form: _Form, voxels: VoxelReader) -> Iterator[npt.NDArray[Any]]:
    """Yield the stored values in the source's axis order ``(i, j, k)``, k by k."""
    axis_map = AxisMap.of_axcodes(form.record.orientation)
    for box in axis_map.slabs(spec.shape_zyx, spec.chunk_shape_zyx):
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
        A number for each stored voxel; booleans become uint8, float16 float32.

    Raises
    ------
    UsageError
        If the name ends otherwise, the shape is not the scan's, or NIfTI has no such type.
    """
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UsageError(f"{path}: the name must end in .nii or .nii.gz.")
    if values_zyx.shape != scan.image.shape_zyx:
        raise UsageError(
            f"{path}: values of shape {values_zyx.shape} for scan {scan.image.scan_id!r}, which "
            f"has {scan.image.shape_zyx} (z, y, x)."
        )
    dtype: np.dtype[Any] = _WIDENED.get(values_zyx.dtype.name, values_zyx.dtype)
    form = replace(_Form.of(scan.attributes.image_source), dtype=dtype, scaling=None)
    try:
        form.header()
    except _nib.spatialimages.HeaderDataError as problem:
        raise UsageError(f"{path}: NIfTI has no type {dtype.name}; cast the values.") from problem
    spec = replace(scan.image, dtype=dtype)
    _write(path, spec, form, _InMemory(values_zyx), lambda _: None)


class _InMemory:
    """Numbers that a caller has."""

    def __init__(self, values_zyx: npt.NDArray[Any]) -> None:
        self._values_zyx = values_zyx

    def read_into(self, array: ArraySpec, box: Box, out: npt.NDArray[Any]) -> None:  # noqa: ARG002
        out[...] = self._values_zyx[box.slices]


@contextmanager
def _output(path: Path, *, compressed: bool) -> Iterator[BinaryIO]:
    with path.open("wb") as raw:
        if not compressed:
            yield raw
            return
        # No name and no time: the same scan gives the same bytes.
        packed = _igzip.IGzipFile("", "wb", compresslevel=_GZIP_LEVEL, fileobj=raw, mtime=0)
        with packed:
            yield cast("BinaryIO", packed)
