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
    MULTI_SEGMENT_LEVELS,
    WHOLE_VOLUME_CM3,
    Level,
    fragment_names,
    levels_between,
    min_whole_volume_cm3,
    scan_levels,
)
from spinezarr.store.attributes import ScanAttributes
from spinezarr.store.severity import Severity

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

_FAR_STEPS: Final = 1.75
"""Adjacent levels further apart than this many usual steps are mislabeled.

In the real masks of lidc-idri-0001, sub-verse004 and the TotalSegmentator example, no step is above
1.3 times the median of the nearby steps.
"""

_NEAR_PAIRS: Final = 4
"""Number of nearby pairs whose median is the usual step. It is small, because steps grow from 15 mm
in the neck to 35 mm."""

_STRAY_STEPS: Final = 3
"""A fragment more than this many levels from every whole vertebra is no neighbor that was cut."""

_VARIANT: Final = ("T12",)
"""Levels that a person may lack: 11 thoracic vertebrae, as in sub-verse544 and sub-verse642."""

_LARGE: Final = 1.6
"""Ratio to the size of its neighbors above which a label may hold two vertebrae.

No whole vertebra in the real masks of lidc-idri-0001, sub-verse004 and the TotalSegmentator example
is above 1.2 times the nearby ones, each relative to VerSe's median of its level.
"""

_MIN_NEIGHBORS: Final = 2
"""Least number of whole vertebrae from which the size of another is estimated."""

_MIN_REVERSED: Final = 3
"""Least number of vertebrae for which a reversed order is more than a swapped pair."""


@dataclass(frozen=True, slots=True, eq=False)
class _Spine:
    """The labeled levels of a scan from head to tail."""

    levels: tuple[Level, ...]
    fragment_names: frozenset[str]
    """Levels that are too small for their centers to be those of vertebrae."""
    strays: frozenset[str]
    """Fragments without a neighbor in the numbering."""

    @classmethod
    def of(cls, scan: ScanAttributes) -> "_Spine":
        levels = scan_levels(scan)
        small = fragment_names(levels)
        whole = [level.name for level in levels if level.name not in small]
        strays = {
            level.name
            for level in levels
            if level.name in small
            and min((_steps(level.name, name) for name in whole), default=1) > _STRAY_STEPS
        }
        return cls(levels, small, frozenset(strays))

    @property
    def placed(self) -> tuple[Level, ...]:
        """Levels that are no fragments, so that their centers are those of vertebrae."""
        return tuple(level for level in self.levels if level.name not in self.fragment_names)

    @property
    def inverted(self) -> frozenset[str]:
        """Levels that lie on the wrong side of a neighbor."""
        pairs = [(a, b) for a, b in pairwise(self.placed) if _is_inverted(a, b)]
        return frozenset(level.name for pair in pairs for level in pair)

    def usual_step_mm(self, upper: Level, lower: Level) -> float | None:
        """Return the median step in mm of the pairs of levels nearest to a pair, without it."""
        at = self.placed
        unsure = self.inverted | MULTI_SEGMENT_LEVELS
        steps = [
            (min(_steps(a.name, upper.name), _steps(b.name, lower.name)), _distance_mm(a, b))
            for a, b in pairwise(at)
            if (a.name, b.name) != (upper.name, lower.name)
            and not levels_between(a.name, b.name)
            and unsure.isdisjoint((a.name, b.name))
        ]
        near = [step for _, step in sorted(steps)[:_NEAR_PAIRS]]
        return float(np.median(near)) if near else None


def _steps(one: str, other: str) -> int:
    """Return the number of levels from one vertebra to another, in either direction."""
    return 1 + max(len(levels_between(one, other)), len(levels_between(other, one)))


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
        text += "; no usual step to compare with"
    elif distance > _ROOM_STEPS * step:
        text += f", {distance / step:.1f} usual steps: unlabeled vertebra"
    elif missing == _VARIANT:
        severity = "info"
        text += ", one usual step: a variant without it, or the labels below are one off"
    else:
        text += f", {distance / step:.1f} usual steps: the labels jump"
    where = locate_voxel(scan, np.mean([upper.center_zyx, lower.center_zyx], axis=0))
    return Finding(
        scan.scan_id,
        "skipped-level",
        severity,
        text,
        vertebra=missing[0],
        voxel_zyx=where.voxel_zyx,
        position_xyz_mm=where.position_xyz_mm,
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
    pairs = list(pairwise(spine.placed))
    inverted = [pair for pair in pairs if _is_inverted(*pair)]
    if len(inverted) == len(pairs) and len(spine.placed) >= _MIN_REVERSED:
        text = "all labels run from tail to head: image, mask or numbering is upside down"
        yield _about_pair(scan, "label-order", text, inverted[0])
        return
    for upper, lower in inverted:
        depth = float(lower.center_mm[2] - upper.center_mm[2])
        text = f"{upper.name} lies {depth:.0f} mm below {lower.name}: swapped or misplaced labels"
        yield _about_pair(scan, "label-order", text, (upper, lower))
    for upper, lower in pairs:
        step = spine.usual_step_mm(upper, lower)
        if step is None or not (spine.inverted | MULTI_SEGMENT_LEVELS).isdisjoint(
            (upper.name, lower.name)
        ):
            continue
        expected = step * _steps(upper.name, lower.name)
        if _distance_mm(upper, lower) > _FAR_STEPS * expected:
            text = (
                f"{upper.name} and {lower.name} are {_distance_mm(upper, lower):.0f} mm apart, "
                f"{expected:.0f} mm are usual here: a label is misplaced or a vertebra unlabeled"
            )
            yield _about_pair(scan, "far-apart", text, (upper, lower))


def _about_pair(scan: ScanAttributes, rule: str, text: str, pair: tuple[Level, Level]) -> Finding:
    upper, lower = pair
    where = locate_voxel(scan, upper.center_zyx)
    return Finding(
        scan.scan_id,
        rule,
        "error",
        text,
        vertebra=upper.name,
        voxel_zyx=where.voxel_zyx,
        position_xyz_mm=where.position_xyz_mm,
        facts={
            "pair": [upper.name, lower.name],
            "distance_mm": round(_distance_mm(upper, lower), 2),
            "centers_mm": [level.center_mm.round(2).tolist() for level in pair],
        },
    )


def small_vertebra(scan: ScanAttributes) -> Iterator[Finding]:
    """Find fragments, and vertebrae that are too small although no face of the volume cuts them."""
    spine = _Spine.of(scan)
    whole = min_whole_volume_cm3(spine.levels)
    for level in spine.levels:
        least = whole.get(level.name, 0.0)
        uncut = not level.faces
        if level.volume_cm3 >= least or not (uncut or level.name in spine.fragment_names):
            continue
        rule, severity, what = _size_verdict(spine, level)
        where = locate_voxel(scan, level.center_zyx)
        yield Finding(
            scan.scan_id,
            rule,
            severity,
            f"{level.name} has {level.volume_cm3:.2f} cm3, whole at least {least:.1f}: {what}",
            vertebra=level.name,
            voxel_zyx=where.voxel_zyx,
            position_xyz_mm=where.position_xyz_mm,
            facts={
                "voxel_count": scan.vertebrae[level.name].voxel_count,
                "volume_cm3": round(level.volume_cm3, 3),
                "least_whole_cm3": round(least, 2),
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
        for level in spine.placed
        if level.name in WHOLE_VOLUME_CM3
    }
    uncut = [level.name for level in spine.placed if level.name in share and not level.faces]
    for level in spine.placed:
        others = [name for name in uncut if name != level.name]
        if level.name not in share or len(others) < _MIN_NEIGHBORS:
            continue
        near = sorted(others, key=lambda name: _steps(name, level.name))[:_NEAR_PAIRS]
        times = share[level.name] / float(np.median([share[name] for name in near]))
        if times <= _LARGE:
            continue
        where = locate_voxel(scan, level.center_zyx)
        yield Finding(
            scan.scan_id,
            "large-vertebra",
            "warning",
            f"{level.name} has {level.volume_cm3:.1f} cm3, {times:.1f} times as much as its "
            "neighbors suggest: two vertebrae under one label?",
            vertebra=level.name,
            voxel_zyx=where.voxel_zyx,
            position_xyz_mm=where.position_xyz_mm,
            facts={
                "volume_cm3": round(level.volume_cm3, 3),
                "times_expected": round(times, 2),
                "neighbors": near,
            },
        )


_FACE_AT: Final[dict[str, tuple[int, int]]] = {
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
        unexpected = scan.label_state == "whole-only" and level.touches_end
        at = list(level.center_zyx)
        for face in level.faces:
            axis, index = _FACE_AT[face]
            at[axis] = index % scan.shape_zyx[axis]
        where = locate_voxel(scan, at)
        rest = ", where only whole vertebrae should be labeled" if unexpected else ""
        yield Finding(
            scan.scan_id,
            "border-contact",
            "warning" if unexpected else "info",
            f"{level.name} reaches the {_join_words(level.faces)} face{rest}",
            vertebra=level.name,
            voxel_zyx=where.voxel_zyx,
            position_xyz_mm=where.position_xyz_mm,
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
