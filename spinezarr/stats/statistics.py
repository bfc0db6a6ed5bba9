"""Which figures does a dataset have?

They come from its scan table. No scan is opened.

Shapes and spacings are in the order of the source file's axes ``(i, j, k)``, as on published cards.
The slices of a file are counted along ``k``.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from spinezarr.card import REGIONS, STATISTICS, FigureKey, Region
from spinezarr.geometry import AxisMap
from spinezarr.store.layout import LABEL
from spinezarr.vertebrae import VALUE_OF_NAME

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "Spread",
    "Statistics",
    "VertebraStatistics",
    "compute_statistics",
    "to_file_axes",
    "volumes_cm3",
]


@dataclass(frozen=True, slots=True)
class Spread:
    """Minimum, median and maximum of a set of numbers."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: npt.ArrayLike) -> "Spread | None":
        """Return the spread of all values; None if there are none.

        Examples
        --------
        >>> Spread.of([3, 1, 2, 5])
        Spread(min=1.0, median=2.5, max=5.0)
        """
        numbers = np.asarray(values, float)
        if not numbers.size:
            return None
        return cls(float(numbers.min()), float(np.median(numbers)), float(numbers.max()))


@dataclass(frozen=True, slots=True)
class VertebraStatistics:
    """The figures of one vertebra over all scans."""

    value: int | None
    """Label value; None for levels that only annotated centers have."""
    scans: int
    """Number of scans whose mask shows the vertebra."""
    detection_percent: float
    """Share of all scans, with or without a mask, whose mask shows the vertebra."""
    volume_cm3: Spread | None
    """Volume in the scans that show it, also if the vertebra is cut by the end of the volume."""
    annotated_centroids: int
    """Number of scans whose centroid file names the vertebra."""


@dataclass(frozen=True, slots=True)
class Statistics:
    """The figures of a dataset, or of a part of it."""

    dataset: str
    title: str
    mask: str
    """Mask that the figures are about: ``label``, or the name of a further one."""
    scans: int
    scans_with_mask: int
    patients: int
    slices: int
    """Number of voxels along k, summed over all scans."""
    scans_by_split: dict[str, int]
    """Number of scans in each split. The empty name stands for no split."""
    scans_by_source: dict[str, int]
    shape_ijk: dict[str, Spread]
    """Spread of the number of voxels along each file axis ``i``, ``j``, ``k``; empty without
    scans."""
    spacing_ijk_mm: dict[str, Spread]
    """Spread of the voxel spacing along each file axis; empty without scans."""
    vertebrae: dict[str, VertebraStatistics]
    """Figures of the labels that a scan has: vertebrae from head to tail, then others."""

    @property
    def vertebrae_by_region(self) -> dict[Region, int]:
        """Number of vertebrae of each region, counted once in each scan."""
        return {
            region: sum(self.vertebrae[name].scans for name in names if name in self.vertebrae)
            for region, names in REGIONS.items()
        }

    def figures(self) -> dict[FigureKey, float]:
        """Return every figure under the key that it has on a card."""
        return dict(self._figures())

    def _figures(self) -> Iterator[tuple[FigureKey, float]]:
        for statistic in ("scans", "scans_with_mask", "patients", "slices"):
            yield FigureKey("all", "", statistic), getattr(self, statistic)
        for split, scans in self.scans_by_split.items():
            yield FigureKey("split", split, "scans"), scans
        for source, scans in self.scans_by_source.items():
            yield FigureKey("source", source, "scans"), scans
        for unit, spreads in (
            ("shape_ijk", self.shape_ijk),
            ("spacing_ijk_mm", self.spacing_ijk_mm),
        ):
            for axis, spread in spreads.items():
                yield from _spread_figures("axis", axis, unit, spread)
        for region, count in self.vertebrae_by_region.items():
            yield FigureKey("region", region, "vertebrae"), count
        for name, vertebra in self.vertebrae.items():
            for statistic in ("scans", "detection_percent", "annotated_centroids"):
                yield FigureKey("vertebra", name, statistic), getattr(vertebra, statistic)
            if vertebra.volume_cm3 is not None:
                yield from _spread_figures("vertebra", name, "volume_cm3", vertebra.volume_cm3)


def _spread_figures(
    group: Literal["axis", "vertebra"], name: str, unit: str, spread: Spread
) -> Iterator[tuple[FigureKey, float]]:
    for statistic in STATISTICS:
        yield FigureKey(group, name, f"{unit}_{statistic}"), getattr(spread, statistic)


def to_file_axes(table: "xr.Dataset", column: str) -> npt.NDArray[Any]:
    """Convert a column from ``(z, y, x)`` to the axis order of each scan's source file.

    Returns
    -------
    numpy.ndarray
        Array of shape (scans, 3) with values along ``i, j, k`` of the file, in the same unit and
        type.
    """
    values_zyx = table[column].to_numpy()
    orientations, code_of_scan = np.unique(
        table.orientation.to_numpy().astype(object), return_inverse=True
    )
    axes_zyx = [AxisMap.from_axcodes(axcodes).source_axis_zyx for axcodes in orientations.tolist()]
    source_axis_zyx = np.array(axes_zyx, np.intp).reshape(-1, 3)[code_of_scan]
    values_ijk = np.empty_like(values_zyx)
    np.put_along_axis(values_ijk, source_axis_zyx, values_zyx, axis=1)
    return values_ijk


def volumes_cm3(table: "xr.Dataset") -> dict[str, npt.NDArray[np.float64]]:
    """Return the volumes in cm³ of each vertebra, from head to tail, in the order of the scans.

    Scans whose mask does not show the vertebra are left out.
    """
    counts, volumes = (table[name].to_numpy() for name in ("voxel_count", "volume_cm3"))
    return {
        str(name): volumes[is_visible, column]
        for column, name in enumerate(table.vertebra.to_numpy())
        if (is_visible := counts[:, column] > 0).any()
    }


def compute_statistics(table: "xr.Dataset", mask: str = LABEL) -> Statistics:
    """Count and measure the scans of a table.

    Parameters
    ----------
    table
        Scan table as :func:`spinezarr.store.table.build_table` makes it, or as
        :func:`spinezarr.stats.mask_table.table_of_mask` returns it.
    mask
        Name of the mask whose labels it has.
    """
    sizes = to_file_axes(table, "shape_zyx")
    return Statistics(
        dataset=table.attrs["dataset"],
        title=table.attrs["title"],
        mask=mask,
        scans=table.sizes["scan"],
        scans_with_mask=int((table.label_state.to_numpy() != "none").sum()),
        patients=len(set(table.patient_id.to_numpy())),
        slices=int(sizes[:, 2].sum(dtype=np.int64)),
        scans_by_split=_counts(table.split),
        scans_by_source=_counts(table.source),
        shape_ijk=_by_axis(sizes),
        spacing_ijk_mm=_by_axis(to_file_axes(table, "spacing_zyx_mm")),
        vertebrae=_vertebrae(table),
    )


def _counts(column: "xr.DataArray") -> dict[str, int]:
    names, counts = np.unique(column.to_numpy().astype(object), return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def _by_axis(values_ijk: npt.NDArray[Any]) -> dict[str, Spread]:
    spreads = {axis: Spread.of(values_ijk[:, column]) for column, axis in enumerate("ijk")}
    return {axis: spread for axis, spread in spreads.items() if spread is not None}


def _vertebrae(table: "xr.Dataset") -> dict[str, VertebraStatistics]:
    volumes: Mapping[str, npt.NDArray[np.float64]] = volumes_cm3(table)
    annotated_counts = (
        np.isfinite(table.annotated_centroid_zyx_mm.to_numpy()).all(axis=2).sum(axis=0)
    )
    no_volumes = np.empty(0)
    return {
        name: VertebraStatistics(
            value=VALUE_OF_NAME.get(name),
            scans=(level_volumes := volumes.get(name, no_volumes)).size,
            detection_percent=100 * level_volumes.size / table.sizes["scan"],
            volume_cm3=Spread.of(level_volumes),
            annotated_centroids=int(annotated),
        )
        for name, annotated in zip(
            map(str, table.vertebra.to_numpy()), annotated_counts, strict=True
        )
        if name in volumes or annotated
    }
