"""Which spacings and vertebrae do the scans of a store have?

``GET /v1/<store>/statistics`` returns the counts.
"""

from http import HTTPStatus
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from pydantic import BaseModel, ConfigDict, Field

from spinezarr.errors import UsageError
from spinezarr.serve.http import Answer, Request, text_answer
from spinezarr.serve.query import QueryModel, WrongQueryError, parse_query
from spinezarr.serve.tables import ServedTable
from spinezarr.stats.histogram import Histogram
from spinezarr.stats.statistics import compute_statistics
from spinezarr.store.selection import ScanSelection

__all__ = ["StatisticsModel", "StatisticsQuery", "answer_statistics"]

_Count = Annotated[int, Field(ge=0)]


class StatisticsQuery(QueryModel):
    """The scans to count. They match all given filters."""

    split: str | None = None
    source: str | None = None
    """Collection within the dataset."""


class _ResponseModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class HistogramModel(_ResponseModel):
    """A histogram of scans over a length."""

    edges_mm: tuple[float, ...]
    """Edges of the bins, one more than there are bins; empty without scans."""
    scans: tuple[_Count, ...]
    """Number of scans in each bin, which includes its lower edge and excludes its upper one."""


class SpacingsModel(_ResponseModel):
    """Histograms of the spacing along each stored axis."""

    z: HistogramModel
    y: HistogramModel
    x: HistogramModel


class DetectionModel(_ResponseModel):
    """How many scans show a vertebra in their mask."""

    name: str
    scans: _Count
    detection_percent: Annotated[float, Field(ge=0, le=100)]
    """Percentage of all scans, with or without a mask."""


class StatisticsModel(_ResponseModel):
    """Counts and histograms of scans."""

    scans: _Count
    scans_with_mask: _Count
    patients: _Count
    scans_by_split: dict[str, _Count]
    """Number of scans in each split. The empty name stands for no split."""
    scans_by_source: dict[str, _Count]
    spacing_mm: SpacingsModel
    vertebrae: tuple[DetectionModel, ...]
    """Vertebrae that at least one scan shows, from head to tail."""


def answer_statistics(served_table: ServedTable, request: Request) -> Answer:
    """Count and measure the scans of a store.

    Parameters
    ----------
    served_table
        Scan table of the store.
    request
        The request; its query is a :class:`StatisticsQuery`.
    """
    try:
        query = parse_query(StatisticsQuery, request.query)
    except WrongQueryError as problem:
        return text_answer(HTTPStatus.BAD_REQUEST, str(problem))

    def count(table: xr.Dataset) -> dict[str, Any]:
        try:
            selection = ScanSelection.of(split=query.split, source=query.source)
            chosen = table.isel(scan=selection.rows(table, "the store"))
        except UsageError:  # no scan has such a split or source
            chosen = table.isel(scan=slice(0))
        return _statistics_model(chosen).model_dump(mode="json")

    return served_table.body(f"statistics {query.model_dump_json()}", count).answer(request)


def _statistics_model(table: xr.Dataset) -> StatisticsModel:
    statistics = compute_statistics(table)
    z, y, x = (_histogram(column) for column in table.spacing_zyx_mm.to_numpy().T)
    return StatisticsModel(
        scans=statistics.scans,
        scans_with_mask=statistics.scans_with_mask,
        patients=statistics.patients,
        scans_by_split=statistics.scans_by_split,
        scans_by_source=statistics.scans_by_source,
        spacing_mm=SpacingsModel(z=z, y=y, x=x),
        vertebrae=tuple(
            DetectionModel(
                name=name, scans=vertebra.scans, detection_percent=vertebra.detection_percent
            )
            for name, vertebra in statistics.vertebrae.items()
            if vertebra.scans
        ),
    )


def _histogram(values_mm: npt.NDArray[np.float64]) -> HistogramModel:
    histogram = Histogram.of(values_mm)
    return HistogramModel(edges_mm=histogram.edges, scans=histogram.counts)
