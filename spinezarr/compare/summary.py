"""Which figures does a comparison of many scans have, and which scans are the worst?"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from spinezarr.compare.measures import MaskComparison, ShiftComparison, VertebraComparison
from spinezarr.compare.verdict import VerdictKind
from spinezarr.compare.verse import mean
from spinezarr.vertebrae import ANATOMICAL_ORDER, LEVELS

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MeanMeasures", "ScanComparison", "StoreComparison", "VertebraSummary"]

_SCAN_COLUMNS: dict[str, Callable[[ShiftComparison], float | None]] = {
    "dice": lambda row: row.verse.dice,
    "hausdorff_mm": lambda row: row.verse.hausdorff_mm,
    "hausdorff95_mm": lambda row: row.hausdorff95_mm,
    "assd_mm": lambda row: row.assd_mm,
    "identification_rate": lambda row: row.verse.identification_rate,
    "mean_localization_distance_mm": lambda row: row.verse.mean_localization_distance_mm,
}
_VERTEBRA_COLUMNS = (
    "dice",
    "hausdorff_mm",
    "hausdorff95_mm",
    "assd_mm",
    "centroid_distance_mm",
    "predicted_volume_cm3",
)


@dataclass(frozen=True, slots=True)
class ScanComparison:
    """The comparison of one scan."""

    scan_id: str
    comparison: MaskComparison

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        comparison = self.comparison
        return {
            "scan_id": self.scan_id,
            "verdict": asdict(comparison.verdict),
            "best_shift": comparison.best.shift,
            "ignored_values": list(comparison.ignored_values),
            "matches": [asdict(match) for match in comparison.matches],
            "shifts": [
                {
                    "shift": row.shift,
                    **{name: measure(row) for name, measure in _SCAN_COLUMNS.items()},
                    "missing": list(row.missing),
                    "invented": list(row.invented),
                    "vertebrae": [asdict(vertebra) for vertebra in row.vertebrae],
                }
                for row in comparison.shifts
            ],
        }


@dataclass(frozen=True, slots=True)
class VertebraSummary:
    """One vertebra in all scans, compared as named. A mean without values is None."""

    vertebra: str
    scans: int
    """Number of scans whose truth has the vertebra."""
    missing: int
    """Number of these scans whose prediction lacks it."""
    invented: int
    """Number of scans whose prediction alone has it."""
    dice: float | None
    hausdorff_mm: float | None
    hausdorff95_mm: float | None
    assd_mm: float | None
    centroid_distance_mm: float | None
    true_volume_cm3: float | None
    predicted_volume_cm3: float | None


@dataclass(frozen=True, slots=True)
class MeanMeasures:
    """Means over scans of their means over vertebrae. A mean without values is None.

    :class:`spinezarr.compare.verse.VerseMeasures` and
    :class:`spinezarr.compare.surface.SurfaceDistances` define the measures.
    """

    scans: int
    """Number of scans."""
    dice: float | None
    hausdorff_mm: float | None
    hausdorff95_mm: float | None
    assd_mm: float | None
    identification_rate: float | None
    mean_localization_distance_mm: float | None

    @classmethod
    def of(cls, rows: Iterable[ShiftComparison]) -> "MeanMeasures":
        """Return the means of comparisons, each of another scan."""
        rows = list(rows)
        means = {name: mean(map(measure, rows)) for name, measure in _SCAN_COLUMNS.items()}
        return cls(scans=len(rows), **means)


@dataclass(frozen=True, slots=True)
class StoreComparison:
    """The comparison of a predicted mask with the truth in many scans."""

    dataset: str
    title: str
    prediction: str
    """Name or path of the predicted masks."""
    truth: str
    """Name of the true masks."""
    scans: tuple[ScanComparison, ...] = field(repr=False)
    """The compared scans, in the order of the store."""
    failed: dict[str, str]
    """Why each of the other scans could not be compared, by scan id."""
    without_truth: tuple[str, ...]
    """Ids of the scans that have no true mask, so nothing was compared."""
    not_saved: str = ""
    """Why the result could not be saved in the store; empty if it was, or was not to be saved."""

    @property
    def exit_code(self) -> int:
        """0 if every scan that has a true mask was compared, and saved if requested, else 1."""
        return int(bool(self.failed or self.not_saved))

    @property
    def verdicts(self) -> dict[VerdictKind, int]:
        """Number of scans of each verdict, the most frequent first."""
        return dict(Counter(scan.comparison.verdict.kind for scan in self.scans).most_common())

    def worst(self, count: int) -> tuple[ScanComparison, ...]:
        """Return the scans with the lowest Dice coefficients as named, the lowest first.

        A scan whose truth has no vertebra has no Dice coefficient and comes last.
        """

        def dice(scan: ScanComparison) -> float:
            value = scan.comparison.as_named.verse.dice
            return np.inf if value is None else value

        return tuple(sorted(self.scans, key=dice)[:count])

    @property
    def as_named(self) -> MeanMeasures:
        """Means over the scans, with the names of the prediction."""
        return MeanMeasures.of(scan.comparison.as_named for scan in self.scans)

    @property
    def best(self) -> MeanMeasures:
        """Means over the scans, each at its best shift."""
        return MeanMeasures.of(scan.comparison.best for scan in self.scans)

    def by_shift(self) -> dict[int, MeanMeasures]:
        """Return means at each shift other than 0, over the scans in which vertebrae then overlap.

        See :attr:`spinezarr.compare.measures.MaskComparison.shifts`.
        """
        rows: dict[int, list[ShiftComparison]] = {}
        for scan in self.scans:
            for row in scan.comparison.shifts:
                rows.setdefault(row.shift, []).append(row)
        return {shift: MeanMeasures.of(rows[shift]) for shift in sorted(rows) if shift}

    def vertebrae(self) -> tuple[VertebraSummary, ...]:
        """Return a summary of each vertebra that a mask has, from head to tail."""
        rows: dict[str, list[VertebraComparison]] = {}
        invented: Counter[str] = Counter()
        for scan in self.scans:
            for row in scan.comparison.as_named.vertebrae:
                rows.setdefault(row.vertebra, []).append(row)
            invented.update(scan.comparison.as_named.invented)
        return tuple(
            _summarize(name, rows.get(name, []), invented[name])
            for name in ANATOMICAL_ORDER
            if name in rows or name in invented
        )

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON values."""
        return {
            "dataset": self.dataset,
            "prediction": self.prediction,
            "truth": self.truth,
            "verdicts": self.verdicts,
            "as_named": asdict(self.as_named),
            "at_the_best_shift": asdict(self.best),
            "by_shift": {str(shift): asdict(row) for shift, row in self.by_shift().items()},
            "vertebrae": [asdict(row) for row in self.vertebrae()],
            "scans": [scan.to_json() for scan in self.scans],
            "failed": self.failed,
            "without_truth": list(self.without_truth),
            "not_saved": self.not_saved,
        }

    def columns(self) -> "xr.Dataset":
        """Return columns for the scan table, over ``scan`` and ``vertebra``.

        Returns
        -------
        xarray.Dataset
            Columns whose names begin with ``compare_``, for the compared scans. Those over ``scan``
            are the verdict, the best shift, and means over the vertebrae as named; those over
            ``scan`` and ``vertebra`` begin with ``compare_vertebra_``. A value that is not defined
            is NaN. ``xr.merge([store.table, columns], join="inner")`` is the scan table with them.
        """
        # xarray takes long to import, and the command does not need it.
        import xarray as xr  # noqa: PLC0415

        string = np.dtypes.StringDType()
        comparisons = [scan.comparison for scan in self.scans]
        columns: dict[str, Any] = {
            "compare_verdict": ("scan", np.array([c.verdict.kind for c in comparisons], string)),
            "compare_text": ("scan", np.array([c.verdict.text for c in comparisons], string)),
            "compare_best_shift": ("scan", np.array([c.best.shift for c in comparisons], np.int64)),
            "compare_best_dice": ("scan", _array(c.best.verse.dice for c in comparisons)),
        }
        for name, measure in _SCAN_COLUMNS.items():
            columns[f"compare_{name}"] = ("scan", _array(measure(c.as_named) for c in comparisons))
        for name in _VERTEBRA_COLUMNS:
            values = np.full((len(comparisons), len(LEVELS)), np.nan)
            for scan, comparison in enumerate(comparisons):
                for row in comparison.as_named.vertebrae:
                    value = getattr(row, name)
                    values[scan, LEVELS.index(row.vertebra)] = np.nan if value is None else value
            columns[f"compare_vertebra_{name}"] = (("scan", "vertebra"), values)
        scan_ids = np.array([scan.scan_id for scan in self.scans], string)
        return xr.Dataset(columns, {"scan": scan_ids, "vertebra": np.array(LEVELS, string)})


def _array(values: Iterable[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if value is None else value for value in values], np.float64)


def _summarize(name: str, rows: list[VertebraComparison], invented: int) -> VertebraSummary:
    def values(measure: str) -> Iterator[float | None]:
        return (getattr(row, measure) for row in rows)

    return VertebraSummary(
        vertebra=name,
        scans=len(rows),
        missing=sum(row.is_missing for row in rows),
        invented=invented,
        dice=mean(values("dice")),
        hausdorff_mm=mean(values("hausdorff_mm")),
        hausdorff95_mm=mean(values("hausdorff95_mm")),
        assd_mm=mean(values("assd_mm")),
        centroid_distance_mm=mean(values("centroid_distance_mm")),
        true_volume_cm3=mean(values("true_volume_cm3")),
        predicted_volume_cm3=mean(values("predicted_volume_cm3")),
    )
