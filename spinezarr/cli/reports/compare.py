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
    if comparison.not_saved:
        print_error(comparison.not_saved)
    if as_json:
        print_json(comparison.to_json(), comparison.exit_code)
    else:
        _print(comparison)
    for path in written:
        ERR.note(f"Wrote {path}.")


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
    columns = ("scans", "Dice", "HD95", "ASSD", "cent.", "true", "pred.", "miss.", "inv.")
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
    """Print means over the scans: as named, at each other shift, and at the best of each scan."""
    columns = ("scans", "id. %", "loc. mm", "Dice", "HD", "HD95", "ASSD")
    table = Table("Means over the scans, by the shift of the names", "", *columns, right=columns)
    rows = {"as named": comparison.as_named}
    rows |= {f"shift {shift:+}": row for shift, row in comparison.by_shift().items()}
    for name, row in {**rows, "best of each scan": comparison.best}.items():
        table.add_row(
            name,
            str(row.scans),
            _percent(row.identification_rate),
            _number(row.mean_localization_distance_mm, 2),
            _number(row.dice, 3),
            _number(row.hausdorff_mm, 1),
            _number(row.hausdorff95_mm, 1),
            _number(row.assd_mm, 2),
        )
    OUT.print(table)
    OUT.say("id. is the identification rate, loc. the mean localization distance (VerSe).")
    OUT.say("At shift +1, the predicted L1 is compared with the true T12, and so on.")


def _number(value: float | None, decimals: int) -> str:
    return _NO_VALUE if value is None else f"{value:.{decimals}f}"


def _percent(rate: float | None) -> str:
    return _NO_VALUE if rate is None else f"{100 * rate:.0f}"
