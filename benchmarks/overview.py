"""Draws how many times as fast as the best other reader spinezarr is, for what users do.

The figures are those of the tables in ``README.md``, written into ``overview.json`` by hand. A row
has the ratio, the other reader, both rates, and the commit that was measured.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from chart import OTHER_COLOR, OUR_COLOR
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
_SIZE_INCHES = (7, 4.1)
"""So large that labels stay readable when the picture is 700 pixels wide."""
_DPI = 180
_GRAY = "0.35"
_WIDEST = 2
"""Width of the chart in lengths of the longest bar, so that its values fit beside it."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row: what users do, and how fast it is beside the best other reader."""

    name: str
    ratio: float
    """Median of spinezarr's rate over the other rate, within a round."""
    peer: str
    unit: str
    rates: tuple[float, float]
    """Median rates of spinezarr and of the other reader."""
    commit: str

    @property
    def label(self) -> str:
        """Return both rates and the other reader as text."""
        ours, theirs = (f"{rate:,.0f}" for rate in self.rates)
        return f"{ours} to {theirs}, {self.peer}"


def load(path: Path) -> list[Comparison]:
    """Read the rows of a JSON file."""
    rows = json.loads(path.read_text())["rows"]
    return [Comparison(**{**row, "rates": tuple(row["rates"])}) for row in rows]


def draw(rows: Sequence[Comparison], path: Path) -> None:
    """Draw a bar for each row, the first on top, with a line where both are as fast."""
    figure = Figure(_SIZE_INCHES, dpi=_DPI, facecolor="white", layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1)  # labels do not touch the edge
    axes = figure.subplots()
    places = range(len(rows))[::-1]
    colors = [OUR_COLOR if row.ratio >= 1 else OTHER_COLOR for row in rows]
    axes.barh(places, [row.ratio for row in rows], color=colors, height=0.66)
    for place, row in zip(places, rows, strict=True):
        _print_values(axes, place, row)
    axes.axvline(1, color="0.2", lw=0.9)
    axes.set_yticks(places, [row.name for row in rows], fontsize=9)
    axes.set_xticks([1], ["1: equally fast"], fontsize=8)
    axes.set_xlim(0, _WIDEST * max(row.ratio for row in rows))
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    figure.suptitle(
        "spinezarr's patches a second, as a multiple of the best other reader's", fontsize=10.5
    )
    axes.set_title("gray: both rates a second, and the other reader", fontsize=8, color=_GRAY)
    figure.savefig(path)


def _print_values(axes: Axes, place: int, row: Comparison) -> None:
    """Print the ratio of a row, then both rates, to the right of its bar."""
    ratio = axes.annotate(
        f"{row.ratio:.2g} ×", (max(row.ratio, 1), place), (5, 0),  # noqa: RUF001  the sign
        textcoords="offset points", va="center", fontsize=10, fontweight="bold",
    )  # fmt: skip
    axes.annotate(
        row.label, (1, 0.5), (6, 0), xycoords=ratio, textcoords="offset points", va="center",
        fontsize=8, color=_GRAY,
    )  # fmt: skip


def main() -> None:
    """Read the figures, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=FOLDER / "overview.json")
    parser.add_argument("--png", type=Path, default=FOLDER / "overview.png")
    options = parser.parse_args()
    draw(load(options.json), options.png)


if __name__ == "__main__":
    main()
