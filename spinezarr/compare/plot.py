"""How good is a prediction vertebra by vertebra, as named and at the best shift of its names?"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from spinezarr.compare.measures import MaskComparison, ShiftComparison
from spinezarr.compare.summary import StoreComparison
from spinezarr.export.picture_text import to_drawable
from spinezarr.export.plot import MARK_COLORS, add_legend, draw_values, name_vertebrae, new_plots
from spinezarr.text import count_noun
from spinezarr.vertebrae import ANATOMICAL_ORDER

__all__ = ["draw_measures"]

_SERIES: Final[tuple[tuple[str, str, float, Callable[[MaskComparison], ShiftComparison]], ...]] = (
    ("as named", MARK_COLORS[0], -0.19, lambda comparison: comparison.as_named),
    ("at the best shift of each scan", MARK_COLORS[1], 0.19, lambda comparison: comparison.best),
)
"""Name, color, offset on the horizontal axis, and comparison of each series."""
_WIDTH: Final = 0.32
_LEGEND_MARK: Final = 9
_MAX_NAME: Final = 40
"""Largest number of characters of a name in the title."""


def draw_measures(comparison: StoreComparison) -> Figure:
    """Draw the Dice coefficient and the Hausdorff distance (95 %) of each vertebra."""
    names = [
        name
        for name in ANATOMICAL_ORDER
        if any(name in _true_names(scan.comparison) for scan in comparison.scans)
    ]
    verdicts = ", ".join(f"{count} {kind}" for kind, count in comparison.verdicts.items())
    figure, (dice, hausdorff) = new_plots(
        f"{to_drawable(comparison.title, _MAX_NAME)}: "
        f"{to_drawable(comparison.prediction, _MAX_NAME)} and "
        f"{to_drawable(comparison.truth, _MAX_NAME)}",
        f"{count_noun(len(comparison.scans), 'scan')}: {verdicts or 'none'}. Missing vertebrae "
        "have Dice 0 and no distance.",
        2,
    )
    for _, color, offset, choose in _SERIES:
        rows = [choose(scan.comparison) for scan in comparison.scans]
        for position, name in enumerate(names):
            at = position + offset
            draw_values(dice, at, _values(rows, name, "dice"), color, _WIDTH)
            draw_values(hausdorff, at, _values(rows, name, "hausdorff95_mm"), color, _WIDTH)
    dice.set_ylim(-0.03, 1.03)
    dice.set_ylabel("Dice coefficient")
    hausdorff.set_ylim(bottom=0)
    hausdorff.set_ylabel("Hausdorff distance, 95 % (mm)")
    for axes in (dice, hausdorff):
        name_vertebrae(axes, names)
    for label, color, *_ in _SERIES:
        hausdorff.plot([], [], "s", color=color, markersize=_LEGEND_MARK, label=label)
    add_legend(hausdorff)
    return figure


def _true_names(comparison: MaskComparison) -> set[str]:
    return {row.vertebra for row in comparison.as_named.vertebrae}


def _values(rows: Sequence[ShiftComparison], name: str, measure: str) -> npt.NDArray[np.float64]:
    """Return the defined values of a measure of one vertebra."""
    values = [
        getattr(vertebra, measure)
        for row in rows
        for vertebra in row.vertebrae
        if vertebra.vertebra == name
    ]
    return np.array([value for value in values if value is not None], np.float64)
