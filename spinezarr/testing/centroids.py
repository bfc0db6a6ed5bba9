"""Writes centroid files in each convention that datasets use.

The module shares no code with the reader under test. nibabel's transforms give the orientation.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import nibabel as nib
import numpy as np
import numpy.typing as npt

from spinezarr.errors import UsageError
from spinezarr.geometry import ShapeIJK
from spinezarr.vertebrae import VALUE_OF_NAME

# nibabel has few annotations, so strict mypy would refuse each call.
_nib: Any = nib

__all__ = ["VerseConvention", "lml_text", "verse_json"]

VerseConvention = Literal["verse", "verse-2019-challenge", "verse-2020-challenge"]
"""Convention of the subject-based release, or of one of the two challenges."""

_LML_IDS: Final[dict[str, int]] = {
    **{f"C{n}": 10 * n for n in range(1, 8)},
    **{f"T{n}": 70 + 10 * n for n in range(1, 13)},
    **{f"L{n}": 190 + 10 * n for n in range(1, 6)},
    "S1": 250,
    "S2": 260,
}


def verse_json(
    position_xyz_mm: Mapping[str, Sequence[float]],
    shape_ijk: ShapeIJK,
    affine_ijk: npt.NDArray[np.float64],
    convention: VerseConvention,
    decimals: int | None = 1,
) -> str:
    """Compose a centroid file of VerSe.

    Parameters
    ----------
    position_xyz_mm
        Position (x, y, z) of each level in RAS+ mm. NaN is written as ``NaN``.
    shape_ijk
        Voxels of the image along its file's axes.
    affine_ijk
        4 x 4 matrix from voxel ``(i, j, k, 1)`` of the image to RAS+ mm.
    convention
        The subject-based release has voxel coordinates below a ``direction`` entry. The challenges
        have mm and no such entry.
    decimals
        Decimals of the numbers; 1 as in the published files, None for all.

    Raises
    ------
    UsageError
        If a level has no label in VerSe.
    """
    _refuse_unknown_levels(position_xyz_mm, VALUE_OF_NAME, "label in VerSe")
    points = np.array(list(position_xyz_mm.values()), float).reshape(-1, 3)
    if convention == "verse":
        axcodes = list(_nib.aff2axcodes(affine_ijk))
        header = [{"direction": axcodes}]
        coordinates = _nib.affines.apply_affine(np.linalg.inv(affine_ijk), points)
    else:
        header = []
        coordinates = _challenge_mm(points, shape_ijk, affine_ijk, convention)
    rows = coordinates.tolist() if decimals is None else np.round(coordinates, decimals).tolist()
    entries = [
        {"label": VALUE_OF_NAME[level], "X": x, "Y": y, "Z": z}
        for level, (x, y, z) in zip(position_xyz_mm, rows, strict=True)
    ]
    return json.dumps([*header, *entries])


def _challenge_mm(
    points_mm: npt.NDArray[np.float64],
    shape_ijk: ShapeIJK,
    affine_ijk: npt.NDArray[np.float64],
    convention: VerseConvention,
) -> npt.NDArray[np.float64]:
    """Measure in mm from the first voxel of the image in LPS, like the challenges' readers."""
    transform = _nib.orientations.ornt_transform(
        _nib.io_orientation(affine_ijk), _nib.orientations.axcodes2ornt("LPS")
    )
    affine_lps = affine_ijk @ _nib.orientations.inv_ornt_aff(transform, shape_ijk)
    shape_lps = _nib.orientations.apply_orientation(np.empty(shape_ijk, np.bool_), transform).shape
    spacing_lps = _nib.affines.voxel_sizes(affine_lps)
    left, posterior, superior = (
        _nib.affines.apply_affine(np.linalg.inv(affine_lps), points_mm) * spacing_lps
    ).T
    width, _, height = shape_lps * spacing_lps
    if convention == "verse-2019-challenge":
        return np.stack([height - superior, posterior, left], axis=1)
    return np.stack([posterior, height - superior, width - left], axis=1)


def lml_text(
    position_xyz_mm: Mapping[str, Sequence[float]],
    affine_ijk: npt.NDArray[np.float64],
    decimals: int | None = None,
    header: str = "# 0",
) -> str:
    """Compose an ``.lml`` file of the Microsoft/UW spine dataset.

    Parameters
    ----------
    position_xyz_mm
        Position (x, y, z) of each level in RAS+ mm.
    affine_ijk
        4 x 4 matrix from voxel ``(i, j, k, 1)`` of the image to RAS+ mm.
    decimals
        Decimals of the numbers; None for six significant digits, as in the published files.
    header
        First line of the file.

    Raises
    ------
    UsageError
        If a level has no known id.
    """
    _refuse_unknown_levels(position_xyz_mm, _LML_IDS, "known id in .lml files")
    to_index = np.linalg.inv(affine_ijk)
    spacing = _nib.affines.voxel_sizes(affine_ijk)
    form = "%g" if decimals is None else f"%.{decimals}f"
    lines = [header]
    for level, point in position_xyz_mm.items():
        numbers = [form % mm for mm in _nib.affines.apply_affine(to_index, point) * spacing]
        lines.append("\t".join([str(_LML_IDS[level]), f"{level}_center", *numbers]))
    return "\r\n".join([*lines, ""])


def _refuse_unknown_levels(
    position_xyz_mm: Mapping[str, Sequence[float]], known: Mapping[str, int], noun: str
) -> None:
    unknown = [level for level in position_xyz_mm if level not in known]
    if unknown:
        raise UsageError(f"{', '.join(unknown)}: no {noun}; choose among {', '.join(known)}")
