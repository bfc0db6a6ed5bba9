"""Writes volumes as MetaImage files, ``.mha`` or ``.mhd`` with a data file, in any orientation.

The module shares no code with the reader under test. It writes the keys in the order of ITK.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.testing.form import DTYPES, VolumeForm
from spinezarr.testing.orientation import oriented

__all__ = ["MetaImageForm", "write_metaimage"]

_ELEMENT_TYPES: Final = dict(
    zip(
        DTYPES,
        (
            "MET_UCHAR",
            "MET_CHAR",
            "MET_USHORT",
            "MET_SHORT",
            "MET_UINT",
            "MET_INT",
            "MET_ULONG_LONG",
            "MET_LONG_LONG",
            "MET_FLOAT",
            "MET_DOUBLE",
        ),
        strict=True,
    )
)
_OPPOSITE_LETTERS: Final = str.maketrans("RLAPSI", "LRPAIS")
"""``AnatomicalOrientation`` names where an axis comes from, not where it goes."""
_ZLIB_LEVEL: Final = 2


@dataclass(frozen=True, slots=True)
class MetaImageForm(VolumeForm):
    """Form of a stored volume; the suffix of the path decides where the header is stored."""

    compressed: bool = False
    """Whether the voxels are compressed, as one zlib stream."""


def write_metaimage(
    path: Path,
    array_zyx: npt.NDArray[Any],
    affine_xyz: npt.NDArray[np.float64],
    form: MetaImageForm,
) -> None:
    """Write a ``.mha`` file, or a ``.mhd`` file with a ``.raw`` or ``.zraw`` data file.

    Parameters
    ----------
    path
        File to write; its folder is made if it is missing.
    array_zyx
        Values with axes (z, y, x), toward superior, anterior and right.
    affine_xyz
        4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm; its axes are orthogonal.
    form
        Form in which the values are stored.

    Raises
    ------
    UsageError
        If a value does not fit the stored type, or the suffix is neither of these.
    """
    if path.suffix not in {".mha", ".mhd"}:
        raise UsageError(f"{path}: a MetaImage file ends in .mha or .mhd")
    _check_range(array_zyx, form, path)
    array, affine = oriented(array_zyx, affine_xyz, form.orientation, form.oblique_deg)
    voxels = array.astype(form.stored_dtype).tobytes(order="F")
    data = zlib.compress(voxels, _ZLIB_LEVEL) if form.compressed else voxels
    data_path = path.with_suffix(".zraw" if form.compressed else ".raw")
    data_file = "LOCAL" if path.suffix == ".mha" else data_path.name
    header = _header(array.shape, affine, form, len(data), data_file)
    path.parent.mkdir(parents=True, exist_ok=True)
    if data_file == "LOCAL":
        path.write_bytes(header + data)
    else:
        data_path.write_bytes(data)
        path.write_bytes(header)


def _check_range(array: npt.NDArray[Any], form: MetaImageForm, path: Path) -> None:
    """Refuse values that the stored integer type would wrap around."""
    if form.stored_dtype.kind == "f":
        return
    limits = np.iinfo(form.dtype)
    low, high = array.min(), array.max()
    if low < limits.min or high > limits.max:
        raise UsageError(
            f"{path}: {form.dtype} cannot hold the values {low} to {high}; choose another dtype"
        )


def _header(
    shape_ijk: tuple[int, ...],
    affine_ras: npt.NDArray[np.float64],
    form: MetaImageForm,
    data_bytes: int,
    data_file: str,
) -> bytes:
    affine_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine_ras
    spacing = np.linalg.norm(affine_lps[:3, :3], axis=0)
    size = f"CompressedDataSize = {data_bytes}\n" if form.compressed else ""
    text = (
        "ObjectType = Image\n"
        "NDims = 3\n"
        "BinaryData = True\n"
        f"BinaryDataByteOrderMSB = {form.big_endian}\n"
        f"CompressedData = {form.compressed}\n"
        f"{size}"
        f"TransformMatrix = {_text((affine_lps[:3, :3] / spacing).T)}\n"
        f"Offset = {_text(affine_lps[:3, 3])}\n"
        "CenterOfRotation = 0 0 0\n"
        f"AnatomicalOrientation = {form.orientation.translate(_OPPOSITE_LETTERS)}\n"
        f"ElementSpacing = {_text(spacing)}\n"
        f"DimSize = {' '.join(map(str, shape_ijk))}\n"
        f"ElementType = {_ELEMENT_TYPES[form.dtype]}\n"
        f"ElementDataFile = {data_file}\n"
    )
    return text.encode()


def _text(numbers: npt.NDArray[np.float64]) -> str:
    """Write numbers with all their digits; a matrix is written row by row."""
    return " ".join(repr(number) for number in numbers.ravel().tolist())
