"""Which figures does the published card of a dataset print, and do they contradict each other?"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from typing import Annotated, Final, Literal, NamedTuple, Self

from pydantic import AfterValidator, Field, model_validator

from spinezarr.errors import CardError
from spinezarr.strict_model import StrictModel
from spinezarr.strict_yaml import load_strict_yaml
from spinezarr.text import to_printable
from spinezarr.vertebrae import LEVELS

__all__ = [
    "REGIONS",
    "STATISTICS",
    "Card",
    "Contradiction",
    "FigureKey",
    "PrintedFigure",
    "Region",
    "Statistic",
]

Region = Literal["cervical", "thoracic", "lumbar"]
Statistic = Literal["min", "median", "max"]

REGIONS: Final[dict[Region, tuple[str, ...]]] = {
    "cervical": tuple(name for name in LEVELS if name.startswith("C")),
    "thoracic": tuple(name for name in LEVELS if name.startswith("T")),
    "lumbar": tuple(name for name in LEVELS if name.startswith("L")),
}
"""Names of the vertebrae of each region. T13 is thoracic, and L6 lumbar."""

STATISTICS: Final[tuple[Statistic, ...]] = ("min", "median", "max")


class FigureKey(NamedTuple):
    """Identifies one figure of a dataset.

    Examples
    --------
    >>> str(FigureKey("vertebra", "L1", "volume_cm3_median"))
    'vertebra L1 volume_cm3_median'
    """

    group: Literal["all", "split", "source", "axis", "region", "vertebra"]
    """Part of the dataset that the figure describes. ``all`` is the whole dataset, and ``axis`` is
    an axis of the source files."""
    name: str
    """Name of the split, source, axis (``i``, ``j``, ``k``), region or vertebra; empty for
    ``all``."""
    statistic: str
    """Name of the count or measurement, with its unit, such as ``volume_cm3_median``."""

    def __str__(self) -> str:
        parts = (part for part in (self.group, self.name, self.statistic) if part != "all")
        return to_printable(" ".join(parts))


@dataclass(frozen=True, slots=True)
class PrintedFigure:
    """One number as a card prints it."""

    value: float
    decimals: int
    """Number of decimals to which the card rounds it."""
    printed_as: str = ""
    """Heading on the card, if the figure is used as another statistic than its heading states."""

    def is_rounded_from(self, value: float) -> bool:
        """Whether ``value`` rounds to the printed number; a half may be rounded either way.

        Examples
        --------
        >>> PrintedFigure(3.28, 2).is_rounded_from(100 * 33 / 1005)
        True
        >>> PrintedFigure(34.49, 2).is_rounded_from(100 * 128 / 374)
        False
        """
        return abs(value - self.value) <= 0.5 * 10.0**-self.decimals + 1e-9


@dataclass(frozen=True, slots=True)
class Contradiction:
    """States that a printed figure does not fit other figures of the same card."""

    reason: str
    implied_value: float | None = None
    """Value that the other figures imply; None if they imply none."""


class _Spread(StrictModel):
    """Printed minimum, median and maximum along each axis i, j and k of the source files."""

    min: tuple[float, float, float]
    median: tuple[float, float, float]
    max: tuple[float, float, float]


class _Volumes(StrictModel):
    """Printed volumes in cm³ by the heading of their column."""

    min: float | None = None
    median: float | None = None
    max: float | None = None


class _Vertebra(StrictModel):
    """One row of the card's table of vertebrae."""

    scans: Annotated[int, Field(ge=0)]
    """Number of scans that show the vertebra."""
    detection_percent: float | None = None
    """Share of all scans, with or without a mask, that show the vertebra."""
    volume_cm3: _Volumes = _Volumes()


def _checked_levels(rows: dict[str, _Vertebra]) -> dict[str, _Vertebra]:
    unknown = next((name for name in rows if name not in LEVELS), None)
    if unknown is not None:
        raise ValueError(f"{unknown!r} is not a vertebra; the vertebrae are {', '.join(LEVELS)}")
    return rows


class Card(StrictModel):
    """The figures that a dataset's published card prints, read from a ``.card.yaml`` file.

    Shapes and spacings are in the order of the source files' axes (i, j, k), where k runs through
    the slices. ``ingest/README.md`` describes each key.
    """

    name: str
    """Name of the dataset."""
    title: str
    source: str
    """Where the card was read."""
    as_of: str | None = None
    """Date or version of that source."""
    scans: Annotated[int, Field(ge=1)]
    patients: int | None = None
    slices: int | None = None
    """Number of slices of all scans together."""
    splits: dict[str, int] = Field(default_factory=dict)
    """Number of scans in each split."""
    regions: dict[Region, int] = Field(default_factory=dict)
    """Number of vertebrae of each region, counted once in each scan."""
    decimals: Annotated[int, Field(ge=0, le=6)] = 2
    """Number of decimals of spacings, rates and volumes; the card may leave out final zeros."""
    spacing_ijk_mm: _Spread | None = None
    """Voxel spacing in mm along the file axes."""
    shape_ijk: _Spread | None = None
    """Number of voxels along the file axes."""
    volume_column_holds: dict[Statistic, Statistic] = Field(default_factory=dict)
    """Statistic that a column of volumes holds, by its heading, for wrong headings."""
    vertebrae: Annotated[dict[str, _Vertebra], AfterValidator(_checked_levels)] = Field(
        default_factory=dict
    )
    caveats: tuple[str, ...] = ()
    """Remarks on contradictions of the card and on figures that must be read with care."""

    @model_validator(mode="after")
    def _read_each_column_once(self) -> Self:
        for name, row in self.vertebrae.items():
            printed = [
                heading for heading in STATISTICS if getattr(row.volume_cm3, heading) is not None
            ]
            read = [self.volume_column_holds.get(heading, heading) for heading in printed]
            if len(set(read)) < len(read):
                raise ValueError(
                    f"volume_column_holds assigns two volumes of {name} to one statistic"
                )
        return self

    @classmethod
    def load_file(cls, path: Traversable) -> "Card":
        """Read the card file ``path``.

        Raises
        ------
        CardError
            If the file does not load. The message names the key and its line.
        """
        return load_strict_yaml(path, cls, CardError)

    def figures(self) -> dict[FigureKey, PrintedFigure]:
        """Return every printed figure, except volumes of vertebrae that no scan shows."""
        return dict(self._figures())

    def contradictions(self) -> dict[FigureKey, Contradiction]:
        """Return the figures that contradict other figures of the card."""
        figures = self.figures()
        return {
            **dict(_wrong_order(figures)),
            **dict(self._wrong_totals()),
            **dict(self._wrong_rates(figures)),
        }

    def _figures(self) -> Iterator[tuple[FigureKey, PrintedFigure]]:
        totals = {"scans": self.scans, "patients": self.patients, "slices": self.slices}
        for statistic, value in totals.items():
            if value is not None:
                yield FigureKey("all", "", statistic), PrintedFigure(value, 0)
        for split, scans in self.splits.items():
            yield FigureKey("split", split, "scans"), PrintedFigure(scans, 0)
        for unit, spread, decimals in (
            ("shape_ijk", self.shape_ijk, 0),
            ("spacing_ijk_mm", self.spacing_ijk_mm, self.decimals),
        ):
            for statistic in STATISTICS if spread is not None else ():
                for axis, value in zip("ijk", getattr(spread, statistic), strict=True):
                    key = FigureKey("axis", axis, f"{unit}_{statistic}")
                    yield key, PrintedFigure(value, decimals)
        for region, count in self.regions.items():
            yield FigureKey("region", region, "vertebrae"), PrintedFigure(count, 0)
        for name, row in self.vertebrae.items():
            yield from self._vertebra_figures(name, row)

    def _vertebra_figures(
        self, name: str, row: _Vertebra
    ) -> Iterator[tuple[FigureKey, PrintedFigure]]:
        yield FigureKey("vertebra", name, "scans"), PrintedFigure(row.scans, 0)
        if row.detection_percent is not None:
            key = FigureKey("vertebra", name, "detection_percent")
            yield key, PrintedFigure(row.detection_percent, self.decimals)
        for heading in STATISTICS if row.scans else ():
            value = getattr(row.volume_cm3, heading)
            if value is not None:
                statistic = self.volume_column_holds.get(heading, heading)
                printed_as = "" if statistic == heading else heading
                key = FigureKey("vertebra", name, f"volume_cm3_{statistic}")
                yield key, PrintedFigure(value, self.decimals, printed_as)

    def _wrong_totals(self) -> Iterator[tuple[FigureKey, Contradiction]]:
        """Yield totals that differ from the sum of their parts, and those parts."""
        total = sum(self.splits.values())
        if self.splits and total != self.scans:
            reason = f"the splits add up to {total} scans, but {self.scans} are printed"
            yield FigureKey("all", "", "scans"), Contradiction(reason, total)
            for split, scans in self.splits.items():
                contradiction = Contradiction(reason, self.scans - (total - scans))
                yield FigureKey("split", split, "scans"), contradiction
        if self.slices is not None and self.shape_ijk is not None:
            low, high = (
                self.scans * size_ijk[2] for size_ijk in (self.shape_ijk.min, self.shape_ijk.max)
            )
            if not low <= self.slices <= high:
                reason = f"{self.scans} scans of the printed sizes have {low:g} to {high:g} slices"
                yield FigureKey("all", "", "slices"), Contradiction(reason)
        for region, count in self.regions.items():
            rows = [self.vertebrae[name] for name in REGIONS[region] if name in self.vertebrae]
            total = sum(row.scans for row in rows)
            if rows and total != count:
                reason = f"the scans of its vertebrae add up to {total}"
                yield FigureKey("region", region, "vertebrae"), Contradiction(reason, total)

    def _wrong_rates(
        self, figures: Mapping[FigureKey, PrintedFigure]
    ) -> Iterator[tuple[FigureKey, Contradiction]]:
        """Yield detection counts and rates that do not match each other."""
        for name, row in self.vertebrae.items():
            percent = 100 * row.scans / self.scans
            count = FigureKey("vertebra", name, "scans")
            rate = FigureKey("vertebra", name, "detection_percent")
            printed = figures.get(rate)
            if printed is not None and not printed.is_rounded_from(percent):
                reason = f"{row.scans} of {self.scans} scans are {percent:.{self.decimals}f} %"
                yield count, Contradiction(reason, round(printed.value * self.scans / 100))
                yield rate, Contradiction(reason, percent)
            elif row.scans > self.scans:
                yield count, Contradiction(f"there are {self.scans} scans")


def _wrong_order(
    figures: Mapping[FigureKey, PrintedFigure],
) -> Iterator[tuple[FigureKey, Contradiction]]:
    """Yield figures whose minimum, median and maximum do not ascend."""
    spreads: dict[tuple[str, str, str], dict[str, FigureKey]] = {}
    for key in figures:
        measure, _, statistic = key.statistic.rpartition("_")
        if statistic in STATISTICS:
            spreads.setdefault((key.group, key.name, measure), {})[statistic] = key
    for spread in spreads.values():
        keys = [spread[statistic] for statistic in STATISTICS if statistic in spread]
        values = [figures[key].value for key in keys]
        if values != sorted(values):
            yield from ((key, Contradiction("min, median and max do not ascend")) for key in keys)
