"""Does each figure of a dataset agree with its published card?"""

from dataclasses import dataclass, replace
from typing import Final, Literal

from spinezarr.card import Card, Contradiction, FigureKey, PrintedFigure
from spinezarr.stats.statistics import Statistics

__all__ = ["ComparedFigure", "Comparison", "Verdict", "compare"]

Verdict = Literal["equal", "differs", "missing in store", "card contradicts itself"]
"""Result of a comparison; the first of these that applies:

* ``equal``: both agree within the printed rounding.
* ``missing in store``: the card counts or measures something that the store lacks.
* ``card contradicts itself``: the figure does not fit other figures of the card, and these agree
  with the store or imply no value.
* ``differs``: none of these.
"""

_COUNTS: Final = frozenset({"scans", "patients", "slices", "vertebrae", "detection_percent"})
"""Statistics that are 0 if nothing is counted. All others have no value then."""


@dataclass(frozen=True, slots=True)
class ComparedFigure:
    """One figure with its values in the store and on the card."""

    key: FigureKey
    store: float | None
    """Value in the store; None if there is nothing to measure."""
    card: float
    """Value printed on the card."""
    decimals: int
    """Number of decimals to which the card rounds."""
    verdict: Verdict
    note: str
    """Remark on the card's figure; often empty."""

    @property
    def difference(self) -> float | None:
        """Value in the store minus that of the card; None if there is nothing to measure."""
        return None if self.store is None else self.store - self.card


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of all figures of a card with a store."""

    dataset: str
    """Name of the dataset in the store."""
    title: str
    """Title of the card."""
    source: str
    """Where the card was read."""
    as_of: str | None
    """Date or version of that source."""
    lines: tuple[ComparedFigure, ...]
    caveats: tuple[str, ...]
    """Remarks on contradictions of the card and on figures that must be read with care."""

    @property
    def agrees(self) -> bool:
        """Whether no figure differs or is missing. Contradictions of the card do not count."""
        return not any(line.verdict in {"differs", "missing in store"} for line in self.lines)

    @property
    def verdicts(self) -> dict[str, int]:
        """Number of lines of each verdict."""
        counts: dict[str, int] = {}
        for line in self.lines:
            counts[line.verdict] = counts.get(line.verdict, 0) + 1
        return counts


def compare(statistics: Statistics, card: Card) -> Comparison:
    """Compare each figure of ``card`` with that of the store, in the card's order."""
    figures, contradictions = statistics.figures(), card.contradictions()
    lines = []
    for key, printed in card.figures().items():
        store = figures.get(key, 0 if key.statistic in _COUNTS else None)
        heading_note = f"printed as {printed.printed_as}" if printed.printed_as else ""
        contradiction = contradictions.get(key)
        lines.append(
            ComparedFigure(
                key=key,
                store=store,
                card=printed.value,
                decimals=printed.decimals,
                verdict=_verdict(store, printed, contradiction),
                note="; ".join(
                    filter(None, (heading_note, contradiction.reason if contradiction else ""))
                ),
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


def _verdict(
    store: float | None, printed: PrintedFigure, contradiction: Contradiction | None
) -> Verdict:
    if store is not None and printed.is_rounded_from(store):
        return "equal"
    if not store:
        return "missing in store"
    if contradiction is None:
        return "differs"
    if contradiction.implied_value is None or replace(
        printed, value=contradiction.implied_value
    ).is_rounded_from(store):
        return "card contradicts itself"
    return "differs"
