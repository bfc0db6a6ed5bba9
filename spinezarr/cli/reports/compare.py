"""What does a comparison of masks print?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from spinezarr.cli.console import (
    ERR,
    MAX_ROWS,
    OUT,
    Table,
    print_capped,
    print_error,
    print_heading,
    print_json,
)
from spinezarr.compare.summary import ScanComparison, StoreComparison, VertebraSummary
from spinezarr.compare.verdict import VerdictKind
from spinezarr.text import count_noun

__all__ = ["print_comparison"]

_NO_VALUE: Final = "-"
_STYLES: Final[dict[VerdictKind, str | None]] = {
    "right": None,
    "poor outlines": "yellow",
    "incomplete": "yellow",
    "partly shifted": "magenta",
    "shifted": "magenta",
    "not found": "red",
    "empty": None,
}


def print_comparison(
    comparison: StoreComparison, written: Sequence[Path], *, as_json: bool
) -> None:
    """Print a comparison, and where its files are."""
    for scan_id, reason in comparison.failed.items():
        print_error(f"{scan_id}: {reason}")
    if as_json:
        print_json(comparison.to_json())
    else:
        _print(comparison)
    for path in written:
        ERR.say(f"Wrote {path}.")


def _print(comparison: StoreComparison) -> None:
    scans = count_noun(len(comparison.scans), "scan")
    print_heading(f"{comparison.prediction} and {comparison.truth}: {scans}")
    if comparison.without_truth:
        missing = count_noun(len(comparison.without_truth), "scan")
        OUT.say(f"Left out, because there is no truth: {missing}.")
    if comparison.failed:
        OUT.say(f"Not compared: {count_noun(len(comparison.failed), 'scan')} (see above).")
    if not comparison.scans:
        return
    verdicts = ", ".join(f"{count} {kind}" for kind, count in comparison.verdicts.items())
    OUT.say(f"Verdicts: {verdicts}.")
    _print_scans(comparison)
    _print_vertebrae(comparison.vertebrae())
    _print_measures(comparison)


def _print_scans(comparison: StoreComparison) -> None:
    """Print one row for each scan, the worst first."""
    columns = ("Dice", "HD95", "id. %", "shift")
    table = Table("Scans, the worst first", "scan", *columns, "verdict", right=columns)
    for scan in comparison.worst(MAX_ROWS):
        table.add_row(*_scan_row(scan), style=_STYLES[scan.comparison.verdict.kind])
    print_capped(table, len(comparison.scans))


def _scan_row(scan: ScanComparison) -> tuple[str, ...]:
    row, verdict = scan.comparison.as_named, scan.comparison.verdict
    ignored = ", ".join(map(str, scan.comparison.ignored_values))
    note = f" Values that are no vertebra: {ignored}." if ignored else ""
    return (
        scan.scan_id,
        _number(row.verse.dice, 3),
        _number(row.hausdorff95_mm, 1),
        _percent(row.verse.identification_rate),
        f"{verdict.shift:+}" if verdict.shift else "0",
        f"{verdict.text}{note}",
    )


def _print_vertebrae(rows: Sequence[VertebraSummary]) -> None:
    columns = ("scans", "Dice", "HD95", "ASSD", "centroid", "true", "predicted", "miss.", "inv.")
    title = "Vertebrae as named: means; distances in mm, volumes in cm³"
    table = Table(title, "", *columns, right=columns)
    for row in rows:
        table.add_row(
            row.vertebra,
            str(row.scans),
            _number(row.dice, 3),
            _number(row.hausdorff95_mm, 1),
            _number(row.assd_mm, 2),
            _number(row.centroid_distance_mm, 1),
            _number(row.true_volume_cm3, 1),
            _number(row.predicted_volume_cm3, 1),
            str(row.missing or _NO_VALUE),
            str(row.invented or _NO_VALUE),
        )
    OUT.print(table)


def _print_measures(comparison: StoreComparison) -> None:
    columns = ("as named", "at the best shift of each scan")
    table = Table("VerSe's measures, means over the scans", "", *columns, right=columns)
    both = (comparison.as_named, comparison.best)
    table.add_row("identification rate (%)", *(_percent(row.identification_rate) for row in both))
    table.add_row(
        "mean localization distance (mm)",
        *(_number(row.mean_localization_distance_mm, 2) for row in both),
    )
    table.add_row("Dice", *(_number(row.dice, 3) for row in both))
    table.add_row("Hausdorff distance (mm)", *(_number(row.hausdorff_mm, 2) for row in both))
    OUT.print(table)


def _number(value: float | None, decimals: int) -> str:
    return _NO_VALUE if value is None else f"{value:.{decimals}f}"


def _percent(rate: float | None) -> str:
    return _NO_VALUE if rate is None else f"{100 * rate:.0f}"
