"""Which header fields make every reader of a NIfTI file place its voxels in the same way?

A header can state two affines, the sform and the qform, and readers choose by different rules:

* nibabel uses the sform if its code is not 0, else the qform.
* ITK, and with it SimpleITK, ITK-SNAP and 3D Slicer, uses the qform if the two disagree and
  ``sform_code`` is not 1. It takes voxel sizes from ``pixdim`` and their unit from ``xyzt_units``.
  Without a qform it refuses an sform whose axes are not perpendicular. It does not read NIfTI-2.
* If both codes are 0, nibabel puts the middle of the volume at the origin, and ITK the first voxel.

All of this was measured with nibabel 5.4 and SimpleITK 2.5 (ITK 5.4).

References
----------
Section "3D image (volume) orientation and location in space" of
https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

import math
from dataclasses import dataclass
from typing import Any, Final, Literal, Self

import nibabel as nib
import numpy as np
import numpy.typing as npt

from spinezarr.geometry import GRID_TOLERANCE, Matrix4x4, ShapeIJK, corner_distance_mm
from spinezarr.nifti_geometry import conflicting_pixdim_mm, qform_sform_distance_mm
from spinezarr.store.attributes import NiftiRecord, SourceRecord

__all__ = ["NiftiPlacement", "format_upper_bound_mm"]

# nibabel has few annotations, so strict mypy would refuse each call.
_nib: Any = nib

_Version = Literal[1, 2]

_HEADERS: Final[dict[int, Any]] = {1: _nib.Nifti1Header, 2: _nib.Nifti2Header}
_NIFTI_1_AXIS: Final = 32767
"""Largest number of voxels along an axis in NIfTI-1, whose ``dim`` is int16."""
_MM: Final = 2
"""Value of ``xyzt_units`` for millimeters."""
_UNITS: Final = {1: "meters", 3: "microns"}
"""Other units of length in ``xyzt_units``; 0 means no unit."""
_LENGTH_BITS: Final = 7
_SCANNER: Final = 1
"""``sform_code`` for scanner coordinates.

With this code, ITK prefers the sform, which is more accurate than a qform.
"""
_PERPENDICULAR: Final = 1e-5
"""Largest cosine between two axes that count as perpendicular.

It is above the rounding of float32, and below the limit of ITK 5.4, about 1e-4.
"""


@dataclass(frozen=True, slots=True, eq=False)
class NiftiPlacement:
    """The header fields of a file that place its voxels."""

    fields: NiftiRecord
    affine: Matrix4x4
    """4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm. It is the sform if its code is not 0."""
    notes: tuple[str, ...] = ()
    """Remarks on how the placement differs from that of the source."""

    @classmethod
    def exact(cls, record: SourceRecord) -> Self:
        """Keep the source's affine bit for bit, in NIfTI-2 if NIfTI-1 would round it."""
        affine = np.array(record.affine_ijk)
        if record.nifti is not None:
            return cls(record.nifti, affine)
        if np.array_equal(affine.astype(np.float32), affine):
            return cls(_sform_alone(affine, 1), affine)
        note = "is NIfTI-2, as NIfTI-1 would round the affine of its source"
        return cls(_sform_alone(affine, 2), affine, (note,))

    @classmethod
    def portable(cls, record: SourceRecord, affine: Matrix4x4 | None = None) -> Self:
        """Return fields that every reader understands in the same way.

        The fields of the source are kept if all readers agree on them.

        Parameters
        ----------
        record
            Record of the source.
        affine
            4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm, if the source's own is wrong.
        """
        source, shape = record.nifti, record.shape_ijk
        source_affine = np.array(record.affine_ijk)
        version: _Version = 1 if max(shape) <= _NIFTI_1_AXIS else 2
        notes = []
        if affine is not None:
            distance = format_upper_bound_mm(corner_distance_mm(shape, affine, source_affine))
            notes.append(f"is placed on its image; its source places it {distance} away")
        elif source is not None:
            notes = _reader_disagreements(source, source_affine, shape)
            lacks_qform = source.qform_code == 0 and _skew(source_affine) > _PERPENDICULAR
            if not notes and not lacks_qform and source.version == version:
                return cls(source, source_affine)
        if version == 2:  # noqa: PLR2004
            notes.append(
                f"is NIfTI-2, which few programs read: NIfTI-1 has at most {_NIFTI_1_AXIS} voxels "
                "along an axis"
            )
        elif source is not None and source.version != version:
            notes.append(
                "is NIfTI-1; its source is NIfTI-2, which SimpleITK and ITK-SNAP do not read"
            )
        affine = source_affine if affine is None else affine
        fields, axis_notes = _sform_and_qform(affine, shape, version)
        placement = cls(fields, affine)
        rounding_mm = corner_distance_mm(shape, placement.header(shape).get_best_affine(), affine)
        if rounding_mm:
            axis_notes.append(
                f"places voxels up to {format_upper_bound_mm(rounding_mm)} away from its source, "
                "because its affine is rounded to float32"
            )
        return cls(fields, affine, (*notes, *axis_notes))

    @classmethod
    def from_affine(cls, affine: Matrix4x4, shape: ShapeIJK) -> Self:
        """Return NIfTI-1 fields for an affine, with an sform and, if possible, a qform.

        Parameters
        ----------
        affine
            4 x 4 matrix from voxel ``(i, j, k, 1)`` to RAS+ mm.
        shape
            Number of voxels along i, j and k.
        """
        fields, notes = _sform_and_qform(affine, shape, 1)
        return cls(fields, affine, tuple(notes))

    def header(self, shape_ijk: ShapeIJK, endianness: str = "<") -> Any:  # noqa: ANN401  nibabel's
        """Return a header with these fields and a shape, and nothing else."""
        header = _HEADERS[self.fields.version](endianness=endianness)
        header.set_data_shape(shape_ijk)
        header["xyzt_units"] = self.fields.xyzt_units
        header["pixdim"][:4] = self.fields.pixdim
        header["qform_code"] = self.fields.qform_code
        header["sform_code"] = self.fields.sform_code
        for axis, value in zip("bcd", self.fields.quatern_bcd, strict=True):
            header[f"quatern_{axis}"] = value
        for axis, value, row in zip("xyz", self.fields.qoffset_xyz, self.affine, strict=False):
            header[f"qoffset_{axis}"] = value
            if self.fields.sform_code:
                header[f"srow_{axis}"] = row
        return header


def _sform_alone(affine: Matrix4x4, version: _Version) -> NiftiRecord:
    return NiftiRecord(
        version=version,
        sform_code=_SCANNER,
        qform_code=0,
        pixdim=(1.0, *_lengths(affine).tolist()),
        quatern_bcd=(0.0, 0.0, 0.0),
        qoffset_xyz=(0.0, 0.0, 0.0),
        xyzt_units=_MM,
    )


def _sform_and_qform(
    affine: Matrix4x4, shape: ShapeIJK, version: _Version
) -> tuple[NiftiRecord, list[str]]:
    """Return fields with sform and qform, and remarks on axes that are not perpendicular.

    A qform needs perpendicular axes. The nearest such axes are used if they move no voxel by more
    than a tenth of a voxel. Otherwise the qform is left out, so that ITK refuses the file instead
    of misplacing its voxels.
    """
    lengths = _lengths(affine)
    u, _, vt = np.linalg.svd(affine[:3, :3] / lengths)
    nearest = affine.copy()
    nearest[:3, :3] = u @ vt * lengths
    moved_mm = corner_distance_mm(shape, nearest, affine)
    skew = _skew(affine)
    degrees = math.degrees(math.asin(min(skew, 1.0)))
    text = f"has axes {degrees:.2g} degrees off perpendicular: SimpleITK, ITK-SNAP and 3D Slicer"
    if moved_mm > _tolerance_mm(affine):
        return _sform_alone(affine, version), [f"{text} refuse it. Resample it for them"]
    header = _HEADERS[version]()
    header.set_qform(nearest, _SCANNER)
    fields = _sform_alone(affine, version).model_copy(
        update={
            "qform_code": _SCANNER,
            "pixdim": tuple(header["pixdim"][:4].tolist()),
            "quatern_bcd": tuple(float(header[f"quatern_{axis}"]) for axis in "bcd"),
            "qoffset_xyz": tuple(float(header[f"qoffset_{axis}"]) for axis in "xyz"),
        }
    )
    if skew <= _PERPENDICULAR:
        return fields, []
    return fields, [f"{text} place voxels up to {format_upper_bound_mm(moved_mm)} elsewhere"]


def _reader_disagreements(source: NiftiRecord, affine: Matrix4x4, shape: ShapeIJK) -> list[str]:
    """Return a remark for each field of the source on which readers disagree."""
    if not source.sform_code and not source.qform_code:
        remark = (
            "states the position that nibabel assumes for its source, whose sform_code and "
            "qform_code are 0"
        )
        return [remark]
    remarks = []
    unit = _UNITS.get(source.xyzt_units & _LENGTH_BITS)
    if unit is not None:
        remarks.append(f"states its lengths in mm; its source calls the same numbers {unit}")
    if conflicting_pixdim_mm(source, shape, affine) is not None:
        remarks.append("has the voxel sizes of its sform in pixdim; its source has other ones")
    distance_mm = qform_sform_distance_mm(source, shape, affine)
    if distance_mm is not None:
        difference = format_upper_bound_mm(distance_mm)
        remarks.append(
            f"has a qform that agrees with its sform; in its source, they differ by {difference}"
        )
    return remarks


def _lengths(affine: Matrix4x4) -> npt.NDArray[np.float64]:
    lengths: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def _tolerance_mm(affine: Matrix4x4) -> float:
    return GRID_TOLERANCE * float(_lengths(affine).min())


def _skew(affine: Matrix4x4) -> float:
    """Return the largest cosine between two axes; 0 if they are perpendicular."""
    directions = affine[:3, :3] / _lengths(affine)
    return float(np.abs(directions.T @ directions - np.eye(3)).max())


def format_upper_bound_mm(mm: float) -> str:
    """Return a length as text, rounded up to one digit.

    Examples
    --------
    >>> format_upper_bound_mm(7.63e-6), format_upper_bound_mm(0.0), format_upper_bound_mm(870.0)
    ('8e-06 mm', '0 mm', '900 mm')
    """
    if mm == 0:
        return "0 mm"
    unit = 10.0 ** math.floor(math.log10(mm))
    return f"{math.ceil(mm / unit) * unit:g} mm"
