"""A dataset's figures against those of its card, one by one."""

from dataclasses import dataclass, replace
from typing import Final, Literal

from spinezarr.card import Card, Contradiction, FigureKey, PrintedFigure
from spinezarr.stats.statistics import Statistics

__all__ = ["ComparedFigure", "Comparison", "Verdict", "compare"]

Verdict = Literal["equal", "differs", "missing in store", "card contradicts itself"]
"""The first that holds: ``equal`` within the printed rounding; ``missing in store``, where the card
counts or measures something that the store lacks; ``card contradicts itself``, where the figure
does not fit others of the card and the store agrees with those, or they do not tell; ``differs``.
"""

_COUNTS: Final = frozenset({"scans", "patients", "slices", "vertebrae", "detection_percent"})
"""Statistics that are 0 of what is not there; all others have no value then."""


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure in the store and on the card."""

    key: FigureKey
    store: float | None
    """None: there is nothing to measure."""
    card: float
    decimals: int
    """To which the card rounds."""
    verdict: Verdict
    note: str
    """What is to be known of the card's figure; often empty."""

    @property
    def difference(self) -> float | None:
        """Here less the card; None where there is nothing here."""
        return None if self.store is None else self.store - self.card


@dataclass(frozen=True, slots=True)
class Comparison:
    """All figures of a card, each compared."""

    dataset: str
    """Of the store."""
    title: str
    """Of the card."""
    source: str
    """Where the card was read."""
    as_of: str | None
    """State of that source."""
    lines: tuple[ComparedFigure, ...]
    caveats: tuple[str, ...]
    """What contradicts itself on the card, or is to be read with care."""

    @property
    def agrees(self) -> bool:
        """Whether no figure differs or is missing; those where the card is wrong do not count."""
        return not any(line.verdict in {"differs", "missing in store"} for line in self.lines)

    @property
    def verdicts(self) -> dict[str, int]:
        """Number of lines of each verdict."""
        found: dict[str, int] = {}
        for line in self.lines:
            found[line.verdict] = found.get(line.verdict, 0) + 1
        return found


def compare(statistics: Statistics, card: Card) -> Comparison:
    """Compare each figure that ``card`` prints with the one found, in the card's order."""
    found, wrong = statistics.figures(), card.contradictions()
    lines = []
    for key, printed in card.figures().items():
        store = found.get(key, 0 if key.statistic in _COUNTS else None)
        heading = f"printed as {printed.printed_as}" if printed.printed_as else ""
        doubt = wrong.get(key)
        lines.append(
            ComparedFigure(
                key=key,
                store=store,
                card=printed.value,
                decimals=printed.decimals,
                verdict=_verdict(store, printed, doubt),
                note="; ".join(filter(None, (heading, doubt.reason if doubt else ""))),
            )
        )
    return Comparison(
        dataset=statistics.dataset,
        title=card.title,
        source=card.source,
        as_of=card.as_of,
        lines=tuple(lines),
        caveats=card.caveats,
    )


def _verdict(store: float | None, printed: PrintedFigure, doubt: Contradiction | None) -> Verdict:
    if store is not None and printed.is_rounded_from(store):
        return "equal"
    if not store:
        return "missing in store"
    if doubt is None:
        return "differs"
    if doubt.implied_value is None or replace(printed, value=doubt.implied_value).is_rounded_from(
        store
    ):
        return "card contradicts itself"
    return "differs"
