"""Which level of a prediction belongs to a true level, if all names are wrong by some levels?

A shift goes along the spine and not along the label values: T12 is followed by L1, or by T13 in a
patient who has it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from spinezarr.vertebrae import ANATOMICAL_ORDER, MULTI_SEGMENT_LEVELS, OPTIONAL_LEVELS

__all__ = ["LevelOrder", "is_free_vertebra"]


def is_free_vertebra(name: str) -> bool:
    """Return whether a level is a single vertebra, and not the sacrum or coccyx.

    VerSe labels, and so evaluates, only free vertebrae
    (https://verse2020.grand-challenge.org/Tasks/).

    Examples
    --------
    >>> is_free_vertebra("L6"), is_free_vertebra("sacrum")
    (True, False)
    """
    return name not in MULTI_SEGMENT_LEVELS


@dataclass(frozen=True, slots=True)
class LevelOrder:
    """The levels of one patient, from head to tail.

    Examples
    --------
    >>> LevelOrder.of({"T11", "T12", "L1"}).shifted("T12", 1)
    'L1'
    >>> LevelOrder.of({"T12", "T13", "L1"}).shifted("T12", 1)
    'T13'
    >>> LevelOrder.of({"T12", "L1"}).shifted("C1", -1) is None
    True
    """

    names: tuple[str, ...]

    @classmethod
    def of(cls, present: Iterable[str]) -> Self:
        """Return the usual levels, and those of T13 and L6 that one of the two masks names."""
        absent = OPTIONAL_LEVELS - set(present)
        return cls(tuple(name for name in ANATOMICAL_ORDER if name not in absent))

    def shifted(self, name: str, shift: int) -> str | None:
        """Return the level that lies ``shift`` levels toward the tail; None beyond the ends."""
        index = self.names.index(name) + shift
        return self.names[index] if 0 <= index < len(self.names) else None

    def shift_between(self, true_name: str, predicted_name: str) -> int:
        """Return by how many levels a predicted name lies further toward the tail."""
        return self.names.index(predicted_name) - self.names.index(true_name)

    def sorted(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names from head to tail."""
        return tuple(sorted(names, key=self.names.index))
