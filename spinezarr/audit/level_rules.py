"""Are the labeled vertebrae complete, in order, and of plausible size? No voxel is read.

Distances are between the mean positions of the labels' voxels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

from spinezarr.audit.finding import Finding, locate_voxel
from spinezarr.audit.levels import (
    WHOLE_VOLUME_CM3,
    Level,
    fragment_names,
    min_whole_volume_cm3,
    scan_levels,
)
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.severity import Severity
from spinezarr.vertebrae import MULTI_SEGMENT_LEVELS, levels_between

__all__ = [
    "border_contact",
    "empty_mask",
    "label_order",
    "large_vertebra",
    "skipped_level",
    "small_vertebra",
]

_ROOM_STEPS: Final = 1.5
"""Two labels at least this many usual steps apart have room for a vertebra between them.

This is half way between no vertebra (one step, such as T11 to L1 in people without T12) and one
vertebra (two steps).
"""

_MAX_STEPS: Final = 1.75
"""Adjacent levels further apart than this many usual steps are mislabeled.

In the real masks of lidc-idri-0001, sub-verse004 and the TotalSegmentator example, no step is above
1.3 times the median of the nearby steps.
"""

_NEARBY_PAIRS: Final = 4
"""Number of nearby pairs of levels whose median distance is the usual step.

It is small, because steps grow from 15 mm in the neck to 35 mm.
"""

_STRAY_STEPS: Final = 3
"""A fragment more than this many levels from every other label is mislabeled.

A nearer one may be a neighbor that the end of the volume cuts.
"""

_ABSENT_IN_VARIANTS: Final = ("T12",)
"""Levels that a person may lack: 11 thoracic vertebrae, as in sub-verse544 and sub-verse642."""

_LARGE_RATIO: Final = 1.6
"""Ratio to the size of its neighbors above which a label may hold two vertebrae.

No whole vertebra in the real masks of lidc-idri-0001, sub-verse004 and the TotalSegmentator example
is above 1.2 times the nearby ones, each relative to VerSe's median of its level.
"""

_MIN_NEIGHBORS: Final = 2
"""Smallest number of whole vertebrae from which the size of another is estimated."""

_MIN_REVERSED: Final = 3
"""Smallest number of vertebrae for which a reversed order is more than a swapped pair."""


@dataclass(frozen=True, slots=True, eq=False)
class _Spine:
    """The labeled levels of a scan from head to tail."""

    levels: tuple[Level, ...]
    fragment_names: frozenset[str]
    """Levels whose labels are too small to show the centers of their vertebrae."""
    strays: frozenset[str]
    """Fragments whose level is far from that of every other label."""

    @classmethod
    def of(cls, scan: ScanAttributes) -> "_Spine":
        levels = scan_levels(scan)
        fragments = fragment_names(levels)
        whole_levels = [level.name for level in levels if level.name not in fragments]
        strays = {
            level.name
            for level in levels
            if level.name in fragments
            and min((_levels_apart(level.name, name) for name in whole_levels), default=1)
            > _STRAY_STEPS
        }
        return cls(levels, fragments, frozenset(strays))

    @property
    def non_fragments(self) -> tuple[Level, ...]:
        """Levels whose labels are large enough to show the centers of their vertebrae."""
        return tuple(level for level in self.levels if level.name not in self.fragment_names)

    @property
    def inverted(self) -> frozenset[str]:
        """Levels that lie on the wrong side of a neighbor."""
        pairs = [(a, b) for a, b in pairwise(self.non_fragments) if _is_inverted(a, b)]
        return frozenset(level.name for pair in pairs for level in pair)

    def usual_step_mm(self, upper: Level, lower: Level) -> float | None:
        """Return the median step in mm of the pairs of levels nearest to a pair, without it."""
        excluded = self.inverted | MULTI_SEGMENT_LEVELS
        steps = [
            (
                min(_levels_apart(a.name, upper.name), _levels_apart(b.name, lower.name)),
                _distance_mm(a, b),
            )
            for a, b in pairwise(self.non_fragments)
            if (a.name, b.name) != (upper.name, lower.name)
            and not levels_between(a.name, b.name)
            and excluded.isdisjoint((a.name, b.name))
        ]
        nearest = [step for _, step in sorted(steps)[:_NEARBY_PAIRS]]
        return float(np.median(nearest)) if nearest else None


def _levels_apart(first: str, second: str) -> int:
    """Return the number of levels from one vertebra to another, in either direction."""
    return 1 + max(len(levels_between(first, second)), len(levels_between(second, first)))


def _distance_mm(upper: Level, lower: Level) -> float:
    return float(np.linalg.norm(upper.center_mm - lower.center_mm))


def _is_inverted(upper: Level, lower: Level) -> bool:
    return bool(upper.center_mm[2] < lower.center_mm[2])


def skipped_level(scan: ScanAttributes) -> Iterator[Finding]:
    """Find levels that are missing between two labeled ones.

    The distance between the labels above and below tells whether a vertebra is unlabeled or the
    numbers jump.
    """
    spine = _Spine.of(scan)
    present = [level for level in spine.levels if level.name not in spine.strays]
    for upper, lower in pairwise(present):
        missing = levels_between(upper.name, lower.name)
        if missing:
            yield _skipped_finding(scan, spine, upper, lower, missing)


def _skipped_finding(
    scan: ScanAttributes, spine: _Spine, upper: Level, lower: Level, missing: tuple[str, ...]
) -> Finding:
    distance, step = _distance_mm(upper, lower), spine.usual_step_mm(upper, lower)
    names = missing[0] if len(missing) == 1 else f"{missing[0]} to {missing[-1]}"
    verb = "is" if len(missing) == 1 else "are"
    text = f"{names} {verb} missing between {upper.name} and {lower.name}, {distance:.0f} mm apart"
    severity: Severity = "error"
    if step is None or not MULTI_SEGMENT_LEVELS.isdisjoint((upper.name, lower.name)):
        severity, step = "warning", None
        text += "; there is no usual step to compare with"
    elif distance > _ROOM_STEPS * step:
        text += f", {distance / step:.1f} usual steps: unlabeled vertebra"
    elif missing == _ABSENT_IN_VARIANTS:
        severity = "info"
        text += ", one usual step: a variant without it, or the labels below are off by one"
    else:
        text += f", {distance / step:.1f} usual steps: the labels jump"
    location = locate_voxel(scan, np.mean([upper.center_zyx, lower.center_zyx], axis=0))
    return Finding(
        scan.scan_id,
        "skipped-level",
        severity,
        text,
        vertebra=missing[0],
        voxel_zyx=location.voxel_zyx,
        position_xyz_mm=location.position_xyz_mm,
        facts={
            "missing": list(missing),
            "between": [upper.name, lower.name],
            "distance_mm": round(distance, 2),
            "usual_step_mm": None if step is None else round(step, 2),
        },
    )


def label_order(scan: ScanAttributes) -> Iterator[Finding]:
    """Find vertebrae in the wrong order, or too far from their neighbors."""
    spine = _Spine.of(scan)
    pairs = list(pairwise(spine.non_fragments))
    inverted = [pair for pair in pairs if _is_inverted(*pair)]
    if len(inverted) == len(pairs) and len(spine.non_fragments) >= _MIN_REVERSED:
        text = "all labels run from tail to head: image, mask or numbering is upside down"
        yield _pair_finding(scan, "label-order", text, inverted[0])
        return
    for upper, lower in inverted:
        depth = float(lower.center_mm[2] - upper.center_mm[2])
        text = f"{upper.name} lies {depth:.0f} mm below {lower.name}: swapped or misplaced labels"
        yield _pair_finding(scan, "label-order", text, (upper, lower))
    for upper, lower in pairs:
        step = spine.usual_step_mm(upper, lower)
        if step is None or not (spine.inverted | MULTI_SEGMENT_LEVELS).isdisjoint(
            (upper.name, lower.name)
        ):
            continue
        expected = step * _levels_apart(upper.name, lower.name)
        if _distance_mm(upper, lower) > _MAX_STEPS * expected:
            text = (
                f"{upper.name} and {lower.name} are {_distance_mm(upper, lower):.0f} mm apart, "
                f"{expected:.0f} mm are usual here: a label is misplaced, or a vertebra unlabeled"
            )
            yield _pair_finding(scan, "far-apart", text, (upper, lower))


def _pair_finding(scan: ScanAttributes, rule: str, text: str, pair: tuple[Level, Level]) -> Finding:
    upper, lower = pair
    location = locate_voxel(scan, upper.center_zyx)
    return Finding(
        scan.scan_id,
        rule,
        "error",
        text,
        vertebra=upper.name,
        voxel_zyx=location.voxel_zyx,
        position_xyz_mm=location.position_xyz_mm,
        facts={
            "pair": [upper.name, lower.name],
            "distance_mm": round(_distance_mm(upper, lower), 2),
            "centers_mm": [level.center_mm.round(2).tolist() for level in pair],
        },
    )


def small_vertebra(scan: ScanAttributes) -> Iterator[Finding]:
    """Find fragments, and vertebrae that are too small although no face of the volume cuts them."""
    spine = _Spine.of(scan)
    min_volumes_cm3 = min_whole_volume_cm3(spine.levels)
    for level in spine.levels:
        min_volume_cm3 = min_volumes_cm3.get(level.name, 0.0)
        uncut = not level.faces
        if level.volume_cm3 >= min_volume_cm3 or not (uncut or level.name in spine.fragment_names):
            continue
        rule, severity, description = _size_verdict(spine, level)
        location = locate_voxel(scan, level.center_zyx)
        yield Finding(
            scan.scan_id,
            rule,
            severity,
            f"{level.name} has {level.volume_cm3:.2f} cm3, a whole one at least "
            f"{min_volume_cm3:.1f}: {description}",
            vertebra=level.name,
            voxel_zyx=location.voxel_zyx,
            position_xyz_mm=location.position_xyz_mm,
            facts={
                "voxel_count": scan.vertebrae[level.name].voxel_count,
                "volume_cm3": round(level.volume_cm3, 3),
                "least_whole_cm3": round(min_volume_cm3, 2),
                "faces": list(level.faces),
            },
        )


def _size_verdict(spine: _Spine, level: Level) -> tuple[str, Severity, str]:
    """Return rule, severity and text for a vertebra that is too small."""
    if level.name in spine.strays:
        return "stray-label", "error", "a stray fragment, far from its place in the numbering"
    if level.name not in spine.fragment_names:
        return "small-vertebra", "warning", "incomplete, though no face of the volume cuts it"
    if level.touches_end:
        return "fragment", "warning", "a fragment at the end of the volume"
    return "fragment", "error", "a fragment inside the volume"


def large_vertebra(scan: ScanAttributes) -> Iterator[Finding]:
    """Find labels so much larger than their neighbors that they may hold two vertebrae."""
    spine = _Spine.of(scan)
    share = {
        level.name: level.volume_cm3 / WHOLE_VOLUME_CM3[level.name][1]
        for level in spine.non_fragments
        if level.name in WHOLE_VOLUME_CM3
    }
    uncut = [level.name for level in spine.non_fragments if level.name in share and not level.faces]
    for level in spine.non_fragments:
        others = [name for name in uncut if name != level.name]
        if level.name not in share or len(others) < _MIN_NEIGHBORS:
            continue
        nearest = sorted(others, key=lambda name: _levels_apart(name, level.name))[:_NEARBY_PAIRS]
        ratio = share[level.name] / float(np.median([share[name] for name in nearest]))
        if ratio <= _LARGE_RATIO:
            continue
        location = locate_voxel(scan, level.center_zyx)
        yield Finding(
            scan.scan_id,
            "large-vertebra",
            "warning",
            f"{level.name} has {level.volume_cm3:.1f} cm3, {ratio:.1f} times as much as its "
            "neighbors suggest: two vertebrae under one label?",
            vertebra=level.name,
            voxel_zyx=location.voxel_zyx,
            position_xyz_mm=location.position_xyz_mm,
            facts={
                "volume_cm3": round(level.volume_cm3, 3),
                "times_expected": round(ratio, 2),
                "neighbors": nearest,
            },
        )


_AXIS_AND_INDEX_OF_FACE: Final[dict[str, tuple[int, int]]] = {
    "inferior": (0, 0),
    "superior": (0, -1),
    "posterior": (1, 0),
    "anterior": (1, -1),
    "left": (2, 0),
    "right": (2, -1),
}
"""Axis of (z, y, x) and index along it of the voxels of each face."""


def border_contact(scan: ScanAttributes) -> Iterator[Finding]:
    """Find vertebrae that touch a face of the volume and may therefore be cut.

    This is a warning if only whole vertebrae should be annotated: VerSe leaves out those cut by the
    upper or lower end. The position is on the face, next to the center of the vertebra.
    """
    for level in scan_levels(scan):
        if not level.faces:
            continue
        should_be_unlabeled = scan.label_state == "whole-only" and level.touches_end
        index_zyx = list(level.center_zyx)
        for face in level.faces:
            axis, index = _AXIS_AND_INDEX_OF_FACE[face]
            index_zyx[axis] = index % scan.shape_zyx[axis]
        location = locate_voxel(scan, index_zyx)
        remark = ", where only whole vertebrae should be labeled" if should_be_unlabeled else ""
        yield Finding(
            scan.scan_id,
            "border-contact",
            "warning" if should_be_unlabeled else "info",
            f"{level.name} reaches the {_join_words(level.faces)} face{remark}",
            vertebra=level.name,
            voxel_zyx=location.voxel_zyx,
            position_xyz_mm=location.position_xyz_mm,
            facts={"faces": list(level.faces), "label_state": scan.label_state},
        )


def _join_words(words: Sequence[str]) -> str:
    return " and ".join(words)


def empty_mask(scan: ScanAttributes) -> Iterator[Finding]:
    """Find scans without a mask, and masks without a vertebra."""
    if scan.label_state == "none":
        yield Finding(scan.scan_id, "no-mask", "info", "the scan has no mask")
    elif not scan.vertebrae:
        yield Finding(scan.scan_id, "empty-mask", "error", "the mask shows no vertebra")
