"""How is a comparison written as one table for spreadsheets and statistics programs?"""

from dataclasses import astuple, fields
from typing import Final

from spinezarr.compare.measures import VertebraComparison
from spinezarr.compare.summary import StoreComparison
from spinezarr.text import to_csv

__all__ = ["comparison_csv"]

_COLUMNS: Final = tuple(field.name for field in fields(VertebraComparison))


def comparison_csv(comparison: StoreComparison) -> str:
    """Return CSV with one row for each scan, shift and true vertebra, unrounded.

    A cell without a value is empty. Invented vertebrae have no truth to be compared with, so they
    have no row.
    """
    return to_csv(
        ("scan", "verdict", "shift", *_COLUMNS),
        [
            (scan.scan_id, scan.comparison.verdict.kind, row.shift, *astuple(vertebra))
            for scan in comparison.scans
            for row in scan.comparison.shifts
            for vertebra in row.vertebrae
        ],
    )
