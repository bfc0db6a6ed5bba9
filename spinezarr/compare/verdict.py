"""Which fault does a predicted mask have, in words?

Dice alone cannot tell vertebrae that are outlined well under the name of a neighbor from vertebrae
that are not found at all. So each true vertebra is first matched with the predicted one in its
place, and then the names are compared.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal

__all__ = ["FOUND_DICE", "GOOD_DICE", "LevelMatch", "Verdict", "VerdictKind", "judge"]

FOUND_DICE: Final = 0.5
"""Smallest Dice coefficient of a vertebra that counts as found, under any name.

Half of a vertebra reaches 0.67, and so do two vertebrae that are merged into one.
"""
GOOD_DICE: Final = 0.8
"""Dice coefficient below which the outline of a vertebra that was found is called poor."""

VerdictKind = Literal[
    "right", "shifted", "partly shifted", "poor outlines", "incomplete", "not found", "empty"
]
"""Fault of a prediction, the first that applies from the most to the least misleading:

- ``empty``: the truth has no vertebra;
- ``not found``: no vertebra was found, under any name;
- ``shifted``: all vertebrae that were found have names that are wrong by the same number of levels;
- ``partly shifted``: some of those that were found have wrong names;
- ``incomplete``: a vertebra was not found, or one was invented;
- ``poor outlines``: all were found, some with a poor outline;
- ``right``: none of these.
"""

_FOUND_RIGHT: Final = "were found, with the right names"
_NUMBERS: Final = ("no", "one", "two", "three", "four", "five", "six")


@dataclass(frozen=True, slots=True)
class LevelMatch:
    """A true vertebra, and the predicted one that covers it best."""

    vertebra: str
    predicted_name: str | None
    """Name that the prediction gives it; None if no predicted vertebra shares a voxel."""
    shift: int
    """Number of levels by which the predicted name is too low; negative if it is too high."""
    dice: float
    """Dice coefficient of the two."""

    @property
    def is_found(self) -> bool:
        """Whether the prediction outlines the vertebra, under any name."""
        return self.dice >= FOUND_DICE


@dataclass(frozen=True, slots=True)
class Verdict:
    """The fault of a prediction."""

    kind: VerdictKind
    text: str
    """One or more sentences."""
    shift: int
    """Number of levels by which most of the names are too low; 0 if most are right."""


def judge(matches: Sequence[LevelMatch], predicted: Sequence[str]) -> Verdict:
    """Name the fault of a prediction.

    Parameters
    ----------
    matches
        The true vertebrae, from head to tail.
    predicted
        Names in the prediction, from head to tail.

    Examples
    --------
    >>> judge([LevelMatch("T12", "T12", 0, 0.95), LevelMatch("L1", None, 0, 0.0)], ["T12"]).text
    '1 of 2 vertebrae was found, with the right name. Not found: L1.'
    """
    if not matches:
        more = f" Invented: {_ranges(predicted, predicted)}." if predicted else ""
        return Verdict("empty", f"The true mask has no vertebra.{more}", 0)
    found = [match for match in matches if match.is_found]
    names = [match.vertebra for match in matches]
    lost = [match.vertebra for match in matches if not match.is_found]
    poor = [match for match in found if match.dice < GOOD_DICE]
    known = {*names, *(match.predicted_name for match in found)}
    invented = [name for name in predicted if name not in known]
    shifts = [match.shift for match in found]
    kind = _kind(shifts, incomplete=bool(lost or invented), poor=bool(poor))
    sentences = list(_name_sentences(matches, found))
    if lost and found:
        sentences.append(f"Not found: {_ranges(lost, names)}.")
    if poor:
        worst = min(poor, key=lambda match: match.dice)
        poor_names = _ranges([match.vertebra for match in poor], names)
        sentences.append(
            f"Poor outlines: {poor_names} (lowest Dice {worst.dice:.2f}, {worst.vertebra})."
        )
    if invented:
        sentences.append(f"Invented: {_ranges(invented, predicted)}.")
    most_common = max(set(shifts), key=lambda s: (shifts.count(s), -abs(s)), default=0)
    return Verdict(kind, " ".join(sentences), most_common)


def _kind(shifts: Sequence[int], *, incomplete: bool, poor: bool) -> VerdictKind:
    if not shifts:
        return "not found"
    if any(shifts):
        return "shifted" if len(set(shifts)) == 1 else "partly shifted"
    if incomplete:
        return "incomplete"
    return "poor outlines" if poor else "right"


def _name_sentences(matches: Sequence[LevelMatch], found: Sequence[LevelMatch]) -> Iterator[str]:
    """Yield sentences on the names of the vertebrae that were found."""
    if not found:
        highest = max(match.dice for match in matches)
        yield (
            f"None of {len(matches)} vertebrae was found, under any name "
            f"(highest Dice {highest:.2f})."
        )
        return
    names = [match.vertebra for match in matches]
    right = [match.vertebra for match in found if match.shift == 0]
    wrong = [match for match in found if match.shift != 0]
    if not wrong:
        if len(found) == len(matches):
            yield f"All {len(matches)} vertebrae have the right names."
        else:
            ending = "was found, with the right name" if len(found) == 1 else _FOUND_RIGHT
            yield f"{len(found)} of {len(matches)} vertebrae {ending}."
        return
    amounts = " and ".join(dict.fromkeys(_number(abs(match.shift)) for match in wrong))
    parts = []
    for shift, group in groupby(wrong, key=lambda match: match.shift):
        rows = list(group)
        shown = _ranges([match.vertebra for match in rows], names)
        verb = "is" if len(rows) == 1 else "are"
        plural = "" if abs(shift) == 1 else "s"
        direction = "low" if shift > 0 else "high"
        example = f" ({rows[0].vertebra} is named {rows[0].predicted_name})"
        parts.append(
            f"{shown} {verb} named {_number(abs(shift))} level{plural} too {direction}{example}"
        )
    yield f"Right vertebrae, wrong names by {amounts}: {'; '.join(parts)}."
    if right:
        yield f"Right names: {_ranges(right, names)}."


def _number(count: int) -> str:
    return _NUMBERS[count] if count < len(_NUMBERS) else str(count)


def _ranges(names: Sequence[str], order: Sequence[str]) -> str:
    """Return names as text, and names that follow each other in ``order`` as a range.

    Examples
    --------
    >>> _ranges(["T11", "T12", "L1", "L3"], ["T11", "T12", "L1", "L2", "L3"])
    'T11 to L1, L3'
    """
    runs: list[list[str]] = []
    for name in names:
        if runs and order.index(name) == order.index(runs[-1][-1]) + 1:
            runs[-1].append(name)
        else:
            runs.append([name])
    return ", ".join(run[0] if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)
