"""Which labels does a list of errata give the vertebrae of a scan?"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Self

from spinezarr.errors import LabelError
from spinezarr.vertebrae import NAME_OF_VALUE, VALUE_OF_NAME

__all__ = ["LabelCorrection"]

_PAIR: Final = re.compile("([^>]+)>([^>]+)")
_ADVICE: Final = (
    "so its labels cannot be corrected. Ingest with --errata mark, or with the mask that the list "
    "is about."
)


@dataclass(frozen=True, slots=True)
class LabelCorrection:
    """New labels of the vertebrae of one scan, as a list of errata states them.

    The list states either pairs of levels, or the level of each vertebra from the top down.

    Examples
    --------
    >>> shift = LabelCorrection.parse("L1>T13 L2>L1", "a list")
    >>> shift.new_values({19: 30.0, 20: 20.0, 21: 10.0})
    {20: 28, 21: 20}
    >>> LabelCorrection.parse("T11 T12 L1", "a list").new_values({19: 30.0, 20: 20.0, 21: 10.0})
    {19: 18, 20: 19, 21: 20}
    """

    source: str
    """Who says so."""
    pairs: tuple[tuple[int, int], ...] = ()
    """Present and new label of each vertebra that changes."""
    levels: tuple[int, ...] = ()
    """New label of each vertebra of the mask from the top down; empty if there are pairs."""

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read pairs such as ``L1>T13 L2>L1``, or levels such as ``C7 T1 T2``.

        Raises
        ------
        ValueError
            If the text is neither, or gives two vertebrae one level.
        """
        words = text.split()
        pairs = [_PAIR.fullmatch(word) for word in words]
        names = [name for word in words for name in word.split(">")]
        unknown = next((name for name in names if name not in VALUE_OF_NAME), None)
        if not words or unknown is not None:
            raise ValueError(f"{unknown or text!r} is no vertebra ({', '.join(VALUE_OF_NAME)})")
        if ">" not in text:
            levels = tuple(VALUE_OF_NAME[name] for name in words)
            _check_distinct(levels)
            return cls(source, levels=levels)
        if not all(pairs):
            raise ValueError(f"{text!r} mixes levels and pairs of levels")
        changes = tuple((VALUE_OF_NAME[p[1]], VALUE_OF_NAME[p[2]]) for p in pairs if p is not None)
        _check_distinct([old for old, _ in changes])
        _check_distinct([new for _, new in changes])
        return cls(source, changes)

    def new_values(self, heights: Mapping[int, float]) -> dict[int, int]:
        """Return the new label of each vertebra of a mask that changes, by its present label.

        Parameters
        ----------
        heights
            Position of each label of the mask along z, which increases toward superior.

        Raises
        ------
        LabelError
            If the mask does not have as many vertebrae as the list, or if two of its labels would
            become one.
        """
        vertebrae = [value for value in heights if value in NAME_OF_VALUE]
        if self.levels:
            vertebrae.sort(key=heights.__getitem__, reverse=True)
            if len(vertebrae) != len(self.levels):
                raise LabelError(
                    f"the mask has {len(vertebrae)} vertebrae ({_names(vertebrae)}), and the list "
                    f"of errata has {len(self.levels)} ({_names(self.levels)}), {_ADVICE}"
                )
            mapping = dict(zip(vertebrae, self.levels, strict=True))
        else:
            mapping = {old: new for old, new in self.pairs if old in heights}
        results: dict[int, int] = {}
        for value in heights:
            new = mapping.get(value, value)
            if new in results:
                raise LabelError(
                    f"{_names([results[new], value])} of the mask would both become "
                    f"{_names([new])} by the list of errata, {_ADVICE}"
                )
            results[new] = value
        return {old: new for old, new in mapping.items() if old != new}

    def describe(self, new_values: Mapping[int, int]) -> str:
        """Return a text on what was changed, and who says so.

        Parameters
        ----------
        new_values
            Result of :meth:`new_values`.
        """
        changes = ", ".join(
            f"{_names([old])} became {_names([new])}" for old, new in new_values.items()
        )
        return f"{changes or 'no label changed'} ({self.source})"


def _check_distinct(values: Iterable[int]) -> None:
    seen: set[int] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{NAME_OF_VALUE[value]} is named twice")
        seen.add(value)


def _names(values: Iterable[int]) -> str:
    return " ".join(NAME_OF_VALUE.get(value, str(value)) for value in values)
