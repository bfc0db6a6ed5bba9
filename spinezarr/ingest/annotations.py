"""Small files beside an image: annotated centroids and JSON sidecars."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import fsspec
import numpy as np

from spinezarr.formats.centroids import Centroids, out_of_order, read_centroids
from spinezarr.geometry import Grid
from spinezarr.ingest.discover import ScanSource
from spinezarr.store.attributes import CentroidRecord
from spinezarr.vertebrae import VALUE_OF_NAME

__all__ = ["AnnotatedCentroids", "read_annotated", "read_sidecar"]

NEAR_LABEL_MM: Final = 5.0
"""Distance from its label up to which an annotated centroid is taken to be right.

Centroids are drawn by hand or by a rule of their own, to a voxel at best, and slices are up to 5 mm
apart in the datasets at hand.
"""


@dataclass(frozen=True, slots=True, eq=False)
class AnnotatedCentroids:
    """The centroids of one scan, on its grid."""

    found: Centroids
    grid: Grid

    def index_by_value(self) -> dict[int, tuple[float, float, float]]:
        """Return stored voxel indices ``(z, y, x)``, by label value."""
        to_index = np.linalg.inv(self.grid.affine_xyz)
        indices = {}
        for name, position in self.found.position_mm.items():
            if name in VALUE_OF_NAME:
                x, y, z = (to_index @ (*position, 1))[:3].tolist()
                indices[VALUE_OF_NAME[name]] = (z, y, x)
        return indices

    def records(self, distance_mm: Mapping[int, float]) -> dict[str, CentroidRecord]:
        """Return what is stored; ``distance_mm`` is to each label, by value."""
        return {
            name: CentroidRecord(
                position_zyx_mm=(z, y, x),
                label_distance_mm=distance_mm.get(VALUE_OF_NAME.get(name, -1)),
            )
            for name, (x, y, z) in self.found.position_mm.items()
        }

    def notes(self, records: Mapping[str, CentroidRecord]) -> list[str]:
        """Say which centroids are not where they should be."""
        notes = list(self.found.notes)
        for name, record in records.items():
            distance = record.label_distance_mm
            if distance is not None and distance > NEAR_LABEL_MM:
                notes.append(f"the centroid of {name} lies {distance:.1f} mm from its label")
        for above, below in out_of_order(self.found.position_mm):
            notes.append(f"the centroid of {below} does not lie below that of {above}")
        return notes


def read_annotated(
    fs: fsspec.AbstractFileSystem, root: str, source: ScanSource, grid: Grid
) -> AnnotatedCentroids:
    """Read the centroids of a scan; none if it has no such file.

    Raises
    ------
    FormatError
        If the file is not what the recipe says.
    """
    if source.centroids is None or source.centroid_convention is None:
        return AnnotatedCentroids(Centroids({}, ()), grid)
    data = fs.cat_file(f"{root}/{source.centroids}")
    convention = source.centroid_convention
    found = read_centroids(data, source.centroids, convention=convention, grid=grid)
    return AnnotatedCentroids(found, grid)


def read_sidecar(
    fs: fsspec.AbstractFileSystem, root: str, path: str | None, notes: list[str]
) -> dict[str, str]:
    """Read the texts and numbers of a JSON file; one that is none is noted and passed over."""
    if path is None:
        return {}
    try:
        said: Any = json.loads(fs.cat_file(f"{root}/{path}"))
    except (ValueError, RecursionError) as problem:
        notes.append(f"{path}: passed over, as it is not JSON ({problem})")
        return {}
    if not isinstance(said, dict):
        notes.append(f"{path}: passed over, as it is not a JSON object")
        return {}
    return {
        key: str(value)
        for key, value in said.items()
        if isinstance(value, str | int | float) and key
    }
