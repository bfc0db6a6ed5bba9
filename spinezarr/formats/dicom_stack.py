"""Do DICOM slices form one evenly spaced block of voxels, and where does it lie?

DICOM positions are LPS+ mm. The resulting :class:`~spinezarr.geometry.Grid` is RAS+ mm.

References
----------
DICOM PS3.3 section C.7.6.2.1.1, Image Position (Patient) and Image Orientation (Patient):
https://dicom.nema.org/medical/dicom/current/output/chtml/part03/sect_C.7.6.2.html
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from spinezarr.errors import FormatError
from spinezarr.formats.affine import LPS_TO_RAS
from spinezarr.geometry import Grid
from spinezarr.text import count_noun

__all__ = ["SliceHeader", "drop_scouts", "join_first", "stack_slices"]

_COSINE_TOLERANCE: Final = 2e-3
"""Largest deviation of the two direction vectors from unit length and from a right angle.

Cosines rounded to three decimals are off by at most this; a wrong rotation is off by more.
"""
_SLICE_TOLERANCE: Final = 1e-4
"""Largest difference of cosines, and relative difference of spacings, between slices.

It moves the far corner of a slice of 512 pixels by a twentieth of a pixel.
"""
_MIN_SPACING_MM: Final = 0.01
"""Slices closer than this are at the same position. CT slices are at least 0.1 mm apart."""
_ROUNDING_MM: Final = 0.1
"""Error of a distance along an axis between two positions that are rounded to 0.1 mm.

Positions are decimal strings of at most 16 characters (PS3.5 section 6.2), and writers round them.
"""
_POSITION_TOLERANCE: Final = 0.1
"""Further allowed deviation of a slice, as a share of the smallest voxel spacing.

An image and its mask may be apart by the same share. A missing slice is a deviation of a whole
spacing.
"""
_MIN_TILT_DEG: Final = 0.1
"""Angle between step and normal above which 512 slices are displaced by about a voxel."""

_MAX_LISTED: Final = 3
"""Largest number of items named in a message."""
_MIN_STRETCH_GAPS: Final = 3
"""Smallest number of equal gaps in a row that are a spacing of their own.

One or two gaps of twice the usual length are missing slices.
"""
_MAX_SCOUTS: Final = 2
"""Largest number of scouts in a series: a frontal one and a lateral one."""
_MIN_NORMAL_LENGTH: Final = 0.9
"""Smallest length of the normal of a slice with valid directions."""
_ACROSS_COSINE: Final = float(np.cos(np.radians(45)))
"""Cosine of the angle above which a slice lies across the others."""

_Vectors = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SliceHeader:
    """The header fields of one slice, checked individually."""

    path: str
    """Path of the file."""
    frame: int | None
    """Number of the frame in a multi-frame file, from 0; None in a file with one slice."""
    position_lps_mm: tuple[float, ...]
    """Center of the first pixel (x, y, z) in LPS+ mm."""
    cosines: tuple[float, ...]
    """Six numbers: LPS+ direction of increasing column index, then of increasing row index."""
    spacing_rows_columns_mm: tuple[float, float]
    """Distance in mm between rows, then between columns."""
    shape_rows_columns: tuple[int, int]
    """Rows and columns."""
    bits_allocated: int
    """Bits of a stored pixel: 8, 16 or 32."""
    bits_stored: int
    """Number of the low bits that hold the value."""
    signed: bool
    """Whether the value is in two's complement."""
    rescale: tuple[float, float] | None
    """RescaleSlope and RescaleIntercept; None if the file has neither.

    A value is ``stored * slope + intercept``.
    """
    rescale_type: str
    """RescaleType, which is the unit of the values, in a form that messages may show.

    It is HU if the file states none (PS3.3 table C.8-3).
    """
    tilt_deg: float | None
    """GantryDetectorTilt; None if the file has none."""
    thickness_mm: float | None
    """SliceThickness; None if the file has none."""
    notes: tuple[str, ...]
    """Remarks for the user, in the same words for all slices to which they apply."""

    @property
    def name(self) -> str:
        """Name of the file, and the number of the frame from 1."""
        name = self.path.rsplit("/", 1)[-1]
        return name if self.frame is None else f"{name} frame {self.frame + 1}"

    @property
    def slope(self) -> float:
        """Factor of the stored values; 1 if the file has none."""
        return 1.0 if self.rescale is None else self.rescale[0]

    @property
    def intercept(self) -> float:
        """Offset, added after the factor, in units of :attr:`rescale_type`; 0 if there is none."""
        return 0.0 if self.rescale is None else self.rescale[1]


def drop_scouts(slices: Sequence[SliceHeader]) -> list[SliceHeader]:
    """Remove the scouts of a series: one or two slices that lie across all others.

    Some scanners write the scout (topogram) into the series that was planned on it, without
    LOCALIZER in ImageType.

    Parameters
    ----------
    slices
        Slices of one series, in any order.

    Returns
    -------
    list of SliceHeader
        Slices without scouts.
    """
    normals = np.array([np.cross(s.cosines[:3], s.cosines[3:]) for s in slices])
    (usual_normal, _), *_ = Counter(map(tuple, np.round(normals, 1).tolist())).most_common()
    # Slices with invalid directions are no scouts; they are refused later.
    lies_across = (np.abs(normals @ usual_normal) < _ACROSS_COSINE) & (
        np.linalg.norm(normals, axis=1) > _MIN_NORMAL_LENGTH
    )
    scouts = int(lies_across.sum())
    if not 0 < scouts <= min(_MAX_SCOUTS, len(slices) - scouts - 1):
        return list(slices)
    return [s for s, is_scout in zip(slices, lies_across.tolist(), strict=True) if not is_scout]


def stack_slices(slices: Sequence[SliceHeader], folder: str) -> tuple[list[SliceHeader], Grid]:
    """Sort slices by position along their normal, and return the grid that they form.

    Parameters
    ----------
    slices
        Slices of one series, in any order.
    folder
        Path of the folder, for messages.

    Returns
    -------
    slices : list of SliceHeader
        Slices in the order of k.
    grid : Grid
        Grid with axes i (column index), j (row index) and k, which increases along the cross
        product of their directions. The third column of the affine is the mean step between the
        positions of the slices.

    Raises
    ------
    FormatError
        If the slices differ in more than position, or are not evenly spaced on one line.
    """
    if len(slices) == 1:
        raise FormatError(
            f"{folder}: the series has a single slice, {slices[0].name}; expected at least 2. "
            "Download the whole series."
        )
    _check_alike(slices, folder)
    across, down = _directions(slices[0])
    normal = np.cross(across, down)
    normal /= np.linalg.norm(normal)
    depths_mm = np.array([s.position_lps_mm for s in slices]) @ normal
    ordered = [slices[i] for i in np.argsort(depths_mm, kind="stable")]
    positions_lps_mm = np.array([s.position_lps_mm for s in ordered])
    depths_mm = positions_lps_mm @ normal
    between_rows, between_columns = ordered[0].spacing_rows_columns_mm
    _check_repeated(ordered, depths_mm, folder)
    # The lower median is the right gap even if one of two gaps spans a missing slice.
    usual_gap_mm = float(np.percentile(np.diff(depths_mm), 50, method="lower"))
    tolerance_mm = _ROUNDING_MM + _POSITION_TOLERANCE * min(
        usual_gap_mm, between_rows, between_columns
    )
    _check_tilt(ordered, positions_lps_mm[-1] - positions_lps_mm[0], normal, tolerance_mm, folder)
    _check_even(ordered, depths_mm, usual_gap_mm, tolerance_mm, folder)
    step_mm = (positions_lps_mm[-1] - positions_lps_mm[0]) / (len(ordered) - 1)
    _check_straight(ordered, positions_lps_mm, step_mm, tolerance_mm, folder)
    affine = np.eye(4)
    affine[:3, :3] = np.stack([across * between_columns, down * between_rows, step_mm], axis=1)
    affine[:3, 3] = positions_lps_mm[0]
    rows, columns = ordered[0].shape_rows_columns
    return ordered, Grid((columns, rows, len(ordered)), LPS_TO_RAS @ affine)


def _directions(header: SliceHeader) -> tuple[_Vectors, _Vectors]:
    """Return unit vectors toward the next column and the next row."""
    across, down = np.array(header.cosines).reshape(2, 3)
    lengths = np.linalg.norm([across, down], axis=1)
    if np.abs(lengths - 1).max() > _COSINE_TOLERANCE or abs(across @ down) > _COSINE_TOLERANCE:
        raise FormatError(
            f"{header.path}: ImageOrientationPatient {_fmt(header.cosines)} is not two unit "
            f"vectors at a right angle: lengths {lengths[0]:.4f} and {lengths[1]:.4f}, product "
            f"{across @ down:.4f}. Export the series again."
        )
    return across / lengths[0], down / lengths[1]


def _check_alike(slices: Sequence[SliceHeader], folder: str) -> None:
    """Refuse slices that differ in orientation, size, spacing, type or kind of rescaling.

    Slope and intercept may differ from slice to slice. If only some slices had them, or if units
    differed, nobody could tell later which parts of the volume are in HU.
    """
    first = slices[0]

    def is_close(a: tuple[float, ...], b: tuple[float, ...], tolerance: float) -> bool:
        return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= tolerance

    def check(noun: str, describe: Callable[[SliceHeader], str], differing: bool) -> None:  # noqa: FBT001
        if differing:
            raise FormatError(
                f"{folder}: the slices of the series differ in {noun}: "
                f"{_counts(slices, describe)}; expected one. Keep only slices with one of these in "
                "the folder."
            )

    check(
        "size (rows x columns)",
        lambda s: f"{s.shape_rows_columns[0]} x {s.shape_rows_columns[1]}",
        any(s.shape_rows_columns != first.shape_rows_columns for s in slices),
    )
    check(
        "type",
        lambda s: (
            f"{'signed' if s.signed else 'unsigned'}, "
            f"{s.bits_stored} of {s.bits_allocated} bits stored"
        ),
        len({(s.signed, s.bits_stored, s.bits_allocated) for s in slices}) > 1,
    )
    check(
        "PixelSpacing (mm)",
        lambda s: _fmt(s.spacing_rows_columns_mm),
        any(
            not is_close(
                s.spacing_rows_columns_mm,
                first.spacing_rows_columns_mm,
                _SLICE_TOLERANCE * min(first.spacing_rows_columns_mm),
            )
            for s in slices
        ),
    )
    check(
        "rescaling (RescaleSlope and RescaleIntercept)",
        lambda s: "absent" if s.rescale is None else "present",
        len({s.rescale is None for s in slices}) > 1,
    )
    check("RescaleType", lambda s: s.rescale_type, len({s.rescale_type for s in slices}) > 1)
    check(
        "ImageOrientationPatient",
        lambda s: _fmt(s.cosines),
        any(not is_close(s.cosines, first.cosines, _SLICE_TOLERANCE) for s in slices),
    )


def _counts(slices: Sequence[SliceHeader], describe: Callable[[SliceHeader], str]) -> str:
    """Return the values of the slices, the most frequent first, each with an example file."""
    counts = Counter(describe(s) for s in slices)
    example = {describe(s): s.name for s in reversed(slices)}
    return join_first([f"{v} in {n} ({example[v]})" for v, n in counts.most_common()])


def _check_repeated(ordered: Sequence[SliceHeader], depths_mm: _Vectors, folder: str) -> None:
    pairs = [
        f"{a.name} and {b.name} at {_fmt(a.position_lps_mm)}"
        for (a, b), gap in zip(pairwise(ordered), np.diff(depths_mm), strict=True)
        if gap < _MIN_SPACING_MM
    ]
    if pairs:
        raise FormatError(
            f"{folder}: holds {count_noun(len(pairs), 'repeated slice')}, two at one position (LPS "
            f"mm): {join_first(pairs)}; expected each position once.{_thicknesses(ordered)} Keep "
            "one slice of each position."
        )


def _check_tilt(
    ordered: Sequence[SliceHeader],
    path_mm: _Vectors,
    normal: _Vectors,
    tolerance_mm: float,
    folder: str,
) -> None:
    """Refuse slices whose stack is not along their normal.

    ``path_mm`` is the vector from the position of the first slice to that of the last.
    """
    along_mm = float(path_mm @ normal)
    sideways_mm = float(np.linalg.norm(path_mm - along_mm * normal))
    degrees = float(np.degrees(np.arctan2(sideways_mm, along_mm)))
    if degrees > _MIN_TILT_DEG and sideways_mm > tolerance_mm:
        tilts = sorted({s.tilt_deg for s in ordered if s.tilt_deg is not None})
        stated = f" GantryDetectorTilt is {_fmt(tilts)} degrees." if tilts else ""
        raise FormatError(
            f"{folder}: the slices are stacked {degrees:.2f} degrees off their normal: from "
            f"{_fmt(ordered[0].position_lps_mm)} to {_fmt(ordered[-1].position_lps_mm)} (LPS mm) "
            f"they slip {sideways_mm:.2f} mm sideways over {along_mm:.2f} mm, expected at most "
            f"{tolerance_mm:.2f} mm.{stated} The gantry was tilted: resample the series to a "
            "straight stack first."
        )


def _check_even(
    ordered: Sequence[SliceHeader],
    depths_mm: _Vectors,
    usual_gap_mm: float,
    tolerance_mm: float,
    folder: str,
) -> None:
    """Refuse missing slices and uneven spacings."""
    gaps = np.diff(depths_mm)
    expected_mm = np.linspace(depths_mm[0], depths_mm[-1], len(depths_mm))
    deviations_mm = np.abs(depths_mm - expected_mm)
    uneven = np.abs(gaps - usual_gap_mm) > tolerance_mm
    if not uneven.any() and deviations_mm.max() <= tolerance_mm:
        return
    stretches = _stretches(gaps, tolerance_mm)
    if len(stretches) > 1:
        parts = [
            f"{count_noun(count, 'slice')} {spacing:.4g} mm apart" for spacing, count in stretches
        ]
        raise FormatError(
            f"{folder}: the series has {len(parts)} spacings: {', '.join(parts[:-1])} and "
            f"{parts[-1]}; expected one.{_thicknesses(ordered)} Keep the slices of one spacing in "
            "the folder, or resample the series."
        )
    gaps_in_steps = np.rint(gaps / usual_gap_mm).astype(int)
    # Each step across a gap may be off by the tolerance.
    is_multiple = (gaps_in_steps >= 1) & (
        np.abs(gaps - gaps_in_steps * usual_gap_mm) <= tolerance_mm * gaps_in_steps
    )
    gap_texts = [
        f"{gaps[k]:.3f} mm between {ordered[k].name} and {ordered[k + 1].name} at "
        f"{depths_mm[k]:.3f} and {depths_mm[k + 1]:.3f} mm along the normal"
        for k in np.flatnonzero(uneven).tolist()
    ]
    if uneven.any() and is_multiple[uneven].all():
        missing = [
            f"{gaps_in_steps[k] - 1} in {text}"
            for k, text in zip(np.flatnonzero(uneven), gap_texts, strict=True)
        ]
        count = int((gaps_in_steps[uneven] - 1).sum())
        raise FormatError(
            f"{folder}: {count_noun(count, 'slice')} {'is' if count == 1 else 'are'} missing: "
            f"{join_first(missing)}; expected {usual_gap_mm:.3f} mm everywhere, within "
            f"{tolerance_mm:.3f} mm.{_thicknesses(ordered)} Download the series again."
        )
    worst = int(deviations_mm.argmax())
    misplaced = f"{ordered[worst].name} is {deviations_mm[worst]:.3f} mm off its place"
    raise FormatError(
        f"{folder}: the slices are unevenly spaced, by {gaps.min():.3f} to {gaps.max():.3f} mm: "
        f"{join_first(gap_texts) or misplaced}; expected {usual_gap_mm:.3f} mm everywhere, within "
        f"{tolerance_mm:.3f} mm.{_thicknesses(ordered)} Keep the slices of one even stretch in the "
        "folder, or resample the series."
    )


def _stretches(gaps: _Vectors, tolerance_mm: float) -> list[tuple[float, int]]:
    """Return (spacing in mm, number of slices) of each evenly spaced stretch of a series.

    The stretches are in the order of the slices. The result has at most one item if the series does
    not consist of such stretches.
    """
    runs: list[list[float]] = []
    for gap in gaps.tolist():
        if runs and abs(gap - runs[-1][0]) <= tolerance_mm:
            runs[-1].append(gap)
        else:
            runs.append([gap])
    spacings: list[tuple[float, int]] = []
    # The first slice, and one after a single gap, belong to no earlier run.
    n_uncounted = 1
    n_single = 0
    for run in runs:
        if len(run) < _MIN_STRETCH_GAPS:
            n_single, n_uncounted = n_single + len(run), 1
            continue
        spacing, count = float(np.median(run)), len(run) + n_uncounted
        n_uncounted = 0
        matches = [
            i
            for i, (other, _) in enumerate(spacings)
            if _same_spacing(other, spacing, tolerance_mm)
        ]
        if matches:
            spacings[matches[0]] = (spacings[matches[0]][0], spacings[matches[0]][1] + count)
        else:
            spacings.append((spacing, count))
    return spacings if n_single < len(spacings) else spacings[:1]


def _same_spacing(a_mm: float, b_mm: float, tolerance_mm: float) -> bool:
    return abs(a_mm - b_mm) <= 2 * tolerance_mm


def _check_straight(
    ordered: Sequence[SliceHeader],
    positions: _Vectors,
    step_mm: _Vectors,
    tolerance_mm: float,
    folder: str,
) -> None:
    """Refuse slices that do not lie on the line from the first slice to the last."""
    expected_mm = positions[0] + np.arange(len(ordered))[:, None] * step_mm
    deviations_mm = np.linalg.norm(positions - expected_mm, axis=1)
    worst = int(deviations_mm.argmax())
    # Rounding moves a slice and both ends of the line, each in three coordinates.
    allowed_mm = tolerance_mm + _ROUNDING_MM
    if deviations_mm[worst] > allowed_mm:
        raise FormatError(
            f"{folder}: {ordered[worst].name} lies {deviations_mm[worst]:.3f} mm off the line of "
            f"the other slices: at {_fmt(ordered[worst].position_lps_mm)} (LPS mm), expected "
            f"{_fmt(expected_mm[worst].tolist())} within {allowed_mm:.3f} mm. Check the series in "
            "a viewer, and export it again."
        )


def _thicknesses(slices: Sequence[SliceHeader]) -> str:
    """Return a sentence with the thicknesses of the slices, if they differ; otherwise ''."""
    if len({s.thickness_mm for s in slices}) == 1:
        return ""

    def describe(header: SliceHeader) -> str:
        return "not stated" if header.thickness_mm is None else f"{header.thickness_mm:g} mm"

    return f" Their SliceThickness is {_counts(slices, describe)}."


def join_first(texts: Sequence[str]) -> str:
    """Join the first few texts, and count the others.

    Examples
    --------
    >>> join_first(["a", "b", "c", "d", "e"])
    'a; b; c; 2 more'
    """
    more = len(texts) - _MAX_LISTED
    return "; ".join([*texts[:_MAX_LISTED], *([f"{more} more"] if more > 0 else [])])


def _fmt(numbers: Sequence[Any]) -> str:
    return f"({', '.join(f'{n:.6g}' for n in numbers)})"
