r"""Where in RAS+ mm do the vertebra centers of a centroid file lie?

Each convention is one matrix from the coordinates in the file to voxel indices ``(i, j, k)`` of the
image. The affine of the image, oblique or not, converts these to mm.

========================= =========================================================================
``verse``                 Subject-based VerSe release: X, Y, Z are voxel coordinates, 0 at the
                          center of the first voxel, along axes toward the three letters of the
                          file's ``direction`` entry.
``verse-2019-challenge``  The file has no such entry: X, Y, Z are mm along axes toward I, P and L.
``verse-2020-challenge``  The file has no such entry: X, Y, Z are mm along axes toward P, I and R.
``lml``                   Microsoft/UW spine: mm from the first voxel along the file's own axes, so
                          that voxel = mm / spacing. Only the affine holds offset and direction.
========================= =========================================================================

**Flipped axes.** If ``direction`` and the image's axis are opposed, voxel ``x`` of ``size`` becomes
voxel ``size - 1 - x``. This is the same voxel, as if nibabel flipped the array. VerSe's own
``reorient_centroids_to`` computes ``size - x``, which is the next voxel [1]_.

**Challenge files** are read as the published readers of both challenges do [2]_. The image has axes
toward L, P and S, with the center of its first voxel at 0 mm. An axis that runs the other way is
flipped as ``size * spacing - x``, not as ``(size - 1) * spacing - x``:

* 2019: ``(l, p, s) = (Z, Y, size_s * spacing_s - X)``;
* 2020: ``(l, p, s) = (size_l * spacing_l - Z, X, size_s * spacing_s - Y)``.

**Accuracy.** Neither dataset states whether coordinates count from 0 or 1, or from the center or
the corner of a voxel. This module assumes 0 at the center; the error is at most one voxel along
each axis. One point allows a cross-check. A user quotes label 16 of a 2019 challenge file, probably
verse004, at (42, 78, 57) in whole mm [3]_. The subject-based file of sub-verse004 has this point at
voxel (79.1, 40.9, 32.3) toward P, I and R. The quoted point, read as above, is at voxel (78.0,
41.0, 31.5).

References
----------
.. [1] https://github.com/anjany/verse, ``utils/data_utilities.py``
.. [2] https://github.com/christianpayer/MedicalDataAugmentationTool-VerSe,
   ``verse2019/other/preprocess_landmarks.py``
.. [3] https://github.com/luiserrador/IndVertSeg_VerSe, issue 2
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, get_args

import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError
from spinezarr.formats.landmarks import LandmarkFile, parse_lml, parse_verse_json
from spinezarr.geometry import Grid, Matrix4x4
from spinezarr.recipe import CentroidConvention
from spinezarr.vertebrae import LEVELS

__all__ = ["CentroidConvention", "Centroids", "misordered_levels", "read_centroids"]

_CHALLENGE_AXES: Final = {"verse-2019-challenge": "IPL", "verse-2020-challenge": "PIR"}
"""Directions toward which X, Y and Z of each challenge increase."""
_AXIS_OF_LETTER: Final = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}

_MAX_LISTED: Final = 30
"""Largest number of points named in a note. There are 28 levels."""


@dataclass(frozen=True, slots=True)
class Centroids:
    """Annotated vertebra centers of one scan."""

    positions_xyz_mm: dict[str, tuple[float, float, float]]
    """Position (x, y, z) in RAS+ mm of each level, from head to tail."""
    notes: tuple[str, ...]
    """Remarks for the user on points that are skipped, repeated or outside the image."""


def read_centroids(
    text: bytes, path: str, *, convention: CentroidConvention, grid: Grid
) -> Centroids:
    r"""Read a centroid file.

    Points of unknown levels and points without a position are skipped. If a level occurs more than
    once, its first point counts. Points more than one voxel outside the image are kept. The notes
    mention all of these.

    Parameters
    ----------
    text
        Content of the file.
    path
        Path of the file, for messages.
    convention
        Meaning of the coordinates. A ``direction`` entry overrides a challenge convention.
    grid
        Grid of the annotated image, in file order.

    Returns
    -------
    Centroids
        Positions in RAS+ mm.

    Raises
    ------
    FormatError
        If the file does not follow the convention; the message names the entry or line.

    Examples
    --------
    >>> grid = Grid((9, 9, 9), np.diag([-1.0, -1.0, 2.0, 1.0]))
    >>> text = b"# 0\r\n200\tL1_center\t3\t4\t12\r\n"
    >>> read_centroids(text, "scan.lml", convention="lml", grid=grid).positions_xyz_mm
    {'L1': (-3.0, -4.0, 12.0)}
    """
    if not text.strip():
        raise FormatError(f"{path}: is empty. Download it again.")
    if convention == "lml":
        parsed = parse_lml(text, path)
        to_index = _scaling(1 / np.linalg.norm(grid.affine_ijk[:3, :3], axis=0))
    else:
        parsed = parse_verse_json(text, path)
        to_index = _verse_to_index(parsed, path, convention, grid)
    return _to_centroids(parsed, to_index, grid)


def _verse_to_index(
    parsed: LandmarkFile, path: str, convention: CentroidConvention, grid: Grid
) -> Matrix4x4:
    """Return the 4 x 4 matrix from ``(X, Y, Z, 1)`` of the file to voxel ``(i, j, k, 1)``."""
    axcodes = grid.axis_map.axcodes
    last_ijk = np.array(grid.shape_ijk) - 1
    if parsed.direction is not None:
        return _axis_change(parsed.direction, axcodes, last_ijk)
    if convention == "verse":
        raise FormatError(
            f"{path}: its first entry states no 'direction', as files of the subject-based release "
            f"do. There are the conventions {', '.join(get_args(CentroidConvention))}: "
            "choose the convention of the challenge that the file comes from."
        )
    spacing_lps = np.array(grid.spacing_zyx_mm[::-1])
    extent_lps_mm = np.array(grid.shape_zyx[::-1]) * spacing_lps
    to_lps_mm = _axis_change(_CHALLENGE_AXES[convention], "LPS", extent_lps_mm)
    return _axis_change("LPS", axcodes, last_ijk) @ _scaling(1 / spacing_lps) @ to_lps_mm


def _axis_change(source: str, target: str, flipped_zero: npt.NDArray[np.generic]) -> Matrix4x4:
    """Return the 4 x 4 matrix that turns axes toward ``source`` into axes toward ``target``.

    ``flipped_zero`` holds for each target axis the coordinate that 0 becomes if it is flipped.
    """
    matrix = np.zeros((4, 4))
    matrix[3, 3] = 1
    world_axes = [_AXIS_OF_LETTER[letter] for letter in target]
    for column, letter in enumerate(source):
        row = world_axes.index(_AXIS_OF_LETTER[letter])
        flipped = target[row] != letter
        matrix[row, column] = -1 if flipped else 1
        matrix[row, 3] = flipped_zero[row] if flipped else 0
    return matrix


def _scaling(factors: npt.NDArray[np.float64]) -> Matrix4x4:
    """Return the 4 x 4 matrix that multiplies each coordinate by its factor."""
    return np.diag([*factors, 1.0])


def _to_centroids(parsed: LandmarkFile, to_index: Matrix4x4, grid: Grid) -> Centroids:
    """Convert the landmarks of a file to positions in RAS+ mm."""
    positions_xyz_mm: dict[str, tuple[float, float, float]] = {}
    for landmark in parsed.landmarks:
        index_ijk = (to_index @ [*landmark.coordinates, 1])[:3]
        x, y, z = (grid.affine_ijk @ [*index_ijk, 1])[:3].tolist()
        if landmark.level in positions_xyz_mm:
            distance_mm = np.linalg.norm(np.subtract(positions_xyz_mm[landmark.level], (x, y, z)))
            repeated = f"{landmark.level} ({distance_mm:.1f} mm apart)"
            parsed.remark("named more than once; the first counts", repeated)
            continue
        positions_xyz_mm[landmark.level] = (x, y, z)
        outside_mm = _outside_mm(index_ijk, grid)
        if outside_mm is not None:
            outside = f"{landmark.level} (by {outside_mm:.1f} mm)"
            parsed.remark("outside the image", outside)
    notes = tuple(f"{remark}: {_join_points(points)}" for remark, points in parsed.remarks.items())
    return Centroids(
        {level: positions_xyz_mm[level] for level in LEVELS if level in positions_xyz_mm}, notes
    )


def _join_points(points: Sequence[str]) -> str:
    more = len(points) - _MAX_LISTED
    return ", ".join([*points[:_MAX_LISTED], *([f"{more} more"] if more > 0 else [])])


def _outside_mm(index_ijk: npt.NDArray[np.float64], grid: Grid) -> float | None:
    """Return the distance in mm to the nearest voxel center; None up to one voxel outside.

    One voxel is allowed, because conventions differ by one voxel.
    """
    outside_ijk = np.maximum(-index_ijk, index_ijk - (np.array(grid.shape_ijk) - 1)).clip(min=0)
    if outside_ijk.max() <= 1:
        return None
    return float(np.linalg.norm(grid.affine_ijk[:3, :3] @ outside_ijk))


def misordered_levels(
    positions_xyz_mm: Mapping[str, Sequence[float]],
) -> tuple[tuple[str, str], ...]:
    """Return the pairs of levels that do not run from head to tail.

    Each level is compared with the next one present by its superior coordinate. Of S1, S2, sacrum
    and coccyx only the uppermost one present is compared, with the vertebra above it. In a strongly
    tilted pelvis the sacrum is nearly horizontal, and the center of the whole sacrum has no fixed
    position among the centers of its parts.

    Parameters
    ----------
    positions_xyz_mm
        Position (x, y, z) in RAS+ mm of each level.

    Returns
    -------
    tuple
        Pairs of level names: the one that should be above, then the one that should be below.

    Examples
    --------
    >>> misordered_levels({"T12": (0, 0, 60), "L1": (0, 0, 90), "L2": (0, 0, 30)})
    (('T12', 'L1'),)
    """
    present_levels = [level for level in LEVELS if level in positions_xyz_mm]
    sacral = LEVELS[LEVELS.index("S1") :]
    first_sacral = next((level for level in present_levels if level in sacral), None)
    compared = [level for level in present_levels if level not in sacral or level == first_sacral]
    return tuple(
        (upper, lower)
        for upper, lower in pairwise(compared)
        if not positions_xyz_mm[lower][2] < positions_xyz_mm[upper][2]
    )
