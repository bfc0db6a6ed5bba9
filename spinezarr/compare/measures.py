"""How well does one predicted mask agree with the truth, at every shift of its names?"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from spinezarr.compare.overlap import LabelMask, MaskOverlap, measure_overlap
from spinezarr.compare.shifts import LevelOrder, is_free_vertebra
from spinezarr.compare.surface import Surface, SurfaceDistances
from spinezarr.compare.verdict import LevelMatch, Verdict, judge
from spinezarr.compare.verse import VerseMeasures, identified_levels, mean
from spinezarr.geometry import Matrix4x4
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["MaskComparison", "ShiftComparison", "VertebraComparison", "compare_masks"]

_MM3_PER_CM3: Final = 1000.0
_MIN_SHIFT_DICE: Final = 0.1
"""A shift is compared if a vertebra then has this Dice coefficient, or more.

Neighbors that touch share fewer voxels. If all values are random, each of 25 vertebrae shares 0.04.
"""


@dataclass(frozen=True, slots=True)
class VertebraComparison:
    """One true vertebra, and the predicted one that a shift of names compares it with."""

    vertebra: str
    """True name."""
    predicted_name: str | None
    """Name in the prediction; None if the shift leads beyond the ends of the spine."""
    true_volume_cm3: float
    predicted_volume_cm3: float
    """Volume of the predicted vertebra; 0 if it is missing."""
    dice: float
    """Dice coefficient; 0 if the vertebra is missing."""
    hausdorff_mm: float | None
    """See :class:`spinezarr.compare.surface.SurfaceDistances`.

    None if the vertebra is missing, or if one of the surfaces has more voxels than
    :data:`spinezarr.compare.surface.MAX_SURFACE_VOXELS`.
    """
    hausdorff95_mm: float | None
    """As :attr:`hausdorff_mm`."""
    assd_mm: float | None
    """As :attr:`hausdorff_mm`."""
    centroid_distance_mm: float | None
    """Distance of the mean positions of the voxels; None if the vertebra is missing."""
    identified: bool | None
    """Whether it is identified by VerSe's rule; None for the sacrum and coccyx."""

    @property
    def is_missing(self) -> bool:
        """Whether the prediction has no voxel of this vertebra."""
        return self.centroid_distance_mm is None


@dataclass(frozen=True, slots=True)
class ShiftComparison:
    """A comparison in which each predicted name stands for the level ``shift`` levels above it."""

    shift: int
    """Number of levels by which the predicted names are too low; 0 compares equal names.

    At 1, the predicted L1 is compared with the true T12.
    """
    vertebrae: tuple[VertebraComparison, ...]
    """All vertebrae of the truth, from head to tail."""
    invented: tuple[str, ...]
    """Predicted names that stand for a level that the truth does not have."""
    verse: VerseMeasures

    @property
    def missing(self) -> tuple[str, ...]:
        """True names of the vertebrae that the prediction lacks."""
        return tuple(row.vertebra for row in self.vertebrae if row.is_missing)

    @property
    def hausdorff95_mm(self) -> float | None:
        """Mean over the free vertebrae that are not missing."""
        return mean(row.hausdorff95_mm for row in self._free)

    @property
    def assd_mm(self) -> float | None:
        """Mean over the free vertebrae that are not missing."""
        return mean(row.assd_mm for row in self._free)

    @property
    def _free(self) -> Iterator[VertebraComparison]:
        return (row for row in self.vertebrae if is_free_vertebra(row.vertebra))


@dataclass(frozen=True, slots=True)
class MaskComparison:
    """A predicted mask, compared with the truth."""

    shifts: tuple[ShiftComparison, ...] = field(repr=False)
    """Comparisons in ascending order of the shift: as named, and where else vertebrae overlap.

    At all further shifts, the Dice coefficient of each vertebra is below 0.1.
    """
    matches: tuple[LevelMatch, ...] = field(repr=False)
    """The predicted vertebra in the place of each true one, from head to tail."""
    verdict: Verdict
    ignored_values: tuple[int, ...]
    """Values of the prediction that are no vertebra."""

    @property
    def as_named(self) -> ShiftComparison:
        """The comparison of equal names."""
        return next(row for row in self.shifts if row.shift == 0)

    @property
    def best(self) -> ShiftComparison:
        """The shift with the highest Dice coefficient; of equal ones the smallest."""
        return max(self.shifts, key=lambda row: (row.verse.dice or 0.0, -abs(row.shift)))


def compare_masks(truth: LabelMask, prediction: LabelMask, affine_xyz: Matrix4x4) -> MaskComparison:
    """Compare a predicted mask with the true one.

    Parameters
    ----------
    truth, prediction
        Label values of :data:`spinezarr.vertebrae.NAME_OF_VALUE` with axes ``(z, y, x)`` on one
        grid. Other values are ignored.
    affine_xyz
        4 x 4 matrix from voxel ``(x, y, z, 1)`` to RAS+ mm. Voxels may be anisotropic, and axes
        oblique or sheared.

    Examples
    --------
    >>> truth = np.zeros((40, 9, 9), np.uint8)
    >>> truth[2:12], truth[14:24], truth[26:36] = (VALUE_OF_NAME[n] for n in ("L2", "L1", "T12"))
    >>> named_one_too_low = np.where(truth == 19, 20, np.where(truth, truth + 1, 0)).astype("u1")
    >>> comparison = compare_masks(truth, named_one_too_low, np.diag([1.0, 1.0, 2.0, 1.0]))
    >>> comparison.as_named.verse.dice, comparison.best.shift, comparison.best.verse.dice
    (0.0, 1, 1.0)
    >>> comparison.verdict.text
    'Right vertebrae, wrong names by one: T12 to L2 are named one level too low (T12 is named L1).'
    """
    overlap = measure_overlap(truth, prediction, affine_xyz)
    order = LevelOrder.of({*overlap.truth, *overlap.prediction})
    true_names = order.sorted(overlap.truth)
    shifts = _shifts(order, overlap)
    surfaces = _SurfacePairs(truth, prediction, affine_xyz, overlap)
    rows: dict[int, list[VertebraComparison]] = {shift: [] for shift in shifts}
    identified = {shift: _identified(order, overlap, shift) for shift in shifts}
    for true_name in true_names:
        for shift in shifts:
            predicted_name = order.shifted(true_name, shift)
            row = _compare_vertebra(
                true_name,
                predicted_name,
                overlap,
                surfaces.distances(true_name, predicted_name),
                voxel_mm3=abs(float(np.linalg.det(affine_xyz[:3, :3]))),
                is_identified=true_name in identified[shift],
            )
            rows[shift].append(row)
        surfaces.forget_above(order, order.shifted(true_name, shifts[0]))
    matches = _matches(order, overlap)
    return MaskComparison(
        shifts=tuple(_summarize(order, overlap, shift, rows[shift]) for shift in shifts),
        matches=matches,
        verdict=judge(matches, order.sorted(overlap.prediction)),
        ignored_values=overlap.ignored_values,
    )


def _shifts(order: LevelOrder, overlap: MaskOverlap) -> tuple[int, ...]:
    """Return the shifts that are compared, in ascending order; 0 is always one of them."""
    shifts = {
        order.shift_between(true_name, predicted_name)
        for true_name in overlap.truth
        for predicted_name in overlap.prediction
        if overlap.dice(true_name, predicted_name) >= _MIN_SHIFT_DICE
    }
    return tuple(sorted(shifts | {0}))


def _identified(order: LevelOrder, overlap: MaskOverlap, shift: int) -> Iterable[str]:
    """Return the true names of the vertebrae that are identified at a shift."""
    truth_mm = {
        name: level.centroid_xyz_mm
        for name, level in overlap.truth.items()
        if is_free_vertebra(name)
    }
    prediction_mm = {
        true_name: level.centroid_xyz_mm
        for predicted_name, level in overlap.prediction.items()
        if (true_name := order.shifted(predicted_name, -shift)) in truth_mm
    }
    return identified_levels(truth_mm, prediction_mm)


def _compare_vertebra(
    true_name: str,
    predicted_name: str | None,
    overlap: MaskOverlap,
    distances: SurfaceDistances | None,
    *,
    voxel_mm3: float,
    is_identified: bool,
) -> VertebraComparison:
    true_level = overlap.truth[true_name]
    predicted_level = overlap.prediction.get(predicted_name or "")
    centroid_distance_mm = None
    if predicted_level is not None:
        difference_mm = predicted_level.centroid_xyz_mm - true_level.centroid_xyz_mm
        centroid_distance_mm = float(np.linalg.norm(difference_mm))
    predicted_voxels = 0 if predicted_level is None else predicted_level.voxel_count
    return VertebraComparison(
        vertebra=true_name,
        predicted_name=predicted_name,
        true_volume_cm3=true_level.voxel_count * voxel_mm3 / _MM3_PER_CM3,
        predicted_volume_cm3=predicted_voxels * voxel_mm3 / _MM3_PER_CM3,
        dice=overlap.dice(true_name, predicted_name),
        hausdorff_mm=None if distances is None else distances.hausdorff_mm,
        hausdorff95_mm=None if distances is None else distances.hausdorff95_mm,
        assd_mm=None if distances is None else distances.assd_mm,
        centroid_distance_mm=centroid_distance_mm,
        identified=is_identified if is_free_vertebra(true_name) else None,
    )


def _summarize(
    order: LevelOrder, overlap: MaskOverlap, shift: int, rows: list[VertebraComparison]
) -> ShiftComparison:
    free = [row for row in rows if is_free_vertebra(row.vertebra)]
    return ShiftComparison(
        shift=shift,
        vertebrae=tuple(rows),
        invented=tuple(
            name
            for name in order.sorted(overlap.prediction)
            if order.shifted(name, -shift) not in overlap.truth
        ),
        verse=VerseMeasures(
            identification_rate=mean(float(bool(row.identified)) for row in free),
            mean_localization_distance_mm=mean(row.centroid_distance_mm for row in free),
            dice=mean(row.dice for row in free),
            hausdorff_mm=mean(row.hausdorff_mm for row in free),
        ),
    )


def _matches(order: LevelOrder, overlap: MaskOverlap) -> tuple[LevelMatch, ...]:
    """Find the predicted vertebra in the place of each true one, whatever its name is.

    Pairs are chosen by their Dice coefficient, the highest first, and each vertebra is in one pair.
    """
    pairs = [
        LevelMatch(true_name, predicted_name, order.shift_between(true_name, predicted_name), dice)
        for true_name in overlap.truth
        for predicted_name in overlap.prediction
        if (dice := overlap.dice(true_name, predicted_name))
    ]
    matched: dict[str, LevelMatch] = {}
    used: set[str | None] = set()
    for pair in sorted(pairs, key=lambda pair: (-pair.dice, abs(pair.shift))):
        if pair.vertebra not in matched and pair.predicted_name not in used:
            matched[pair.vertebra] = pair
            used.add(pair.predicted_name)
    return tuple(
        matched.get(name, LevelMatch(name, None, 0, 0.0)) for name in order.sorted(overlap.truth)
    )


class _SurfacePairs:
    """Computes surfaces when they are needed, and forgets them when they are not any more."""

    def __init__(
        self,
        truth: LabelMask,
        prediction: LabelMask,
        affine_xyz: Matrix4x4,
        overlap: MaskOverlap,
    ) -> None:
        self._masks = truth, prediction
        self._levels = overlap.truth, overlap.prediction
        self._affine_xyz = affine_xyz
        self._true_surface: tuple[str, Surface | None] = ("", None)
        self._predicted_surfaces: dict[str, Surface | None] = {}

    def distances(self, true_name: str, predicted_name: str | None) -> SurfaceDistances | None:
        """Return the distances of two levels; None if one of them has no usable surface."""
        if predicted_name is None or predicted_name not in self._levels[1]:
            return None
        if self._true_surface[0] != true_name:
            self._true_surface = (true_name, self._surface(0, true_name))
        if predicted_name not in self._predicted_surfaces:
            self._predicted_surfaces[predicted_name] = self._surface(1, predicted_name)
        a, b = self._true_surface[1], self._predicted_surfaces[predicted_name]
        return None if a is None or b is None else SurfaceDistances.between(a, b)

    def forget_above(self, order: LevelOrder, name: str | None) -> None:
        """Forget predicted surfaces above a level, as true levels come from head to tail."""
        if name is not None:
            above = order.names[: order.names.index(name)]
            for forgotten in self._predicted_surfaces.keys() & set(above):
                del self._predicted_surfaces[forgotten]

    def _surface(self, mask: int, name: str) -> Surface | None:
        box = self._levels[mask][name].box
        return Surface.of_label(self._masks[mask], VALUE_OF_NAME[name], box, self._affine_xyz)
