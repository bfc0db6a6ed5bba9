"""Which type, scaling and geometry has an array that is written as NIfTI?

Every program should read the files and place their voxels in the same way. If the source is NIfTI
and all programs understand its type and geometry, both are kept bit for bit. Every other file is
NIfTI-1 in the narrowest type that holds the source's values. The exact form always keeps the type
and affine of the source, which some programs do not read.

References
----------
NIfTI-1: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h;
NIfTI-2: https://nifti.nimh.nih.gov/pub/dist/doc/nifti2.h
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import nibabel as nib
import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.export.nifti_placement import NiftiPlacement
from spinezarr.geometry import GRID_TOLERANCE, Grid, max_corner_distance_mm
from spinezarr.scaling import Scaling
from spinezarr.store.attributes import LabelSourceRecord, ScanAttributes, SourceRecord
from spinezarr.store.scan_handle import ArraySpec
from spinezarr.text import count_noun

__all__ = ["NiftiForm", "NotScaledBackError", "dtype_to_write"]

# nibabel has few annotations, so strict mypy would refuse each call.
_nib: Any = nib
_SINGLE_FILE: Final = {1: b"n+1", 2: b"n+2"}
_WIDENED: Final[dict[str, np.dtype[Any]]] = {
    "bool": np.dtype(np.uint8),
    "float16": np.dtype(np.float32),
}
"""Type that holds the values of each type that NIfTI lacks."""
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


class NotScaledBackError(Exception):
    """Some values are not reproduced by numbers of the source's type, slope and intercept."""


@dataclass(frozen=True, slots=True, eq=False)
class NiftiForm:
    """Type, scaling and geometry in which a file is written."""

    record: SourceRecord
    """Record of the source file. The written file has the axes of this file."""
    placement: NiftiPlacement
    dtype: np.dtype[Any]
    """Type of the numbers in the file, with byte order."""
    scaling: tuple[float, float] | None
    """Slope and intercept in the header; None if values are written unscaled."""
    notes: tuple[str, ...] = ()
    """Remarks on how the file differs from its source."""
    values: npt.NDArray[np.uint8] | None = None
    """Value to write for each stored label, of shape (256,); None to keep labels."""
    gets_unscaled_numbers: bool = False
    """Whether :meth:`numbers` gets numbers that are not scaled yet, rather than values."""

    @classmethod
    def exact(cls, spec: ArraySpec, facts: ScanAttributes) -> "NiftiForm":
        """Return the form that is nearest to the source."""
        record = _record(spec, facts)
        if record is None:
            return cls.on_image(facts, spec.dtype, exact=True)
        label_notes = _notes_on_labels(record)
        dtype, scaling = np.dtype(record.stored_dtype), record.scaling
        if label_notes:
            dtype, scaling = np.dtype(np.uint8), None
        placement = NiftiPlacement.exact(record)
        return cls(record, placement, dtype, scaling, (*label_notes, *placement.notes))

    @classmethod
    def portable(cls, spec: ArraySpec, facts: ScanAttributes) -> "NiftiForm":
        """Return the form nearest to the source that every program reads in the same way."""
        record = _record(spec, facts)
        if record is None:
            return cls.on_image(facts, spec.dtype)
        label_notes = _notes_on_labels(record)
        placement = NiftiPlacement.portable(record, _affine_of_image(record, facts))
        notes = [*label_notes, *placement.notes]
        source_dtype = np.dtype(record.stored_dtype)
        keeps_type = record.nifti is not None and not label_notes
        if keeps_type and _is_widely_read(source_dtype):
            return cls(record, placement, source_dtype, record.scaling, tuple(notes))
        if spec.scaling is not None and _is_widely_read(spec.stored_dtype):
            scaling = (spec.scaling.slope, spec.scaling.intercept)
            if all(float(np.float32(n)) == n for n in scaling):  # as NIfTI-1 holds them
                return cls(record, placement, spec.stored_dtype, scaling, tuple(notes))
        dtype = _narrowest(spec, record, facts.image_range_hu)
        if not _is_widely_read(dtype):
            notes.append(
                f"is {dtype.name}, which not all programs read: no other type holds its values"
            )
        elif keeps_type:
            notes.append(f"is {dtype.name}, not {source_dtype.name}, which not all programs read")
        return cls(record, placement, dtype, None, tuple(notes))

    @classmethod
    def on_image(
        cls, facts: ScanAttributes, dtype: np.dtype[Any], *, exact: bool = False
    ) -> "NiftiForm":
        """Return the form for other values on the grid of the exported image."""
        record = facts.image_source
        place = NiftiPlacement.exact if exact else NiftiPlacement.portable
        return cls(record, place(record), dtype, None)

    def with_values(self) -> "NiftiForm":
        """Return the form that holds scaled values instead of the numbers of the source."""
        return replace(self, dtype=np.dtype(self.record.dtype), scaling=None)

    def header(self) -> bytes:
        """Return the bytes of the header, which state that no extension follows."""
        order = ">" if self.dtype.byteorder == ">" else "<"
        header = self.placement.header(self.record.shape_ijk, order)
        header.set_data_dtype(self.dtype)
        header["magic"] = _SINGLE_FILE[self.placement.fields.version]
        header["vox_offset"] = header.single_vox_offset
        header["scl_slope"], header["scl_inter"] = self.scaling or (1, 0)
        start: bytes = header.binaryblock
        return start.ljust(header.single_vox_offset, b"\0")

    def holds(self, values: npt.NDArray[Any]) -> bool:
        """Whether the numbers of the file stand for exactly these values."""
        try:
            with np.errstate(invalid="ignore", over="ignore"):
                numbers = self.numbers(values)
        except NotScaledBackError:
            return False
        is_float = values.dtype.kind == "f"
        return self.scaling is not None or np.array_equal(numbers, values, equal_nan=is_float)

    def numbers(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Convert stored values to the numbers of the file."""
        if self.values is not None:
            values = self.values[values]
        if self.scaling is None or self.gets_unscaled_numbers:
            return values.astype(self.dtype, copy=False)
        slope, inter = self.scaling
        native_dtype = self.dtype.newbyteorder("=")
        numbers = (values.astype(np.float64) - inter) / slope
        if native_dtype.kind in "iu":
            numbers = np.rint(numbers)
        with np.errstate(invalid="ignore", over="ignore"):
            file_numbers = numbers.astype(native_dtype)
        reproduced = Scaling(slope, inter).values(file_numbers)
        if not np.array_equal(reproduced, values, equal_nan=values.dtype.kind == "f"):
            raise NotScaledBackError
        return file_numbers.astype(self.dtype, copy=False)


def _record(spec: ArraySpec, facts: ScanAttributes) -> SourceRecord | None:
    """Return the record of the source; None for a mask that a program wrote into the store."""
    if spec.name in facts.masks:
        return facts.masks[spec.name].source
    record = facts.image_source if spec.name == "image" else facts.label_source
    if record is None:
        raise ValueError(f"scan {facts.scan_id!r} has a mask and no record of its source")
    return record


def _notes_on_labels(record: SourceRecord) -> tuple[str, ...]:
    """Return remarks on how the ingest changed the values of the mask."""
    if not isinstance(record, LabelSourceRecord):
        return ()
    if record.values:
        return ("holds the labels of the scheme, to which the source's values were mapped",)
    if record.parts:
        return (f"is one mask, merged from the {len(record.parts)} masks of {record.file}",)
    if record.rounded_voxels:
        voxels = count_noun(record.rounded_voxels, "voxel")
        return (f"holds whole numbers, where {voxels} of its source had a rounding error",)
    return ()


def _affine_of_image(record: SourceRecord, facts: ScanAttributes) -> npt.NDArray[np.float64] | None:
    """Return the affine of the image if the source's own affine does not match it, else None."""
    image = facts.image_source
    grids = [Grid(source.shape_ijk, np.array(source.affine_ijk)) for source in (record, image)]
    same_axes = (record.shape_ijk, record.orientation) == (image.shape_ijk, image.orientation)
    tolerance_mm = GRID_TOLERANCE * min(facts.spacing_zyx_mm)
    if same_axes and max_corner_distance_mm(*grids) > tolerance_mm:
        return grids[1].affine_ijk
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


def dtype_to_write(values: npt.NDArray[Any], path: Path) -> np.dtype[Any]:
    """Return the type in which values of a caller are written.

    It is the type of the values, if all programs read it.

    Raises
    ------
    UsageError
        If no type that NIfTI has, or that all programs read, holds the values.
    """
    dtype: np.dtype[Any] = _WIDENED.get(values.dtype.name, values.dtype)
    if dtype.kind in "iu" and not _is_widely_read(dtype):
        narrowest = _integer_type(int(values.min()), int(values.max()))
        if narrowest is None:
            raise UsageError(
                f"{path}: values from {values.min()} to {values.max()} fit no type that all "
                "programs read; cast them."
            )
        return narrowest
    try:
        _nib.Nifti1Header().set_data_dtype(dtype)
    except _nib.spatialimages.HeaderDataError as problem:
        raise UsageError(f"{path}: NIfTI has no type {dtype.name}; cast the values.") from problem
    return dtype
