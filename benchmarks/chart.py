"""Draws the rates of a run as bars."""

from pathlib import Path
from typing import Any

from draws import KINDS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from targets import OURS, UPPER_BOUND

OUR_COLOR = "#08519c"
OTHER_COLOR = "#fd8d3c"
_COLORS = {OURS: OUR_COLOR, UPPER_BOUND: "#bdbdbd"}
_LOWEST_RATE = 0.1
"""Rate at which all bars begin."""
_TITLES = {"128^3": "128³", "96^3": "96³"}


def draw_rates(result: dict[str, Any], path: Path) -> None:
    """Draw patches per second of each reader on a logarithmic scale, with a panel per kind."""
    kinds = [kind for kind in KINDS if any(row["kind"] == kind for row in result["rows"])]
    figure = Figure(
        (13, 4.2 * -(-len(kinds) // 3)), dpi=90, facecolor="white", layout="constrained"
    )
    panels = figure.subplots(-(-len(kinds) // 3), 3, squeeze=False).ravel()
    for axes in panels[len(kinds) :]:
        axes.set_visible(False)
    for axes, kind in zip(panels, kinds, strict=False):
        draw_bars(
            axes, _TITLES.get(kind, kind), [row for row in result["rows"] if row["kind"] == kind]
        )
    figure.suptitle(
        f"{result['data'].removesuffix('.nii.gz')}: patches of image and mask a second, "
        f"{result['cpus']} cores, hot page cache; median, and min to max",
        fontsize=11,
    )
    figure.savefig(path)


def draw_bars(axes: Axes, title: str, rows: list[dict[str, Any]]) -> None:
    """Draw the rates of readers, with the fastest on top."""
    rows = sorted(rows, key=lambda row: row["per_s_median"])
    values = [row["per_s_median"] for row in rows]
    spread = [
        [row["per_s_median"] - row["per_s_min"] for row in rows],
        [row["per_s_max"] - row["per_s_median"] for row in rows],
    ]
    colors = [_COLORS.get(row["reader"].split(",")[0], OTHER_COLOR) for row in rows]
    axes.barh(
        range(len(rows)), values, color=colors, xerr=spread, error_kw={"lw": 0.8, "ecolor": "0.3"}
    )
    for i, row in enumerate(rows):
        value = row["per_s_median"]
        axes.annotate(
            f"{value:.0f}" if value >= 10 else f"{value:.1f}",  # noqa: PLR2004  two digits
            (row["per_s_max"], i), (4, 0), textcoords="offset points", va="center", fontsize=8,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["reader"] for row in rows], fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(_LOWEST_RATE, max(row["per_s_max"] for row in rows) * 3)
    axes.set_title(title, fontsize=10)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
