"""Writes volumes as NIfTI-1 files in any orientation, data type and scaling.

The module shares no code with the readers under test. nibabel's transforms give the orientation.
The header and the voxels are written as bytes, because nibabel would choose the slope.

References
----------
.. [1] NIfTI-1.1 header, https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt
from isal import igzip

from spinezarr.errors import UsageError
from spinezarr.testing.form import VolumeForm
from spinezarr.testing.orientation import oriented

# nibabel and isal have few annotations, so strict mypy would refuse each call.
_nib: Any = nib
_igzip: Any = igzip

__all__ = ["NiftiForm", "write_nifti"]

_GZIP_LEVEL: Final = 2
"""Compression level of ISA-L, from 0 (fast) to 3 (small)."""
_SLAB_BYTES: Final = 1 << 25
"""Number of bytes that are encoded at once."""


@dataclass(frozen=True, slots=True)
class NiftiForm(VolumeForm):
    """Form of a volume in a NIfTI file."""

    slope: float | None = None
    """``scl_slope``; None stores 0, which means that values are not scaled [1]_."""
    inter: float | None = None
    """``scl_inter``; needs a slope."""
    sform_code: int = 1
    """Code of the sform; 0 leaves it out."""
    qform_code: int = 1
    """Code of the qform; 0 leaves it out."""
    unit: Literal["mm", "unknown"] = "mm"
    """Unit of length that ``xyzt_units`` names; lengths are in mm either way."""

    def __post_init__(self) -> None:
        VolumeForm.__post_init__(self)
        if self.slope == 0 or (self.slope is None and self.inter is not None):
            raise UsageError(f"inter {self.inter} needs a slope other than 0, got {self.slope}")
        if not self.sform_code and not self.qform_code:
            raise UsageError(
                "sform_code and qform_code are both 0, so the file would state no position"
            )


def write_nifti(
    path: Path,
    array_zyx: npt.NDArray[Any],
    affine_xyz: npt.NDArray[np.float64],
    form: NiftiForm,
) -> None:
    """Write a ``.nii`` or ``.nii.gz`` file, the same bytes each time.

    Parameters
    ----------
    path
        File to write; its folder is made if it is missing.
    array_zyx
        Values with axes (z, y, x), toward superior, anterior and right.
    affine_xyz
        4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm.
    form
        Form in which the values are stored.

    Raises
    ------
    UsageError
        If a value does not fit the stored type, or the suffix is neither of these.
    """
    array, affine = oriented(array_zyx, affine_xyz, form.orientation, form.oblique_deg)
    _check_range(array, form, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".nii.gz"):
        with (
            path.open("wb") as file,
            _igzip.IGzipFile(
                "", "wb", compresslevel=_GZIP_LEVEL, fileobj=file, mtime=0
            ) as gzip_file,
        ):
            for part in _file_bytes(array, affine, form):
                gzip_file.write(part)
    elif path.name.endswith(".nii"):
        with path.open("wb") as file:
            file.writelines(_file_bytes(array, affine, form))
    else:
        raise UsageError(f"{path}: a NIfTI file ends in .nii or .nii.gz")


def _to_stored(values: npt.NDArray[Any], form: NiftiForm) -> npt.NDArray[Any]:
    """Return the numbers to store, before they are cast."""
    if form.slope is None:
        return values
    stored = (values.astype(np.float64) - (form.inter or 0.0)) / form.slope
    return np.rint(stored) if form.stored_dtype.kind in "iu" else stored


def _check_range(array: npt.NDArray[Any], form: NiftiForm, path: Path) -> None:
    """Refuse values that the stored integer type would wrap around."""
    if form.stored_dtype.kind == "f":
        return
    limits = np.iinfo(form.dtype)
    ends = np.array([array.min(), array.max()])
    low, high = sorted(_to_stored(ends, form).tolist())
    if low < limits.min or high > limits.max:
        raise UsageError(
            f"{path}: values {ends[0]} to {ends[1]} would be stored as {low:g} to {high:g}, which "
            f"{form.dtype} cannot hold; choose another dtype, slope or inter"
        )


def _file_bytes(
    array: npt.NDArray[Any], affine: npt.NDArray[np.float64], form: NiftiForm
) -> Iterator[bytes]:
    """Yield the header without an extension, then the voxels with the first axis fastest."""
    header = _nib.Nifti1Header(endianness=">" if form.big_endian else "<")
    header.set_data_dtype(form.stored_dtype)
    header.set_data_shape(array.shape)
    header.set_qform(affine, code=form.qform_code)
    header.set_sform(affine, code=form.sform_code)
    header.set_xyzt_units(form.unit)
    header["magic"] = b"n+1"
    header["vox_offset"] = 352  # 348 bytes of header, and 4 zeros for no extension
    header["scl_slope"] = form.slope or 0.0
    header["scl_inter"] = form.inter or 0.0
    yield header.binaryblock + bytes(4)
    slices_per_slab = max(1, _SLAB_BYTES // (array[..., :1].size * form.stored_dtype.itemsize))
    for start in range(0, array.shape[2], slices_per_slab):
        slab = _to_stored(array[..., start : start + slices_per_slab], form)
        yield slab.astype(form.stored_dtype).tobytes(order="F")
